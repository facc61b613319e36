"""Held-out scores against √KL: the paper's line that says how far a policy may go (arXiv 2204.05862, section
4.3).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib

from cai_cli.rows.json_text import load_json

matplotlib.use("Agg")

SCORES = (("eval_score", "preference model"), ("eval_gold_score", "gold PM"))


def evaluations(metrics: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that hold an evaluation."""
    rows = (load_json(line, constant=float) for line in metrics.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if "eval_score" in row]


def draw_against_kl(
    axes: Any, rows: list[dict[str, Any]], label: str = "", colour: str | None = None
) -> None:
    """The scores of one run, step by step; the gold PM's dashed."""
    distances = [math.sqrt(max(0.0, row["eval_kl"])) for row in rows]
    for (name, model), line in zip(SCORES, ("-", "--"), strict=True):
        if name in rows[0]:
            told = ", ".join(
                filter(None, (label, model if "eval_gold_score" in rows[0] or not label else ""))
            )
            drawn = axes.plot(
                distances,
                [row[name] for row in rows],
                line,
                marker="o",
                markersize=3,
                label=told,
                color=colour,
            )
            colour = drawn[0].get_color()
    axes.set(xlabel="√KL(policy ‖ reference), √nats a reply", ylabel="mean held-out score")


def draw_run(metrics: Path, path: Path) -> bool:
    """One run's plot, where it was evaluated often enough to have one."""
    from matplotlib import pyplot

    rows = evaluations(metrics)
    if len(rows) < 3:
        return False
    figure, axes = pyplot.subplots(figsize=(5, 4), layout="constrained")
    draw_against_kl(axes, rows)
    for row in (rows[0], rows[-1]):
        axes.annotate(
            f"step {row['step']}", (math.sqrt(max(0.0, row["eval_kl"])), row["eval_score"]), fontsize=8
        )
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return True
