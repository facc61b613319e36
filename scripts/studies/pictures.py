"""The studies' pictures: small PNGs, the same look for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from estimates import Estimate

matplotlib.use("Agg")

Points = Sequence[tuple[float, Estimate]]


def figure(panels: int = 1, width: float = 4.6, height: float = 3.4, **more: Any) -> tuple[Any, Any]:
    from matplotlib import pyplot

    return pyplot.subplots(1, panels, figsize=(width * panels, height), layout="constrained", **more)


def save(drawn: Any, path: Path) -> None:
    from matplotlib import pyplot

    drawn.savefig(path, dpi=90)
    pyplot.close(drawn)


def bars(points: Points, scale: float) -> list[list[float]]:
    """How far down and up from each mean its interval goes."""
    return [
        [scale * (found.mean - found.low) for _, found in points],
        [scale * (found.high - found.mean) for _, found in points],
    ]


def draw_lines(axes: Any, series: Mapping[str, Points], scale: float = 100.0, shift: float = 0.0) -> None:
    """A line with intervals for each name; `shift` keeps them from lying on one another."""
    for number, (name, points) in enumerate(series.items()):
        moved = shift * (number - (len(series) - 1) / 2)
        axes.errorbar(
            [x + moved for x, _ in points],
            [scale * found.mean for _, found in points],
            yerr=bars(points, scale),
            marker="o",
            markersize=4,
            capsize=3,
            color=f"C{number}",
            label=name,
        )
    axes.legend(frameon=False, fontsize=8)


def draw_dots(
    axes: Any, rows: Sequence[tuple[str, Estimate]], scale: float = 100.0, colour: str = "C0"
) -> None:
    """One line a row: the mean, its interval, and the seeds as small dots; the first row at the top."""
    for y, (_, found) in enumerate(rows):
        axes.errorbar(
            scale * found.mean, y, xerr=bars([(y, found)], scale), marker="o", capsize=3, color=colour
        )
        axes.plot([scale * v for v in found.seeds], [y + 0.18] * len(found.seeds), ".", color="0.5", ms=4)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
