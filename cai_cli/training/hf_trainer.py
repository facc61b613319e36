"""What we add to a Hugging Face Trainer: our progress and metrics.jsonl instead of its prints, and marked checkpoints."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from cai_cli.errors import RunError
from cai_cli.models.adapters import trainable_state
from cai_cli.models.finite import LEARNED_TOO_FAST, check_weights
from cai_cli.ranks import is_main
from cai_cli.talk import progress
from cai_cli.training.checkpoints import drop_half_written, mark_hf_checkpoint
from cai_cli.training.pairwise import MetricsFile

# What a log line of the Trainer is called in metrics.jsonl; what starts anew on a resume (num_tokens) is left out.
METRICS = {
    "loss": "loss",
    "learning_rate": "lr",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "mean_token_accuracy": "token_accuracy",
}


class TrainingLog(TrainerCallback):
    """Progress, metrics.jsonl and checkpoint marks. Usage: `with TrainingLog(...) as log: log.train(trainer, checkpoint)`.

    A number that is not finite raises RunError before the step is saved.
    """

    def __init__(self, name: str, metrics_file: Path) -> None:
        self.name = name
        self.metrics_file = metrics_file
        self.opened = ExitStack()
        self.held_out: dict[str, float] = {}
        self.evaluated: int | None = None  # the step of the last measurement

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *error: Any) -> None:
        self.opened.__exit__(*error)

    def train(self, trainer: Trainer, checkpoint: Path | None) -> Any:
        """Run the trainer from the checkpoint, if any, with nothing but our own talk."""
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(self)
        try:
            return trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except Exception:
            if is_main():  # a full disk, perhaps: half a checkpoint only takes room
                drop_half_written(Path(str(trainer.args.output_dir)), "checkpoint-*")
            raise

    def evaluate(self, trainer: Trainer) -> dict[str, float] | None:
        """The held-out loss of each kind after training; None where nothing is held out."""
        if trainer.eval_dataset is None:
            return None
        if self.evaluated != trainer.state.global_step:
            trainer.evaluate()
        return dict(self.held_out)

    def mean_loss(self, trainer: Trainer, measured: float) -> float:
        """Mean of the logged losses, those before a resume too; `measured` where the run was too short to log one."""
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return sum(losses) / len(losses) if losses else measured

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.advance = self.opened.enter_context(progress(self.name, state.max_steps, state.global_step))
        self.metrics = self.opened.enter_context(MetricsFile(self.metrics_file, state.global_step)) if is_main() else None
        self.last = state.global_step
        self.note = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.advance(state.global_step - self.last, self.note)
        self.last = state.global_step
        if control.should_save:
            check_weights(trainable_state(rest["model"]), f"step {state.global_step}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **rest: Any) -> None:
        for name, value in (logs or {}).items():
            if name.startswith("eval_") and name.endswith("_loss"):
                self.note_held_out(name.removeprefix("eval_").removesuffix("_loss"), value, state.global_step)
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
        # Other ranks write their own RNG state; the mark comes after all of them.
        args.distributed_state.wait_for_everyone()
        if state.is_world_process_zero:
            mark_hf_checkpoint(Path(args.output_dir), state.global_step)


def check_number(name: str, number: float, step: int, advice: str) -> None:
    """Raise RunError where it is not finite."""
    if not math.isfinite(number):
        raise RunError(f"the {name} is {number} at step {step}", advice)


def whole_weights(trainer: Trainer) -> dict[str, Any] | None:
    """Name -> tensor of a model that FSDP holds in parts, on the first process; None where each process has it whole.

    Every process takes part.
    """
    return trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
