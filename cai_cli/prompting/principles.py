"""What a constitution is: principles, each with the texts of critique, revision and comparison (paper section
3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from cai_cli.keys import uniform

TEXTS = ("critique", "revision", "comparison")


@dataclass(frozen=True, slots=True)
class Principle:
    id: str
    critique: str
    revision: str
    comparison: str


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
