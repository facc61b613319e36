"""`cai label` and `cai sample` with a server: faults of every kind on the way, and the same rows in the end."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path

import pytest
from conftest import mistake, run_cai
from openai_server import OpenAIServer

from cai_cli.engines.served_answers import closed, of_echo, of_first_tokens, of_votes, vote
from cai_cli.rows.conversation import message

ROWS = 24


@pytest.fixture(scope="module")
def server(helpful):
    found = OpenAIServer(helpful)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def samples(helpful, world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pairs") / "samples.jsonl"
    prompts = ("--prompts", world / "helpful-sft.jsonl", "--limit", ROWS, "-n", 2, "--max-new-tokens", 48)
    assert run_cai("sample", "--model", helpful, *prompts, "--out", out).returncode == 0
    return out


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def judged(samples, world, helpful, out, *words: object, **settings):
    common = (
        "--pairs",
        samples,
        "--constitution",
        world / "constitution.yaml",
        "--allow-self-judge",
        "--min-mass",
        0,
    )
    return run_cai("label", *common, "--feedback-model", helpful, "--out", out, *words, **settings)


def at(server: OpenAIServer, *words: object) -> tuple[object, ...]:
    return ("--feedback-engine", "openai", "--feedback-base-url", server.url, *words)


def test_labels_of_a_served_judge_are_those_of_a_local_one(server, samples, world, helpful, tmp_path):
    assert judged(samples, world, helpful, tmp_path / "local.jsonl").returncode == 0
    before = server.asked.copy()
    done = judged(samples, world, helpful, tmp_path / "served.jsonl", *at(server, "--concurrency", 5))
    assert done.returncode == 0, done.stderr
    local, served = rows(tmp_path / "local.jsonl"), rows(tmp_path / "served.jsonl")
    assert [row["id"] for row in local] == [row["id"] for row in served] and len(local) > ROWS // 2
    for a, b in zip(local, served, strict=True):
        assert a["probability"] == pytest.approx(b["probability"], abs=1e-4)
    asked = server.asked - before
    assert asked["/v1/completions"] == 2 * len(local)  # one question an order: both options at once
    engine = json.loads((tmp_path / "served.manifest.json").read_text())["feedback"]["engine"]
    assert engine == {"name": "openai", "model": str(helpful), "api": "completions"}


def test_faults_on_the_way_cost_no_row_and_at_most_one_line(server, samples, world, helpful, tmp_path):
    server.faults.extend([429, 500, "half", 503, 1.0, "half", 502])
    done = judged(samples, world, helpful, tmp_path / "x.jsonl", *at(server, "--concurrency", 1))
    assert done.returncode == 0, done.stderr
    assert not server.faults
    assert len(rows(tmp_path / "x.jsonl")) > ROWS // 2
    assert len([line for line in done.stderr.splitlines() if "trying again" in line]) <= 1


def test_a_server_that_goes_and_comes_back(server, samples, world, helpful, tmp_path):
    before = server.asked.total()

    def away() -> None:
        while server.asked.total() < before + 6:  # some rows are done, others under way
            time.sleep(0.01)
        server.stop()
        time.sleep(4)
        server.start()

    server.faults.extend([0.3] * 12)
    outage = threading.Thread(target=away)
    outage.start()
    done = judged(samples, world, helpful, tmp_path / "x.jsonl", *at(server, "--concurrency", 2))
    outage.join()
    server.faults.clear()
    assert done.returncode == 0, done.stderr
    assert "cannot be reached" in done.stderr and "answers again" in done.stderr
    whole = judged(samples, world, helpful, tmp_path / "whole.jsonl", *at(server))
    assert whole.returncode == 0
    assert rows(tmp_path / "x.jsonl") == rows(tmp_path / "whole.jsonl")


def test_one_that_stays_away_ends_it_in_one_line_and_the_same_command_goes_on(
    server, samples, world, helpful, tmp_path
):
    out = tmp_path / "x.jsonl"
    server.faults.extend([0.0] * 20 + [500] * 1000)
    done = judged(samples, world, helpful, out, *at(server, "--concurrency", 2, "--patience", 2))
    server.faults.clear()
    assert done.returncode == 1
    # The last line, or the other request's warning comes after it.
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: --feedback-base-url") and "--patience" in error
    kept = rows(tmp_path / "x.jsonl.partial")
    assert 0 < len(kept) < ROWS
    again = judged(samples, world, helpful, out, *at(server, "--concurrency", 2))
    assert again.returncode == 0 and f"continuing after {len(kept)}" in again.stderr
    whole = judged(samples, world, helpful, tmp_path / "whole.jsonl", *at(server))
    assert whole.returncode == 0 and rows(out) == rows(tmp_path / "whole.jsonl")


def test_samples_and_revisions_from_a_server(server, helpful, world, tmp_path):
    prompts = ("--prompts", world / "helpful-sft.jsonl", "--limit", 6, "--max-new-tokens", 48)
    served = ("--engine", "openai", "--base-url", server.url)
    for out, words in (("a", ("--concurrency", 1)), ("b", ("--concurrency", 4))):
        done = run_cai(
            "sample", "--model", helpful, *prompts, *served, *words, "--out", tmp_path / f"{out}.jsonl"
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    constitution = ("--constitution", world / "constitution.yaml", "--few-shot", "none", "--rounds", 1)
    red = (
        "--prompts",
        world / "harmful-sft.jsonl",
        "--limit",
        4,
        "--max-reject-rate",
        1,
        "--max-new-tokens",
        48,
    )
    done = run_cai(
        "revise", "--model", helpful, *red, *served, *constitution, "--out", tmp_path / "revisions.jsonl"
    )
    assert done.returncode == 0, done.stderr


def test_without_ids_texts_are_taken_as_they_come(helpful, samples, world, tmp_path):
    """A server that passes over what it does not know."""
    server = OpenAIServer(helpful, ids=False)
    try:
        out = tmp_path / "labels.jsonl"
        done = judged(samples, world, helpful, out, *at(server))
        assert done.returncode == 0, done.stderr
        local = judged(samples, world, helpful, tmp_path / "local.jsonl")
        assert local.returncode == 0
        for a, b in zip(rows(out), rows(tmp_path / "local.jsonl"), strict=True):
            assert a["probability"] == pytest.approx(b["probability"], abs=1e-4)
        prompts = ("--prompts", world / "helpful-sft.jsonl", "--limit", 3, "--max-new-tokens", 48)
        served = ("--engine", "openai", "--base-url", server.url, "--out", tmp_path / "samples.jsonl")
        assert run_cai("sample", "--model", helpful, *prompts, *served).returncode == 0
        assert all(row["completion"][0]["content"] for row in rows(tmp_path / "samples.jsonl"))
    finally:
        server.stop()


def test_a_judge_known_by_name_alone_reads_the_transcript(helpful, samples, world, tmp_path):
    """Its server's tokenizer makes the ids, and puts a BOS in front, which its places count."""
    server = OpenAIServer(helpful, name="judge")
    try:
        out = tmp_path / "named.jsonl"
        words = at(server, "--feedback-model", "judge", "--limit", 6)
        common = ("--pairs", samples, "--constitution", world / "constitution.yaml", "--min-mass", 0)
        done = run_cai("label", *common, *words, "--out", out)
        assert done.returncode == 0, done.stderr
        assert judged(samples, world, helpful, tmp_path / "local.jsonl", "--limit", 6).returncode == 0
        for a, b in zip(rows(out), rows(tmp_path / "local.jsonl"), strict=True):
            assert a["probability"] == pytest.approx(b["probability"], abs=1e-4)
        shown = run_cai("label", *common, *words, "--dry-run", "--out", tmp_path / "dry.jsonl")
        assert shown.returncode == 0 and "The answer is:" in shown.stdout, shown.stderr
    finally:
        server.stop()


