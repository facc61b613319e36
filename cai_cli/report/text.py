"""What of a model's text, of a name or of a number stands on the page.

Every text goes through `clean`, as the templates' last step before escaping: control characters and those that turn
or hide text are spelled out, as on a terminal. Long texts are cut in a part that is shown, one that is folded, and
the number of characters that are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from cai_cli.console.messages import visible

FOLDED_AT, LONGEST = 600, 6000  # characters of a text
LONGEST_NAME = 72
DASH = "–"


@dataclass(frozen=True, slots=True)
class Told:
    """A text: what is shown of it, what is folded, how many characters are left out."""

    head: str
    rest: str = ""
    left_out: int = 0


def told(text: str) -> Told:
    """Cut at a space where there is one near."""
    if len(text) <= FOLDED_AT:
        return Told(text)
    end = text.rfind(" ", FOLDED_AT // 2, FOLDED_AT) + 1 or FOLDED_AT
    return Told(text[:end], text[end:LONGEST], max(0, len(text) - LONGEST))


def clean(value: Any) -> Any:
    """A value as a template may show it; what this package drew itself stays as it is."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value, keep="\n\t")


def named(text: object, room: int = LONGEST_NAME) -> str:
    """A name, with its middle left out where it is long."""
    text = str(text)
    if len(text) <= room:
        return text
    tail = room // 2
    return f"{text[: room - tail - 1]}…{text[-tail:]}"


# Numbers


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def percent(value: float | None, digits: int = 1) -> str:
    return DASH if value is None else f"{100 * value:.{digits}f} %"


def number(value: float | None, digits: int = 3) -> str:
    return DASH if value is None else f"{value:,.{digits}f}"


def between(low: float, high: float, scale: float = 100) -> str:
    """An interval, in % where `scale` is 100."""
    digits = 0 if scale == 100 else 2
    dash = " to " if low < 0 else DASH
    return f"{scale * low:.{digits}f}{dash}{scale * high:.{digits}f}"


def share(value: float | None, interval: Any = None) -> str:
    """`73.1 % (67–78)`."""
    if value is None or interval is None:
        return percent(value)
    low, high = interval
    return f"{percent(value)} ({between(low, high)})"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return DASH
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def counted(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"
