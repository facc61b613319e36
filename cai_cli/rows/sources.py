"""How inputs are named: `FILE`, `FILE:weight`, `hf:org/name` on the Hub, `-` for what is piped in."""

from __future__ import annotations

import re
from pathlib import Path

from cai_cli.rows.storage import STDIN

PIPED = "-"  # how stdin is named
WEIGHT = re.compile(r"^(?P<path>.+):(?P<weight>\d+(\.\d+)?|\.\d+)$")


def parse_weight(text: str) -> tuple[str, float]:
    """`FILE:0.5` -> (FILE, 0.5). A trailing `:number` is a weight, nothing else is."""
    match = WEIGHT.match(text)
    return (match["path"], float(match["weight"])) if match else (text, 1.0)


def input_file(path: str) -> Path | None:
    """The local file behind an input, `-` for what is piped in; None for a data set on the Hub
    (`hf:org/name`).
    """
    return None if path.startswith("hf:") else STDIN if path == PIPED else Path(path)


def parse_name(text: str) -> tuple[str | None, str]:
    """`NAME=PATH` -> (NAME, PATH); a path alone has no name. What is there under the whole text is a path."""
    name, mark, path = text.partition("=")
    if not mark or not name or not path or "/" in name or Path(text).exists():
        return None, text
    return name, path
