"""Parse JSON so that whatever comes out can be written again: the one guard in front of every JSON text from
outside.

Refused by name: nesting beyond `DEEPEST` levels, numbers that no float holds, NaN and Infinity, a key given
twice in one object, halves of surrogate pairs. The standard library accepts each of them, and the stage that
writes the row would stumble.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from cai_cli.errors import RecordError

DEEPEST = 100  # levels of lists and objects; rows of ours have five
LONGEST_INTEGER = 308  # digits; a float holds no longer one
SURROGATE = "holds half of a surrogate pair, which is no character"
Constant = Callable[[str], Any]


class JsonError(RecordError, ValueError):
    """Text that is no JSON, or JSON that cannot be used. `line` counts in the text, `reason` is a name to
    count by.
    """

    def __init__(self, problem: str, field: str = "", line: int = 1, reason: str = "not_json") -> None:
        super().__init__(field, problem)
        self.line = line
        self.reason = reason


def load_json(text: str, constant: Constant | None = None) -> Any:
    """The value of a JSON text. `constant` says what NaN and Infinity become; without it they are refused.
    Raises JsonError.
    """
    try:
        value = decoder(constant or refuse_constant).decode(text)
    except json.JSONDecodeError as error:
        raise JsonError(f"{error.msg} at column {error.colno}", line=error.lineno) from None
    except RecursionError:
        raise too_deep() from None
    check_value(value, text)
    return value


def missing(_: str) -> None:
    """For `constant`: where public files have NaN, the value is missing."""


@lru_cache
def decoder(constant: Constant) -> json.JSONDecoder:
    """The decoder behind `load_json`, for those who decode from the middle of a text; then `check_value` is
    theirs to call.
    """
    return json.JSONDecoder(
        object_pairs_hook=unique_keys,
        parse_int=whole_number,
        parse_float=finite_number,
        parse_constant=constant,
    )


def check_value(value: Any, text: str) -> None:
    """What shows only in the whole value: its depth, and text that is no Unicode. Raises JsonError."""
    if text.count("[") + text.count("{") > DEEPEST and depth_exceeds(value, DEEPEST):
        raise too_deep()
    # Only an escape can bring in half of a surrogate pair, or an argument of the command line.
    if "\\ud" in text or "\\uD" in text or not is_unicode(text):
        for field in broken_texts(value, ""):
            raise JsonError(SURROGATE, field, reason="broken_unicode")


def too_deep() -> JsonError:
    return JsonError(f"nested more than {DEEPEST} levels deep")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise JsonError(f"the key {twice[:80]!r} is given twice in one object")
    return row


def whole_number(text: str) -> int:
    if len(text) > LONGEST_INTEGER:
        raise JsonError(f"a number of {len(text.lstrip('-'))} digits")
    return int(text)


def finite_number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise JsonError(f"the number {text[:40]} is out of range")
    return value


def refuse_constant(name: str) -> Any:
    raise JsonError(f"{name} is no JSON")


def depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        children = (child for item in level for child in (item.values() if isinstance(item, dict) else item))
        level = [child for child in children if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def broken_texts(value: Any, place: str) -> Iterator[str]:
    """The places of texts and keys that cannot be written as UTF-8, such as `rounds[1].critique`."""
    if isinstance(value, str) and not is_unicode(value):
        yield place
    elif isinstance(value, dict):
        for key, item in value.items():
            if not is_unicode(key):
                yield f"{place}.{ascii(key)[1:-1]}".lstrip(".")
            yield from broken_texts(item, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from broken_texts(item, f"{place}[{number}]")


def is_unicode(text: str) -> bool:
    r"""Whether the text can be written as UTF-8; JSON can spell halves of surrogate pairs (`\ud800`)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
