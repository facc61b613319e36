"""What is known of each episode, and what a batch of them comes to: the rows of metrics.jsonl and
samples.jsonl.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cai_cli.artifacts.rejects import Rejected
from cai_cli.engines.base import LENGTH
from cai_cli.evaluation.refusals import refusal_rate
from cai_cli.prompting.hygiene import EMPTY
from cai_cli.rows.conversation import Conversation, message
from cai_cli.rows.records import Sample


@dataclass(frozen=True, slots=True)
class Episode:
    """One reply: its PM score, its KL to the reference in nats, its tokens; `gold`: another PM's score, where
    there is one.
    """

    prompt_id: str
    kind: str | None
    text: str
    tokens: int
    finish_reason: str
    score: float
    kl: float
    gold: float | None = None


def mean_rows(episodes: list[Episode], prefix: str = "") -> dict[str, float]:
    """Means over the episodes. `score_length`: correlation of score and length, which rises when length is
    what pays.
    """
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


def sample_rows(
    step: int, episodes: list[Episode], prompts: dict[str, Conversation], count: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The first `count` episodes as samples, which every stage that takes replies reads, and those without a
    text as rejects.

    Ids are `<prompt id>/<step>.<k>`, k counting the replies to one prompt: the replies of all steps to it are
    samples of one prompt. What is known of a reply besides stands in fields of its own.
    """
    rows, rejects = [], []
    counts: Counter[str] = Counter()
    for e in episodes[:count]:
        identity = f"{e.prompt_id}/{step}.{counts[e.prompt_id]}"
        counts[e.prompt_id] += 1
        known = {"step": step, "score": e.score, "kl": e.kl, "tokens": e.tokens}
        known |= {} if e.gold is None else {"gold_score": e.gold}
        if e.text.strip():
            sample = Sample(
                identity, prompts[e.prompt_id], [message("assistant", e.text)], e.finish_reason, e.kind
            )
            rows.append(sample.to_row() | known)
        else:
            rejected = Rejected(
                identity, EMPTY, f"{e.tokens} tokens without a text", {"prompt": prompts[e.prompt_id]} | known
            )
            rejects.append({"step": step, **rejected.to_row()})
    return rows, rejects
