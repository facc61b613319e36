"""The whole of a finetuning: the model, a rehearsal of saving, TRL's trainer, and the model saved with its
card.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from cai_cli.artifacts.models import ModelArtifact
from cai_cli.artifacts.rejects import copy_aside
from cai_cli.compute.products import fast_products
from cai_cli.console.messages import say, warn_all
from cai_cli.evaluation.cautions import rate_cautions
from cai_cli.models.adapters import save_trained
from cai_cli.processes.ranks import by_fsdp, main_first
from cai_cli.rows.jsonl import write_atomically
from cai_cli.training.checkpoints import newest_whole
from cai_cli.training.model_card import model_card
from cai_cli.training.rehearsal import learned_bytes, rehearse_saving, steps_of
from cai_cli.training.run_facts import model_facts
from cai_cli.training.sft.hf_trainer import TrainingLog, whole_weights
from cai_cli.training.sft.row_files import Rows, packed_dataset
from cai_cli.training.sft.settings import Options
from cai_cli.training.sft.trainer import make_trainer, open_model
from cai_cli.training.trackers import open_trackers


def finetune(
    artifact: ModelArtifact,
    options: Options,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
) -> None:
    """Train the base model on the rows that are not held out, and save it."""
    training, folder = options.training, options.output.out
    data = rows.training
    if options.packing:
        data = packed_dataset(data, training.max_length, options.output.seed)
    model = open_model(options, tokenizer)
    if not artifact.begun:
        saves = 1 + steps_of(len(data), training) // training.save_steps
        main_first(
            lambda: rehearse_saving(
                model, tokenizer, folder, artifact.checkpoints, saves, learned_bytes(model)
            )
        )
    artifact.start()
    copy_aside(rows.rejects, rows.rejected, "rows", folder / "rejects.jsonl")
    trainer = make_trainer(options, model, tokenizer, data, rows.held_out, artifact.checkpoints)
    checkpoint = newest_whole(artifact.checkpoints, "checkpoint")
    packs = f" in {len(data)} packs" if options.packing else ""
    say(
        f"sft: {len(rows.training)} rows{packs}"
        + (f", continuing from {checkpoint.name}" if checkpoint else "")
    )
    trackers = partial(open_trackers, options, "sft")
    products = nullcontext() if by_fsdp() else fast_products(trainer.model)
    with TrainingLog("sft", artifact.metrics_file, trackers) as log, products:
        log.train(trainer, checkpoint)
        held_out = log.evaluate(trainer)
        train_loss = log.mean_loss(trainer)

    rates = rate_cautions(training.learning_rate, training.warmup_steps, trainer.state.global_step)
    facts = {
        "counts": {
            "in": len(rows) + rows.rejected.total(),
            "out": len(rows),
            "rejected": dict(sorted(rows.rejected.items())),
        },
        "held_out": {"rows": len(rows) - len(rows.training), "loss": held_out},
        "tokens": rows.tokens,
        "train_loss": train_loss,
        "warnings": warn_all(rows.cautions + rates),
        **model_facts(trainer.model, tokenizer),
    }

    weights = whole_weights(trainer)

    def save(folder: Path) -> None:
        save_trained(trainer.model, tokenizer, folder, options.adapters, options.model, "CAUSAL_LM", weights)
        write_atomically(folder / "README.md", model_card(artifact.manifest | facts, folder))

    artifact.finish(save, **facts)
