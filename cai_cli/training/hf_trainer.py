"""What we add to a Hugging Face Trainer: our progress and metrics.jsonl instead of its prints, and marked checkpoints."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from cai_cli.errors import RunError
from cai_cli.talk import progress
from cai_cli.training.checkpoints import mark_hf_checkpoint
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

    A loss that is not finite raises RunError before the step is saved: save steps are multiples of logging steps.
    """

    def __init__(self, name: str, metrics_file: Path) -> None:
        self.name = name
        self.metrics_file = metrics_file
        self.opened = ExitStack()

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *error: Any) -> None:
        self.opened.__exit__(*error)

    def train(self, trainer: Trainer, checkpoint: Path | None) -> Any:
        """Run the trainer from the checkpoint, if any, with nothing but our own talk."""
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(self)
        return trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.advance = self.opened.enter_context(progress(self.name, state.max_steps, state.global_step))
        self.metrics = self.opened.enter_context(MetricsFile(self.metrics_file, state.global_step))
        self.last = state.global_step
        self.note = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.advance(state.global_step - self.last, self.note)
        self.last = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **rest: Any) -> None:
        if not logs or "loss" not in logs:
            return
        loss = logs["loss"]
        if not math.isfinite(loss):
            raise RunError(f"the loss is {loss} at step {state.global_step}", "lower --learning-rate; checkpoints are kept")
        self.metrics.write({"step": state.global_step} | {ours: logs[name] for name, ours in METRICS.items() if name in logs})
        self.note = f"loss {loss:.3f}"

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        # Other ranks write their own RNG state; the mark comes after all of them.
        args.distributed_state.wait_for_everyone()
        if state.is_world_process_zero:
            mark_hf_checkpoint(Path(args.output_dir), state.global_step)
