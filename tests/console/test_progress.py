"""How far a stage is, and what comes next: lines on stderr for a person."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Cai, mistake
from fake_engine import SETTINGS, FakeEngine, segment
from ppo_setup import make_pair, write_prompts

from cai_cli.artifacts.chunks import ChunkProgress
from cai_cli.console import messages
from cai_cli.engines.base import EngineSettings, Request
from cai_cli.engines.segments import sample_segment
from cai_cli.engines.transformers_engine import TransformersEngine
from cai_cli.models.load import load_lm
from cai_cli.models.tokenizers import load_tokenizer

LINE = r"\w+: \d+/\d+ \w+, [\d.e+]+ \w+/s, \d+ s left.*"


def test_a_line_says_stage_unit_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(messages, "PLAIN_SECONDS", 0.0)
    with messages.progress("revise", 400, 100, "rows") as advance:
        advance(20.5, "2 rejected")
        advance(279.5, "")
    first, last = capsys.readouterr().err.splitlines()
    assert (
        re.fullmatch(LINE, first)
        and first.startswith("revise: 120/400 rows, ")
        and first.endswith(" s left, 2 rejected")
    )
    assert last.startswith("revise: 400/400 rows, ") and last.endswith(", 0 s left")


def test_rows_advance_by_segment_and_are_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chunks of three segments a row, with texts drawn again: never beyond the chunk, never back, whole
    in the end.
    """
    steps: list[float] = []
    engine = FakeEngine(lambda request, call: "" if call % 2 else "good")
    for _ in range(2):
        done = ChunkProgress(lambda step, note: steps.append(step), 4, 3)
        for _ in range(3):
            sample_segment(engine, list("abcd"), segment(SETTINGS), done.told)
        assert 3.9 < done.reported < 4
        done.through("")
    assert len(steps) == 8 and min(steps) > 0 and sum(steps) == pytest.approx(8)
    assert steps[0] == pytest.approx(4 / 3)  # the draft of each of four rows


def test_an_engine_tells_of_each_text_as_it_ends(llama: Path) -> None:
    tokenizer = load_tokenizer(str(llama))
    engine = TransformersEngine(
        load_lm(str(llama), "cpu", tokenizer=tokenizer), tokenizer, EngineSettings(batch_size=4)
    )
    requests = [Request("How", n, 2 + 3 * n) for n in range(6)]
    told: list[int] = []
    texts = engine.generate(requests, told.append)
    assert sum(told) == 6 and len(told) > 3  # not by batch
    assert texts == engine.generate(requests)


def test_a_stage_ends_with_the_next_command(
    cai: Cai, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = write_prompts(tmp_path / "my prompts.jsonl")
    words = (
        "sample",
        "--model",
        llama,
        "--prompts",
        prompts,
        "--max-new-tokens",
        4,
        "--on-truncated",
        "keep",
    )
    out = tmp_path / "a b.jsonl"
    done = cai(*words, "--out", out)
    last = done.stderr.splitlines()[-1]
    assert done.stdout == "" and last == f"next: cai sft --model BASE --data '{out}' --out {tmp_path}/sl-cai"
    shown = [line for line in done.stderr.splitlines() if line.startswith("sample: ")]
    assert shown and re.fullmatch(LINE, shown[-1]) and "sample: 24/24 rows, " in shown[-1]
    assert "next: " not in cai(*words, "--out", out).stderr  # nothing was done
    shard = cai(*words, "--shard", "0/2", "--out", tmp_path / "s0.jsonl").stderr.splitlines()[-1]
    assert shard == f"next: cai merge {tmp_path}/s0.jsonl OTHER-SHARDS --out {tmp_path}/whole-s0.jsonl"
    model = cai("sft", "--model", llama, "--data", out, "--out", tmp_path / "sl-cai").stderr.splitlines()[-1]
    assert model.startswith(
        f"next: cai label --model {tmp_path}/sl-cai --prompts PROMPTS.jsonl --feedback-model {llama} --out "
    )
    trained = ("sample", "--model", tmp_path / "sl-cai", *words[3:], "--out", tmp_path / "r.jsonl")
    looked_at = f"next: cai evaluate responses {tmp_path}/r.jsonl --out {tmp_path}/r-rates.json"
    assert cai(*trained).stderr.splitlines()[-1] == looked_at
    monkeypatch.setenv("CAI_NEXT_STEPS", "0")
    assert "next: " not in cai(*words, "--out", tmp_path / "x.jsonl").stderr


def test_ppo_says_what_is_missing_without_held_out_prompts(cai: Cai, tmp_path: Path) -> None:
    make_pair(tmp_path)
    write_prompts(tmp_path / "p.jsonl")
    given = "--model lm --pm pm --prompts p.jsonl --steps 1 --rollout-batch-size 8 --max-new-tokens 4"
    words = ["ppo", *given.split(), "--out", "rl"]
    told = ("--load-best-model-at-end: nothing is held out", "--eval-prompts")
    mistake(cai(*words, "--load-best-model-at-end", cwd=tmp_path), *told)
    done = cai(*words, cwd=tmp_path)
    assert "no --eval-prompts: no held-out scores, no refusal rates" in done.stderr, done.stderr
    assert (
        done.stderr.splitlines()[-1] == "next: cai sample --model rl --prompts TEST.jsonl --out replies.jsonl"
    )
    with_gold = cai(*words[:-1], "gold", "--load-best-model-at-end", "--gold-pm", "pm", cwd=tmp_path)
    assert with_gold.returncode == 0, with_gold.stderr
