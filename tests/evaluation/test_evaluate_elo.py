"""`cai evaluate elo`: games of samples files and models, judged by a preference model, by language models, by people."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Cai, mistake
from ppo_setup import make_pm
from tiny import make_model

from cai_cli.console.groups import build
from cai_cli.evaluation.outcomes import Outcome
from cai_cli.evaluation.players import players_of
from cai_cli.feedback.games import PlayedGames, schedule
from cai_cli.feedback.match_settings import JudgeOptions
from cai_cli.feedback.referee import Referee
from cai_cli.prompting.prompts import LESS_HARMFUL, MORE_HELPFUL
from cai_cli.rows.conversation import message
from cai_cli.rows.jsonl import read_rows
from cai_cli.rows.records import Prompt
from cai_cli.rows.sources import parse_name
from cai_cli.rows.trl_rows import RowReader

KINDS = ("helpful", "harmful")
WORDS = {"a": "Mix flour, water and salt", "b": "No", "c": "Let the dough rest, and then bake it"}


def prompt_of(n: int) -> list[dict[str, str]]:
    return [message("user", f"Question {n}?")]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Samples of three models to eight prompts of either kind; two of them say the same to the last one."""
    folder = tmp_path_factory.mktemp("samples")
    found = {}
    for name, words in WORDS.items():
        rows = [
            {
                "id": f"x{n}/0",
                "prompt": prompt_of(n),
                "completion": [
                    message("assistant", "The same." if n == 15 and name != "c" else f"{words} {n * n}")
                ],
                "finish_reason": "stop",
                "kind": KINDS[n % 2],
            }
            for n in range(16)
        ]
        found[name] = write(folder / f"{name}.jsonl", rows)
    return found


