"""`fit_pairwise`: the one loop that trains a preference model, for `pmp` and `train-pm`.

In: pairs as token ids closed by EOS, with the probability that chosen is preferred and a loss weight. The order of the data
is a function of (seed, epoch), nothing random is drawn while training, and checkpoints hold all state: so a killed run ends
in the same weights, bit for bit on a CPU, as one that was not.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import get_scheduler

from cai_cli.errors import RunError
from cai_cli.evaluation.calibration import accuracy, brier, calibration_error
from cai_cli.keys import key
from cai_cli.models.score import final_scores, score_all
from cai_cli.options import TrainingOptions
from cai_cli.talk import progress, say
from cai_cli.training.checkpoints import load_checkpoint, save_checkpoint
from cai_cli.training.losses import soft_pairwise_loss

GROUP_BATCHES = 16  # Batches are cut from length-sorted runs of this many, which saves padding and keeps the order random.


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A comparison as the preference model reads it; both rows end in EOS."""

    chosen: list[int]
    rejected: list[int]
    probability: float
    weight: float
    origin: str

    @property
    def longest(self) -> int:
        return max(len(self.chosen), len(self.rejected))


def fit_pairwise(
    model: Any, pairs: list[TokenPair], held_out: list[TokenPair], options: TrainingOptions, folder: Path, pad: int
) -> dict[str, Any]:
    """Train `model` in place; returns facts for the manifest. `folder` takes metrics.jsonl and checkpoints/.

    Raises RunError where the loss is not finite.
    """
    seed = options.seed  # type: ignore[attr-defined]
    batches = all_batches(pairs, options, seed)
    steps = math.ceil(len(batches) / options.gradient_accumulation_steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = get_scheduler(options.schedule, optimizer, options.warmup_steps, steps)
    step = resume(folder, model, optimizer, schedule)
    model.train()
    disable_dropout(model)
    recent: list[float] = []
    with progress("train", steps, step) as advance, MetricsFile(folder / "metrics.jsonl", step) as metrics:
        while step < steps:
            start = step * options.gradient_accumulation_steps
            group = batches[start : start + options.gradient_accumulation_steps]
            rows = sum(map(len, group))
            loss_sum = 0.0
            for batch in group:
                with autocast(model.device.type, options.bf16):
                    loss = batch_loss(model, [pairs[n] for n in batch], pad) / rows
                loss.backward()
                loss_sum += loss.item()
            if not math.isfinite(loss_sum):
                raise RunError(f"the loss is {loss_sum} at step {step}", "lower --learning-rate; checkpoints are kept")
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm or math.inf).item()
            if not math.isfinite(norm):
                raise RunError(f"the gradient's norm is {norm} at step {step}", "lower --learning-rate; checkpoints are kept")
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            recent.append(loss_sum)
            advance(1, f"loss {loss_sum:.3f}")
            if step % options.logging_steps == 0 or step == steps:
                rate = schedule.get_last_lr()[0]
                metrics.write({"step": step, "loss": sum(recent) / len(recent), "lr": rate, "grad_norm": norm})
                recent = []
            if step % options.save_steps == 0 and step < steps:
                save_training_state(folder, step, model, optimizer, schedule)
    model.eval()
    facts: dict[str, Any] = {"steps": steps, "pairs": len(pairs), "held_out": len(held_out)}
    if held_out:
        facts |= evaluate_pairs(model, held_out, pad, options.per_device_train_batch_size * 4)
    return facts


def all_batches(pairs: list[TokenPair], options: TrainingOptions, seed: int) -> list[list[int]]:
    """Indices of every batch of the run, all epochs; a fraction of an epoch takes the first part of its order."""
    size = options.per_device_train_batch_size
    batches: list[list[int]] = []
    for epoch in range(math.ceil(options.num_train_epochs)):
        generator = torch.Generator().manual_seed(key(seed, "epoch", epoch) % (1 << 63))
        order = torch.randperm(len(pairs), generator=generator).tolist()
        share = min(1.0, options.num_train_epochs - epoch)
        order = order[: max(1, round(share * len(order)))]
        in_epoch = []
        for start in range(0, len(order), size * GROUP_BATCHES):
            run = sorted(order[start : start + size * GROUP_BATCHES], key=lambda n: pairs[n].longest)
            in_epoch += [run[k : k + size] for k in range(0, len(run), size)]
        mixed = torch.randperm(len(in_epoch), generator=generator).tolist()
        batches += [in_epoch[n] for n in mixed]
    return batches


def batch_loss(model: Any, batch: list[TokenPair], pad: int) -> torch.Tensor:
    """Sum over the batch of weight times soft pairwise loss."""
    scores = final_scores(model, [pair.chosen for pair in batch] + [pair.rejected for pair in batch], pad)
    chosen, rejected = scores[: len(batch)], scores[len(batch) :]
    probability = torch.tensor([pair.probability for pair in batch], device=scores.device)
    weight = torch.tensor([pair.weight for pair in batch], device=scores.device)
    return (weight * soft_pairwise_loss(chosen, rejected, probability)).sum()


def evaluate_pairs(model: Any, pairs: list[TokenPair], pad: int, batch_size: int) -> dict[str, Any]:
    """Accuracy, Brier score and calibration error by origin, and the mean and deviation of all scores."""
    rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    scores = score_all(model, rows, pad, batch_size)
    chosen, rejected = scores[: len(pairs)], scores[len(pairs) :]
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for pair, high, low in zip(pairs, chosen, rejected, strict=True):
        probability = 1 / (1 + math.exp(min(low - high, 700)))
        for name in ("all", pair.origin):
            groups[name].append((probability, pair.probability))
    by_origin = {}
    for name, items in groups.items():
        predicted, target = [p for p, _ in items], [t for _, t in items]
        by_origin[name] = {
            "pairs": len(items),
            "accuracy": accuracy(predicted, target),
            "brier": brier(predicted, target),
            "calibration_error": calibration_error(predicted, target),
        }
    centre = sum(scores) / len(scores)
    deviation = math.sqrt(sum((s - centre) ** 2 for s in scores) / len(scores))
    return {"evaluation": by_origin, "score_mean": centre, "score_deviation": deviation}


def resume(folder: Path, model: Any, optimizer: Any, schedule: Any) -> int:
    """Take up the last complete checkpoint, if any; returns the step to go on from."""
    found = load_checkpoint(folder / "checkpoints")
    if found is None:
        return 0
    step, state = found
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    say(f"{folder}: continuing from step {step}")
    return step


def save_training_state(folder: Path, step: int, model: Any, optimizer: Any, schedule: Any) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    save_checkpoint(folder / "checkpoints", step, state)


def disable_dropout(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def autocast(device_type: str, bf16: bool) -> torch.autocast:
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=bf16)


class MetricsFile:
    """metrics.jsonl of a training run: lines after `step`, left by a run that was killed later, are cut at the start."""

    def __init__(self, path: Path, step: int) -> None:
        kept = []
        if path.exists() and step > 0:
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
                except ValueError:
                    break
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(kept), encoding="utf-8")
        self.stream = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        self.stream.write(json.dumps(row) + "\n")
        self.stream.flush()

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.stream.close()
