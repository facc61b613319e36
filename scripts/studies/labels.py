"""Soft, hard and clamped labels (sections 4.1 and 4.3): the preference models they make, and the policies.

judge    The demo's pairs labelled anew by the helpful-only model, one principle a pair: its probabilities, the side
         they are on (`--hard`), and they clamped (`--clamp 0.4:0.6`). Each trains a preference model (accuracy and
         calibration on oracle pairs of harmful requests) and a policy.
noisy    A labeller that is unsure, as large judges are and this world's is not: an oracle that prefers an answer with
         log-odds of 0.8 for each grade that it is better. Its probability, one vote drawn by it, the side it is on;
         each trains a preference model from the base model, measured against the probabilities.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chain import human_helpful, inputs, measured, ppo, stage, train_pm
from commands import Place
from estimates import (
    LESS,
    MORE,
    Claim,
    Estimate,
    Means,
    by_seed,
    changed_by_seed,
    number,
    over_seeds,
    percent,
)
from oracle_pairs import SPLIT, agreement, graded_pairs, noisy_pairs, pairs_file
from pictures import draw_dots, figure, save
from study import Found, Report, Study

from cai_cli.microworld.grammar import HARMFUL, REQUEST_KINDS

JUDGED = {"soft": (), "hard": ("--hard",), "clamped": ("--clamp", "0.4:0.6")}
NOISY = ("soft", "drawn", "side")
AI_WEIGHT = 5  # the demo's
RL_STEPS = 48
TEST_PAIRS, NOISY_PAIRS, NOISY_TESTS = 400, 1000, 800
FROM_BASE = "--lm-coef 0.5 --learning-rate 1e-3 --lr-scheduler-type linear --held-out 0 --num-train-epochs 3"
FROM_BASE += " --per-device-train-batch-size 16 --max-length 256"
MEASURES = ("accuracy", "brier", "calibration_error")
RATES = ("harmless", "refuses", "over_refusal")
SCORE: dict[str, Any] = {"unit": "of the score", "scale": 1.0}


def measure(place: Place) -> Found:
    return {"judge": by_judge(place), "noisy": by_noisy_labeller(place)}


def by_judge(place: Place) -> Found:
    pairs, folder = stage(place, "label"), inputs(place)
    tests = pairs_file(place, "harm-pairs", graded_pairs((HARMFUL,), SPLIT, TEST_PAIRS, place.seed))
    found = {}
    for name, more in JUDGED.items():
        judge = ("--feedback-model", folder / "models/helpful-only", "--batch-size", 64)
        words = (
            "label",
            "--pairs",
            pairs,
            *judge,
            "--constitution",
            folder / "world/constitution.yaml",
            *more,
        )
        labels = place.made(
            place / f"labels-{name}.jsonl", lambda out, words=words: place.cai(*words, "--out", out)
        )
        pm = train_pm(place, f"pm-{name}", f"{labels}:{AI_WEIGHT}", human_helpful(place))
        policy = ppo(place, stage(place, "sft"), pm, f"rl-{name}", RL_STEPS)
        means = measured(place, f"rl-{name}", policy, REQUEST_KINDS)
        found[name] = {"pm": agreement(place, pm, tests), "rates": {which: means[which] for which in RATES}}
    return found


def by_noisy_labeller(place: Place) -> Found:
    tests = pairs_file(place, "noisy-tests", noisy_pairs(SPLIT, NOISY_TESTS, place.seed, "soft"))
    found = {}
    for name in NOISY:
        source = pairs_file(place, f"noisy-{name}", noisy_pairs("train", NOISY_PAIRS, place.seed, name))
        words = (
            "train-pm",
            "--model",
            inputs(place) / "models/base",
            "--comparisons",
            source,
            *shlex.split(FROM_BASE),
        )
        pm = place.made(place / f"pm-noisy-{name}", lambda out, words=words: place.cai(*words, "--out", out))
        found[name] = agreement(place, pm, tests)
    return found


def pm_values(seeds: Sequence[Found], group: str, name: str, measure: str) -> list[float]:
    found = [seed[group][name] for seed in seeds]
    return [(each["pm"] if group == "judge" else each)[measure] for each in found]


def rates(seeds: Sequence[Found], name: str, which: str) -> list[Means]:
    return [seed["judge"][name]["rates"][which] for seed in seeds]


def rate(seeds: Sequence[Found], name: str, which: str) -> Estimate:
    return by_seed(rates(seeds, name, which))


def table(seeds: Sequence[Found]) -> list[list[str]]:
    heads = [
        "PM: accuracy",
        "Brier",
        "calibration error",
        "RL: harmless",
        "reason and alternative",
        "over-refusal",
    ]
    rows = [["labels", *heads]]
    for group, names in (("judge", JUDGED), ("noisy", NOISY)):
        for name in names:
            cells = [percent(over_seeds(pm_values(seeds, group, name, "accuracy")))]
            cells += [number(over_seeds(pm_values(seeds, group, name, measure))) for measure in MEASURES[1:]]
            if group == "judge":
                cells += [percent(rate(seeds, name, which)) for which in RATES]
            told = "this world's judge" if group == "judge" else "an unsure labeller"
            rows.append([f"{told}: {name}", *cells, *["–"] * (len(heads) - len(cells))])
    return rows


def claims(seeds: Sequence[Found]) -> list[Claim]:
    def of_pm(text: str, way: str, group: str, one: str, other: str, measure: str) -> Claim:
        values = (pm_values(seeds, group, name, measure) for name in (one, other))
        found = over_seeds([a - b for a, b in zip(*values, strict=True)])
        return Claim(text, "§ 4.3", way, found, **({} if measure == "accuracy" else SCORE))

    def of_policy(text: str, way: str, one: str, other: str, which: str = "harmless") -> Claim:
        found = changed_by_seed(rates(seeds, other, which), rates(seeds, one, which))
        return Claim(text, "§ 4.3", way, found)

    ours, unsure = "soft labels of this world's judge", "soft labels of an unsure labeller"
    lower = "make a PM of a lower Brier score than"
    return [
        of_pm(f"{ours} make a more accurate PM than hard ones", MORE, "judge", "soft", "hard", "accuracy"),
        of_pm(f"{ours} {lower} hard ones", LESS, "judge", "soft", "hard", "brier"),
        of_pm(f"{unsure} {lower} the side they are on", LESS, "noisy", "soft", "side", "brier"),
        of_pm(f"{unsure} {lower} one vote drawn by each", LESS, "noisy", "soft", "drawn", "brier"),
        of_policy("a policy from soft labels is more harmless than from hard ones", MORE, "soft", "hard"),
        of_policy(
            "a policy from labels clamped at 0.4 to 0.6 is more harmless than from soft ones",
            MORE,
            "clamped",
            "soft",
        ),
        of_policy(
            "a policy from clamped labels declines fewer fine requests than from soft ones",
            LESS,
            "clamped",
            "soft",
            "over_refusal",
        ),
    ]


def report(seeds: Sequence[Found], picture: Path) -> Report:
    draw(seeds, picture)
    notes = (
        f"Policies: {RL_STEPS} steps of the demo's PPO from the demo's SL-CAI. The article clamps labels of chain of thought,"
        " which this world's judge cannot do: here the clamp is on its plain labels. Intervals by seed."
    )
    return Report(table(seeds), claims(seeds), notes)


def draw(seeds: Sequence[Found], picture: Path) -> None:
    drawn, panels = figure(3, 3.6, 2.8)
    brier = [
        (f"{group}: {name}", over_seeds(pm_values(seeds, group, name, "brier")))
        for group, names in (("judge", JUDGED), ("noisy", NOISY))
        for name in names
    ]
    draw_dots(panels[0], brier, scale=1)
    panels[0].set_xlabel("preference model: Brier score")
    for axes, which in zip(panels[1:], ("harmless", "over_refusal"), strict=True):
        draw_dots(axes, [(name, rate(seeds, name, which)) for name in JUDGED])
        axes.set_xlabel(f"policy: {which.replace('_', ' ')}, %")
    save(drawn, picture)


STUDY = Study(
    "labels",
    "Soft, hard and clamped labels",
    "Do probabilities teach more than sides, and what does a clamp do?",
    measure,
    report,
)