@pytest.fixture(scope="module")
def pm(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pm")
    return make_pm(make_model(folder / "lm"), folder / "pm")


@pytest.fixture(scope="module")
def rated(cai: Cai, files, pm, tmp_path_factory):
    """The command by a preference model, and what it wrote."""
    out = tmp_path_factory.mktemp("rated") / "elo.json"
    words = ["evaluate", "elo", *files.values(), "--judge", pm, "--anchor", "b", "--out", out]
    done = cai(*words)
    assert done.returncode == 0, done.stderr
    return words, done, out


def test_a_preference_model_judges_by_its_scores(cai: Cai, rated, files, pm, tmp_path):
    words, done, out = rated
    scores = {}
    for name, file in files.items():
        scored = cai("score", "--pm", pm, file, "--out", tmp_path / f"{name}.jsonl")
        assert scored.returncode == 0, scored.stderr
        scores[name] = [row["score"] for _, row in read_rows(tmp_path / f"{name}.jsonl")]
    result = json.loads(out.read_text())
    assert result["anchor"] == "b" and result["judge"]["kind"] == "preference model"
    assert [model["name"] for model in result["models"]] == ["a", "b", "c"]
    for kind, axis in enumerate(("helpfulness", "harmlessness")):
        rows = {(row["a"], row["b"]): row for row in result["win_rates"][axis]}
        assert rows.keys() == {("a", "b"), ("a", "c"), ("b", "c")}
        for (a, b), row in rows.items():
            wins = [1 / (1 + math.exp(scores[b][n] - scores[a][n])) for n in range(kind, 16, 2)]
            assert row["win"] == pytest.approx(sum(wins) / 8, abs=1e-5)
            assert row["low"] <= row["win"] <= row["high"] and 0 < row["length_controlled"] < 1
        for model in result["models"]:
            assert (
                model[axis]["games"] == 16 and model[axis]["low"] <= model[axis]["elo"] <= model[axis]["high"]
            )
        assert result["models"][1][axis] == {"elo": 0, "low": 0, "high": 0, "games": 16}
    played = [row for _, row in read_rows(out.with_name("elo.games.jsonl"))]
    assert len(played) == 48
    (tie,) = [row for row in played if row["chosen"] == row["rejected"]]
    assert tie["probability"] == 0.5 and "chosen_score" not in tie, (
        "nobody is asked about the same reply twice"
    )
    row = played[0]
    assert row["probability"] == pytest.approx(
        1 / (1 + math.exp(row["rejected_score"] - row["chosen_score"]))
    )
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    told = " ".join(done.stderr.split())
    assert "b is at 0" in told and "harmlessness: win rates" in told and done.stdout == ""
    again = cai(*words)
    assert again.returncode == 0 and "already done" in again.stderr
    mistake(cai(*words[:-1], out, "--anchor", "a"), "--anchor was b, now a")
    mistake(cai("evaluate", "elo", f"d={files['a']}", *words[3:]), "has other content")


def test_games_are_comparisons_that_rate_the_same_again(cai: Cai, rated, files, tmp_path):
    _, _, out = rated
    games = out.with_name("elo.games.jsonl")
    first = json.loads(out.read_text())
    words = ("evaluate", "elo", "--comparisons", games, "--anchor", "b", "--out")
    again = cai(*words, tmp_path / "again.json")
    assert again.returncode == 0, again.stderr
    found = json.loads((tmp_path / "again.json").read_text())
    assert found["win_rates"].keys() == first["win_rates"].keys()
    elos = [
        {model["name"]: model[axis] for axis in first["win_rates"] for model in both["models"]}
        for both in (first, found)
    ]
    for name, rating in elos[0].items():
        assert elos[1][name] == pytest.approx(rating, abs=1e-6)
    # Without names each reply is known by whose sample it is; the reply that two models gave is nobody's
    rows = [
        {key: row[key] for key in ("prompt", "chosen", "rejected", "kind", "probability", "origin", "id")}
        for _, row in read_rows(games)
    ]
    bare = write(tmp_path / "bare.jsonl", rows)
    told = cai("evaluate", "elo", *files.values(), "--comparisons", bare, "--out", tmp_path / "bare.json")
    assert told.returncode == 0, told.stderr
    result = json.loads((tmp_path / "bare.json").read_text())
    assert result["counts"] == {"in": 48, "out": 45, "rejected": {"author_unknown": 3}}
    assert (tmp_path / "bare.rejects.jsonl").exists() and result["models"][0]["path"] == str(files["a"])


def test_a_language_model_judges_models_and_a_killed_run_goes_on(cai: Cai, llama, qwen, files, tmp_path):
    out = tmp_path / "elo.json"
    words = [
        "evaluate",
        "elo",
        f"x={llama}",
        files["a"],
        "--judge",
        qwen,
        "--min-mass",
        0,
        "--max-new-tokens",
        8,
    ]
    words += ["--limit", 6, "--prompts", files["b"], "--out", out]
    shown = cai(*words, "--dry-run")
    assert shown.returncode == 0 and MORE_HELPFUL in shown.stdout and "[a reply of x]" in shown.stdout, (
        shown.stderr
    )
    assert "6 prompts, 6 games (3 helpful, 3 harmful)" in shown.stderr and not out.exists()
    done = cai(*words)
    assert done.returncode == 0, done.stderr
    samples, games = tmp_path / "elo.x.samples.jsonl", tmp_path / "elo.games.jsonl"
    rows = [row for _, row in read_rows(games)]
    assert len(rows) == 6 and {row["chosen_model"] for row in rows} | {
        row["rejected_model"] for row in rows
    } == {"x", "a"}
    orders = [[judgement["order"] for judgement in row["judgements"]] for row in rows]
    assert all(sorted(both) == ["chosen_first", "rejected_first"] for both in orders)
    result = json.loads(out.read_text())
    assert result["judge"]["questions"] == {
        "harmful": {"harmful": LESS_HARMFUL},
        "helpful": {"helpful": MORE_HELPFUL},
    }
    assert 0 <= result["judge"]["position_bias"] <= 1
    kept, bytes_of_games = samples.read_bytes(), games.read_bytes()
    for name in ("elo.json", "elo.manifest.json", "elo.games.manifest.json", "elo.games.jsonl"):
        (tmp_path / name).unlink()
    again = cai(*words)
    assert again.returncode == 0 and "elo.x.samples.jsonl: already done (6 rows)" in again.stderr, (
        again.stderr
    )
    assert (samples.read_bytes(), games.read_bytes()) == (kept, bytes_of_games)
    # `cai sample` would have made the same file
    sampled = cai(
        "sample",
        "--model",
        llama,
        "--prompts",
        files["b"],
        "--limit",
        6,
        "-n",
        1,
        "--max-new-tokens",
        8,
        "--on-truncated",
        "keep",
        "--out",
        samples,
    )
    assert sampled.returncode == 0 and "already done" in sampled.stderr, sampled.stderr
    # fewer prompts: the files of replies and games are done, and hold more than is rated now
    write(games.with_name("elo.games.rejects.jsonl"), [{"id": rows[5]["id"], "reason": "off_mass"}])
    write(games, rows[:5])
    fewer = cai(*words, "--limit", 4, "--if-changed", "restart")
    assert fewer.returncode == 0 and "elo.games.jsonl: already done" in fewer.stderr, fewer.stderr
    result = json.loads(out.read_text())
    assert result["counts"] == {"in": 4, "out": 4, "rejected": {}}
    assert [result["models"][0][axis]["games"] for axis in ("helpfulness", "harmlessness")] == [2, 2]
    more = cai(*words, "--if-changed", "restart")
    assert more.returncode == 0, more.stderr
    assert json.loads(out.read_text())["counts"] == {"in": 6, "out": 5, "rejected": {"off_mass": 1}}


class BiasedJudge:
    """Prefers the longer reply a little, and whatever stands first a lot."""

    renderer = SimpleNamespace(form=lambda: "transcript")

    def score(self, requests):
        return [self.answer(request.prompt) for request in requests]

    def answer(self, prompt: str) -> list[float]:
        first, second = prompt.split("\n (A) ")[1].removesuffix("\nThe answer is:").split("\n (B) ")
        odds = 2.0 + 0.5 * (len(first) > len(second)) - 0.5 * (len(first) < len(second))
        return [-math.log1p(math.exp(-odds)), -math.log1p(math.exp(odds))]


def test_both_orders_repair_a_judge_that_reads_the_position():
    """Two models of replies as long as each other, and one of longer ones."""
    prompts = [Prompt(f"p{n}", prompt_of(n), "helpful") for n in range(5)]
    replies = {
        name: {prompt.id: [text] for prompt in prompts}
        for name, text in (("one", "Yes, so."), ("two", "No, not."), ("long", "Yes, so it is."))
    }
    games = schedule(replies, prompts, None, 0)
    rows = Referee(build(JudgeOptions, judge="x"), seed=0).judge(BiasedJudge(), games)
    reader = PlayedGames({})
    outcomes = [reader.outcome(row, RowReader(), "") for row in rows]
    won = {}
    for outcome in outcomes:
        assert isinstance(outcome, Outcome) and outcome.same_position is True
        a, b = outcome.models
        won[a, b], won[b, a] = outcome.won, 1 - outcome.won
    assert won["one", "two"] == 0.5
    both = (1 / (1 + math.exp(-2.5)) + 1 / (1 + math.exp(1.5))) / 2
    assert won["long", "one"] == won["long", "two"] == pytest.approx(both)
    in_one_order = [
        row["judgements"][0] for row in rows if {row["chosen_model"], row["rejected_model"]} == {"one", "two"}
    ]
    assert all(math.exp(item["logprob_a"]) > 0.85 for item in in_one_order), "what one order would have said"


def test_a_budget_is_drawn_by_key():
    prompts = [Prompt(f"p{n}", prompt_of(n), KINDS[n % 2]) for n in range(40)]
    replies = {name: {prompt.id: [name, f"{name}!"] for prompt in prompts} for name in "abc"}
    whole = schedule(replies, prompts, None, 0)
    assert len(whole) == 40 * 3 * 2
    some = schedule(replies, prompts, 7, 0)
    counts = {(game.models, game.pair.kind) for game in some}
    assert len(some) == 7 * 3 * 2 and len(counts) == 6
    ids = [game.id for game in some]
    assert ids == [game.id for game in whole if game.id in set(ids)], "in the order of the prompts"
    assert {game.id for game in schedule(replies, prompts[::-1], 7, 0)} == set(ids)
    assert {game.id for game in schedule(replies, prompts, 5, 0)} < set(ids)
    assert {game.id for game in schedule(replies, prompts, 7, 1)} != set(ids)


def test_people_decide_in_the_arenas_form(cai: Cai, tmp_path):
    rows = [
        {"question_id": n // 2, "model_a": "x", "model_b": "y", "winner": winner, "kind": "harmful"}
        for n, winner in enumerate(["model_a"] * 6 + ["model_b"] * 2 + ["tie", "tie (bothbad)"])
    ]
    rows.append({"model_a": "x", "model_b": "x", "winner": "tie", "kind": "harmful"})
    votes, out = write(tmp_path / "votes.jsonl", rows), tmp_path / "elo.json"
    done = cai("evaluate", "elo", "--comparisons", votes, "--out", out, "--anchor", "y")
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    x = next(model for model in result["models"] if model["name"] == "x")
    assert x["helpfulness"] is None and x["harmlessness"]["elo"] == pytest.approx(400 * math.log10(7 / 3))
    assert result["counts"]["rejected"] == {"one_model": 1} and result["judge"]["kind"] == "comparisons"
    (row,) = result["win_rates"]["harmlessness"]
    assert (row["win"], row["length_controlled"]) == (0.7, None)
    rejects = tmp_path / "elo.rejects.jsonl"
    assert [row["reason"] for _, row in read_rows(rejects)] == ["one_model"]
    write(votes, rows[:-1])
    words = ("evaluate", "elo", "--comparisons", votes, "--out", out, "--anchor", "y")
    again = cai(*words, "--if-changed", "restart")
    assert again.returncode == 0, again.stderr
    assert not rejects.exists(), "they were of other games"
    assert rejects.with_name(f"{rejects.name}.bak").exists()
    rows[0]["winner"] = "x"
    mistake(
        cai("evaluate", "elo", "--comparisons", write(votes, rows), "--out", tmp_path / "y.json"),
        "votes.jsonl:1",
        "`winner`",
        "model_a, model_b, tie",
    )


def test_checkpoints_of_a_run_are_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("sft/checkpoints/checkpoint-20", "sft/checkpoints/checkpoint-100", "ppo/global_step_7"):
        (tmp_path / name).mkdir(parents=True)
    samples = write(tmp_path / "late.jsonl", [])
    model = {
        "option": "model",
        "path": "sft/checkpoints/checkpoint-100",
        "fingerprint": "f",
        "files": {"x": "y"},
    }
    manifest = {"stage": "sample", "options": {}, "inputs": [], "models": [model]}
    (tmp_path / "late.manifest.json").write_text(json.dumps(manifest))
    given = ["sft/checkpoints/checkpoint-20", "sft", str(samples), "seven=ppo/global_step_7"]
    found = [(player.name, player.run, player.step) for player in players_of(given)]
    assert found == [("sft@20", "sft", 20), ("sft", "sft", None), ("late", "sft", 100), ("seven", "ppo", 7)]
    assert [player.run for player in players_of(["sft", "ppo"])] == [None, None]


def test_names_can_be_read_back(tmp_path, monkeypatch):
    """What plays is handed on as NAME=PATH, where a name ends at the first equals sign."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs/lr=1e-4", "runs/lr=2e-4/step-5", "kl=0.1"):
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path / "runs/n=2.samples.jsonl", [])
    given = ["runs/lr=1e-4", "runs/lr=2e-4/step-5", "kl=0.1", "runs/n=2.samples.jsonl", "own=kl=0.1/"]
    players = players_of(given)
    assert [player.name for player in players] == ["lr-1e-4", "lr-2e-4@5", "kl-0.1", "n-2", "own"]
    for player in players:
        assert parse_name(f"{player.name}={player.path}") == (player.name, player.path)


def test_mistakes_are_told_before_anything_is_loaded(cai: Cai, files, pm, llama, tmp_path):
    out = ("--out", tmp_path / "elo.json")
    elo = ("evaluate", "elo")
    a, b = files["a"], files["b"]
    mistake(cai(*elo, a, b, *out), "give either --judge or --comparisons")
    mistake(cai(*elo, a, "--judge", pm, *out), "fewer than two")
    mistake(cai(*elo, a, a, "--judge", pm, *out), "2 models are called a", "NAME=")
    mistake(cai(*elo, a, tmp_path / "no.jsonl", "--judge", pm, *out), "no.jsonl: no such file or directory")
    mistake(cai(*elo, a, b, "--judge", pm, "--anchor", "z", *out), "--anchor z: no such model", "a, b")
    mistake(
        cai(*elo, a, b, "--judge", pm, "--few-shot", "default", *out),
        "--few-shot does nothing with a preference model",
    )
    mistake(cai(*elo, a, b, "--comparisons", a, "--budget", 3, *out), "--budget does nothing without --judge")
    mistake(cai(*elo, f"x={llama}", f"y={llama}", "--judge", pm, *out), "models need --prompts")
    rows = [row for _, row in read_rows(a)]
    others = [row | {"prompt": prompt_of(n + 99)} for n, row in enumerate(rows)]
    island = write(tmp_path / "island.jsonl", others)
    mistake(
        cai(*elo, a, b, island, "--judge", pm, *out),
        "island: is in no game with another model",
        "same prompts",
    )
    unkind = [
        write(tmp_path / f"{name}.jsonl", [{**row, "kind": None} for row in rows]) for name in ("u", "v")
    ]
    mistake(cai(*elo, *unkind, "--judge", pm, *out), "u.jsonl", "no `kind`", "--kind helpful")
    mistake(
        cai(*elo, a, b, "--judge", pm, "--temperature", 0, *out),
        "--temperature does nothing with samples alone",
    )
    mistake(cai(*elo, "--comparisons", a, *out), "a.jsonl:1", "is a row of samples")
