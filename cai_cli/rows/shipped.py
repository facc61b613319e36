"""Where the files that come with the package lie: inside an installed wheel, else in the source tree."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def shipped_folder(name: str, in_tree: str) -> Path:
    """The folder `name` of the installed package, else `in_tree` of the source tree that an editable install
    points to.

    pyproject.toml says which folder of the tree becomes which one of the wheel.
    """
    package = Path(str(files("cai_cli")))
    inside = package / name
    return inside if inside.is_dir() else package.parent / in_tree