def test_a_judge_without_log_probabilities(helpful, samples, world, tmp_path):
    server = OpenAIServer(helpful, logprobs=False)
    try:
        done = judged(samples, world, helpful, tmp_path / "none.jsonl", *at(server, "--feedback-api", "chat"))
        assert mistake(done, "gives no log-probabilities", "--votes 8")
        votes = at(server, "--feedback-api", "chat", "--votes", 3)
        done = judged(samples, world, helpful, tmp_path / "x.jsonl", *votes, "--limit", 3)
        assert done.returncode == 0, done.stderr
        assert all(0 < row["probability"] < 1 for row in rows(tmp_path / "x.jsonl"))
    finally:
        server.stop()


def test_votes_of_a_judge_whose_template_is_here(llama, samples, world, tmp_path):
    """The question goes through it, as ids; each seed draws answers of its own."""
    server = OpenAIServer(llama, logprobs=False)
    common = ("--pairs", samples, "--constitution", world / "constitution.yaml", "--feedback-model", llama)
    try:
        for seed in (0, 1):
            words = at(server, "--votes", 2, "--limit", 2, "--min-mass", 0, "--seed", seed)
            done = run_cai("label", *common, *words, "--out", tmp_path / f"{seed}.jsonl")
            assert done.returncode == 0, done.stderr
        seeds = [seed for seed in server.seeds if seed is not None]
        assert len(set(seeds)) == len(seeds) == 2 * 2 * 2 * 2  # runs, pairs, orders, votes
    finally:
        server.stop()


def test_a_first_text_that_a_filter_refuses_is_one_row(server, samples, world, helpful, tmp_path):
    """A server that takes nothing at all is told from it by a harmless text."""
    out = tmp_path / "x.jsonl"
    words = at(server, "--concurrency", 1, "--limit", 4)
    server.faults.extend([400] * 1000)
    mistake(judged(samples, world, helpful, out, *words), "a fault", "see the server's log")
    server.faults.clear()
    server.faults.append(400)
    done = judged(samples, world, helpful, out, *words)
    assert done.returncode == 0, done.stderr
    [rejected] = rows(tmp_path / "x.rejects.jsonl")
    assert rejected["reason"] == "refused_by_server" and len(rows(out)) == 3


