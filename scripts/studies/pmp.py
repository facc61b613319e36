"""Preference-model pretraining where human comparisons are few (Askell et al. 2021): 50 to 1,000 of them.

For each seed 50, 200 and 1,000 of the world's human helpfulness comparisons, several draws of the small sets, train a
preference model from the base model, and from the demo's PMP checkpoint. Both arms have settings of their own at each
size: the best of one grid on validation pairs of seed 0 (scripts/bench/RESULTS.md). Test pairs by the oracle:

rated   as the raters' comparisons are, without their errors: what the model is trained for, and what decides
steps   right against wrong steps: what votes can teach and 50 comparisons hardly can
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from chain import human_helpful, inputs, stage
from commands import Place
from estimates import MORE, Claim, Estimate, over_seeds, percent
from oracle_pairs import SPLIT, agreement, pairs_file, rated_pairs, step_pairs
from pictures import draw_lines, figure, save
from study import Found, Report, Study

SIZES = (50, 200, 1000)
ARMS = {"without": "without PMP", "with": "with PMP"}
DRAWS = {50: 4, 200: 2, 1000: 1}  # training sets for each seed; small ones differ more and cost less
# Learning rate, epochs, language loss
SETTINGS = {
    ("without", 50): ("1e-2", 2, 0.5),
    ("without", 200): ("3e-3", 3, 0.5),
    ("without", 1000): ("1e-3", 3, 0.5),
    ("with", 50): ("1e-3", 4, 0.5),
    ("with", 200): ("3e-4", 3, 0),
    ("with", 1000): ("3e-4", 3, 0),
}
COMMON = shlex.split(
    "--per-device-train-batch-size 16 --max-length 256 --lr-scheduler-type linear --held-out 0"
)
TESTS = {"rated": rated_pairs, "steps": step_pairs}
TITLES = {"rated": "as the raters' pairs", "steps": "right or wrong steps"}
TEST_PAIRS = 600


def measure(place: Place) -> Found:
    tests = {
        name: pairs_file(place, f"pmp/{name}", make(SPLIT, TEST_PAIRS, place.seed))
        for name, make in TESTS.items()
    }
    pmp = stage(place, "pmp")
    found: Found = {
        "alone": [{name: agreement(place, pmp, pairs)["accuracy"] for name, pairs in tests.items()}]
    }
    for (arm, size), (rate, epochs, lm_coef) in SETTINGS.items():
        start = pmp if arm == "with" else inputs(place) / "models/base"
        runs = []
        for draw in range(DRAWS[size]):
            fit = ("--learning-rate", rate, "--num-train-epochs", epochs, "--lm-coef", lm_coef, *COMMON)
            words = ("train-pm", "--model", start, "--comparisons", drawn(place, size, draw), *fit)
            pm = place.made(
                place / f"pmp/{arm}-{size}-{draw}", lambda out, words=words: place.cai(*words, "--out", out)
            )
            runs.append({name: agreement(place, pm, pairs)["accuracy"] for name, pairs in tests.items()})
        found[f"{arm} {size}"] = runs
    return found


def drawn(place: Place, size: int, draw: int) -> Path:
    """The n-th `size` of the human comparisons."""

    def write(target: Path) -> None:
        lines = human_helpful(place).read_text(encoding="utf-8").splitlines(keepends=True)
        target.write_text("".join(lines[draw * size : (draw + 1) * size]), encoding="utf-8")

    return place.made(place / f"pmp/human-{size}-{draw}.jsonl", write)


def report(seeds: Sequence[Found], picture: Path) -> Report:
    def by_seed(name: str, test: str) -> list[float]:
        """Accuracy of each seed, mean over its draws."""
        return [fmean(run[test] for run in seed[name]) for seed in seeds]

    def gain(size: int, test: str) -> Estimate:
        arms = zip(by_seed(f"without {size}", test), by_seed(f"with {size}", test), strict=True)
        return over_seeds([after - before for before, after in arms])

    table = [["test pairs", "comparisons", *ARMS.values(), "difference by seed"]]
    for test, title in TITLES.items():
        table.append([title, "0", "–", percent(over_seeds(by_seed("alone", test))), "–"])
        for size in SIZES:
            cells = [percent(over_seeds(by_seed(f"{arm} {size}", test))) for arm in ARMS]
            each = " ".join(f"{100 * value:+.1f}" for value in gain(size, test).seeds)
            table.append([title, f"{size:,}", *cells, each])
    claims = [
        Claim(f"PMP helps with {size:,} comparisons", "2112.00861 § 4", MORE, gain(size, "rated"))
        for size in SIZES
    ]
    claims.append(
        Claim(
            f"PMP helps more with {SIZES[0]} than with {SIZES[-1]:,}",
            "2112.00861 § 4",
            MORE,
            over_seeds(
                [
                    few - many
                    for few, many in zip(
                        gain(SIZES[0], "rated").seeds, gain(SIZES[-1], "rated").seeds, strict=True
                    )
                ]
            ),
        )
    )
    picture_of, panels = figure(2, sharey=True)
    for axes, (test, title) in zip(panels, TITLES.items(), strict=True):
        lines = {
            told: [
                (size * (1.04 if arm == "with" else 0.96), over_seeds(by_seed(f"{arm} {size}", test)))
                for size in SIZES
            ]
            for arm, told in ARMS.items()
        }
        draw_lines(axes, lines)
        axes.set(xscale="log", xlabel="human comparisons", title=title)
        axes.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
        axes.minorticks_off()
    panels[0].set_ylabel("better reply scored higher, %")
    save(picture_of, picture)
    draws = ", ".join(f"{count} of {size:,}" for size, count in DRAWS.items())
    return Report(
        table,
        claims,
        f"Training sets for each seed: {draws}; {TEST_PAIRS} test pairs of each sort. Intervals by seed.",
    )


STUDY = Study(
    "pmp",
    "Preference-model pretraining with 50 to 1,000 comparisons",
    "Does a preference model need fewer human comparisons after pretraining on votes?",
    measure,
    report,
)
