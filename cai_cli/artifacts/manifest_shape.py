"""What a manifest has to look like before anything is taken from it: read once, checked whole, one line for
what is wrong.

In: the bytes of `*.manifest.json`, `cai.json` or `cai.partial.json`. Out: a dictionary whose known fields
have their types; what other versions of cai put in besides is let through.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from typing import Any

Manifest = dict[str, Any]

DEEPEST = 64  # lists and objects within each other
NEEDED = ("stage", "options", "inputs", "models")
NUMBERS = (
    "seconds",
    "tokens",
    "generation_seconds",
    "pairs",
    "steps",
    "train_loss",
    "score_mean",
    "score_deviation",
)
COUNTS = ("in", "out")
OPTIONS = {"shard": str, "parts": str, "limit": int}  # those that are looked into by name


class Misshapen(ValueError):
    """Which field is wrong, and how."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"field `{field}`: {problem}" if field else problem)


def parse_manifest(content: bytes) -> Manifest:
    """The manifest in the bytes of its file. Raises Misshapen, or ValueError for what is no JSON."""
    try:
        data = json.loads(content.decode("utf-8"), parse_constant=not_a_number)
    except RecursionError:
        raise Misshapen("", f"is nested more than {DEEPEST} deep") from None
    if not isinstance(data, dict) or not any(name in data for name in NEEDED):
        raise ValueError("not a manifest")
    check_values(data)
    for name in NEEDED:
        expect(name in data, name, "missing")
    manifest = {"seed": None, "constitution": None, **data}
    check_shape(manifest)
    return manifest


def not_a_number(name: str) -> None:
    raise Misshapen("", f"{name} in it is no JSON")


def check_values(data: Manifest) -> None:
    """Every number is finite, and nothing is nested without end."""
    level: list[tuple[str, Any]] = list(data.items())
    for _ in range(DEEPEST):
        deeper: list[tuple[str, Any]] = []
        for place, value in level:
            expect(not isinstance(value, float) or math.isfinite(value), place, "expected a finite number")
            if isinstance(value, dict):
                deeper += ((f"{place}.{name}", inner) for name, inner in value.items())
            elif isinstance(value, list):
                deeper += ((f"{place}[{number}]", inner) for number, inner in enumerate(value))
        if not deeper:
            return
        level = deeper
    raise Misshapen(level[0][0][:100], f"is nested more than {DEEPEST} deep")


def check_shape(manifest: Manifest) -> None:
    check(manifest, "stage", str, "text")
    check(manifest, "seed", int | None, "a whole number")
    check(manifest, "options", dict, "an object")
    for name, kind in OPTIONS.items():
        if name in manifest["options"]:
            check(
                manifest["options"],
                name,
                kind | None,
                "text" if kind is str else "a whole number",
                "options.",
            )
    check(manifest, "inputs", list, "a list")
    check(manifest, "models", list, "a list")
    for name in ("inputs", "models", "merged"):
        if isinstance(manifest.get(name), list):  # `merged` of an import is a number
            for place, item in within(manifest, name):
                expect(isinstance(item, dict), place, "expected an object")
                check_item(item, f"{place}.", name)
    constitution = manifest["constitution"]
    expect(isinstance(constitution, dict | None), "constitution", "expected an object")
    if constitution is not None:
        check_path(constitution, "constitution.")
        check(constitution, "sha256", str, "text", "constitution.")
    if "counts" in manifest:
        check_counts(manifest)
    for name, problem in (("identity", "an object"), ("libraries", "an object")):
        if name in manifest:
            check(manifest, name, dict, problem)
    for name in NUMBERS:
        if name in manifest:
            check(manifest, name, int | float | None, "a number")


def check_item(item: dict[str, Any], place: str, kind: str) -> None:
    """An input, or a model with the hash of each of its files."""
    check(item, "option", str, "text", place)
    check_path(item, place)
    if kind == "models":
        check(item, "fingerprint", str, "text", place)
        check(item, "files", dict, "an object", place)
        for name, found in item["files"].items():
            expect(isinstance(found, str), f"{place}files.{name}", "expected text")
        return
    check(item, "weight", int | float, "a number", place)
    check(item, "sha256", str | None, "text", place)


def check_path(item: dict[str, Any], place: str) -> None:
    check(item, "path", str, "text", place)
    try:
        valid = b"\0" not in os.fsencode(item["path"])
    except UnicodeEncodeError:
        valid = False
    expect(valid, f"{place}path", "is not a path")


def check_counts(manifest: Manifest) -> None:
    check(manifest, "counts", dict, "an object")
    counts = manifest["counts"]
    for name in COUNTS:
        if name in counts:
            check(counts, name, int, "a whole number", "counts.")
    if "rejected" in counts:
        check(counts, "rejected", dict, "an object", "counts.")
        for name in counts["rejected"]:
            check(counts["rejected"], name, int, "a whole number", "counts.rejected.")


def within(manifest: Manifest, name: str) -> Iterator[tuple[str, Any]]:
    """(place, item) of the items of a list."""
    return ((f"{name}[{number}]", item) for number, item in enumerate(manifest[name]))


def check(item: dict[str, Any], name: str, kinds: Any, words: str, place: str = "") -> None:
    """Raise Misshapen where the field is missing or of another type. True and False are no numbers."""
    expect(name in item, f"{place}{name}", "missing")
    value = item[name]
    expect(isinstance(value, kinds) and not isinstance(value, bool), f"{place}{name}", f"expected {words}")


def expect(condition: bool, field: str, problem: str) -> None:
    if not condition:
        raise Misshapen(field, problem)
