"""The Hugging Face Hub: whether it answers, and its data sets, `hf:org/name[:split]`, streamed row by row
through `datasets`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache

from cai_cli.errors import UserError
from cai_cli.rows.jsonl import Row

PATIENCE = 5.0  # seconds for the Hub to answer


@cache
def why_offline() -> str | None:
    """Why only what is cached here can be had of the Hub, None where it answers. Asked once, with one
    request.

    Where it does not answer, the libraries are told that they are offline: left alone, they try each file for
    half a minute.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # of whichever HTTP library it is
        told = f"{constants.ENDPOINT} does not answer: {' '.join(str(error).split()) or type(error).__name__}"
    else:
        return None
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    return told


def read_hub(source: str) -> Iterator[tuple[str, Row]]:
    """Yield (place, row). Raises UserError where the data set cannot be had, also where it breaks off on the
    way.
    """
    offline = why_offline()
    from datasets import load_dataset  # takes a second to import; it looks then whether it is offline

    name, _, split = source.removeprefix("hf:").partition(":")
    number = 0
    try:
        for number, row in enumerate(load_dataset(name, split=split or "train", streaming=True), start=1):
            yield f"{source}: row {number}", row
    except Exception as error:  # the library raises many types; each is a user's mistake or a missing network
        problem = " ".join(str(error).split())[:200]
        where = f"cannot be read after row {number}" if number else "cannot be loaded"
        if offline:
            hint = f"fetch it where there is a network, by `hf download --repo-type dataset {name}`, and name a file of it"
            raise UserError(f"{source}: is not cached here, and {offline}", hint) from None
        raise UserError(
            f"{source}: {where}: {problem}", "check the name, the split and the network"
        ) from None
