"""What a constitution is: principles, each with the texts of critique, revision and comparison (paper section
3.1), and where a file gives one, the comparison turned round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from cai_cli.errors import UserError
from cai_cli.keys import uniform

TEXTS = ("critique", "revision", "comparison")


@dataclass(frozen=True, slots=True)
class Principle:
    """`opposite`: a comparison text that prefers what `comparison` does not, for `cai constitution test`; ""
    where the file gives none.
    """

    id: str
    critique: str
    revision: str
    comparison: str
    opposite: str = ""


@dataclass(frozen=True, slots=True)
class Constitution:
    name: str
    description: str
    principles: tuple[Principle, ...]
    sha256: str

    def draw(self, *key: str | int) -> Principle:
        """The principle for this key, with replacement: the same key always draws the same one (paper section
        3.1).
        """
        return self.principles[int(uniform(*key) * len(self.principles))]

    def by_id(self, principle_id: str) -> Principle:
        return next(principle for principle in self.principles if principle.id == principle_id)

    def only(self, ids: Sequence[str] | None) -> Constitution:
        """The principles that --principles names, in the constitution's order; all of them for None. Raises
        UserError.
        """
        if not ids:
            return self
        known = [principle.id for principle in self.principles]
        for name in ids:
            if name not in known:
                near = get_close_matches(name, known, n=3, cutoff=0.5)
                hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known)}"
                raise UserError(f"--principles {name}: no principle of {self.name}", hint)
        return replace(self, principles=tuple(item for item in self.principles if item.id in ids))
