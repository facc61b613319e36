"""What a trained model's cai.json keeps besides its manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cai_cli.manifest import device_facts
from cai_cli.models.chat import template_hash, vocabulary_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def model_facts(model: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Device, dtype and threads; the chat template's and the vocabulary's hashes, by which models are matched."""
    return {
        **device_facts(str(model.device), str(model.dtype).removeprefix("torch.")),
        "chat_template": template_hash(tokenizer),
        "vocabulary": vocabulary_hash(tokenizer),
    }
