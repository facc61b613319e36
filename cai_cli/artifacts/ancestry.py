"""Walking over manifests that name each other: where their paths lead, and trees of any depth without
recursion.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai_cli.artifacts.places import manifest_path


def source_path(artifact: Path, item: dict[str, Any]) -> Path:
    """The file or directory that an item of the artifact's manifest names, without the `..` of relative
    paths.
    """
    return Path(os.path.normpath(manifest_path(artifact).parent / item["path"]))


def is_on_hub(item: dict[str, Any]) -> bool:
    """Whether an item of a manifest is a data set, which has no hash, or a model, which has no files here, of
    the Hub.
    """
    return item.get("sha256", "") is None or item.get("files") == {}


def unnested(walk: Iterator[Any]) -> Iterator[Any]:
    """What a walk yields; where it yields another walk, what that one does, as `yield from` would, at any
    depth.
    """
    under_way = [walk]
    while under_way:
        for item in under_way[-1]:
            if isinstance(item, Iterator):
                under_way.append(item)
                break
            yield item
        else:
            under_way.pop()
