"""samples.jsonl of a PPO run: samples as every stage reads them, with what is known of each reply besides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Cai
from ppo_setup import make_pair, write_prompts

from cai_cli.rows.records import Sample
from cai_cli.training.ppo.measures import Episode, sample_rows

TURNS = [{"role": "user", "content": "How do I bake bread?"}]


@pytest.fixture(scope="module")
def run(cai: Cai, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_pair(folder)
    write_prompts(folder / "prompts.jsonl", 4)
    words = "ppo --model lm --pm pm --prompts prompts.jsonl --steps 4 --rollout-batch-size 8 --max-new-tokens 6 --sample-steps 1"
    done = cai(
        *words.split(), "--eval-prompts", "prompts.jsonl", "--eval-steps", 2, "--out", "rl-cai", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_they_are_samples_with_ids_of_their_own(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "rl-cai/samples.jsonl").read_text().splitlines()]
    samples = [Sample.from_row(row) for row in rows]
    assert {row["step"] for row in rows} == {0, 1, 2, 3, 4}
    assert len({sample.id for sample in samples}) == len(samples) > 20
    assert {sample.kind for sample in samples} == {"harmful", "helpful"}
    assert all(isinstance(row[name], float) for row in rows for name in ("score", "kl"))
    rejects = run / "rl-cai/samples.rejects.jsonl"
    assert not rejects.exists() or rejects.read_text()
    prompts = {sample.id.rsplit("/", 1)[0]: sample.prompt for sample in samples}
    assert len(prompts) == 4 and all(
        prompts[sample.id.rsplit("/", 1)[0]] == sample.prompt for sample in samples
    )


def test_stages_that_take_replies_read_them(cai: Cai, run: Path) -> None:
    shown = cai("inspect", "rl-cai/samples.jsonl", "--limit", 1, cwd=run)
    assert shown.returncode == 0 and "score: " in shown.stdout and "step: 0" in shown.stdout, shown.stderr
    for words in (
        "score rl-cai/samples.jsonl --pm pm --field again --out scored.jsonl",
        "label --pairs rl-cai/samples.jsonl --feedback-model lm --allow-self-judge --min-mass 0 --out labels.jsonl",
        "sft --model lm --data rl-cai/samples.jsonl --out sft",
    ):
        done = cai(*words.split(), cwd=run)
        assert done.returncode == 0, done.stderr
    scored = [json.loads(line) for line in (run / "scored.jsonl").read_text().splitlines()]
    assert all(isinstance(row["again"], float) and row["score"] is not None for row in scored)
    assert len((run / "labels.jsonl").read_text().splitlines()) == 4  # a pair for each prompt


def test_a_reply_without_a_text_is_a_reject_and_two_replies_to_one_prompt_are_told_apart() -> None:
    def episode(text: str, gold: float | None = None) -> Episode:
        return Episode("p", None, text, 3, "stop", 0.5, 0.25, gold)

    rows, rejects = sample_rows(
        7, [episode("Mix."), episode(" \n"), episode("Knead.", 2.0), episode("Over.")], {"p": TURNS}, 3
    )
    assert (
        [row["id"] for row in rows] == ["p/7.0", "p/7.2"]
        and rows[1]["gold_score"] == 2.0
        and "gold_score" not in rows[0]
    )
    assert rows[0]["completion"] == [{"role": "assistant", "content": "Mix."}]
    assert [(row["id"], row["reason"], row["step"], row["row"]["score"]) for row in rejects] == [
        ("p/7.1", "empty", 7, 0.5)
    ]
