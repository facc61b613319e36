"""Read YAML: safe_load, and one error with file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cai_cli.errors import UserError


def load_yaml(content: str | bytes, path: Path) -> Any:
    """The data in the text of `path`. Raises UserError with file:line."""
    import yaml

    try:
        return yaml.safe_load(content)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UserError(f"{place}: not valid YAML: {problem}", "correct it there") from None
