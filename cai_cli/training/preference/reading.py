"""The text of a conversation that a preference model scores: one way for training, evaluation, `cai score`
and PPO.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cai_cli.artifacts.manifest import read_manifest
from cai_cli.artifacts.places import manifest_path
from cai_cli.models.paths import check_model
from cai_cli.prompting.prompts import question_answer
from cai_cli.rows.conversation import Conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Format = Literal["qa", "chat"]
Encode = Callable[[Conversation, Conversation], list[int]]


def reading(tokenizer: PreTrainedTokenizerBase, form: Format, max_length: int) -> Encode:
    """The one way from (prompt, reply) to the ids whose last one, EOS, is scored: in training, evaluation and
    `cai score`.

    "chat": the conversation through the chat template, template text after the end of turn cut. "qa":
    `Question: ...
    Answer: ...`. The function raises UnfitRow where the ids are more than `max_length`; nothing is ever cut.
    """
    from cai_cli.models.chat import close_with_eos, encode_scored, encode_text, stop_ids
    from cai_cli.models.templates import UnfitRow, check_text

    stops = stop_ids(tokenizer)
    eos = int(tokenizer.eos_token_id)

    def chat(prompt: Conversation, reply: Conversation) -> list[int]:
        return encode_scored(tokenizer, prompt, reply, stops, max_length)

    def qa(prompt: Conversation, reply: Conversation) -> list[int]:
        text = question_answer(prompt[-1]["content"], reply[0]["content"])
        check_text(tokenizer, text)
        ids = close_with_eos(encode_text(tokenizer, text), eos)
        if len(ids) > max_length:
            raise UnfitRow("too_long", f"{len(ids)} tokens, at most {max_length} fit")
        return ids

    return chat if form == "chat" else qa


def format_of(pm: str) -> Format:
    """How a preference model was taught to read: a `pmp` checkpoint says so in its cai.json, all others read
    chats.
    """
    manifest = read_manifest(manifest_path(Path(pm)))
    return (
        "qa"
        if manifest and manifest["stage"] == "pmp" and manifest["options"].get("format") == "qa"
        else "chat"
    )


@dataclass(frozen=True, slots=True)
class PreferenceModel:
    """A preference model ready to score: `encode` gives the ids that it reads."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    encode: Encode
    pad: int


def open_reading(path: str, flag: str = "--pm") -> tuple[PreTrainedTokenizerBase, Encode]:
    """The tokenizer of a preference model and how it reads a conversation of at most its context.

    Raises UserError where the model is none, or has no chat template to read with.
    """
    from cai_cli.models.configs import context_length, load_config
    from cai_cli.models.templates import require_template
    from cai_cli.models.tokenizers import load_tokenizer

    check_model(path, flag, "preference model")
    tokenizer = load_tokenizer(path, flag)
    form = format_of(path)
    if form == "chat":
        require_template(tokenizer, f"{flag} {path}")
    return tokenizer, reading(tokenizer, form, context_length(load_config(path, flag)))


def open_preference_model(
    path: str, device: str = "auto", dtype: str = "auto", flag: str = "--pm"
) -> PreferenceModel:
    """Load a preference model to score with. Raises UserError as `open_reading` does."""
    from cai_cli.models.load import load_pm

    tokenizer, encode = open_reading(path, flag)
    model = load_pm(path, device, dtype, flag, tokenizer)
    return PreferenceModel(model, tokenizer, encode, int(tokenizer.pad_token_id))
