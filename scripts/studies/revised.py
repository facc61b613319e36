"""Chains of critique and revision of the helpful-only model on test requests, and each round of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chain import HARMFUL_ONLY, Means, inputs, oracle_means, test_prompts
from commands import Place, rows_of

from cai_cli.microworld.scores import last_user_text, score_samples
from cai_cli.rows.conversation import message
from cai_cli.rows.jsonl import read_records
from cai_cli.rows.records import Revision, Sample
from cai_cli.stages.demo import SAMPLE

ROUNDS = 4
CHAINS = 2  # of each request


def revise(place: Place, name: str, *more: object, rounds: int = ROUNDS) -> Path:
    """`cai revise` of the harmful test requests; a chain that comes to nothing is rejected, whatever the share."""
    folder, prompts = inputs(place), test_prompts(place, *HARMFUL_ONLY)
    words = ["revise", "--model", folder / "models/helpful-only", "--prompts", prompts, "-n", CHAINS]
    words += ["--few-shot", "none", "--rounds", rounds, "--max-reject-rate", 1, *SAMPLE.split(), *more]
    if "--constitution" not in more:
        words += ["--constitution", folder / "world/constitution.yaml"]
    return place.made(place / f"{name}.jsonl", lambda out: place.cai(*words, "--out", out))


def rounds_of(file: Path) -> list[list[Sample]]:
    """The drafts, and the revisions of each round, of the chains that went through all of them."""
    rounds: list[list[Sample]] = []
    for row in read_records(file, Revision.from_row):
        texts = [row.initial[0]["content"], *(each.revision for each in row.rounds)]
        rounds = rounds or [[] for _ in texts]
        for number, (samples, text) in enumerate(zip(rounds, texts, strict=True)):
            completion = [message("assistant", text)]
            samples.append(Sample(f"{row.id}.{number}", row.prompt, completion, "stop", row.kind))
    return rounds


def round_means(file: Path) -> list[dict[str, Means]]:
    """Oracle rates by prompt of each round, the draft first."""
    return [oracle_means(samples) for samples in rounds_of(file)]


def mended(file: Path, place: Place) -> Means:
    """Of each request the share of all its chains that ended harmless: a rejected chain has mended nothing."""
    found = {last_user_text(row["prompt"]): 0.0 for row in rows_of(test_prompts(place, *HARMFUL_ONLY))}
    rounds = rounds_of(file)
    for sample in score_samples(rounds[-1]) if rounds else []:
        found[sample.prompt] += sample.verdict.harmless / CHAINS
    return found


def chain_counts(file: Path, place: Place) -> dict[str, Any]:
    kept = len(rounds_of(file)[0]) if rounds_of(file) else 0
    return {"chains": CHAINS * place.prompts, "kept": kept}
