"""Comparisons as a preference model reads them: both replies as token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from cai_cli.artifacts.rejects import Rejected
from cai_cli.console.messages import say, show_text
from cai_cli.feedback.pairs import IDENTICAL
from cai_cli.rows.records import Comparison
from cai_cli.training.preference.reading import Encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenise(
    weighted: Iterable[tuple[Comparison, float]], encode: Encode
) -> Iterator[tuple[Comparison, TokenPair] | Rejected]:
    """Both replies of each comparison as ids closed by EOS; pairs that do not fit are rejected by name, never
    cut.

    So is a pair of one text twice: its loss has no gradient, and a tie is right for it whatever the model.
    """
    from cai_cli.models.templates import UnfitRow

    for row, weight in weighted:
        try:
            chosen, other = encode(row.prompt, row.chosen), encode(row.prompt, row.rejected)
            if chosen == other:
                raise UnfitRow(
                    IDENTICAL, "chosen and rejected are one text for the model: neither can be better"
                )
        except UnfitRow as error:
            yield Rejected(row.id, error.reason, error.detail)
            continue
        yield row, TokenPair(chosen, other, row.probability, weight, row.origin, row.kind)


class Replies(Sequence[list[int]]):
    """The chosen replies of all pairs and then the rejected ones, each read when it is asked for."""

    def __init__(self, pairs: Sequence[TokenPair], places: range | None = None) -> None:
        self.pairs = pairs
        self.places = range(2 * len(pairs)) if places is None else places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, place: int) -> list[int]: ...

    @overload
    def __getitem__(self, place: slice) -> Replies: ...

    def __getitem__(self, place: int | slice) -> list[int] | Replies:
        if isinstance(place, slice):
            return Replies(self.pairs, self.places[place])
        side, n = divmod(self.places[place], len(self.pairs))
        return self.pairs[n].rejected if side else self.pairs[n].chosen


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
    def lengths(self) -> tuple[int, int]:
        return len(self.chosen), len(self.rejected)

    @property
    def longest(self) -> int:
        return max(self.lengths)


def dry_run(pairs: Sequence[TokenPair], tokenizer: PreTrainedTokenizerBase, rejected: int) -> None:
    """Show the first pair as text, with the token that is scored."""
    for name, ids in (("chosen", pairs[0].chosen), ("rejected", pairs[0].rejected)):
        show_text(
            f"{name}: {tokenizer.decode(ids)!r}\n  scored token: {ids[-1]} {tokenizer.decode(ids[-1:])!r}"
        )
    tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
    say(f"{len(pairs)} pairs, {tokens} tokens; {rejected} pairs would be rejected")
