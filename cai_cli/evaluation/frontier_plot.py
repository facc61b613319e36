"""Ratings as one picture: helpfulness against harmlessness, the checkpoints of a run joined in their order; where
one of them was not measured of all models, a dot a model for each. Loads matplotlib.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib

from cai_cli.evaluation.outcomes import AXES
from cai_cli.evaluation.plots import plain, short

matplotlib.use("Agg")
LONGEST_NAME = 32
MOST_ROWS = 60
MOST_UNLIKE = 3  # times as many points on one axis as on the other
ARROW = 0.06  # of the picture's width, for an interval without an end


def draw_ratings(models: list[dict[str, Any]], anchor: str, path: Path, title: str) -> None:
    """`models`: rows of the results, see `stages/evaluate_elo.py`."""
    from matplotlib import pyplot

    measured = [axis for axis in AXES.values() if any(model[axis] for model in models)]
    both = [model for model in models if all(model[axis] for axis in AXES.values())]
    if len(measured) == 2 and len(both) == len(models):
        figure, axes = pyplot.subplots(figsize=(7, 6), layout="constrained")
        draw_frontier(axes, both)
    else:
        rows = min(max(len(models), 3), MOST_ROWS)
        figure, panels = pyplot.subplots(
            1,
            len(measured),
            figsize=(7 * len(measured), 1.6 + 0.35 * rows),
            layout="constrained",
            squeeze=False,
        )
        for axes, axis in zip(panels[0], measured, strict=True):
            draw_dots(axes, [model for model in models if model[axis]], axis)
    figure.suptitle(
        plain(f"{title}: Elo with 95 % intervals, {short(anchor, LONGEST_NAME)} at 0"), fontsize=10
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def draw_frontier(axes: Any, models: list[dict[str, Any]]) -> None:
    """A dot a model with an interval in both directions; up and to the right is better."""
    from matplotlib import pyplot

    colours = pyplot.rcParams["axes.prop_cycle"].by_key()["color"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for model in models:
        groups.setdefault(model["run"] or f"model {model['name']}", []).append(model)
    spans = [span([model[axis] for model in models]) for axis in AXES.values()]
    for n, group in enumerate(groups.values()):
        colour = colours[n % len(colours)]
        group.sort(key=lambda model: math.inf if model["step"] is None else model["step"])
        points = [[model[axis]["elo"] for model in group] for axis in AXES.values()]
        if len(group) > 1:
            axes.plot(*points, color=colour, linewidth=1.5, alpha=0.6, zorder=2)
        for model in group:
            across, up = (model[axis] for axis in AXES.values())
            mark(axes, across, up["elo"], spans[0], colour, "x")
            mark(axes, up, across["elo"], spans[1], colour, "y")
            axes.annotate(
                plain(short(model["name"], LONGEST_NAME)),
                (across["elo"], up["elo"]),
                xytext=(6, 6),
                textcoords="offset points",
                fontsize=8,
                color=colour,
            )
    axes.axhline(0, color="0.85", linewidth=1, zorder=0)
    axes.axvline(0, color="0.85", linewidth=1, zorder=0)
    axes.set(xlabel="helpfulness Elo", ylabel="harmlessness Elo")
    axes.margins(0.15)
    widen(axes)
    axes.spines[["top", "right"]].set_visible(False)


def widen(axes: Any) -> None:
    """Neither axis much finer than the other, so that a few points do not look like hundreds."""
    limits = {"x": axes.get_xlim(), "y": axes.get_ylim()}
    least = max(high - low for low, high in limits.values()) / MOST_UNLIKE
    for way, (low, high) in limits.items():
        more = max(0.0, least - (high - low)) / 2
        axes.set(**{f"{way}lim": (low - more, high + more)})


def draw_dots(axes: Any, models: list[dict[str, Any]], axis: str) -> None:
    """A row a model."""
    width = span([model[axis] for model in models])
    for n, model in enumerate(models):
        mark(axes, model[axis], n, width, "#3b6ea5", "x")
    axes.axvline(0, color="0.85", linewidth=1, zorder=0)
    axes.set_yticks(
        range(len(models)), [plain(short(model["name"], LONGEST_NAME)) for model in models], fontsize=8
    )
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.set_xlabel(f"{axis} Elo")
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)


def mark(axes: Any, rating: dict[str, Any], other: float, width: float, colour: str, way: str) -> None:
    """A dot and its interval along one axis; an open end is an arrow."""
    elo, low, high = rating["elo"], rating["low"], rating["high"]
    place = (elo, other) if way == "x" else (other, elo)
    style: dict[str, Any] = {"fmt": "o", "color": colour, "markersize": 5, "linewidth": 1, "zorder": 3}
    closed = [0.0 if low is None else max(0.0, elo - low), 0.0 if high is None else max(0.0, high - elo)]
    axes.errorbar(*place, **{f"{way}err": [[side] for side in closed]}, capsize=2, **style)
    prefix = "x" if way == "x" else ""  # of matplotlib's names
    for end, limit in ((low, "uplims"), (high, "lolims")):
        if end is None:
            axes.errorbar(*place, **{f"{way}err": ARROW * width, f"{prefix}{limit}": True}, **style)


def span(ratings: list[dict[str, Any]]) -> float:
    """How wide a picture of the ratings is."""
    ends = [rating[name] for rating in ratings for name in ("elo", "low", "high") if rating[name] is not None]
    return max(max(ends) - min(ends), 1.0)
