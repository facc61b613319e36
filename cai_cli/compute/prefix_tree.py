"""Token sequences -> the tree of what they have in common, cut into rows for a model. No torch.

Few-shot examples stand at the root, a conversation on a branch, the two orders of its replies and several
principles on the twigs, and options of several tokens at the very end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

LEAST_SAVING = 16  # Tokens. A shared stretch that saves fewer is not worth a stretch of its own.


@dataclass(frozen=True, slots=True)
class OptionTokens:
    """A prompt with one of its options. Tokens from `start` on are scored; the last one is never fed to the
    model.
    """

    ids: list[int]
    start: int

    @property
    def fed(self) -> int:
        """How many of its tokens the model reads: what follows the last one does not matter."""
        return len(self.ids) - 1


@dataclass(slots=True)
class Stretch:
    """Tokens `begin` to `end` of all sequences that pass through here.

    `members`: the numbers of those sequences; `ends`: of those that end here.
    """

    begin: int
    end: int
    members: list[int]
    ends: list[int]
    children: list[Stretch] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.end - self.begin

    @property
    def size(self) -> int:
        """Tokens of the stretch and of all that follows on it."""
        return self.length + sum(child.size for child in self.children)


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch in a row: its tokens stand from column `start` on, and what follows on it ends before column
    `stop`.
    """

    stretch: Stretch
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TreeRow:
    """Stretches end to end, each behind the one it follows on; `children`: what is to follow in later rows."""

    pieces: list[Piece]
    children: list[Stretch]

    @property
    def length(self) -> int:
        return self.pieces[0].stop


def alone(sequences: list[OptionTokens], order: list[int]) -> list[Stretch]:
    """Every prompt for itself; `order` is that of the tokens. Options that differ in their last token only
    share theirs.
    """
    groups = [list(group) for _, group in groupby(order, key=lambda n: sequences[n].ids[:-1])]
    return [Stretch(0, sequences[group[0]].fed, group, group) for group in groups]


def grow(sequences: list[OptionTokens], members: list[int], begin: int = 0) -> list[Stretch]:
    """The trees of sequences that agree up to `begin` and go on from there; `members` are in the order of
    their tokens.
    """
    stretches = []
    for _, group in groupby(members, key=lambda n: sequences[n].ids[begin]):
        same = list(group)
        common = shared_length([sequences[same[0]].ids, sequences[same[-1]].ids])
        end = min(common, *(sequences[n].fed for n in same))
        ends = [n for n in same if sequences[n].fed == end]
        others = [n for n in same if sequences[n].fed > end]
        stretches += tidy(Stretch(begin, end, same, ends, grow(sequences, others, end)))
    return stretches


def tidy(stretch: Stretch) -> list[Stretch]:
    """The stretch, or where sharing it saves next to nothing, what follows on it with its tokens in front."""
    users = len(stretch.children) + bool(stretch.ends)
    if not stretch.children or stretch.length * (users - 1) >= LEAST_SAVING:
        return [stretch]
    apart = [Stretch(stretch.begin, stretch.end, stretch.ends, stretch.ends)] if stretch.ends else []
    for child in stretch.children:
        child.begin = stretch.begin
    return [*apart, *stretch.children]


def row_of(stretch: Stretch, most: int) -> TreeRow:
    """The stretch with all that follows on it, where that is at most `most` tokens; else the stretch by
    itself.
    """
    if stretch.size <= most:
        return TreeRow(list(laid_out(stretch, 0)), [])
    return TreeRow([Piece(stretch, 0, stretch.length)], stretch.children)


def laid_out(stretch: Stretch, start: int) -> Iterator[Piece]:
    yield Piece(stretch, start, start + stretch.size)
    start += stretch.length
    for child in stretch.children:
        yield from laid_out(child, start)
        start += child.size


def shared_length(rows: list[list[int]]) -> int:
    """Number of leading ids that all rows have in common."""
    first, last = min(rows), max(rows)  # in sorted order, what these two share is common to all between
    length = min(len(first), len(last))
    if first[:length] == last[:length]:
        return length
    return next(n for n in range(length) if first[n] != last[n])
