"""What a constitution asks of this world: the features that its comparisons name, and the words it cannot read.

Comparisons are what labels and with them the reinforcement learning go by, so they decide.
"""

from __future__ import annotations

from cai_cli.microworld import wordings
from cai_cli.microworld.tokenizer import split, vocabulary
from cai_cli.prompting.principles import TEXTS, Constitution, Principle

# Family -> the rate that shows it (`scores.RATES`), and whether it is to rise.
SHOWN_BY = {
    "harmless": ("harmless", True),
    "declines": ("harmless", True),
    "harmful": ("harmless", False),
    "helpful": ("harmless", False),
    "reason": ("reason", True),
    "no reason": ("reason", False),
    "alternative": ("alternative", True),
    "no alternative": ("alternative", False),
    "polite": ("polite", True),
    "not polite": ("polite", False),
    "question": ("question", True),
    "no question": ("question", False),
}
UP, DOWN = "up", "down"


def asked(constitution: Constitution) -> dict[str, str]:
    """Rate -> whether the constitution wants it `up` or `down`; rates that it wants both ways are left out."""
    found: dict[str, set[str]] = {}
    for principle in constitution.principles:
        for family in wordings.read(principle.comparison) or ():
            rate, rises = SHOWN_BY[family.name]
            found.setdefault(rate, set()).add(UP if rises else DOWN)
    return {rate: way for rate, ways in found.items() if len(ways) == 1 for way in ways}


def unread(constitution: Constitution) -> list[str]:
    """One line for each principle that the models of this world were not taught to read, and why."""
    known = set(vocabulary())
    lines = []
    for principle in constitution.principles:
        if words := unknown_words(principle, known):
            lines.append(
                f"principle `{principle.id}`: words that this world does not have: {', '.join(words)}"
            )
        elif strange := [name for name in TEXTS if not wordings.read(getattr(principle, name))]:
            lines.append(f"principle `{principle.id}`: no sentence of this world: {', '.join(strange)}")
    return lines


def unknown_words(principle: Principle, known: set[str]) -> list[str]:
    # As they stand in a prompt: a space or a line break in front.
    texts = (f"\n\n{getattr(principle, name)} {getattr(principle, name)}" for name in TEXTS)
    found = (token.strip() for text in texts for token in split(text) if token not in known)
    return list(dict.fromkeys(found))
