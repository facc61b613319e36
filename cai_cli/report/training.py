"""Trained models: curves of their metrics.jsonl, and what their manifests say was held out and measured."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import PurePath
from typing import Any

from cai_cli.artifacts.manifest_shape import Manifest
from cai_cli.evaluation.calibration import wilson
from cai_cli.evaluation.cautions import chance_cautions, matched_cautions, tied_cautions
from cai_cli.report.blocks import Group, Section, Table
from cai_cli.report.find import Found, ModelFolder, Result
from cai_cli.report.reading import Reading
from cai_cli.report.shapes import DEMO, PM
from cai_cli.report.svg import Dot, Series, curves, meter, reliability
from cai_cli.report.text import between, counted, duration, is_number, named, number, percent, share
from cai_cli.rows.json_text import load_json
from cai_cli.rows.jsonl import read_lines

MOST_STEPS = 200_000
STEP = "step"
# Title, series as (name in the metrics, name on the page), what it says.
PPO_CURVES = (
    (
        "Score",
        (("score", "rollouts"), ("eval_score", "held out"), ("gold_score", "gold PM")),
        "the preference model’s, mean of a step",
    ),
    ("KL to the reference", (("kl", "rollouts"), ("eval_kl", "held out")), "nats a reply"),
    ("Length", (("length", "rollouts"), ("eval_length", "held out")), "tokens a reply"),
    ("Score and length", (("score_length", "correlation"),), "above 0: the longer reply scores higher"),
    ("Cut off", (("missing_eos", "rollouts"),), "share of the replies without an end"),
    ("Value fit", (("explained_variance", "value"),), "1: the value function foresees every reward"),
    (
        "Refusals on held-out prompts",
        (
            ("eval_refusals_helpful", "helpful"),
            ("eval_refusals_harmful", "harmful"),
            ("eval_refusals", "all"),
        ),
        "by opening words",
    ),
)
SFT_CURVES = (
    ("Loss", (("loss", "training"), ("eval_loss", "held out")), ""),
    ("Token accuracy", (("token_accuracy", "training"),), ""),
)
PM_CURVES = (("Loss", (("loss", "with language modelling"), ("lm_loss", "language modelling")), ""),)
Metrics = dict[str, list[tuple[float, float]]]
KeyFigure = tuple[str, str, str]  # value, what it is, more


def read_metrics(model: ModelFolder) -> Metrics:
    """The points of each curve by name. Lines that are none, as a kill may leave, are left out."""
    found: Metrics = defaultdict(list)
    if model.metrics is None:
        return found
    for number_of, text in read_lines(model.metrics, unfinished=model.unfinished):
        if number_of > MOST_STEPS:
            break
        try:
            row = load_json(text, constant=float)
        except ValueError:
            continue
        if isinstance(row, dict) and is_number(row.get(STEP)):
            for name, value in row.items():
                if is_number(value) and math.isfinite(value):
                    found[name].append((row[STEP], value))
    return found


def draw_curves(group: Group, metrics: Metrics, wanted: Any, marked: dict[str, float]) -> None:
    for title, series, note in wanted:
        lines = [Series(told, metrics[name]) for name, told in series if name in metrics]
        mark = next((marked[name] for name, _ in series if name in marked), None)
        plot = curves(lines, "step", "", title, mark) if lines else None
        group.draw(title, plot, note, [line.name for line in lines] if len(lines) > 1 else ())


# Supervised


def sft_section(found: Found, reading: Reading) -> Section | None:
    def made(model: ModelFolder) -> Group:
        group = Group(model.name)
        draw_curves(group, read_metrics(model), SFT_CURVES, {})
        held_out = model.manifest.get("held_out")
        losses = held_out.get("loss") if isinstance(held_out, dict) else None
        for kind, loss in (losses or {}).items():
            if is_number(loss):
                group.facts.append((f"held-out loss, {kind}", number(loss)))
        return group

    items = [group for group in reading.each(found.of_stage("sft"), made) if not group.empty]
    return Section("sft", "Supervised stage", "", items) if items else None


# Preference models


def pm_section(found: Found, reading: Reading) -> Section | None:
    items = reading.each(found.of_stage("pmp", "train-pm"), lambda model: trained(model, reading))
    items += reading.each(found.results_of(PM), lambda result: measured(result, reading))
    items = [group for group in items if not group.empty]
    lead = (
        "How often the preference model ranks two replies as their label does, with 95 % intervals, and how far its"
        " probabilities can be trusted."
    )
    return Section("pm", "Preference models", lead, items) if items else None


def trained(model: ModelFolder, reading: Reading) -> Group:
    manifest, group = model.manifest, Group(model.name)
    if is_number(manifest.get("pairs")):
        group.facts.append(("pairs trained on", f"{manifest['pairs']:,}"))
    if is_number(manifest.get("held_out")):
        group.facts.append(("held out", f"{manifest['held_out']:,}"))
    evaluation = manifest.get("evaluation")
    if isinstance(evaluation, dict) and evaluation:
        group.tables.append(accuracies("On held-out pairs", evaluation))
        whole = evaluation.get("all", {})
        reading.warn(model.name, chance_cautions(whole.get("accuracy"), whole.get("accuracy_interval")))
    draw_curves(group, read_metrics(model), PM_CURVES, {})
    return group


def accuracies(title: str, groups: dict[str, dict[str, Any]]) -> Table:
    rows = []
    for name, item in groups.items():
        accuracy, interval = item["accuracy"], item["accuracy_interval"]
        rows.append(
            [
                name,
                f"{item['pairs']:,}",
                meter(accuracy, interval),
                share(accuracy, interval),
                number(item["brier"]),
                number(item["calibration_error"]),
            ]
        )
    return Table(title, ["", "pairs", "accuracy", "", "Brier", "calibration error"], rows)


def measured(result: Result, reading: Reading) -> Group:
    """What `cai evaluate pm` found."""
    content, group = result.content, Group(result.name)
    groups, matched = content["groups"], content["length_matched"]
    group.tables.append(accuracies("On comparisons", groups))
    rows = [
        [
            name,
            number(item["pairs"], 0),
            meter(item["accuracy"], item["accuracy_interval"]),
            share(item["accuracy"], item["accuracy_interval"]),
            percent(item["chosen_is_longer"]),
        ]
        for name, item in matched.items()
    ]
    heads = ["", "pairs kept", "accuracy", "", "chosen is longer"]
    note = "Where length says nothing: pairs whose chosen reply is longer weigh as much as those where it is shorter."
    group.tables.append(Table("Lengths matched", heads, rows, note))
    given = content["reliability"]
    wanted = (
        [name for name in given if name != "all"] if len(given) > 2 else ["all"]
    )  # as `evaluate pm` draws it
    bins = {
        name: [Dot("", cell["predicted"], cell["observed"], None, interval_of(cell)) for cell in given[name]]
        for name in wanted
    }
    plot = reliability(bins, 0.5, "reliability of the preference model")
    note = "how often the reply it prefers is the preferred one, against how sure it says it is"
    group.draw("Reliability", plot, note, list(bins) if len(bins) > 1 else ())
    lines = matched_cautions(groups["all"]["accuracy_interval"], matched["all"]["accuracy_interval"])
    lines += overlap_cautions(content.get("overlap"), str(content.get("pm")))
    reading.warn(result.name, lines)
    return group


def interval_of(cell: dict[str, Any]) -> tuple[float, float]:
    return wilson(cell["observed"] * cell["pairs"], cell["pairs"])


def overlap_cautions(overlap: Any, model: str) -> list[str]:
    """As `evaluation.overlap` tells it."""
    if not isinstance(overlap, dict) or not overlap.get("in_lineage"):
        return []
    told = f"{overlap['in_lineage']} of the {overlap['prompts']} prompts are in the lineage of {PurePath(model).name}"
    return [f"{told}: it may have learned from them"]


# PPO


def ppo_section(found: Found, reading: Reading) -> Section | None:
    items = reading.each(found.of_stage("ppo"), lambda model: run_of(model, reading))
    lead = (
        "The policy is trained to please the preference model without going far from where it started. A score that"
        " rises while length or KL runs away pleases the preference model alone."
    )
    items = [group for group in items if not group.empty]
    return Section("ppo", "Reinforcement learning", lead, items) if items else None


def run_of(model: ModelFolder, reading: Reading) -> Group:
    manifest, group = model.manifest, Group(model.name)
    metrics = read_metrics(model)
    steps = manifest["options"].get("steps")
    done = manifest.get("steps_done") or int(max((x for x, _ in metrics["score"]), default=0))
    group.facts.append(("steps", f"{done:,} of {steps:,}" if is_number(steps) else f"{done:,}"))
    if is_number(manifest.get("saved_step")):
        group.facts.append(("saved", f"after step {manifest['saved_step']:,}"))
    if manifest.get("stopped"):
        group.facts.append(("stopped", named(manifest["stopped"], 200)))
    for name, told in (("score", "score"), ("kl", "KL, nats a reply"), ("length", "tokens a reply")):
        if metrics[name]:
            first, last = ends(metrics[name])
            group.facts.append((told, f"{first:.2f} → {last:.2f}"))
    marked = limit_of(manifest["options"].get("max_kl"), metrics["kl"])
    draw_curves(group, metrics, PPO_CURVES, marked)
    against_kl(group, metrics)
    reading.warn(model.name, tied_cautions([y for _, y in metrics["score_length"]]))
    return group


def ends(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Means of the first and the last twentieth."""
    few = max(1, len(points) // 20)
    first, last = (sum(y for _, y in some) / len(some) for some in (points[:few], points[-few:]))
    return first, last


def limit_of(max_kl: Any, kl: list[tuple[float, float]]) -> dict[str, float]:
    """--max-kl as a line across, where the curve comes near it."""
    near = is_number(max_kl) and kl and max(y for _, y in kl) > 0.3 * max_kl
    return {"kl": max_kl} if near else {}


def against_kl(group: Group, metrics: Metrics) -> None:
    """Held-out score against √KL (arXiv 2204.05862, section 4.3), where there were evaluations."""
    distance = dict(metrics["eval_kl"])
    series = []
    for name, told in (("eval_score", "preference model"), ("eval_gold_score", "gold PM")):
        points = [(math.sqrt(max(0.0, distance[step])), y) for step, y in metrics[name] if step in distance]
        if len(points) > 2:
            series.append(Series(told, points, dashed=name != "eval_score"))
    plot = curves(series, "√KL", "", "held-out score against √KL") if series else None
    group.draw(
        "Held-out score against √KL", plot, "", [one.name for one in series] if len(series) > 1 else ()
    )


def key_figures(found: Found, reading: Reading) -> list[KeyFigure]:
    """The figures at the top."""
    trained_ones = reading.each(found.of_stage("train-pm")[:1], accuracy_figures)
    runs = reading.each(found.of_stage("ppo")[:1], score_figures)
    demos = reading.each(found.results_of(DEMO)[:1], lambda result: rates(result.content))
    figures = [figure for some in (*trained_ones, *runs, *demos) for figure in some]
    total = sum(seconds_of(manifest) for manifest in manifests(found))
    if total:
        figures.append((duration(total), "of work", counted(len(manifests(found)), "step")))
    return figures


def accuracy_figures(model: ModelFolder) -> list[KeyFigure]:
    evaluation = model.manifest.get("evaluation")
    whole = evaluation.get("all") if isinstance(evaluation, dict) else None
    if not whole or whole["accuracy"] is None:
        return []
    more = f"{between(*whole['accuracy_interval'])}, held out" if whole["accuracy_interval"] else "held out"
    return [(percent(whole["accuracy"], 0), "accuracy of the preference model", more)]


def score_figures(model: ModelFolder) -> list[KeyFigure]:
    metrics = read_metrics(model)
    if not metrics["score"]:
        return []
    first, last = ends(metrics["score"])
    more = f"at a KL of {ends(metrics['kl'])[1]:.2f} nats" if metrics["kl"] else ""
    return [(f"{first:.2f} → {last:.2f}", "score in PPO", more)]


def rates(content: dict[str, Any]) -> list[KeyFigure]:
    """Of the demo's models, the first and the last."""
    models = content["models"]
    if not isinstance(models, dict) or len(models) < 2:
        return []
    (before, first), *_, (after, last) = models.items()
    shown = [
        name for name in ("harmless", "helpful") if is_number(first.get(name)) and is_number(last.get(name))
    ]
    way = f"{named(before, 24)} → {named(after, 24)}"
    return [
        (f"{percent(first[name], 0)} → {percent(last[name], 0)}", f"{name} replies", way) for name in shown
    ]


def manifests(found: Found) -> list[Manifest]:
    return [item.manifest for item in found.artifacts if item.manifest]


def seconds_of(manifest: Manifest) -> float:
    seconds = manifest.get("seconds")
    return float(seconds) if seconds is not None and is_number(seconds) else 0.0
