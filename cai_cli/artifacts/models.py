"""Model directories in the making: complete when their `cai.json` is there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cai_cli.artifacts.claims import Claim, claim
from cai_cli.artifacts.locks import give_back, hold, is_lock_file
from cai_cli.artifacts.manifest import begin_manifest, read_manifest, write_manifest
from cai_cli.artifacts.places import MODEL_MANIFEST, PARTIAL_MODEL_MANIFEST, move_to_backup
from cai_cli.console.messages import say
from cai_cli.errors import RunError, UserError
from cai_cli.processes.ranks import barrier, check_launch, is_main, main_first
from cai_cli.rows.storage import MAKE_ROOM, check_writable

# sft has a Trainer whose checkpoints by DeepSpeed are pickles that no other launch goes on from; FSDP 2 does it.
BY_ZERO = ("pmp", "train-pm", "ppo")
REHEARSAL, TOKENS = "rehearsal", "tokens-"  # in checkpoints/: a folder, and how the names of others begin


def is_foreign(file: Path, beside: str | None) -> bool:
    """Whether a file in a folder without a manifest is none that a command of ours leaves there, killed or
    not.
    """
    if file.name == "checkpoints" and file.is_dir():  # of a run that was killed before anything was claimed
        return not all(path.name == REHEARSAL or path.name.startswith(TOKENS) for path in file.iterdir())
    name = file.name.removeprefix(".").removesuffix(".tmp")
    ours = (
        is_lock_file(file)
        or name == PARTIAL_MODEL_MANIFEST
        or (beside is not None and name.startswith(beside))
    )
    return not ours


class ModelArtifact:
    """A model directory in the making. `folder` holds checkpoints while training; `finish` saves and marks it
    complete.
    """

    def __init__(self, stage: str, options: Any, beside: str | None = None) -> None:
        """`beside`: how the names of files begin that may lie there before a model is begun."""
        check_launch(trains=True, by_zero=stage in BY_ZERO)
        self.options = options
        self.folder: Path = options.output.out
        if self.folder.is_file():
            raise UserError(f"--out {self.folder}: is a file", "name a directory")
        self.manifest = begin_manifest(stage, options, self.folder)
        self.manifest_file = self.folder / MODEL_MANIFEST
        self.partial_manifest_file = self.folder / PARTIAL_MODEL_MANIFEST
        self.checkpoints = self.folder / "checkpoints"
        self.metrics_file = self.folder / "metrics.jsonl"
        self.started = time.monotonic()
        self.claim = Claim.NEW  # where it is RESTART, the old one is moved to .bak by `make_room`
        hold(self.folder, options.output.dry_run)
        main_first(lambda: self._look(beside))
        if not is_main():
            self._look(beside)

    def _look(self, beside: str | None) -> None:
        """Find out whether the model is done, can be continued, or is to be started."""
        finished = read_manifest(self.manifest_file)
        old = finished or read_manifest(self.partial_manifest_file)
        if (
            old is None
            and self.folder.exists()
            and any(is_foreign(file, beside) for file in self.folder.iterdir())
        ):
            raise UserError(f"--out {self.folder}: is not empty and not ours", "choose another --out")
        there = None if old is None else self.folder
        self.claim = claim(
            self.options, self.manifest, old, there, lambda _: finished is not None, self._clean_up
        )
        if is_main() and not self.done and not self.options.output.dry_run:
            check_writable(self.folder, self.folder, PARTIAL_MODEL_MANIFEST)

    @property
    def begun(self) -> bool:
        """Whether an earlier run of the same command has claimed the directory."""
        return self.claim != Claim.RESTART and self.partial_manifest_file.exists()

    @property
    def done(self) -> bool:
        return self.claim == Claim.DONE

    def make_room(self) -> None:
        """Move an old one, which is to be restarted, to .bak. Of several processes the first one does, after
        all have looked. Token ids that this run has made stay.
        """
        barrier()
        if is_main() and self.claim == Claim.RESTART:
            move_to_backup(self.folder)
            before = self.folder.with_name(f"{self.folder.name}.bak") / self.checkpoints.name
            for tokens in before.glob(f"{TOKENS}*"):
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                tokens.replace(self.checkpoints / tokens.name)
        self.claim = Claim.NEW if self.claim == Claim.RESTART else self.claim
        barrier()

    def start(self) -> None:
        """Claim the directory, which from here on is another command's only after --if-changed restart.

        To be called when all that can be found out before the first step has been: a mistake then costs no
        more than a new command.
        """
        self.make_room()
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_manifest(self.partial_manifest_file, self.manifest)
        barrier()

    def finish(self, save: Callable[[Path], None], **facts: Any) -> None:
        """Save the model through `save(folder)`, write cai.json last, and drop the checkpoints; the first
        process does.
        """
        if not is_main():
            return
        if (
            not self.partial_manifest_file.exists()
        ):  # libraries would make the folder anew, with nothing else in it
            raise RunError(
                f"{self.folder}: was removed while the run was under way", f"{MAKE_ROOM}, and start again"
            )
        save(self.folder)
        self.manifest |= {"seconds": round(time.monotonic() - self.started, 3), **facts}
        write_manifest(self.manifest_file, self.manifest)
        self._clean_up()
        give_back(self.folder)
        say(f"{self.folder}: done in {self.manifest['seconds']:.0f} s")

    def _clean_up(self) -> None:
        """Remove what only a directory in the making needs."""
        self.partial_manifest_file.unlink(missing_ok=True)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
