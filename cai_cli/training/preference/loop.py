"""`fit_pairwise`: the one loop that trains a preference model, for `pmp` and `train-pm`.

In: pairs as token ids closed by EOS, with the probability that chosen is preferred and a loss weight. The
order of the data is a function of (seed, epoch), what is drawn at a step one of (seed, step), and checkpoints
hold all state: so a killed run ends in the same weights, bit for bit on a CPU, as one that was not. Several
processes share the batches of a step, and hold copies of the model or parts of it (`training/parallel.py`): W
processes do what one does with W times the gradient accumulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cai_cli.compute.products import fast_products
from cai_cli.console.messages import progress, say
from cai_cli.console.options import TrainingOptions
from cai_cli.errors import RunError
from cai_cli.keys import key
from cai_cli.models.devices import training_dtype
from cai_cli.models.finite import advice, check_weights
from cai_cli.processes.collective import everywhere, told_to_stop
from cai_cli.processes.interruption import Terminated, after_the_step
from cai_cli.processes.ranks import is_main, main_first, rank, world_size
from cai_cli.training.checkpoints import (
    check_pace,
    drop_old,
    load_checkpoint,
    save_checkpoint,
    save_in_parts,
    step_folder,
    step_of,
)
from cai_cli.training.metrics_file import MetricsFile
from cai_cli.training.optimiser import make_optimizer, make_schedule
from cai_cli.training.parallel import Parallel
from cai_cli.training.parts import part_name, read_parts
from cai_cli.training.preference.losses import backward, evaluate_pairs
from cai_cli.training.preference.pair_files import longest
from cai_cli.training.preference.pairs import TokenPair
from cai_cli.training.preference.settings import PairwiseOptions
from cai_cli.training.trackers import Trackers
from cai_cli.training.zero import prepared

# Batches are cut from length-sorted runs of this many, which saves padding and keeps the order random.
GROUP_BATCHES = 16
LEARNED = "learned"  # what a checkpoint keeps of the model, in its parts


def fit_pairwise(
    model: Any,
    pairs: Sequence[TokenPair],
    held_out: Sequence[TokenPair],
    fit: PairwiseOptions,
    folder: Path,
    pad: int,
    seed: int,
    head: nn.Module | None = None,
    stage: str = "train-pm",
    trackers: Trackers = lambda step: [],
) -> dict[str, Any]:
    """Train `model` in place; returns facts for the manifest. `folder` takes metrics.jsonl and checkpoints/;
    `stage` is told.

    `head` is the language model's output layer, for `--lm-coef`. Raises RunError where the loss is not
    finite.
    """
    options = fit.training
    batches = all_batches(pairs, options, seed)
    per_step = options.gradient_accumulation_steps * world_size()
    steps = math.ceil(len(batches) / per_step)
    model.train()
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    hardware = fit.hardware
    learns = partial(make_optimizer, learning_rate=options.learning_rate)
    dtype = training_dtype(hardware.dtype, options.bf16, fit.adapters.lora)
    parallel = prepared(model, learns, hardware.device, dtype)
    schedule = make_schedule(options.lr_scheduler_type, parallel.optimizer, options.warmup_steps, steps)
    step, recent = resume(folder, parallel, schedule, per_step)
    metrics_file = MetricsFile(folder / "metrics.jsonl", step, trackers(step))
    shown = progress(stage, steps, step, "steps")
    with shown as advance, metrics_file as metrics, after_the_step(), fast_products(model):
        while step < steps:
            # For the adapters' dropout; nothing else draws
            torch.manual_seed(key(seed, "step", step, rank()) % (1 << 63))
            group = batches[step * per_step : (step + 1) * per_step]
            losses = backward([[pairs[n] for n in batch] for batch in group], parallel, fit, pad, head)
            norm = parallel.clip(options.max_grad_norm)
            for name, number in {**losses, "gradient's norm": norm}.items():
                if not math.isfinite(number):
                    told = f"the {name.replace('_', ' ')} is {number} at step {step}"
                    raise RunError(told, advice(model, step, options.bf16))
            parallel.step()
            schedule.step()
            step += 1
            recent.append(losses)
            advance(1, f"loss {losses['loss']:.3f}")
            if step % options.logging_steps == 0 or step == steps:
                means = {name: sum(row[name] for row in recent) / len(recent) for name in losses}
                metrics.write({"step": step, **means, "lr": schedule.get_last_lr()[0], "grad_norm": norm})
                recent = []
            if held_out and fit.eval_steps and step % fit.eval_steps == 0 and step < steps:
                metrics.write(
                    {"step": step, **evaluate_pairs(parallel, held_out, pad, evaluation_batch(options))}
                )
            stopping = told_to_stop(model.device)
            if stopping or (step % options.save_steps == 0 and step < steps):
                save_training_state(folder, step, parallel, schedule, recent, per_step)
            if stopping:
                raise Terminated
    if options.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    model.eval()
    facts: dict[str, Any] = {"steps": steps, "pairs": len(pairs), "held_out": len(held_out)}
    if held_out:
        facts |= evaluate_pairs(parallel, held_out, pad, evaluation_batch(options))
    return facts


def evaluation_batch(options: TrainingOptions) -> int:
    return options.per_device_train_batch_size * 4


def all_batches(pairs: Sequence[TokenPair], options: TrainingOptions, seed: int) -> list[list[int]]:
    """Indices of every batch of the run, all epochs; a fraction of an epoch takes the first part of its
    order.
    """
    size, lengths = options.per_device_train_batch_size, longest(pairs)
    batches: list[list[int]] = []
    for epoch in range(math.ceil(options.num_train_epochs)):
        generator = torch.Generator().manual_seed(key(seed, "epoch", epoch) % (1 << 63))
        order = torch.randperm(len(pairs), generator=generator).tolist()
        share = min(1.0, options.num_train_epochs - epoch)
        order = order[: max(1, round(share * len(order)))]
        in_epoch = []
        for start in range(0, len(order), size * GROUP_BATCHES):
            run = sorted(order[start : start + size * GROUP_BATCHES], key=lambda n: lengths[n])
            in_epoch += [run[k : k + size] for k in range(0, len(run), size)]
        mixed = torch.randperm(len(in_epoch), generator=generator).tolist()
        batches += [in_epoch[n] for n in mixed]
    return batches


def resume(
    folder: Path, parallel: Parallel, schedule: Any, per_step: int
) -> tuple[int, list[dict[str, float]]]:
    """Take up the newest whole checkpoint, if any; returns the step to go on from, and the losses since the
    last log line.
    """
    found = load_checkpoint(folder / "checkpoints")
    if found is None:
        return 0, []
    checkpoint, state = found
    step = step_of(checkpoint)
    check_pace(state["per_step"], per_step)
    schedule.load_state_dict(state["schedule"])
    parallel.put_back(read_parts(checkpoint, LEARNED, state["kept"]))
    say(f"{folder}: continuing from step {step}")
    return step, state["recent"]


def save_training_state(
    folder: Path,
    step: int,
    parallel: Parallel,
    schedule: Any,
    recent: list[dict[str, float]],
    per_step: int,
) -> None:
    """By every process: where each holds a part, each writes its own."""
    target = folder / "checkpoints"
    state = {"schedule": schedule.state_dict(), "recent": recent, "per_step": per_step}
    kept = parallel.kept()
    everywhere(lambda: check_weights(kept["model"], f"step {step}"))
    if parallel.in_parts:
        state["kept"] = {"parts": world_size()}
        save_in_parts(step_folder(target, step), state, part_name(rank()), {LEARNED: kept})
        main_first(lambda: drop_old(target))
    elif is_main():
        save_checkpoint(target, step, {**state, "kept": {"parts": 0, "whole": kept}})
