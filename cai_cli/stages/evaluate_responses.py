"""Samples, or models and prompts -> how many replies refuse, evade, preach, repeat themselves, how long and how
harmful they are (.json, .png), and a row for each reply that says why (.rows.jsonl).

    cai evaluate responses sl-cai/ rl-cai/ --prompts xstest.jsonl --judge judge/ --out responses.json

Models answer the prompts first (responses.<name>.samples.jsonl, what `cai sample --on-truncated keep --attempts 1` makes,
since a draw that is drawn again would hide what it was); a killed run goes on from these files and from the rows.
What counts as a refusal, and how often people agree, is in `evaluation/refusals.py`; the judge's rubric, its scores and
the deviation from the paper (section 4.5) in `evaluation/harm.py`. Groups are all replies, the kinds, and the
`source` of the prompts, which `cai import xstest` and its like fill in.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from cai_cli.artifacts.rejects import counted_among, reasons_text
from cai_cli.artifacts.results import ResultsFile
from cai_cli.console.messages import say, show_text, table, warn_all
from cai_cli.console.options import (
    INPUT,
    NAMED,
    DeviceOptions,
    EngineOptions,
    OutputOptions,
    RowOptions,
    ServingOptions,
    check_draws,
    flag,
)
from cai_cli.engines.open import check_engine
from cai_cli.engines.replies import Options as SampleOptions
from cai_cli.engines.replies import Slot, settings_of, slots_of
from cai_cli.errors import RunError, UserError
from cai_cli.evaluation.answers import (
    SAMPLES_FIRST,
    WriterOptions,
    beside,
    check_written,
    sample_options,
    write_replies,
)
from cai_cli.evaluation.cautions import LOW_MASS
from cai_cli.evaluation.harm import ALIKE, RUBRIC, harm_request
from cai_cli.evaluation.players import Player, players_of
from cai_cli.evaluation.responses import ALL
from cai_cli.feedback.response_rows import HarmJudgeOptions, not_judged, replies_in, write_rows
from cai_cli.feedback.response_rows import Options as RowsOptions
from cai_cli.feedback.response_rows import settings_of as rows_settings
from cai_cli.models.devices import check_device
from cai_cli.processes.ranks import check_one_process
from cai_cli.rows.prompt_files import read_prompts
from cai_cli.rows.records import KINDS, Prompt

LEAST = 8  # fewer replies are alike by chance
MOST_SOURCES = 40  # rows of the table of sources


@dataclass(frozen=True, kw_only=True)
class Options:
    output: OutputOptions
    judging: HarmJudgeOptions
    hardware: DeviceOptions
    engines: EngineOptions
    serving: ServingOptions
    models: Annotated[
        list[str],
        typer.Argument(help="Files of samples, or model directories; NAME=PATH names one.", metavar="MODELS"),
        NAMED,
    ]
    prompts: Annotated[
        list[str] | None,
        flag(
            "Data",
            "What models answer, as for `cai sample`; also says the kind and source of these prompts in files of samples. "
            "Repeatable.",
        ),
        INPUT,
    ] = None
    limit: Annotated[
        int | None, flag("Data", "Take at most this many prompts, and replies of each file.", min=1)
    ] = None
    writing: WriterOptions


def run(options: Options) -> None:
    """Measure refusals, evasion, preaching, repetition, length and harm of replies.

    By rules, on every reply: refusal; bare refusal, which gives neither reason nor help; preaching; a phrase of
    five words three times; words; empty; cut off. With --judge, how harmful it is, 0 (not harmful) to 4 (detailed,
    usable help with serious harm): the mean under the judge's probabilities of the five numbers; the whole rubric is
    in --dry-run and in the results. By model, kind and source of the prompt; over-refusal is refusing a helpful
    prompt, compliance answering a harmful one. Intervals are 95 %, bootstrapped over prompts.

    Example: cai import xstest xstest_prompts.csv --out xstest.jsonl

    Example: cai evaluate responses sl-cai/ rl-cai/ --prompts xstest.jsonl --out responses.json

    Example: cai evaluate responses before=a.jsonl after=b.jsonl --judge judge/ --out responses.json
    """
    players = check_options(options)
    results = ResultsFile("evaluate responses", options)
    if results.done:
        return
    check_device(options.hardware.device, options.output.dry_run)
    prompts = read_prompts(options.prompts) if options.prompts else []
    for player in players:
        if not player.is_model:  # a file that will not do is told before models write, which may take hours
            replies_in(player.name, player.path, prompts, most_replies(options))
    if options.output.dry_run:
        dry_run(options, players, prompts)
        return
    rejected: dict[str, dict[str, int]] = {}
    asked: dict[str, set[str]] = {}
    written: list[Player] = []
    for player in players:
        if player.is_model:
            asked[player.name] = {slot.id for slot in slots_asked(options, prompts)}
            path, rejected[player.name] = answer(options, player, prompts)
            written.append(replace(player, path=str(path)))
        else:
            written.append(player)
    rows = write_rows(rows_options(options, written), prompts, asked)

    from cai_cli.evaluation.response_plot import draw_responses
    from cai_cli.evaluation.response_rates import measure

    models = [
        {
            "name": player.name,
            "path": player.path,
            "rejected": rejected.get(player.name, {}),
            "not_judged": dict(not_judged(rows[player.name])),
            **measure(rows[player.name], options.output.seed),
        }
        for player in players
    ]
    warnings = warnings_of(models)
    results.start()
    draw_responses(models, results.picture)
    count = sum(len(some) for some in rows.values())
    lost = sum(sum(reasons.values()) for reasons in rejected.values())
    counts = {"in": count + lost, "out": count, "rejected": {"no_reply": lost} if lost else {}}
    judge = options.judging.judge
    measured = {"models": models, "rubric": RUBRIC if judge else None, "judge": judge, "warnings": warnings}
    results.finish(measured, counts, warnings=warnings)
    show(models)
    warn_all(warnings)
    say(f"each reply with what was found: {rows_path(options)}")


def check_options(options: Options) -> list[Player]:
    """Who is measured. Raises UserError before anything is touched."""
    check_one_process("replies are measured", SAMPLES_FIRST)
    check_draws(options.writing.num_samples, "--num-samples", options.writing.temperature)
    players = players_of(options.models, served=options.engines.engine == "openai")
    check_written(options, players)
    if not options.prompts and (model := next((one for one in players if one.is_model), None)):
        raise UserError(f"{model.path}: is a model, and there is nothing to answer", "add --prompts FILE")
    for player in players:
        if player.is_model:
            check_engine(player.path, settings_of(writer_options(options, player)), "--model")
    if options.judging.judge:
        check_engine(options.judging.judge, judge_of(options), "--judge")
    return players


def judge_of(options: Options) -> Any:
    return rows_settings(
        options.judging,
        options.serving,
        options.hardware.device,
        options.writing.batch_size,
        options.output.seed,
    )


def rows_path(options: Options) -> Path:
    return beside(options.output.out, "rows")


def writer_options(options: Options, player: Player) -> SampleOptions:
    """A draw that is drawn again would hide what it was."""
    return sample_options(options, player, options.prompts or [], attempts=1, max_reject_rate=1.0)


def rows_options(options: Options, players: list[Player]) -> RowsOptions:
    return RowsOptions(
        output=replace(options.output, out=rows_path(options)),
        rows=RowOptions(),
        judging=options.judging,
        serving=options.serving,
        samples=[f"{player.name}={player.path}" for player in players],
        prompts=options.prompts,
        replies=most_replies(options),
        device=options.hardware.device,
        batch_size=options.writing.batch_size,
    )


def most_replies(options: Options) -> int | None:
    """Of each model, or file of samples."""
    return None if options.limit is None else options.limit * options.writing.num_samples


def slots_asked(options: Options, prompts: list[Prompt]) -> list[Slot]:
    """The replies of a model that are measured; the file of them has more, where --limit was higher."""
    return slots_of(prompts[: options.limit], options.writing.num_samples)


def answer(options: Options, player: Player, prompts: list[Prompt]) -> tuple[Path, dict[str, int]]:
    """The file of a model's replies, and how many could not be kept, by reason."""
    artifact = write_replies(writer_options(options, player), prompts[: options.limit])
    slots = slots_asked(options, prompts)
    rejected = counted_among(artifact.rejects, {slot.id for slot in slots})
    if sum(rejected.values()) == len(slots):
        told = f"{player.path}: gave no reply ({reasons_text(Counter(rejected))})"
        raise RunError(told, f"look at {artifact.rejects}")
    return artifact.out, rejected


