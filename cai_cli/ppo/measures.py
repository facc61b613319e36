"""What is known of each episode, and what a batch of them comes to: the rows of metrics.jsonl and samples.jsonl."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cai_cli.engines.base import LENGTH
from cai_cli.evaluation.refusals import refusal_rate


@dataclass(frozen=True, slots=True)
class Episode:
    """One reply: its PM score, its KL to the reference in nats, its tokens; `gold`: another PM's score, where there is one."""

    prompt_id: str
    kind: str | None
    text: str
    tokens: int
    finish_reason: str
    score: float
    kl: float
    gold: float | None = None


def mean_rows(episodes: list[Episode], prefix: str = "") -> dict[str, float]:
    """Means over the episodes. `score_length`: correlation of score and length, which rises when length is what pays."""
    row = {
        "score": fmean(e.score for e in episodes),
        "kl": fmean(e.kl for e in episodes),
        "length": fmean(e.tokens for e in episodes),
        "missing_eos": fmean(e.finish_reason == LENGTH for e in episodes),
        "score_length": correlation([e.score for e in episodes], [float(e.tokens) for e in episodes]),
    }
    golds = [e.gold for e in episodes if e.gold is not None]
    if golds:
        row["gold_score"] = fmean(golds)
        if len(golds) < len(episodes):
            row["gold_unfit"] = len(episodes) - len(golds)
    return {prefix + name: value for name, value in row.items()}


def held_out_row(episodes: list[Episode]) -> dict[str, float]:
    """What an evaluation comes to, by kind of prompt too, with the share of replies that refuse."""
    row = mean_rows(episodes, "eval_")
    for kind in sorted({e.kind for e in episodes if e.kind}):
        some = [e for e in episodes if e.kind == kind]
        row[f"eval_score_{kind}"] = fmean(e.score for e in some)
        row[f"eval_length_{kind}"] = fmean(e.tokens for e in some)
        row[f"eval_refusals_{kind}"] = refusal_rate([e.text for e in some])
    if not any(e.kind for e in episodes):
        row["eval_refusals"] = refusal_rate([e.text for e in episodes])
    return row


def correlation(left: list[float], right: list[float]) -> float:
    """Pearson's; 0 where one of them does not vary."""
    a, b = fmean(left), fmean(right)
    spread = math.sqrt(sum((x - a) ** 2 for x in left) * sum((y - b) ** 2 for y in right))
    return sum((x - a) * (y - b) for x, y in zip(left, right, strict=True)) / spread if spread > 0 else 0.0


def sample_rows(step: int, episodes: list[Episode], prompts: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The first `count` episodes as rows of samples.jsonl."""
    rows = []
    for e in episodes[:count]:
        row = {"step": step, "prompt_id": e.prompt_id, "prompt": prompts[e.prompt_id], "completion": e.text}
        row |= {"score": e.score, "kl": e.kl, "tokens": e.tokens, "finish_reason": e.finish_reason}
        rows.append(row if e.gold is None else {**row, "gold_score": e.gold})
    return rows
