"""Rules for generated text: what is trimmed, and what is not good enough to keep. Pure functions, str in, str out."""

from __future__ import annotations

import re

# A role or segment marker at the start of a line: the model went on as somebody else.
MARKER = re.compile(r"(?:^|\n)[ \t]*(?:Human|User|Assistant|CritiqueRequest|Critique|RevisionRequest|Revision):")
OWN_LABEL = re.compile(r"^\s*(?:Assistant|Critique|Revision):[ \t]*")
LEAD_IN = re.compile(
    r"^\s*(?:(?:sure|certainly|of course|okay|ok|absolutely)\b[,!.]*\s*)?"
    r"(?:here(?:'s|’s| is)|below is)\s+(?:the|a|an|my|your)?\s*"
    r"(?:\w+\s+){0,3}?(?:revis\w+|rewrit\w+|rewritten|updated|improved)\b[^\n:]{0,60}:\s*",
    re.IGNORECASE,
)
CRITIQUE_LIKE = re.compile(
    r"^\s*(?:the|my|this)\s+(?:assistant(?:'s|’s)?\s+)?(?:(?:last|previous|above|original)\s+)?(?:response|reply|answer)\s+"
    r"(?:is|was|could|contains|does|did|may|might|fails|should|has)\b",
    re.IGNORECASE,
)

# Why a generated segment is not kept.
EMPTY, TRUNCATED, ROLE_CONFUSED, OVERLONG_PROMPT = "empty", "truncated", "role_confused", "prompt_too_long"


def clean(text: str) -> str:
    """Drop a leading label of its own, then everything from the first role marker on, and white space at both ends."""
    text = OWN_LABEL.sub("", text, count=1)
    marker = MARKER.search(text)
    return (text[: marker.start()] if marker else text).strip()


def clean_revision(text: str) -> str:
    """`clean`, and without a lead-in such as "Here is the revised response:"."""
    return LEAD_IN.sub("", clean(text), count=1).strip()


def is_critique_like(text: str) -> bool:
    """Whether a text that should answer the human talks about the assistant's answer instead."""
    return CRITIQUE_LIKE.match(text) is not None