def warnings_of(models: list[dict[str, Any]]) -> list[str]:
    """What to know before the figures are believed."""
    found = []
    for model in models:
        whole, name = model["groups"][ALL], model["name"]
        if not set(KINDS) & model["groups"].keys():
            found.append(
                f"{name}: no prompt has a kind, so over-refusal and compliance cannot be told; --prompts with kinds says them"
            )
        if whole["truncated"]["share"] > 0.5:
            found.append(
                f"{name}: {whole['truncated']['share']:.0%} of the replies are cut off: --max-new-tokens"
            )
        if model["rejected"]:
            lost = sum(model["rejected"].values())
            found.append(f"{name}: {lost} replies could not be kept, and are in no figure")
        if model["not_judged"]:
            lost = sum(model["not_judged"].values())
            found.append(f"{name}: {lost} replies have no harm score")
    return found + judge_warnings([m["groups"][ALL]["harm"] for m in models if m["groups"][ALL]["harm"]])


def judge_warnings(harms: list[dict[str, Any]]) -> list[str]:
    """Of the harm scores of each model."""
    if not harms:
        return []
    found, mass = [], fmean(harm["mass"] for harm in harms)
    if mass < LOW_MASS:
        told = f"the judge puts {mass:.0%} of its probability on the scores: its harm scores mean little"
        found.append(f"{told}; take one that follows instructions")
    if max(harm["spread"] for harm in harms) < ALIKE and sum(harm["judged"] for harm in harms) >= LEAST:
        told = f"the judge gives every reply about the same score ({harms[0]['mean']:.1f})"
        found.append(f"{told}: either they are alike, or it cannot tell; take a larger judge")
    return found


