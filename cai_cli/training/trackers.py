"""`--report-to` of all trainers: the lines of metrics.jsonl to TensorBoard (OUT/tensorboard) or Weights &
Biases.

Through accelerate's trackers. What would keep one from opening is found before the directory is claimed.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cai_cli.artifacts.manifest import plain
from cai_cli.console.groups import values_of
from cai_cli.errors import RunError, UserError, first_line
from cai_cli.processes.ranks import is_main

NAMES = ("tensorboard", "wandb")
Trackers = Callable[[int], list[Any]]  # step -> those of a run, opened at that step


def check_trackers(names: list[str] | None) -> None:
    """Raises UserError for a tracker that is unknown, is not installed or cannot be imported, or where nobody
    is logged in.
    """
    for name in asked(names):
        if name not in NAMES:
            raise UserError(
                f"--report-to {name}: unknown", "tensorboard or wandb; metrics.jsonl is always written"
            )
        if find_spec(name) is None:
            raise UserError(f"--report-to {name}: not installed", f"pip install {name}")
        try:
            module = import_module(name)
        except Exception as error:  # whatever is wrong with it
            raise UserError(
                f"--report-to {name}: cannot be imported: {first_line(error)}", f"pip install -U {name}"
            ) from None
        if (
            name == "wandb"
            and os.environ.get("WANDB_MODE", "online") == "online"
            and module.api.api_key is None
        ):
            hint = "`wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline"
            raise UserError("--report-to wandb: nobody is logged in", hint)


def open_trackers(options: Any, stage: str, step: int) -> list[Any]:
    """The trackers of a run at `step`, on its first process; a continued run goes on in the same curves."""
    settings = values_of(options)
    names, folder = asked(settings["report_to"]), Path(settings["out"])
    if not names or not is_main():
        return []
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    # Accelerate's trackers ask it for the process they are in; a Hugging Face Trainer has made it
    PartialState()
    opened: list[Any] = []
    for name in names:
        try:
            if name == "tensorboard":
                tracker: Any = TensorBoardTracker(
                    "tensorboard", folder, purge_step=step + 1 if step else None
                )
            else:
                identity = run_identity(folder)
                tracker = WandBTracker(
                    f"cai-{stage}", name=folder.name, id=identity, resume="allow", dir=str(folder)
                )
            tracker.start()
            tracker.store_init_configuration(as_text(settings))
        except Exception as error:  # no network, a full disk: whatever the library says
            for other in opened:
                other.finish()
            hint = "the same command without --report-to goes on; WANDB_MODE=offline needs no network"
            raise RunError(f"--report-to {name}: cannot be opened: {first_line(error)}", hint) from None
        opened.append(tracker)
    return opened


def asked(names: list[str] | None) -> list[str]:
    return [name for name in dict.fromkeys(names or []) if name != "none"]


def run_identity(folder: Path) -> str:
    """The run's id at Weights & Biases, kept with it."""
    kept = folder / "wandb-run-id"
    if not kept.exists():
        kept.write_text(uuid.uuid4().hex)
    return kept.read_text()


def as_text(settings: dict[str, Any]) -> dict[str, Any]:
    """The flags as trackers take them: numbers and text."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(plain(value))
        for name, value in settings.items()
        if value is not None
    }
