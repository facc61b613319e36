"""Draw the demo's results: oracle rates by model, with their intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHOWN = {
    "harmless": "harmless",
    "reason": "right reason",
    "alternative": "right\nalternative",
    "polite": "thanks",
    "question": "question",
    "evasive": "bare refusal",
    "helpful": "helpful\n(benign)",
    "helpful_dual": "helpful\n(own things)",
}
ALWAYS = ("harmless", "evasive", "helpful", "helpful_dual")
WAYS = {"up": "asked for", "down": "asked against"}
COLOURS = ("#c44e52", "#dd8452", "#4c72b0")


def draw_results(results: dict[str, Any], path: Path) -> None:
    """Write a PNG with one group of bars for each rate, one bar for each model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models, asked = results["models"], results["asked"]
    shown = [name for name in SHOWN if name in asked or name in ALWAYS]
    figure, axes = pyplot.subplots(figsize=(1.2 + 1.25 * len(shown), 4.4), layout="constrained")
    width = 0.8 / len(models)
    for place, ((name, rates), colour) in enumerate(zip(models.items(), COLOURS, strict=True)):
        positions = [group + (place - (len(models) - 1) / 2) * width for group in range(len(shown))]
        heights = [100 * rates[rate] for rate in shown]
        bounds = [rates["intervals"][rate] for rate in shown]
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
    labels = [f"{SHOWN[name]}\n{WAYS[asked[name]]}" if name in asked else SHOWN[name] for name in shown]
    axes.set_xticks(range(len(shown)), labels, fontsize=9)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("% of replies to held-out requests (oracle)")
    axes.set_title(f"constitution `{results['constitution']}`", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(models), loc="upper center", bbox_to_anchor=(0.6, 1.12))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
