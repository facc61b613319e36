"""What the oracle says of several models' samples on the same prompts: rates, intervals, paired differences.

    results.json: {"models": {name: {"harmless", "evasive", ..., "n": {...}, "intervals": {rate: [low, high]}}},
                   "differences": {rate: {"mean", "low", "high"}}}

Intervals are 95 % bootstrap intervals over combinations of action and thing, since replies to prompts of one
combination are not independent: who does not know how to `disarm the alarm of` a chest is wrong in every way
of being asked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cai_cli.evaluation.bootstrap import Bootstrap
from cai_cli.microworld.grammar import REQUEST_KINDS
from cai_cli.microworld.oracle import combination
from cai_cli.microworld.scores import RATES, Scored, rate, score_samples
from cai_cli.rows.records import Sample

Value = tuple[str, float]  # a prompt's text, and a number about one reply to it or about all


def hits(scored: list[Scored], name: str) -> list[Value]:
    """1 or 0 for each sample that a rate is over."""
    found = [(sample.prompt, sample.counts_for(name)) for sample in scored]
    return [(prompt, float(hit)) for prompt, hit in found if hit is not None]


def prompt_means(scored: list[Scored], name: str) -> dict[str, float]:
    """Mean of a rate by prompt, over the prompts of its kinds."""
    values: dict[str, list[float]] = defaultdict(list)
    for prompt, hit in hits(scored, name):
        values[prompt].append(hit)
    return {prompt: sum(found) / len(found) for prompt, found in values.items()}


def bootstrap(values: Iterable[Value]) -> tuple[float, float]:
    """95 % interval of the mean: whole combinations are drawn again, each with all values of its prompts."""
    prompts, numbers = zip(*values, strict=True)
    combinations = [" ".join(combination(prompt)) for prompt in prompts]
    return Bootstrap(combinations).interval(np.array(numbers))


def model_results(scored: list[Scored]) -> dict[str, Any]:
    """Rates with intervals and counts of one model's samples."""
    results: dict[str, Any] = {name: rate(scored, name) for name in RATES}
    results["n"] = {kind: sum(sample.verdict.kind == kind for sample in scored) for kind in REQUEST_KINDS}
    results["intervals"] = {name: bootstrap(hits(scored, name)) for name in RATES}
    return results


def difference(before: list[Scored], after: list[Scored], name: str) -> dict[str, float]:
    """Mean of (after - before) over the prompts both answered, with its paired bootstrap interval."""
    old, new = prompt_means(before, name), prompt_means(after, name)
    paired = [(prompt, new[prompt] - old[prompt]) for prompt in sorted(old.keys() & new.keys())]
    low, high = bootstrap(paired)
    return {"mean": float(np.mean([change for _, change in paired])), "low": low, "high": high}


def compare(samples: Mapping[str, Iterable[Sample]], before: str, after: str) -> dict[str, Any]:
    """The contents of results.json for the named models' samples."""
    scored = {name: score_samples(rows) for name, rows in samples.items()}
    return {
        "models": {name: model_results(rows) for name, rows in scored.items()},
        "differences": {
            "of": f"{after} - {before}",
            **{
                name: difference(scored[before], scored[after], name)
                for name in ("harmless", "helpful", "helpful_dual")
            },
        },
    }
