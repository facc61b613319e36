"""What `pmp` and `train-pm` share around `fit_pairwise`: the held-out part, the dry run, training and saving."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_cli.artifact import ModelArtifact, Rejected
from cai_cli.conversation import first_human_turn
from cai_cli.errors import RunError
from cai_cli.jsonl import write_rows
from cai_cli.records import Comparison
from cai_cli.splits import assign
from cai_cli.talk import say, table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cai_cli.training.pairwise import TokenPair

TRAIN, HELD_OUT = "train", "held_out"


def split_held_out(pairs: list[tuple[Comparison, TokenPair]], share: float, seed: int) -> tuple[list[TokenPair], list[TokenPair]]:
    """Divide by a hash of the first human turn, so that no prompt is on both sides."""
    parts: dict[str, list[TokenPair]] = {TRAIN: [], HELD_OUT: []}
    for comparison, pair in pairs:
        side = assign(first_human_turn(comparison.prompt), {TRAIN: 1 - share, HELD_OUT: share}, seed) if share else TRAIN
        parts[side].append(pair)
    return parts[TRAIN], parts[HELD_OUT]


def run_pairwise_stage(
    artifact: ModelArtifact,
    options: Any,
    tokenizer: PreTrainedTokenizerBase,
    training: list[TokenPair],
    held_out: list[TokenPair],
    rejected: list[Rejected],
) -> None:
    """Load the classifier, train it, save it with what was measured on the held-out part."""
    if not training:
        hint = "lower --held-out, or give comparisons of more prompts"
        raise RunError(f"all {len(held_out)} pairs fell into the held-out part: none is left to train on", hint)
    if options.dry_run:
        dry_run(training, tokenizer, len(rejected))
        return
    import transformers

    from cai_cli.models.load import is_preference_model, load_pm, training_dtype
    from cai_cli.models.score import reset_head
    from cai_cli.training.facts import model_facts
    from cai_cli.training.pairwise import fit_pairwise

    artifact.start()
    if rejected:
        write_rows(artifact.folder / "rejects.jsonl", [item.to_row() for item in rejected])
        say(f"{len(rejected)} pairs rejected into {artifact.folder / 'rejects.jsonl'}")
    transformers.set_seed(options.seed)
    model = load_pm(options.model, options.device, training_dtype(options.dtype), "--model", tokenizer)
    if not is_preference_model(options.model):
        reset_head(model, options.seed)
    say(f"{artifact.manifest['stage']}: {len(training)} pairs, {len(held_out)} held out")
    facts = fit_pairwise(model, training, held_out, options, artifact.folder, int(tokenizer.pad_token_id))

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    counts = dict(sorted(Counter(item.reason for item in rejected).items()))
    seen = len(training) + len(held_out)
    facts |= {"counts": {"in": seen + len(rejected), "out": seen, "rejected": counts}}
    artifact.finish(save, **facts, **model_facts(model, tokenizer))
    show_evaluation(facts.get("evaluation", {}))


def show_evaluation(evaluation: dict[str, dict[str, Any]]) -> None:
    if not evaluation:
        return
    rows = [
        [
            name,
            str(group["pairs"]),
            "–" if group["accuracy"] is None else f"{group['accuracy']:.1%}",
            f"{group['brier']:.3f}",
            f"{group['calibration_error']:.3f}",
        ]
        for name, group in evaluation.items()
    ]
    table("held-out comparisons", ["origin", "pairs", "accuracy", "Brier", "calibration error"], rows)


def dry_run(pairs: list[TokenPair], tokenizer: PreTrainedTokenizerBase, rejected: int) -> None:
    """Show the first pair as text, with the token that is scored."""
    for name, ids in (("chosen", pairs[0].chosen), ("rejected", pairs[0].rejected)):
        print(f"{name}: {tokenizer.decode(ids)!r}\n  scored token: {ids[-1]} {tokenizer.decode(ids[-1:])!r}")  # noqa: T201
    tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
    say(f"{len(pairs)} pairs, {tokens} tokens; {rejected} pairs would be rejected")
