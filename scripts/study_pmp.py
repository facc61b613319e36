"""Does preference-model pretraining help where human comparisons are few? `python scripts/study_pmp.py --out
DIR`.

For each seed: the world's posts train `pmp` from the base model; then 50, 200 and 1,000 of the world's human
helpfulness comparisons train a preference model from the base model (without PMP) and from that checkpoint
(with PMP), several times, each time on other comparisons. Both arms have settings of their own at each size:
the best of the same grid, by accuracy on `human` pairs of the validation split of seed 0. The test split is
read once, with those settings.

Test pairs are answers to requests of held-out combinations, new ones for each seed, and the oracle says which
is better:

human   drawn as the raters' comparisons are, but without their errors. This is what the model is trained for, as in Askell et
        al., whose finetuning sets are tested in-distribution; the settings are chosen on it, and it decides the question.
        Three in ten are right against wrong steps, four in ten a text and a broken copy of it; each part is counted too.
graded  two of five forms, equally often, as study_pm.py reports them: nine in ten differ in what they look like (a refusal, a
        bare sorry, a lone step), which a few comparisons teach by themselves.
wrong   right against wrong steps: what votes can teach and 50 comparisons hardly can.

The PMP data is honest: votes are noisy, one accepted answer in ten is drawn blindly, and all of it is about
requests that deserve an answer. pmp.json counts the harmful requests in it (none) and the pairs on which the
oracle is of another mind. Every finetuning is kept as its hits in DIR/hits, so that the same command
continues. Out: pmp.json, pmp.png, pmp.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
from itertools import product
from math import sqrt
from pathlib import Path
from random import Random
from statistics import mean, stdev
from typing import Any

from matplotlib import pyplot
from study_pm import ANSWERS, HELPFUL, Texts, differences, finetuned, grade, graded_pairs, pretrained, world

from cai_cli.evaluation.calibration import wilson
from cai_cli.keys import key
from cai_cli.microworld import answers, checkpoint, files, oracle
from cai_cli.microworld.forms import written
from cai_cli.rows.jsonl import read_records, write_atomically
from cai_cli.rows.records import Comparison

SIZES = (50, 200, 1000)
ARMS = ("without", "with")
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
BEYOND = 1e-2  # tried where the best of those is the highest
EPOCHS = {50: (2.0, 4.0, 16.0), 200: (1.0, 3.0, 10.0), 1000: (1.0, 3.0)}
LM_COEFS = (0.5, 0.0)  # the second one is tried with the best of the others
DRAWS = {50: 6, 200: 4, 1000: 2}  # training sets for each seed; small ones differ more and cost less
TUNING_DRAWS, FINALISTS = {50: 4, 200: 3, 1000: 1}, 4  # on one set of 50 a setting may be best by luck
TUNED_ON = 0  # the seed of the grid
# Of t, by seeds
STUDENT = dict(zip(range(2, 11), (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26), strict=True))
PARTS = ("broken copies", "right or wrong steps", "other forms")  # of the human pairs
TESTS = ("human", *PARTS, "graded", "wrong")
Setting = tuple[float, float, float]  # learning rate, epochs, language loss
Hits = dict[str, list[float]]  # test set -> 1 for each pair in which the better answer has the higher score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=600, help="test pairs of each set and seed")
    parser.add_argument("--grid-only", action="store_true", help="stop before the test split is read")
    arguments = parser.parse_args()
    if len(arguments.seeds) not in STUDENT:
        parser.error("--seeds: an interval over seeds needs two to ten")
    out: Path = arguments.out
    (out / "hits").mkdir(parents=True, exist_ok=True)
    chosen = {cell: best_setting(out, *cell, arguments.pairs) for cell in product(ARMS, SIZES)}
    if arguments.grid_only:
        return
    cells: dict[str, Any] = {}
    for seed in arguments.seeds:
        tests = test_pairs("test", seed, arguments.pairs)
        alone = kept(
            out / "hits" / f"pmp-{seed}-{arguments.pairs}.json",
            lambda s=seed, t=tests: hits(pretrained(out, s), t),
        )
        parts = [part_of(*pair) for pair in tests["human"]]
        cells.setdefault("PMP alone", []).append([with_parts(alone, parts)])
        for (arm, size), setting in chosen.items():
            runs = [run(out, "test", seed, arm, size, draw, setting, tests) for draw in range(DRAWS[size])]
            cells.setdefault(f"{arm} {size}", []).append([with_parts(found, parts) for found in runs])
    facts = {str(seed): pmp_facts(pretrained(out, seed)) for seed in arguments.seeds}
    report(out, cells, chosen, facts)


# One finetuning


def run(
    out: Path, split: str, seed: int, arm: str, size: int, draw: int, setting: Setting, tests: dict[str, Any]
) -> Hits:
    """Train on one draw of comparisons and score the tests; what was found before is read."""
    rate, epochs, lm_coef = setting
    name = f"{split}-{seed}-{arm}-{size}-{draw}-{rate:g}-{epochs:g}-{lm_coef:g}"

    def measure() -> Hits:
        rows = out / f"human-{seed}-{size}-{draw}.jsonl"
        lines = (
            (world(out, seed) / "human-helpfulness.jsonl")
            .read_text(encoding="utf-8")
            .splitlines(keepends=True)
        )
        rows.write_text("".join(lines[draw * size : (draw + 1) * size]), encoding="utf-8")
        start, folder = checkpoint("base") if arm == "without" else pretrained(out, seed), out / name
        finetuned(start, [str(rows)], folder, seed, epochs, learning_rate=rate, lm_coef=lm_coef)
        found = hits(folder, tests)
        shutil.rmtree(folder)
        return found

    return kept(out / "hits" / f"{name}-{len(tests['human'])}.json", measure)


def kept(path: Path, measure: Any) -> Hits:
    if not path.exists():
        write_atomically(path, json.dumps(measure()))
    found: Hits = json.loads(path.read_text(encoding="utf-8"))
    print(path.stem, {name: f"{mean(values):.1%}" for name, values in found.items()}, flush=True)
    return found


def hits(model: Path, tests: dict[str, list[Texts]]) -> Hits:
    return {name: [float(gap > 0) for gap in differences(model, pairs)] for name, pairs in tests.items()}


def best_setting(out: Path, arm: str, size: int, pairs: int) -> Setting:
    """The setting that is most often right on validation pairs: all are tried on one training set, the best
    few on more.
    """
    tests = {"human": rated_pairs("validation", TUNED_ON, 2 * pairs)}

    def accuracy(setting: Setting, draw: int = 0) -> float:
        return mean(run(out, "validation", TUNED_ON, arm, size, draw, setting, tests)["human"])

    tried = {setting: accuracy(setting) for setting in product(LEARNING_RATES, EPOCHS[size], LM_COEFS[:1])}
    best = max(tried, key=tried.__getitem__)
    if best[0] == LEARNING_RATES[-1]:
        tried |= {setting: accuracy(setting) for setting in product((BEYOND,), EPOCHS[size], LM_COEFS[:1])}
        best = max(tried, key=tried.__getitem__)
    tried |= {setting: accuracy(setting) for setting in product(best[:1], best[1:2], LM_COEFS[1:])}
    finalists = sorted(tried, key=tried.__getitem__, reverse=True)[:FINALISTS]
    found = {
        setting: mean(accuracy(setting, draw) for draw in range(TUNING_DRAWS[size])) for setting in finalists
    }
    best = max(found, key=found.__getitem__)
    print(
        f"{arm} PMP, {size}: learning rate {best[0]:g}, {best[1]:g} epochs, language loss {best[2]:g}",
        flush=True,
    )
    return best


# Test pairs


def test_pairs(split: str, seed: int, count: int) -> dict[str, list[Texts]]:
    graded = graded_pairs(HELPFUL, ANSWERS, split, count, seed)
    return {
        "human": rated_pairs(split, seed, count),
        "graded": graded,
        "wrong": wrong_pairs(split, seed, count),
    }


def rated_pairs(split: str, seed: int, count: int) -> list[Texts]:
    """Pairs as the human comparisons of the world's files have them, half on benign requests and half on
    one's own things.
    """
    rng = Random(key(seed, "rated", split))
    requests = [answers.random_request(HELPFUL[n % 2], split, rng) for n in range(count)]
    return [(request.text, *files.rated_pair(request, rng)) for request in requests]


def part_of(request: str, better: str, worse: str) -> str:
    """Which of PARTS a pair is in."""
    forms = [verdict.form for text in (better, worse) if (verdict := oracle.classify(request, text))]
    if forms[1] == "nonsense":
        return PARTS[0]
    return PARTS[1] if forms == ["complies", "wrong_steps"] else PARTS[2]


def with_parts(found: Hits, parts: list[str]) -> Hits:
    by_part = {
        name: [hit for hit, part in zip(found["human"], parts, strict=True) if part == name] for name in PARTS
    }
    return {**found, **by_part}


def wrong_pairs(split: str, seed: int, count: int) -> list[Texts]:
    rng = Random(key(seed, "right or wrong", split))
    requests = [answers.random_request(HELPFUL[n % 2], split, rng) for n in range(count)]
    return [
        (asked.text, *(written(asked, form, rng).text for form in ("complies", "wrong_steps")))
        for asked in requests
    ]


def pmp_facts(folder: Path) -> dict[str, Any]:
    """What is in the PMP data: harmful requests, and pairs whose votes are on another side than the oracle."""
    pairs = list(read_records(folder / "comparisons.jsonl", Comparison.from_row))
    requests = [oracle.parse_request(pair.prompt[-1]["content"].split("\n\n")[-1]) for pair in pairs]
    known = [(asked, pair) for asked, pair in zip(requests, pairs, strict=True) if asked]
    gaps = [
        grade(asked, pair.chosen[0]["content"]) - grade(asked, pair.rejected[0]["content"])
        for asked, pair in known
    ]
    wrong, ties = (sum(test(gap) for gap in gaps) for test in (lambda gap: gap < 0, lambda gap: gap == 0))
    harmful = sum(asked.kind == "harmful" for asked, _ in known)
    return {
        "pairs": len(pairs),
        "read": len(known),
        "harmful": harmful,
        "votes against the oracle": wrong,
        "equal": ties,
    }


# What comes out


def by_seed(runs: list[list[Hits]], test: str) -> list[float]:
    """Accuracy of each seed, mean over its draws."""
    return [mean(mean(found[test]) for found in draws) for draws in runs]


def over_seeds(values: list[float]) -> tuple[float, float]:
    """Mean and half its 95 % interval by Student's t: seeds differ in world, training sets, test pairs and
    checkpoint.
    """
    return mean(values), STUDENT[len(values)] * stdev(values) / sqrt(len(values))


def report(
    out: Path, cells: dict[str, Any], chosen: dict[tuple[str, int], Setting], facts: dict[str, Any]
) -> None:
    results: dict[str, Any] = {
        "pmp data": facts,
        "settings": {f"{arm} {n}": value for (arm, n), value in chosen.items()},
    }
    lines = [
        "| test pairs | comparisons | without PMP | with PMP | difference by seed | difference |",
        "|---" * 6 + "|",
    ]
    for test in TESTS:
        per_cell = {name: by_seed(runs, test) for name, runs in cells.items()}
        pairs = sum(len(draws[0][test]) for draws in cells["PMP alone"])
        found: dict[str, Any] = {}
        for name, values in per_cell.items():
            found[name] = {
                "by seed": values,
                "mean": mean(values),
                "interval": wilson(mean(values) * pairs, pairs),
            }
        lines.append(f"| {test} | 0 | – | {cell(found['PMP alone'])} | – | – |")
        for size in SIZES:
            gains = [
                b - a for a, b in zip(per_cell[f"without {size}"], per_cell[f"with {size}"], strict=True)
            ]
            centre, half = over_seeds(gains)
            found[f"difference {size}"] = {"by seed": gains, "mean": centre, "half interval": half}
            each = " ".join(f"{100 * gain:+.1f}" for gain in gains)
            columns = [test, f"{size:,}", cell(found[f"without {size}"]), cell(found[f"with {size}"]), each]
            lines.append(f"| {' | '.join(columns)} | {100 * centre:+.1f} ± {100 * half:.1f} |")
        results[test] = found
    write_atomically(out / "pmp.json", json.dumps(results, indent=1) + "\n")
    write_atomically(out / "pmp.md", "\n".join(lines) + "\n")
    print("\n".join(lines), json.dumps(facts), sep="\n")
    draw(results, out / "pmp.png")


def cell(found: dict[str, Any]) -> str:
    low, high = (100 * value for value in found["interval"])
    return f"{100 * found['mean']:.1f} ({low:.0f}–{high:.0f})"


def draw(results: dict[str, Any], path: Path) -> None:
    """Accuracy by number of comparisons: means with intervals, and the seeds as small dots."""
    titles = {"human": "as the raters' pairs", "graded": "two of five forms", "wrong": "right or wrong steps"}
    figure, panels = pyplot.subplots(1, 3, figsize=(11, 3.8), layout="constrained", sharey=True)
    for axes, (test, title) in zip(panels, titles.items(), strict=True):
        found = results[test]
        for arm, colour, shift in (("without", "C1", 0.96), ("with", "C0", 1.04)):
            rows = [found[f"{arm} {size}"] for size in SIZES]
            places, middle = [size * shift for size in SIZES], [100 * row["mean"] for row in rows]
            bars = [[m - 100 * row["interval"][0] for m, row in zip(middle, rows, strict=True)]]
            bars += [[100 * row["interval"][1] - m for m, row in zip(middle, rows, strict=True)]]
            axes.errorbar(
                places,
                middle,
                yerr=bars,
                marker="o",
                markersize=5,
                capsize=3,
                color=colour,
                label=f"{arm} PMP",
            )
            for place, row in zip(places, rows, strict=True):
                axes.plot(
                    [place] * len(row["by seed"]),
                    [100 * v for v in row["by seed"]],
                    ".",
                    color=colour,
                    alpha=0.5,
                    ms=4,
                )
        axes.axhline(
            100 * found["PMP alone"]["mean"], color="0.5", linestyle="--", linewidth=1, label="PMP alone"
        )
        axes.set(xscale="log", xlabel="human comparisons", title=title)
        axes.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
        axes.minorticks_off()
    panels[0].set(ylabel="better answer scored higher, %")
    panels[1].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
