"""How models' replies compare, as one picture. Loads matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from cai_cli.evaluation.plots import plain, short
from cai_cli.evaluation.response_rates import HARMFUL, HELPFUL
from cai_cli.evaluation.responses import ALL

matplotlib.use("Agg")
COLOURS = ("#3b6ea5", "#d1802e", "#4f9d69", "#8c6bb1", "#c0504d", "#7f7f7f")
MEASURED = {"refusal": "refuse", "bare": "refuse bare", "preaching": "preach", "repetition": "repeat"}
MOST_SOURCES = 40
LONGEST_NAME = 34


def draw_responses(models: list[dict[str, Any]], path: Path) -> None:
    """Left, for each kind of prompt, the share of replies that refuse, refuse bare, preach, repeat; right the share
    that refuses by the set's own kinds, where there are any. A dot a model, with its 95 % interval.
    """
    from matplotlib import pyplot

    names = {name for model in models for name in model["groups"]}
    kinds = [name for name in (HARMFUL, HELPFUL) if name in names] or [ALL]
    sources = sorted(names - {ALL, HARMFUL, HELPFUL}, key=pairs_together)[:MOST_SOURCES]
    left = [(f"{text}\n({kind})", kind, name) for kind in kinds for name, text in MEASURED.items()]
    right = [(short(source, LONGEST_NAME), source, "refusal") for source in sources]
    spread = 0.3 + 0.14 * len(models)
    height = 1.6 + max(len(left), len(right)) * max(0.42, 0.3 * spread)
    figure, panels = pyplot.subplots(
        1, 1 + bool(right), figsize=(5.5 * (1 + bool(right)), height), layout="constrained", squeeze=False
    )
    draw_rows(panels[0][0], models, left, "replies", spread)
    if right:
        draw_rows(panels[0][1], models, right, "refusals by set", spread)
    figure.legend(
        *panels[0][0].get_legend_handles_labels(), loc="outside lower center", frameon=False, ncols=3
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_rows(
    axes: Any, models: list[dict[str, Any]], rows: list[tuple[str, str, str]], title: str, spread: float
) -> None:
    """`rows`: label, group and measurement, from the top."""
    for number, model in enumerate(models):
        offset = 0.0 if len(models) == 1 else spread * (number / (len(models) - 1) - 0.5)
        found = [
            (place, model["groups"][group][name])
            for place, (_, group, name) in enumerate(rows)
            if group in model["groups"]
        ]
        shares = [item["share"] for _, item in found]
        bars = [
            [max(0.0, item["share"] - item["low"]) for _, item in found],
            [max(0.0, item["high"] - item["share"]) for _, item in found],
        ]
        axes.errorbar(
            shares,
            [place + offset for place, _ in found],
            xerr=bars,
            fmt="o",
            markersize=4.5,
            capsize=2,
            linewidth=1,
            color=COLOURS[number % len(COLOURS)],
            label=plain(short(model["name"], LONGEST_NAME)),
        )
    for place in range(1, len(rows)):
        axes.axhline(place - 0.5, color="0.92", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(rows)), [plain(label) for label, _, _ in rows], fontsize=8)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5), xlabel="share of replies, 95 %", title=title)
    axes.spines[["top", "right"]].set_visible(False)


def pairs_together(source: str) -> str:
    """Unsafe types of XSTest below the safe ones that they look like."""
    return source.replace("/contrast_", "/") + ("~" if "/contrast_" in source else "")