def test_a_key_goes_to_the_server_and_nowhere_else(helpful, samples, world, tmp_path, monkeypatch):
    server = OpenAIServer(helpful, key="sk-very-secret")
    out = tmp_path / "x.jsonl"
    try:
        assert mistake(judged(samples, world, helpful, out, *at(server)), "refuses the key", "OPENAI_API_KEY")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret\n")  # as files of secrets end
        done = judged(samples, world, helpful, out, *at(server), "--limit", 3)
        assert done.returncode == 0, done.stderr
        assert "sk-very-secret" not in done.stderr + out.with_suffix(".manifest.json").read_text()
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--feedback-engine", "openai"), ("no server named", "--feedback-base-url")),
        (("--feedback-base-url", "http://x/v1"), ("add --feedback-engine openai",)),
        (("--feedback-engine", "openai", "--feedback-base-url", "x"), ("is no address",)),
        (("--feedback-engine", "openai", "--feedback-base-url", "http://me:word@x/v1"), ("holds a name",)),
        (("--votes", 3), ("--votes does nothing without --feedback-base-url",)),
    ],
)
def test_mistakes(words, told, samples, world, helpful, tmp_path):
    done = judged(samples, world, helpful, tmp_path / "x.jsonl", *words)
    mistake(done, *told)
    assert "word@" not in done.stderr


def test_another_model_than_the_server_has(server, samples, world, tmp_path):
    words = at(server, "--feedback-model", "some/model")
    common = ("--pairs", samples, "--constitution", world / "constitution.yaml")
    done = run_cai("label", *common, *words, "--out", tmp_path / "x.jsonl")
    mistake(done, "the server has no such model", "name it as the server does")


def test_options_among_the_likeliest_first_tokens():
    top = [
        {"token": " (A", "logprob": -0.5},
        {"token": "(", "logprob": -1.5},
        {"token": "No", "logprob": -4.0},
    ]
    assert of_first_tokens(top, (" (A)", " (B)")) == pytest.approx([-0.5, -4.0])
    assert of_first_tokens(top, (" A", " B")) == pytest.approx([-4.0, -4.0])


def test_rounded_probabilities_of_more_than_one_are_one():
    top = [
        {"token": "A", "logprob": 0.0},
        {"token": " A", "logprob": -18.5},
        {"token": "B", "logprob": -20.0},
    ]
    assert of_first_tokens(top, (" A", " B")) == [0.0, -20.0]


def test_a_vote_is_a_word_of_its_own():
    letters, round_ones = (" A", " B"), (" (A)", " (B)")
    assert [vote(text, letters) for text in ("A", " B.", "Answer: B", "**A**", "(B) is better")] == [
        0,
        1,
        1,
        0,
        1,
    ]
    assert [vote(text, round_ones) for text in ("(A)", "The answer is (B).")] == [0, 1]
    for text in ("As an AI, I cannot choose", "Both", "A or B", "", "I like (C)"):
        assert vote(text, letters) is None and vote(text, round_ones) is None


def test_an_open_turn_stands_at_the_end_of_the_question():
    talk = [message("user", "Which?"), message("assistant", "The answer is:")]
    assert closed(talk) == [message("user", "Which?\n\nThe answer is:")]
    assert closed(talk[:1]) == talk[:1]


def test_places_are_counted_from_the_end():
    """The example of the docstring; and servers that write -1, or say nothing of use."""
    found = {"text_offset": [0, 3, 7, 9, 11], "token_logprobs": [None, -2.0, -1.0, -0.5, -3.0]}
    assert of_echo(found, prompt=4, whole=8) == pytest.approx(-1.5)
    without = {"text_offset": [0, 4, 6, 8], "token_logprobs": [None, -1.0, -0.5, -3.0]}
    assert of_echo(without, prompt=4, whole=8) == pytest.approx(-1.5)
    assert of_echo({**found, "text_offset": [-1] * 5}, prompt=4, whole=8) is None


def test_votes():
    """3 and 1 of 4 that name an option, of 8 asked: half of the answers times 3.5/5 and 1.5/5."""
    assert [math.exp(value) for value in of_votes([3, 1], 8)] == pytest.approx([0.35, 0.15])
    assert sum(math.exp(value) for value in of_votes([0, 0], 8)) < 1e-6


def test_what_the_likeliest_tokens_leave_bounds_the_others():
    assert of_first_tokens([{"token": "(", "logprob": -0.05}], (" (A)", " (B)")) == pytest.approx(
        [math.log(1 - math.exp(-0.05))] * 2
    )
