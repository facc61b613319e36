"""Constitutions: YAML files of principles, each with the three texts critique / revision / comparison.

    name: article
    description: The nine principles of ...
    principles:
      - id: harmless
        critique: Identify specific ways in which the assistant's last response is ...
        revision: Rewrite the assistant's response to remove ...
        comparison: Which response is less harmful? Choose the one that ...
        opposite: Which response is more harmful? Choose ...       # optional, for `cai constitution test`

`--constitution` takes a path or the name of a shipped file (`cai constitution show article`); a .json file is
one of the two that were published with the paper (see `published`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cai_cli.errors import UserError
from cai_cli.prompting.principles import TEXTS, Constitution, Principle
from cai_cli.rows.shipped import shipped_folder
from cai_cli.rows.storage import is_input, read_input
from cai_cli.rows.yaml_text import lines_of, load_yaml

FIELDS = ("id", *TEXTS)
OPPOSITE = "opposite"
TOP_LEVEL = ("name", "description", "source", "principles")


def shipped_constitutions() -> Path:
    return shipped_folder("constitutions", "constitutions")


def shipped_names() -> list[str]:
    return sorted(path.stem for path in shipped_constitutions().glob("*.yaml"))


def find_constitution(name_or_path: str) -> Path:
    """The file behind `--constitution`: an existing path, else a shipped name."""
    path = Path(name_or_path)
    if is_input(path):
        return path
    shipped = shipped_constitutions() / f"{name_or_path}.yaml"
    if is_input(shipped):
        return shipped
    raise UserError(
        f"no constitution {name_or_path!r}",
        f"give a file, or one of the shipped: {', '.join(shipped_names())}",
    )


def load_constitution(
    name_or_path: str, needs: tuple[str, ...] = (), only: Sequence[str] | None = None
) -> Constitution:
    """Read and check a constitution. Errors name the file, the line, the principle and the field, or the
    texts that it lacks.

    `only`: ids of principles, which stand for the whole; see `Constitution.only`.
    """
    path = find_constitution(name_or_path)
    if path.suffix == ".json":
        from cai_cli.prompting.published import read_published

        constitution = read_published(path)
    else:
        content = read_input(path)
        sha256 = hashlib.sha256(content).hexdigest()
        data, lines = load_yaml(content, path), lines_of(content, "principles")
        constitution = parse_constitution(data, str(path), sha256, path.stem, lines)
    for name in needs:
        if not all(getattr(principle, name) for principle in constitution.principles):
            hint = "the paper published critiques and comparisons apart; `cai import paper-constitution` joins them"
            raise UserError(f"{path}: its principles have no `{name}` text", hint)
    return constitution.only(only)


def parse_constitution(
    data: Any, place: str, sha256: str, default_name: str, lines: Sequence[int]
) -> Constitution:
    """`lines`: where each principle starts in the file."""
    if not isinstance(data, dict) or not isinstance(data.get("principles"), list) or not data["principles"]:
        raise UserError(
            f"{place}: field `principles`: expected a non-empty list", "see `cai constitution show article`"
        )
    check_keys(data, TOP_LEVEL, place)
    principles = [
        parse_principle(item, f"{place}:{line}: principles[{n}]")
        for n, (item, line) in enumerate(zip(data["principles"], lines, strict=True))
    ]
    seen: set[str] = set()
    for principle, line in zip(principles, lines, strict=True):
        if principle.id in seen:
            raise UserError(
                f"{place}:{line}: principle id {principle.id!r} is used twice",
                "give each principle its own id",
            )
        seen.add(principle.id)
    return Constitution(
        str(data.get("name", default_name)),
        str(data.get("description", "")).strip(),
        tuple(principles),
        sha256,
    )


def parse_principle(item: Any, place: str) -> Principle:
    if not isinstance(item, dict):
        raise UserError(f"{place}: expected the fields {', '.join(FIELDS)}")
    check_keys(item, (*FIELDS, OPPOSITE), place)
    for name in FIELDS:
        if not isinstance(item.get(name), str) or not item[name].strip():
            raise UserError(
                f"{place}: field `{name}`: missing or empty", f"a principle has {', '.join(FIELDS)}"
            )
    texts = {name: " ".join(item[name].split()) for name in TEXTS}
    return Principle(item["id"].strip(), **texts, opposite=parse_opposite(item, texts["comparison"], place))


def parse_opposite(item: dict[str, Any], comparison: str, place: str) -> str:
    """The comparison turned round, "" where there is none."""
    if OPPOSITE not in item:
        return ""
    text = item[OPPOSITE]
    hint = "a comparison text that prefers the other response, or leave the field out"
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{place}: field `{OPPOSITE}`: expected text", hint)
    if " ".join(text.split()).casefold() == comparison.casefold():
        raise UserError(f"{place}: field `{OPPOSITE}`: says the same as `comparison`", hint)
    return " ".join(text.split())


def check_keys(item: dict[str, Any], known: tuple[str, ...], place: str) -> None:
    for key in item:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known fields: {', '.join(known)}"
            raise UserError(f"{place}: unknown field `{key}`", hint)
