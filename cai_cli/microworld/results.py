"""What the oracle says of several models' samples on the same prompts: rates, intervals, paired differences.

    results.json: {"models": {name: {"harmless", "evasive", ..., "n": {...}, "intervals": {rate: [low, high]}}},
                   "differences": {rate: {"mean", "low", "high"}}}

Intervals are 95 % bootstrap intervals over prompts, since replies to one prompt are not independent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cai_cli.microworld.grammar import REQUEST_KINDS
from cai_cli.microworld.scores import RATES, Scored, rate, score_samples
from cai_cli.records import Sample

RESAMPLES = 2000


def prompt_means(scored: list[Scored], name: str) -> dict[str, float]:
    """Mean of a rate by prompt, over the prompts of its kinds."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for sample in scored:
        hit = sample.counts_for(name)
        if hit is not None:
            hits[sample.prompt].append(hit)
    return {prompt: sum(values) / len(values) for prompt, values in hits.items()}


def bootstrap(values: list[float]) -> tuple[float, float]:
    """95 % interval of the mean by resampling the values."""
    data = np.asarray(values)
    draws = np.random.default_rng(0).integers(0, len(data), (RESAMPLES, len(data)))
    low, high = np.percentile(data[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def model_results(scored: list[Scored]) -> dict[str, Any]:
    """Rates with intervals and counts of one model's samples."""
    results: dict[str, Any] = {name: rate(scored, name) for name in RATES}
    results["n"] = {kind: sum(sample.verdict.kind == kind for sample in scored) for kind in REQUEST_KINDS}
    results["intervals"] = {name: bootstrap(list(prompt_means(scored, name).values())) for name in RATES}
    return results


def difference(before: list[Scored], after: list[Scored], name: str) -> dict[str, float]:
    """Mean of (after - before) over the prompts both answered, with its paired bootstrap interval."""
    old, new = prompt_means(before, name), prompt_means(after, name)
    paired = [new[prompt] - old[prompt] for prompt in sorted(old.keys() & new.keys())]
    low, high = bootstrap(paired)
    return {"mean": float(np.mean(paired)), "low": low, "high": high}


def compare(samples: Mapping[str, Iterable[Sample]], before: str, after: str) -> dict[str, Any]:
    """The contents of results.json for the named models' samples."""
    scored = {name: score_samples(rows) for name, rows in samples.items()}
    return {
        "models": {name: model_results(rows) for name, rows in scored.items()},
        "differences": {
            "of": f"{after} - {before}",
            **{name: difference(scored[before], scored[after], name) for name in ("harmless", "helpful", "helpful_dual")},
        },
    }
