"""Read YAML: texts, numbers, true, false, null, lists and mappings with text keys; one error with file and
line for all else.

Dates stay the text that they are. Refused by name: tags, keys given twice or that are no text, aliases that
would unfold to a document out of all proportion, numbers that no float holds, halves of surrogate pairs,
files of more than `LONGEST_YAML` bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cai_cli.errors import UserError

LONGEST_YAML = 1 << 20  # bytes; the longest constitution has some 20 kB


def load_yaml(content: str | bytes, path: Path) -> Any:
    """The data in the text of `path`. Raises UserError with file:line."""
    import yaml

    from cai_cli.rows.yaml_loader import Loader

    if len(content) > LONGEST_YAML:
        raise UserError(
            f"{path}: is larger than {LONGEST_YAML >> 20} MiB", "no constitution or configuration is"
        )
    try:
        loader = Loader(content)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UserError(f"{place}: not valid YAML: {problem}", "correct it there") from None
    except (ValueError, OverflowError, IndexError) as error:  # escapes and numbers beyond what Python holds
        raise UserError(f"{path}: not valid YAML: {str(error)[:200]}", "correct it there") from None


def lines_of(content: str | bytes, field: str) -> list[int]:
    """The line on which each item of the list `field` starts, in text that `load_yaml` has read."""
    import yaml

    from cai_cli.rows.yaml_loader import Loader

    loader = Loader(content)
    try:
        root = loader.get_single_node()
        if isinstance(root, yaml.MappingNode):
            loader.flatten_mapping(root)  # what `<<` merges in
    finally:
        loader.dispose()
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    # The last one, as a mapping has it: what `<<` brings stands before what it is merged into
    *_, items = [], *(value.value for key, value in pairs if key.value == field)
    return [item.start_mark.line + 1 for item in items if isinstance(item, yaml.Node)]
