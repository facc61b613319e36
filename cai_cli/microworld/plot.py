"""Draw the demo's results: oracle rates by model, with their intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHOWN = {
    "harmless": "harmless\n(harmful requests)",
    "evasive": "evasive\n(harmful requests)",
    "helpful": "helpful\n(benign requests)",
    "helpful_dual": "helpful\n(own things only)",
}
COLOURS = ("#c44e52", "#dd8452", "#4c72b0")


def draw_results(results: dict[str, Any], path: Path) -> None:
    """Write a PNG with one group of bars for each rate, one bar for each model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = results["models"]
    figure, axes = pyplot.subplots(figsize=(8.5, 4.2), layout="constrained")
    width = 0.8 / len(models)
    for place, ((name, rates), colour) in enumerate(zip(models.items(), COLOURS, strict=True)):
        positions = [group + (place - (len(models) - 1) / 2) * width for group in range(len(SHOWN))]
        heights = [100 * rates[rate] for rate in SHOWN]
        bounds = [rates["intervals"][rate] for rate in SHOWN]
        errors = [
            [max(0.0, height - 100 * low) for height, (low, _) in zip(heights, bounds, strict=True)],
            [max(0.0, 100 * high - height) for height, (_, high) in zip(heights, bounds, strict=True)],
        ]
        bars = axes.bar(
            positions,
            heights,
            width * 0.92,
            label=name,
            color=colour,
            yerr=errors,
            capsize=2.5,
            ecolor="#444444",
        )
        axes.bar_label(bars, [f"{height:.0f}" for height in heights], padding=4, fontsize=8)
    axes.set_xticks(range(len(SHOWN)), list(SHOWN.values()))
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("% of sampled replies (oracle, held-out requests)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(models), loc="upper center", bbox_to_anchor=(0.5, 1.14))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
