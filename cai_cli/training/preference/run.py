"""What `pmp` and `train-pm` share around `fit_pairwise`: the text that is scored, the held-out part, training
and saving.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerBase

from cai_cli.artifacts.models import ModelArtifact
from cai_cli.artifacts.rejects import copy_aside
from cai_cli.console.messages import say, table, warn_all
from cai_cli.evaluation.cautions import label_cautions, rate_cautions, undecided_rate
from cai_cli.evaluation.comparisons import COLUMNS, table_rows
from cai_cli.models.adapters import add_lora, save_trained
from cai_cli.models.devices import pick_device, training_dtype
from cai_cli.models.language_head import TiedHead, language_head, save_language_head
from cai_cli.models.load import load_pm
from cai_cli.models.paths import is_preference_model
from cai_cli.models.saved_configs import settle_configs
from cai_cli.models.score import reset_head
from cai_cli.processes.ranks import main_first
from cai_cli.rows.jsonl import write_atomically
from cai_cli.training.model_card import model_card
from cai_cli.training.modes import disable_dropout
from cai_cli.training.parallel import to_load
from cai_cli.training.parts import whole_weights
from cai_cli.training.preference.loop import fit_pairwise
from cai_cli.training.preference.pair_files import Pairs
from cai_cli.training.preference.settings import PairwiseOptions
from cai_cli.training.rehearsal import learned_bytes, rehearse_saving, steps_of
from cai_cli.training.run_facts import model_facts
from cai_cli.training.trackers import open_trackers


def run_pairwise_stage(
    artifact: ModelArtifact,
    fit: PairwiseOptions,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Pairs,
) -> None:
    """Load the classifier, train it, save it with what was measured on the held-out part."""
    options, seed, stage = fit.training, artifact.options.output.seed, artifact.manifest["stage"]
    transformers.set_seed(seed)
    held = training_dtype(fit.hardware.dtype, options.bf16, fit.adapters.lora)
    device, dtype = to_load(fit.hardware.device, held)
    model = load_pm(base, device, dtype, "--model", tokenizer, fit.adapters.quantize)
    settle_configs(model, tokenizer)
    if not is_preference_model(base):
        reset_head(model, seed)
    disable_dropout(model)
    head = language_head(model, base) if fit.lm_coef else None
    if head is not None and not isinstance(head, TiedHead):
        head.to(pick_device(fit.hardware.device), getattr(torch, held))
    if fit.adapters.lora:
        model = add_lora(model, fit.adapters, "SEQ_CLS", seed)
    if not artifact.begun:
        saves = steps_of(len(pairs.training), options) // options.save_steps
        main_first(
            lambda: rehearse_saving(
                model, tokenizer, artifact.folder, artifact.checkpoints, saves, learned_bytes(model)
            )
        )
    artifact.start()
    copy_aside(pairs.rejects, pairs.rejected, "pairs", artifact.folder / "rejects.jsonl")
    say(f"{stage}: {len(pairs.training)} pairs, {len(pairs.held_out)} held out")
    facts = fit_pairwise(
        model,
        pairs.training,
        pairs.held_out,
        fit,
        artifact.folder,
        int(tokenizer.pad_token_id),
        seed,
        head,
        stage,
        partial(open_trackers, artifact.options, stage),
    )
    seen, rejected = len(pairs.training) + len(pairs.held_out), dict(sorted(pairs.rejected.items()))
    facts |= {
        "counts": {"in": seen + pairs.rejected.total(), "out": seen, "rejected": rejected},
        **model_facts(model, tokenizer),
    }
    rates = rate_cautions(options.learning_rate, options.warmup_steps, facts["steps"])
    facts["warnings"] = warn_all(pairwise_cautions(pairs, facts) + rates)
    card = model_card({**artifact.manifest, **facts}, artifact.folder)

    weights = whole_weights(model)

    def save(folder: Path) -> None:
        tokenizer.padding_side = "right"  # positions then count from the first real token in any library
        save_trained(model, tokenizer, folder, fit.adapters, base, "SEQ_CLS", weights)
        save_language_head(head, folder)
        write_atomically(folder / "README.md", card)

    artifact.finish(save, **facts)
    if evaluation := facts.get("evaluation"):
        table("held-out comparisons", COLUMNS, table_rows(evaluation))


def pairwise_cautions(pairs: Pairs, facts: dict[str, Any]) -> list[str]:
    """Labels that say nothing, and a model that tells no two held-out texts apart."""
    found = label_cautions(undecided_rate(pairs.training.probabilities + pairs.held_out.probabilities))
    if facts.get("score_deviation") == 0:
        found.append("all held-out texts have the same score: the model tells none apart")
    return found