# Showing


def show(models: list[dict[str, Any]]) -> None:
    """Shares in %, with their 95 % intervals where there is room; all of them are in the file."""
    rows, harms = [], []
    for model in models:
        for name in (ALL, *KINDS):
            if (group := model["groups"].get(name)) is None:
                continue
            others = [f"{100 * group[flag]['share']:.0f}" for flag in ("bare", "preaching", "repetition")]
            about, words = [model["name"], name, f"{group['n']:,}"], f"{group['words']['median']:.0f}"
            rows.append([*about, percent(group["refusal"]), *others, words])
            if found := group["harm"]:
                mean = f"{found['mean']:.2f} ({found['low']:.2f}–{found['high']:.2f})"
                harms.append([model["name"], name, f"{found['judged']:,}", mean, f"{found['mass']:.3f}"])
    table("replies, %", ["model", "kind", "n", "refuse", "bare", "preach", "repeat", "words"], rows)
    if harms:
        table("harm by the judge, 0 to 4", ["model", "kind", "judged", "harm", "mass on 0 to 4"], harms)
    rows = [
        [model["name"], percent(model["over_refusal"]), percent(model["compliance"])]
        for model in models
        if model["over_refusal"] or model["compliance"]
    ]
    if rows:
        table("kinds", ["model", "over-refusal, %", "compliance, %"], rows)
    for model in models:
        pairs = [
            [name, percent(item["safe"]), percent(item["unsafe"]), percent(item["difference"])]
            for name, item in list(model["contrasts"].items())[:MOST_SOURCES]
        ]
        if pairs:
            columns = ["set", "safe\nrefused, %", "unsafe\nrefused, %", "difference,\npoints"]
            table(f"{model['name']}: safe prompts against unsafe ones that look like them", columns, pairs)


def percent(item: dict[str, float] | None) -> str:
    """`31 (24–38)`; a dash where there is nothing to take it over."""
    if item is None:
        return "–"
    value, low, high = (round(100 * item[name]) + 0 for name in ("share", "low", "high"))
    return f"{value} ({low}{' to ' if low < 0 else '–'}{high})"


def dry_run(options: Options, players: list[Player], prompts: list[Prompt]) -> None:
    """Show the first prompt as the first model would get it, and the judge's question about it."""
    from cai_cli.engines.open import open_reader
    from cai_cli.engines.replies import segment_of

    model = next((player for player in players if player.is_model), None)
    if model:
        told = writer_options(options, model)
        renderer = open_reader(model.path, settings_of(told))
        slot = slots_of(prompts, 1)[0]
        show_text(renderer.show(segment_of(told, renderer).prompt(slot)))
    judge = options.judging.judge
    if judge:
        renderer = open_reader(judge, judge_of(options), "--judge")
        prompt = prompts[0].prompt if prompts else [{"role": "user", "content": "[a prompt]"}]
        request = harm_request(prompt, "[the reply]", renderer.form() == "chat")
        show_text(renderer.show(request.prompt))
    say(f"{len(players)} models or files of samples, {len(prompts)} prompts")
