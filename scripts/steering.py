"""Does the constitution decide? The demo under several constitutions and seeds, as one matrix and one picture.

    python scripts/steering.py --out runs/steering --seeds 0 1 2

Runs `cai demo --constitution NAME` for each constitution and seed (what is there already is not run again), samples
the last model of each on prompts of `--split`, and pools the seeds: DIR/matrix.json, matrix.md, matrix.png. Settings
are chosen on validation; audit is a draw of combinations of its own, to be looked at once. Intervals are 95 %
bootstrap intervals by combination of action and thing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

from cai_cli.keys import key
from cai_cli.microworld import constitutions
from cai_cli.microworld.files import as_prompt, spread_prompts, write_rows
from cai_cli.microworld.grammar import REQUEST_KINDS, SPLITS
from cai_cli.microworld.results import bootstrap, difference, hits
from cai_cli.microworld.scores import Scored, rate, score_samples
from cai_cli.microworld.steering import asked
from cai_cli.prompting.constitution import load_constitution
from cai_cli.rows.jsonl import read_records
from cai_cli.rows.records import Sample
from cai_cli.stages.demo import EVALUATE, MODELS

COLUMNS = {
    "harmless": "harmless",
    "evasive": "bare\nrefusal",
    "reason": "right\nreason",
    "alternative": "right\nalternative",
    "refuses": "both",
    "polite": "thanks",
    "question": "question",
    "helpful": "helpful\n(benign)",
    "helpful_dual": "helpful\n(own)",
    "over_refusal_dual": "declined\n(own)",
}
PER_KIND = 256


def cai(*words: str) -> None:
    print("$ cai", shlex.join(words), flush=True)
    subprocess.run([sys.executable, "-m", "cai_cli", *words], check=True)


def write_prompts(path: Path, split: str, seed: int) -> None:
    """Prompts of the split's combinations, of each kind as many."""
    rng, taken = Random(key(seed, "steering", split)), set[str]()
    rows = [
        as_prompt(request).to_row()
        for kind in REQUEST_KINDS
        for request in spread_prompts(kind, split, PER_KIND, rng, taken)
    ]
    write_rows(path, rows)


def run_one(folder: Path, name: str, seed: int, split: str, prompts: Path) -> dict[str, list[Scored]]:
    """One demo, and the oracle's verdicts on its three models' replies to the prompts."""
    out = folder / f"{Path(name).stem}-{seed}"
    if not (out / "results.json").exists():
        cai("demo", "--out", str(out), "--constitution", name, "--seed", str(seed))
    found = {}
    for model, where in MODELS.items():
        step = EVALUATE.format(out=out, name=f"{split}-{model}", model=where)
        words = shlex.split(step.replace(f"{out}/world/test.jsonl", str(prompts)))
        cai(*words, "--seed", str(seed))
        rows = read_records(out / "eval" / f"{split}-{model}.jsonl", Sample.from_row)
        found[model] = score_samples(rows)
    return found


def cell(scored: list[Scored], name: str) -> dict[str, float]:
    low, high = bootstrap(hits(scored, name))
    return {"mean": 100 * (rate(scored, name) or 0.0), "low": 100 * low, "high": 100 * high}


def matrix_row(name: str, runs: list[dict[str, list[Scored]]]) -> dict[str, Any]:
    """Rates of the pooled seeds, and the changes of helpfulness against both models before."""
    pooled = {model: [sample for run in runs for sample in run[model]] for model in MODELS}
    row: dict[str, Any] = {
        "asked": asked(load_constitution(str(constitutions().get(name, Path(name))))),
        "rates": {column: cell(pooled["rl-cai"], column) for column in COLUMNS},
        "seeds": [{column: 100 * (rate(run["rl-cai"], column) or 0.0) for column in COLUMNS} for run in runs],
    }
    for before in ("helpful-only", "sl-cai"):
        row[f"against {before}"] = {
            column: {
                part: 100 * value
                for part, value in difference(pooled[before], pooled["rl-cai"], column).items()
            }
            for column in ("helpful", "helpful_dual")
        }
    return row


def markdown(matrix: dict[str, Any]) -> str:
    lines = [
        "| constitution | " + " | ".join(head.replace("\n", " ") for head in COLUMNS.values()) + " |",
        "|---|" + "---:|" * len(COLUMNS),
    ]
    for name, row in matrix.items():
        cells = []
        for column in COLUMNS:
            found, way = row["rates"][column], row["asked"].get(column)
            text = f"{found['mean']:.1f} ({found['low']:.0f}–{found['high']:.0f})"
            cells.append(f"**{text}**" if way else text)
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(matrix: dict[str, Any], path: Path) -> None:
    """A cell for each constitution and rate, darker where more of the replies have it; what a constitution asks
    for is framed, and marked with an arrow.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    values = [[row["rates"][column]["mean"] for column in COLUMNS] for row in matrix.values()]
    figure, axes = pyplot.subplots(figsize=(10.5, 1.5 + 0.75 * len(matrix)), layout="constrained")
    axes.imshow(values, cmap="Blues", vmin=0, vmax=130, aspect="auto")
    arrows = {"up": " ↑", "down": " ↓"}
    for y, (row, numbers) in enumerate(zip(matrix.values(), values, strict=True)):
        for x, (column, value) in enumerate(zip(COLUMNS, numbers, strict=True)):
            found, way = row["rates"][column], row["asked"].get(column, "")
            colour = "white" if value > 70 else "black"
            axes.text(
                x,
                y - 0.12,
                f"{value:.0f}{arrows.get(way, '')}",
                ha="center",
                va="center",
                color=colour,
                fontsize=13,
            )
            bounds = f"{found['low']:.0f}–{found['high']:.0f}"
            axes.text(x, y + 0.25, bounds, ha="center", va="center", color=colour, fontsize=8)
            if way:
                axes.add_patch(
                    Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, fill=False, color="#dd8452", linewidth=2)
                )
    axes.set_xticks(range(len(COLUMNS)), list(COLUMNS.values()), fontsize=9)
    axes.set_yticks(range(len(matrix)), list(matrix), fontsize=11)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(
        "RL-CAI, % of replies to held-out requests; framed: what the constitution's comparisons name"
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--constitutions", nargs="+", default=list(constitutions()), help="names or files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", choices=SPLITS[1:], default="validation")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    prompts = arguments.out / f"{arguments.split}.jsonl"
    if not prompts.exists():
        write_prompts(prompts, arguments.split, seed=0)
    matrix = {}
    for name in arguments.constitutions:
        runs = [run_one(arguments.out, name, seed, arguments.split, prompts) for seed in arguments.seeds]
        matrix[Path(name).stem] = matrix_row(name, runs)
    (arguments.out / "matrix.json").write_text(json.dumps(matrix, indent=1) + "\n")
    (arguments.out / "matrix.md").write_text(markdown(matrix))
    draw(matrix, arguments.out / "matrix.png")
    print(markdown(matrix))


if __name__ == "__main__":
    main()
