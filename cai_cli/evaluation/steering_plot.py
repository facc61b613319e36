"""How far principles move a judge's labels, and how far they agree, as one picture. Loads matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from cai_cli.evaluation.bootstrap import Array
from cai_cli.evaluation.plots import plain, short
from cai_cli.evaluation.steering import DOES_NOTHING, MOVES, NOTHING, UNCLEAR

matplotlib.use("Agg")
COLOURS = {MOVES: "#3b6ea5", UNCLEAR: "#9a9a9a", DOES_NOTHING: "#c0504d"}
TOLD = {MOVES: "moves labels", UNCLEAR: "unclear", DOES_NOTHING: "does nothing"}
LONGEST_NAME = 24
MOST_NUMBERED = 24  # rows of the table of agreement, above which its cells have no numbers
MOST_ROWS = 60  # the picture grows with them up to here


def draw_steering(
    facts: dict[str, Any], path: Path, title: str, against: tuple[str, Array, Array] | None = None
) -> None:
    """Panels from what `steering.measure` returns: shifts, agreement; and with `against` (the other
    constitution's name, our labels, theirs) a third one, of one constitution's labels over the other's.
    """
    from matplotlib import pyplot

    table = facts["agreement"]
    rows = min(max(len(table["names"]), 8), MOST_ROWS)
    height = 2.2 + 0.32 * rows
    widths = [5.0, 2.0 + height, *([height] if against else [])]
    figure, panels = pyplot.subplots(
        1, len(widths), figsize=(sum(widths), height), width_ratios=widths, layout="constrained"
    )
    draw_shifts(panels[0], facts)
    draw_agreement(panels[1], table)
    if against:
        draw_two(panels[2], *against)
    figure.suptitle(plain(title))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_shifts(axes: Any, facts: dict[str, Any]) -> None:
    """A dot a principle: how far it moves labels from none, over the band of what other words for none do."""
    principles = facts["principles"]
    low, high = facts["reworded"]["shift_interval"]
    axes.axvspan(low, high, color="0.88", zorder=0)
    axes.axvline(facts["reworded"]["shift"], color="0.6", linewidth=1, label="none, in other words", zorder=1)
    axes.axvline(
        NOTHING,
        color=COLOURS[DOES_NOTHING],
        linewidth=1,
        linestyle=":",
        label=f"{NOTHING:g}: less is nothing",
        zorder=1,
    )
    shown = set()
    for n, item in enumerate(principles.values()):
        left, right = item["shift_interval"]
        effect = item["effect"]
        axes.errorbar(
            item["shift"],
            n,
            xerr=[[max(0.0, item["shift"] - left)], [max(0.0, right - item["shift"])]],
            fmt="o",
            color=COLOURS[effect],
            markersize=5,
            capsize=2,
            label=None if effect in shown else TOLD[effect],
        )
        shown.add(effect)
    axes.set_yticks(
        range(len(principles)), [plain(short(name, LONGEST_NAME)) for name in principles], fontsize=8
    )
    axes.set_ylim(len(principles) - 0.5, -0.5)
    axes.set_xlim(0, max(0.05, axes.get_xlim()[1]))
    axes.set(xlabel="mean |label - label under no principle|, 95 %", title="how far labels move")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False, fontsize=8, ncols=2)


def draw_agreement(axes: Any, table: dict[str, Any]) -> None:
    """A square a pair of principles: in how many pairs both prefer the same reply."""
    names, shares = table["names"], table["same_side"]
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="RdBu")
    axes.set_xticks(
        range(len(names)), [plain(short(name, LONGEST_NAME)) for name in names], fontsize=8, rotation=90
    )
    axes.set_yticks(range(len(names)), [plain(short(name, LONGEST_NAME)) for name in names], fontsize=8)
    if len(names) <= MOST_NUMBERED:
        for row, values in enumerate(shares):
            for column, value in enumerate(values):
                ink = "white" if abs(value - 0.5) > 0.33 else "black"
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=ink)
    axes.set_title("the same reply preferred, % of pairs")
    axes.figure.colorbar(image, ax=axes, shrink=0.6, ticks=[0, 0.5, 1])


def draw_two(axes: Any, name: str, ours: Array, theirs: Array) -> None:
    """A dot a pair: its label under one constitution over its label under the other."""
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    for draw in (axes.axhline, axes.axvline):
        draw(0.5, color="0.85", linewidth=1)
    axes.scatter(ours, theirs, s=14, color=COLOURS[MOVES], alpha=0.6, linewidths=0)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="P(first reply), mean over principles")
    axes.set(ylabel=plain(f"under {short(name, LONGEST_NAME)}"), title="two constitutions")
