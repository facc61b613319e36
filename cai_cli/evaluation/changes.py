"""What changed from one text to another, word by word. Pure functions."""

from __future__ import annotations

import difflib
import re

WORD = re.compile(r"\S+\s*|\s+")  # with the white space after it, so that neighbouring changes are one
KEPT, LOST, GAINED = "kept", "lost", "gained"


def difference(before: str, after: str) -> list[tuple[str, str]]:
    """The later text as (words, kept or gained), and what was lost where it stood."""
    old, new = WORD.findall(before), WORD.findall(after)
    parts: list[tuple[str, str]] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(("".join(new[c:d]), KEPT))
            continue
        parts += [("".join(words), how) for words, how in ((old[a:b], LOST), (new[c:d], GAINED)) if words]
    return parts
