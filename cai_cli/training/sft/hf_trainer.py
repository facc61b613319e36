"""What we add to a Hugging Face Trainer: our progress and metrics.jsonl instead of its prints, sealed
checkpoints that know the logging window they were written in, and an end after the step under way where
SIGTERM asks for it.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from cai_cli.console.messages import progress
from cai_cli.errors import RunError
from cai_cli.models.adapters import trainable_state
from cai_cli.models.finite import LEARNED_TOO_FAST, check_weights
from cai_cli.processes.collective import told_to_stop
from cai_cli.processes.interruption import Terminated, after_the_step
from cai_cli.processes.ranks import is_main, rank, world_size
from cai_cli.training.checkpoints import (
    check_pace,
    drop_half_written,
    read_state,
    seal_hf_checkpoint,
    write_state,
)
from cai_cli.training.metrics_file import MetricsFile
from cai_cli.training.trackers import Trackers

# What a log line of the Trainer is called in metrics.jsonl; what starts anew on a resume (num_tokens) is left
# out.
METRICS = {
    "loss": "loss",
    "learning_rate": "lr",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "mean_token_accuracy": "token_accuracy",
}


class TrainingLog(TrainerCallback):
    """Progress, metrics.jsonl, sealed checkpoints. Usage: `with TrainingLog(...) as log: log.train(trainer,
    checkpoint)`.

    A number that is not finite raises RunError before the step is saved. On SIGTERM a checkpoint is written
    after the step.
    """

    def __init__(self, name: str, metrics_file: Path, trackers: Trackers) -> None:
        self.name = name
        self.trackers = trackers
        self.metrics_file = metrics_file
        self.opened = ExitStack()
        self.held_out: dict[str, float] = {}
        self.evaluated: int | None = None  # the step of the last measurement
        self.stopping = False

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *error: Any) -> None:
        self.opened.__exit__(*error)

    def train(self, trainer: Trainer, checkpoint: Path | None) -> Any:
        """Run the trainer from the checkpoint, if any, with nothing but our own talk."""
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(self)
        self.trainer, self.checkpoint = trainer, checkpoint
        try:
            with after_the_step():
                return trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except Exception:
            if is_main():  # a full disk, perhaps: half a checkpoint only takes room
                drop_half_written(Path(str(trainer.args.output_dir)), "checkpoint")
            raise

    def evaluate(self, trainer: Trainer) -> dict[str, float] | None:
        """The held-out loss of each kind after training; None where nothing is held out."""
        if trainer.eval_dataset is None:
            return None
        if self.evaluated != trainer.state.global_step:
            trainer.evaluate()
        return dict(self.held_out)

    def mean_loss(self, trainer: Trainer) -> float:
        """Mean of the losses of all steps, those before a resume too: of the logged means, each by its steps."""
        total, last = 0.0, 0.0
        for entry in trainer.state.log_history:
            if "loss" in entry:
                total, last = total + entry["loss"] * (entry["step"] - last), entry["step"]
        return total / max(last, 1)

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.advance = self.opened.enter_context(
            progress(self.name, state.max_steps, state.global_step, "steps")
        )
        step = state.global_step
        metrics = MetricsFile(self.metrics_file, step, self.trackers(step))
        self.metrics = self.opened.enter_context(metrics) if is_main() else None
        self.start = self.last = state.global_step
        self.note = ""
        for entry in state.log_history:  # of the run before a resume
            for kind, loss in held_out_losses(entry).items():
                self.held_out[kind], self.evaluated = loss, entry["step"]
        self.order: torch.Tensor | None = None  # the random state that the epoch's order was drawn from
        if self.checkpoint is not None:
            own = own_file(self.checkpoint)
            # More processes than before
            kept = read_state(own if own.exists() else own_file(self.checkpoint, 0))
            check_pace(kept["per_step"], batches_a_step(args))
            self.order = kept["order"]
            take_up_window(self.trainer, kept)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        # The Trainer would draw the order of a resumed epoch as that of the first one.
        if self.order is not None and state.global_step == self.start:
            torch.set_rng_state(self.order)
        self.order = torch.get_rng_state()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.advance(state.global_step - self.last, self.note)
        self.last = state.global_step
        if told_to_stop(args.device):
            self.stopping = control.should_save = True
        if state.global_step == state.max_steps:
            control.should_log = True  # what is left of the last window: a short run has no other line
        if control.should_save:
            check_weights(trainable_state(rest["model"]), f"step {state.global_step}")

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **rest: Any
    ) -> None:
        for kind, held_out in held_out_losses(logs or {}).items():
            self.note_held_out(kind, held_out, state.global_step)
        if not logs or "loss" not in logs:
            return
        numbers = {ours: logs[name] for name, ours in METRICS.items() if name in logs}
        for name, number in numbers.items():
            check_number(name.replace("_", " "), number, state.global_step, LEARNED_TOO_FAST)
        self.write({"step": state.global_step} | numbers)
        self.note = f"loss {logs['loss']:.3f}"

    def note_held_out(self, kind: str, loss: float, step: int) -> None:
        check_number(f"held-out loss of {kind} rows", loss, step, LEARNED_TOO_FAST)
        self.held_out[kind], self.evaluated = loss, step
        self.write({"step": step, "held_out": kind, "held_out_loss": loss})

    def write(self, row: dict[str, Any]) -> None:
        """A line of metrics.jsonl; the first of several processes writes it."""
        if self.metrics is not None:
            self.metrics.write(row)

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        folder = Path(args.output_dir)
        # Of the epoch to go on in
        order = torch.get_rng_state() if float(state.epoch).is_integer() else self.order
        write_state(
            own_file(folder / f"checkpoint-{state.global_step}"),
            {"order": order, "per_step": batches_a_step(args), **window(self.trainer)},
        )
        # Each process writes its own file and RNG state; the seal comes after all of them.
        args.distributed_state.wait_for_everyone()
        if state.is_world_process_zero:
            seal_hf_checkpoint(folder, state.global_step)
        if self.stopping:
            args.distributed_state.wait_for_everyone()
            raise Terminated


def batches_a_step(args: Any) -> int:
    return int(args.gradient_accumulation_steps) * world_size()


def held_out_losses(entry: dict[str, Any]) -> dict[str, float]:
    """Kind of held-out rows -> loss, of a log line of the Trainer."""
    ends = ("eval_", "_loss")
    names = [name for name in entry if name.startswith(ends[0]) and name.endswith(ends[1])]
    return {name.removeprefix(ends[0]).removesuffix(ends[1]): entry[name] for name in names}


def own_file(checkpoint: Path, process: int | None = None) -> Path:
    """What the Trainer itself would forget over a resume; each process has its own."""
    return checkpoint / f"window-{rank() if process is None else process}.pt"


def window(trainer: Any) -> dict[str, Any]:
    """What is summed up since the last log line: the running loss, all of it before, that line's step,
    SFTTrainer's measures.
    """
    return {
        "loss": trainer._tr_loss.item(),
        "total_loss": trainer._total_loss_scalar,
        "last_logged": trainer._globalstep_last_logged,
        "metrics": dict(trainer._metrics["train"]),
    }


def take_up_window(trainer: Any, kept: dict[str, Any]) -> None:
    """Put back what `window` gave, once the Trainer has set its own to zero."""
    trainer._tr_loss.fill_(kept["loss"])
    trainer._total_loss_scalar = kept["total_loss"]
    trainer._globalstep_last_logged = kept["last_logged"]
    trainer._metrics["train"].update(kept["metrics"])


def check_number(name: str, number: float, step: int, advice: str) -> None:
    """Raise RunError where it is not finite."""
    if not math.isfinite(number):
        raise RunError(f"the {name} is {number} at step {step}", advice)


def whole_weights(trainer: Trainer) -> dict[str, Any] | None:
    """Name -> tensor of a model that FSDP holds in parts, on the first process; None where each process has
    it whole.

    Every process takes part.
    """
    return trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
