"""Models or samples of them + a judge -> Elo of helpfulness and of harmlessness, win rates, and the frontier as a
picture (.json, .png).

    cai evaluate elo runs/sl-cai runs/rl-cai --prompts held-out.jsonl --judge pm/ --out elo.json

Paper section 4.4, figures 2, 3 and 8, where people compared two models' replies at a time. Models answer the prompts
(elo.<name>.samples.jsonl), all pairs of them play on each prompt, and the judged games are comparisons that say who
wrote what (elo.games.jsonl): a killed run goes on from either, and `--comparisons` reads such games. A preference
model judges by the difference of its scores, a language model by log-probabilities of the options in both orders,
averaged. The same reply twice is a tie without asking. How ratings and intervals are made is in
`evaluation/bradley_terry.py`, win rates at equal lengths in `evaluation/win_rates.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cai_cli.artifacts.places import rejects_path
from cai_cli.artifacts.rejects import Rejected, counted, counted_among, put_aside
from cai_cli.artifacts.results import ResultsFile
from cai_cli.artifacts.rows import RowArtifact
from cai_cli.console.groups import build, flags_of, refuse, values_of
from cai_cli.console.messages import say, show_text, warn_all
from cai_cli.console.options import check_draws
from cai_cli.engines.base import EngineSettings
from cai_cli.engines.open import check_engine
from cai_cli.engines.replies import Options as SampleOptions
from cai_cli.engines.replies import settings_of as writer_settings
from cai_cli.errors import RunError, UserError
from cai_cli.evaluation.answers import SAMPLES_FIRST, beside, check_written, sample_options, write_replies
from cai_cli.evaluation.outcomes import AXES, Outcome, same_position_rate, show
from cai_cli.evaluation.players import Player, judge_cautions, players_of
from cai_cli.feedback.games import Game, PlayedGames, Replies, read_samples, replies_in, schedule, to_play_on
from cai_cli.feedback.match_settings import GameOptions, JudgeOptions
from cai_cli.feedback.match_settings import Options as Options
from cai_cli.feedback.referee import Referee
from cai_cli.feedback.settings import judge_settings
from cai_cli.models.devices import check_device
from cai_cli.models.paths import check_model, role_of
from cai_cli.processes.ranks import check_one_process
from cai_cli.rows.prompt_files import read_prompts
from cai_cli.rows.records import Prompt

if TYPE_CHECKING:
    from cai_cli.artifacts.chunks import Told
    from cai_cli.artifacts.rows import Settled

CHUNK_BATCHES = 8


def run(options: Options) -> None:
    """Rate models against each other: Elo of helpfulness and of harmlessness, and win rates.

    Each two models play on each prompt; a preference model, a language model or people say whose reply is
    better. Ratings are by Bradley and Terry, apart for helpful and harmful prompts, with the anchor at 0; 400
    points are odds of 10:1. Intervals are bootstrapped over prompts. A table, a JSON file, and the frontier as a
    picture, on which the checkpoints of a run are joined.

    Example: cai evaluate elo runs/sl-cai runs/rl-cai --prompts held-out.jsonl --judge pm/ --out elo.json

    Example: cai evaluate elo a.jsonl b.jsonl --judge judge/ --constitution article --out elo.json

    Example: cai evaluate elo --comparisons human-votes.jsonl --anchor sl-cai --out elo.json
    """
    check_options(options)
    players = players_of(options.players or [], served=options.engines.engine == "openai")
    for player in players if options.judge else []:
        if player.is_model:
            check_engine(player.path, writer_settings(writer_options(options, players, player)), "MODELS")
    judge = role_of_judge(options)
    results = ResultsFile("evaluate elo", options)
    if results.done:
        return
    check_device(options.hardware.device, options.output.dry_run)
    if judge:
        outcomes, rejected = judged(options, players, judge)
        refused = list[Rejected]()
    else:
        outcomes, refused = decided(options, players)
        rejected = counted(refused)
    if options.output.dry_run:
        return
    found = dict.fromkeys([*(p.name for p in players), *(name for game in outcomes for name in game.models)])
    names = list(found)
    anchor = anchor_of(options, names)
    from cai_cli.evaluation.frontier_plot import draw_ratings
    from cai_cli.evaluation.tournament import assess, unrated

    if told := unrated([(game.models, game.kind) for game in outcomes], names, anchor):
        raise (RunError if judge else UserError)(*told)
    assessed = assess(outcomes, names, players, anchor, options.output.seed)
    about = judge_facts(options, judge, outcomes)
    warnings = assessed.warnings + (judge_cautions(results.manifest, players) if judge else [])
    results.start()
    put_aside(refused, "games", rejects_path(results.out))
    draw_ratings(assessed.models, anchor, results.picture, about["told"])
    seen = len(outcomes) + sum(rejected.values())
    counts = {"in": seen, "out": len(outcomes), "rejected": rejected}
    measured = {"anchor": anchor, "judge": about, "models": assessed.models, "win_rates": assessed.win_rates}
    results.finish({**measured, "counts": counts, "warnings": warnings}, counts, warnings=warnings)
    show(assessed.models, assessed.win_rates, anchor, about["told"])
    warn_all(warnings)


def check_options(options: Options) -> None:
    check_one_process("models are rated", SAMPLES_FIRST)
    if bool(options.judge) == bool(options.comparisons):
        raise UserError("give either --judge or --comparisons", "see `cai evaluate elo --help`")
    if options.judge and len(options.players or []) < 2:
        raise UserError("--judge compares models, and fewer than two are named", "name two or more")
    check_draws(options.writing.num_samples, "--num-samples", options.writing.temperature)


def anchor_of(options: Options, names: Sequence[str]) -> str:
    if options.anchor is None:
        return names[0]
    if options.anchor not in names:
        raise UserError(f"--anchor {options.anchor}: no such model", f"it is one of {', '.join(names)}")
    return options.anchor


def role_of_judge(options: Options) -> Literal["preference model", "feedback model"] | None:
    """What kind of judge there is, None where games are decided. Raises UserError for options that it does not
    read.
    """
    judging = options.judging
    if judging.judge is None:
        return None
    if judging.served.feedback_engine == "openai" or role_of(judging.judge, "--judge") == "language model":
        check_engine(judging.judge, referee_settings(options), "--judge")
        return "feedback model"
    check_model(judging.judge, "--judge", "preference model")
    step = f"let a language model judge instead of {judging.judge}"
    refuse(judging, JudgeOptions.ASKED, "with a preference model", step)
    return "preference model"


def referee_settings(options: Options) -> EngineSettings:
    judging = options.judging
    return judge_settings(
        judging.served,
        options.serving,
        options.hardware.device,
        judging.feedback_dtype,
        judging.feedback_chat_template_kwargs,
        options.writing.batch_size,
        options.output.seed,
        judging.prefix_cache,
    )


# Games


def decided(options: Options, players: list[Player]) -> tuple[list[Outcome], list[Rejected]]:
    """The games of --comparisons, and rows that are none."""
    replies: dict[str, Replies] = {}
    for player in players:
        if not player.is_model:
            replies[player.name] = replies_in(read_samples(Path(player.path)))
    read = list(PlayedGames(replies, options.kind).read(options.comparisons or []))
    outcomes = [item for item in read if isinstance(item, Outcome)]
    refused = [item for item in read if isinstance(item, Rejected)]
    if not outcomes:
        why = ", ".join(sorted({item.reason for item in refused}))
        files = ", ".join(map(str, options.comparisons or []))
        told = f"{files}: no games in it" + (f" ({why})" if why else "")
        raise UserError(told, "a game says who wrote each reply, as chosen_model and rejected_model")
    if options.output.dry_run:
        say(f"{len(outcomes)} games, {len(refused)} rows that are none")
    return outcomes, refused


def judged(options: Options, players: list[Player], judge: str) -> tuple[list[Outcome], dict[str, int]]:
    """The games of the players, played on the prompts and decided by the judge; what was rejected is put aside
    beside the games.
    """
    samples = {p.name: list(read_samples(Path(p.path))) for p in players if not p.is_model}
    check_written(options, players)
    given = prompts_of(options, samples)
    place = ", ".join(options.prompts or [p.path for p in players if not p.is_model])
    prompts = to_play_on(given, options.kind, place)
    replies = {
        player.name: {item: [f"[a reply of {player.name}]"] * options.writing.num_samples for item in prompts}
        if player.is_model
        else replies_in(samples[player.name])
        for player in players
    }
    anchor = anchor_of(options, list(replies))

    def games() -> list[Game]:
        return schedule(replies, prompts.values(), options.budget, options.output.seed)

    planned = games()
    from cai_cli.evaluation.tournament import unrated

    if told := unrated([(game.models, game.pair.kind or "") for game in planned], list(replies), anchor):
        raise UserError(*told)
    referee = Referee(options.judging, options.output.seed) if judge == "feedback model" else None
    if options.output.dry_run:
        dry_run(options, referee, planned)
        return [], {}
    files = []
    for player in players:
        if player.is_model:
            path = write_replies(writer_options(options, players, player), given).out
            replies[player.name] = replies_in(read_samples(path))
            player = replace(player, path=str(path))
        files.append(f"{player.name}={player.path}")
    scheduled = games()
    played = play(options, referee, scheduled, files)
    ids = {game.id for game in scheduled}  # the file has more, where --limit was higher
    outcomes = [item for item in PlayedGames({}, only=ids).read([played]) if isinstance(item, Outcome)]
    return outcomes, counted_among(rejects_path(played), ids)


def prompts_of(options: Options, samples: dict[str, list[tuple[Prompt, str]]]) -> list[Prompt]:
    """Those of --prompts, or else of all samples, each once."""
    if options.prompts:
        return read_prompts(options.prompts, options.limit)
    found: dict[str, Prompt] = {}
    for prompt, _ in (row for rows in samples.values() for row in rows):
        if prompt.id not in found or not found[prompt.id].kind:
            found[prompt.id] = prompt
    if not found:
        raise UserError("models need --prompts to answer", "give held-out prompts, or a file of samples too")
    return list(found.values())[: options.limit]


def writer_options(options: Options, players: list[Player], player: Player) -> SampleOptions:
    """Without --prompts a model answers those of the samples."""
    files = [other.path for other in players if not other.is_model]
    return sample_options(options, player, options.prompts or files)


def play(options: Options, referee: Referee | None, games: list[Game], samples: list[str]) -> Path:
    """The file of judged games; those that are not in it yet are judged."""
    given = {name: value for name, value in values_of(options).items() if name in flags_of(GameOptions)}
    out = beside(options.output.out, "games")
    own = build(GameOptions, **{**given, "out": out, "samples": samples})
    artifact = RowArtifact("evaluate elo games", own)
    if artifact.done:
        return out
    todo = artifact.remaining(games)
    judge, facts, at_once = judge_of(options, referee)

    def decide(chunk: list[Game], told: Told) -> list[Settled]:
        asked = [game for game in chunk if game.pair.replies[0] != game.pair.replies[1]]
        rows = dict(zip((game.id for game in asked), judge(asked, told), strict=True))
        return [(rows.get(game.id) or game.row(0.5), 0) for game in chunk]

    artifact.work(todo, CHUNK_BATCHES * options.writing.batch_size, decide, "games", at_once=at_once)
    artifact.finish(**facts())
    return out


def judge_of(options: Options, referee: Referee | None) -> tuple[Any, Any, int]:
    """What decides games, what a manifest keeps of it, and how many games at a time it is asked about."""
    name = options.judge or ""
    if referee:
        from cai_cli.engines.open import open_engine

        engine = open_engine(name, referee_settings(options), "--judge")
        return lambda games, told: referee.judge(engine, games), engine.facts, engine.rows_at_once

    from cai_cli.artifacts.manifest import device_facts
    from cai_cli.training.preference.reading import open_preference_model
    from cai_cli.training.preference.referee import judge_games

    pm = open_preference_model(name, options.hardware.device, options.hardware.dtype, "--judge")
    facts = device_facts(str(pm.model.device), str(pm.model.dtype).removeprefix("torch."))
    return lambda games, told: judge_games(pm, games, options.writing.batch_size, told), lambda: facts, 1


def dry_run(options: Options, referee: Referee | None, games: list[Game]) -> None:
    """Show the first game as the judge would get it."""
    name = options.judge or ""
    if referee:
        from cai_cli.engines.open import open_reader

        show_text(referee.show(open_reader(name, referee_settings(options), "--judge"), games[0]))
    else:
        from cai_cli.training.preference.referee import shown

        show_text(shown(name, games[0]))
    kinds = ", ".join(f"{sum(game.pair.kind == kind for game in games)} {kind}" for kind in AXES)
    say(f"{len({game.pair.prompt_id for game in games})} prompts, {len(games)} games ({kinds})")


# Results


def judge_facts(options: Options, judge: str | None, outcomes: list[Outcome]) -> dict[str, Any]:
    """Who decided the games. `told`: in a line; `position_bias`: in what share of the games the same option was
    taken in both orders.
    """
    if judge is None:
        files = [str(path) for path in options.comparisons or []]
        return {"kind": "comparisons", "path": files, "told": f"games of {', '.join(files)}"}
    facts: dict[str, Any] = {"kind": judge, "path": options.judge}
    facts["told"] = f"judged by {judge} {Path(options.judge or '').name}"
    if judge == "feedback model":
        facts["questions"] = Referee(options.judging, options.output.seed).facts()
        facts["position_bias"] = same_position_rate(outcomes)
    return facts
