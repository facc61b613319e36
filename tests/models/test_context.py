"""The longest sequence of a model, under whichever name its architecture has for it."""

from __future__ import annotations

import pytest
from transformers import (
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    OpenAIGPTConfig,
    PreTrainedConfig,
)

from cai_cli.models.configs import context_length


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (LlamaConfig(max_position_embeddings=512), 512),
        (GPT2Config(n_positions=512), 512),
        (OpenAIGPTConfig(n_positions=512), 512),
        (MptConfig(max_seq_len=512), 512),
        (BloomConfig(seq_length=512), 512),
        (MambaConfig(), 1 << 30),
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else "",
)
def test_the_context_of_each_architecture(config: PreTrainedConfig, length: int) -> None:
    assert context_length(config) == length
