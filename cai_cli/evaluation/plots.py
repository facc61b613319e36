"""Plots of what was measured, as PNG files. matplotlib is loaded here only."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from cai_cli.evaluation.calibration import Bin

matplotlib.use("Agg")


def draw_reliability(series: dict[str, list[Bin]], path: Path, title: str, start: float = 0.0) -> None:
    """Reliability plot: how often what was predicted with probability p is the case, with 95 % intervals.

    `series`: a name in the legend -> its bins; `start`: where the axis of predictions starts. On the diagonal
    is calibrated.
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="calibrated")
    for name, bins in series.items():
        if not bins:
            continue
        shares = [cell.target for cell in bins]
        low = [max(0.0, cell.target - cell.interval[0]) for cell in bins]
        high = [max(0.0, cell.interval[1] - cell.target) for cell in bins]
        total = sum(cell.count for cell in bins)
        axes.errorbar(
            [cell.predicted for cell in bins],
            shares,
            yerr=[low, high],
            marker="o",
            markersize=4,
            capsize=2,
            linewidth=1,
            label=f"{name} (n = {total:,})",
        )
    axes.set(
        xlim=(start, 1), ylim=(0, 1), xlabel="predicted probability", ylabel="observed share", title=title
    )
    axes.legend(loc="lower right" if start else "upper left", frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def plain(text: str) -> str:
    """Without what matplotlib would set as a formula."""
    return text.replace("$", r"\$")


def short(name: str, longest: int) -> str:
    """A name with its end left out where it is longer."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
