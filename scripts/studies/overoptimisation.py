"""Reward against √KL with a gold preference model: over-optimisation (arXiv 2204.05862, sections 4.2 and 4.3).

PPO without much of a KL penalty against a poor preference model, trained on 60 comparisons, two in five of them turned
round. The demo's own, trained on all of them, is the gold one, which only measures; where its score falls while the
other one rises, `cai ppo --gold-pm` stops the run.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from random import Random
from typing import Any

from chain import human_helpful, inputs, stage
from commands import Place, rows_of, write_rows
from estimates import LESS, MORE, Claim, over_seeds
from pictures import figure, save
from study import Found, Report, Study

from cai_cli.keys import key
from cai_cli.training.ppo.measures import correlation
from cai_cli.training.ppo.plot import evaluations

PAIRS, TURNED = 60, 0.4
HELD_OUT = 384  # test prompts that the scores are measured on
POOR = shlex.split(
    "--learning-rate 2e-4 --num-train-epochs 4 --per-device-train-batch-size 16 --max-length 256"
)
LOOSE = shlex.split(
    "--steps 60 --eval-steps 3 --rollout-batch-size 96 --num-ppo-epochs 1 --learning-rate 3e-4"
    " --value-learning-rate 5e-4 --kl-coef 0.005 --lr-scheduler-type constant --max-new-tokens 64"
    " --per-device-train-batch-size 48 --batch-size 256"
)
SCORES = {"eval_score": "the PM that is trained on", "eval_gold_score": "the gold PM"}


def measure(place: Place) -> Found:
    policy, gold = stage(place, "sft"), stage(place, "train-pm")
    poor = place.made(place / "poor.jsonl", lambda target: write_rows(target, poor_rows(place)))
    words = ("train-pm", "--model", stage(place, "pmp"), "--comparisons", poor, *POOR)
    pm = place.made(place / "pm-poor", lambda out: place.cai(*words, "--out", out))
    models = ("--model", policy, "--pm", pm, "--gold-pm", gold)
    data = ("--prompts", inputs(place) / "world/rl.jsonl", "--eval-prompts", held_out(place))
    run = place.made(place / "overdone", lambda out: place.cai("ppo", *models, *data, *LOOSE, "--out", out))
    facts = json.loads((run / "cai.json").read_text(encoding="utf-8"))
    rows = [
        {name: row[name] for name in ("step", "eval_kl", *SCORES)}
        for row in evaluations(run / "metrics.jsonl")
    ]
    return {"evaluations": rows, "stopped": facts["stopped"], "saved_step": facts["saved_step"]}


def poor_rows(place: Place) -> list[dict[str, Any]]:
    rng = Random(key(place.seed, "poor"))
    files = (stage(place, "label"), human_helpful(place))
    rows = []
    for row in rng.sample([row for file in files for row in rows_of(file)], PAIRS):
        sides = ("chosen", "rejected") if rng.random() >= TURNED else ("rejected", "chosen")
        kept = {name: row[name] for name in ("id", "prompt_id", "prompt", "source") if row.get(name)}
        kept |= {name: row[side] for name, side in zip(("chosen", "rejected"), sides, strict=True)}
        rows.append({**kept, "probability": 1.0, "origin": "human"})
    return rows


def held_out(place: Place) -> Path:
    def write(target: Path) -> None:
        rows = rows_of(inputs(place) / "world/test.jsonl")
        write_rows(target, rows[:: max(1, len(rows) // HELD_OUT)])

    return place.made(place / "held-out.jsonl", write)


def moves(seed: Found, name: str, start: int, end: int) -> float:
    """By how much a score moves from one of a run's evaluations to another."""
    rows = seed["evaluations"]
    return rows[end][name] - rows[start][name]


def distances(seed: Found) -> list[float]:
    return [sqrt(max(0.0, row["eval_kl"])) for row in seed["evaluations"]]


def report(seeds: Sequence[Found], picture: Path) -> Report:
    table = [["seed", "√KL at the end", "PM's score", "gold score", "at its highest", "the run"]]
    for n, seed in enumerate(seeds):
        rows = seed["evaluations"]
        best = max(rows, key=lambda row: row["eval_gold_score"])
        ends = [f"{rows[0][name]:.2f} → {rows[-1][name]:.2f}" for name in SCORES]
        stopped = "was stopped" if seed["stopped"] else "was not stopped"
        highest = f"{best['eval_gold_score']:.2f}, step {best['step']}"
        table.append(
            [str(n), f"{distances(seed)[-1]:.2f}", *ends, highest, f"{stopped}, step {rows[-1]['step']}"]
        )
    lines = [
        correlation(distances(seed), [row["eval_score"] for row in seed["evaluations"]]) for seed in seeds
    ]
    gaps = [moves(seed, "eval_score", 0, -1) - moves(seed, "eval_gold_score", 0, -1) for seed in seeds]
    falls = [moves(seed, "eval_gold_score", len(seed["evaluations"]) // 2, -1) for seed in seeds]
    rises = [moves(seed, "eval_score", 0, -1) for seed in seeds]
    told: dict[str, Any] = {"unit": "of score", "scale": 1.0}
    about = "2204.05862 § 4.2"
    claims = [
        Claim(
            "it goes with √KL (correlation)", "2204.05862 § 4.3", MORE, over_seeds(lines), unit="", scale=1.0
        ),
    ]
    # The guard ends a run where gold falls and the score rises: tested there, all of it is so by its rule.
    stopped = any(seed["stopped"] for seed in seeds)
    if not stopped:
        claims += [
            Claim("the gold score falls in the second half of a run", about, LESS, over_seeds(falls), **told),
            Claim("meanwhile the score that is trained on has risen", about, MORE, over_seeds(rises), **told),
            Claim("the score rises by more than the gold score", about, MORE, over_seeds(gaps), **told),
        ]
    drawn, panels = figure(2)
    for axes, (name, title) in zip(panels, SCORES.items(), strict=True):
        for n, seed in enumerate(seeds):
            scores = [row[name] - seed["evaluations"][0][name] for row in seed["evaluations"]]
            axes.plot(distances(seed), scores, marker="o", markersize=3, label=f"seed {n}")
        axes.axhline(0, color="0.7", linewidth=0.8)
        axes.set(xlabel="√KL from SL-CAI, √nats a reply", title=title, ylabel="score, from its start")
        axes.legend(frameon=False, fontsize=8)
    save(drawn, picture)
    notes = (
        "; ".join(f"seed {n}: {seed['stopped'] or 'ran to its last step'}" for n, seed in enumerate(seeds))
        + "."
    )
    if stopped:
        notes += (
            " The guard ends a run where the gold score has fallen twice while the score rose; that it did so is what"
            " was found, and no claim of a fall or a rise is tested at an end that was chosen for one."
        )
    notes += " Intervals by seed."
    return Report(table, claims, notes)


STUDY = Study(
    "overoptimisation",
    "Reward against √KL, with a gold preference model",
    "How far does a poor preference model's score stand for anything?",
    measure,
    report,
)
