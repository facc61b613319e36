"""Comparisons as a preference model reads them: both replies as token ids, and the part that is held out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cai_cli.artifacts.rejects import Rejected
from cai_cli.console.messages import say, show_text
from cai_cli.errors import RunError
from cai_cli.feedback.pairs import IDENTICAL
from cai_cli.rows.records import Comparison
from cai_cli.rows.splits import is_held_out
from cai_cli.training.preference.reading import Encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenise(
    weighted: Iterable[tuple[Comparison, float]], encode: Encode
) -> tuple[list[tuple[Comparison, TokenPair]], list[Rejected]]:
    """Both replies of each comparison as ids closed by EOS; pairs that do not fit are rejected by name, never
    cut.

    So is a pair of one text twice: its loss has no gradient, and a tie is right for it whatever the model.
    """
    from cai_cli.models.templates import UnfitRow

    pairs, rejected = [], []
    for row, weight in weighted:
        try:
            chosen, other = encode(row.prompt, row.chosen), encode(row.prompt, row.rejected)
            if chosen == other:
                raise UnfitRow(
                    IDENTICAL, "chosen and rejected are one text for the model: neither can be better"
                )
        except UnfitRow as error:
            rejected.append(Rejected(row.id, error.reason, error.detail))
            continue
        pairs.append((row, TokenPair(chosen, other, row.probability, weight, row.origin, row.kind)))
    return pairs, rejected


def split_held_out(
    pairs: list[tuple[Comparison, TokenPair]], share: float, seed: int
) -> tuple[list[TokenPair], list[TokenPair]]:
    """Divide by a hash of the first human turn, so that no prompt is on both sides."""
    training: list[TokenPair] = []
    held_out: list[TokenPair] = []
    for comparison, pair in pairs:
        (held_out if is_held_out(comparison.prompt, share, seed) else training).append(pair)
    if not training:
        hint = "lower --held-out, or give comparisons of more prompts"
        raise RunError(
            f"all {len(held_out)} pairs fell into the held-out part: none is left to train on", hint
        )
    return training, held_out


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A comparison as the preference model reads it; both rows end in EOS."""

    chosen: list[int]
    rejected: list[int]
    probability: float
    weight: float
    origin: str
    kind: str | None = None

    @property
    def longest(self) -> int:
        return max(len(self.chosen), len(self.rejected))


def dry_run(pairs: list[TokenPair], tokenizer: PreTrainedTokenizerBase, rejected: int) -> None:
    """Show the first pair as text, with the token that is scored."""
    for name, ids in (("chosen", pairs[0].chosen), ("rejected", pairs[0].rejected)):
        show_text(
            f"{name}: {tokenizer.decode(ids)!r}\n  scored token: {ids[-1]} {tokenizer.decode(ids[-1:])!r}"
        )
    tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
    say(f"{len(pairs)} pairs, {tokens} tokens; {rejected} pairs would be rejected")
