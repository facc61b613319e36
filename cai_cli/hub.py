"""Data sets of the Hugging Face Hub, `hf:org/name[:split]`, streamed row by row through `datasets`."""

from __future__ import annotations

from collections.abc import Iterator

from cai_cli.errors import UserError
from cai_cli.jsonl import Row


def read_hub(source: str) -> Iterator[tuple[str, Row]]:
    """Yield (place, row). Raises UserError where the data set cannot be had, also where it breaks off on the way."""
    from datasets import load_dataset  # takes a second to import

    name, _, split = source.removeprefix("hf:").partition(":")
    number = 0
    try:
        for number, row in enumerate(load_dataset(name, split=split or "train", streaming=True), start=1):
            yield f"{source}: row {number}", row
    except Exception as error:  # the library raises many types; each is a user's mistake or a missing network
        problem = " ".join(str(error).split())[:200]
        where = f"cannot be read after row {number}" if number else "cannot be loaded"
        raise UserError(f"{source}: {where}: {problem}", "check the name, the split and the network") from None
