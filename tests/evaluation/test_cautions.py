"""Warnings where nothing failed and little can be learned: pure rules, and that stages say and keep them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from families import make_family, write_comparisons, write_samples
from ppo_setup import make_pm

from cai_cli.evaluation.cautions import (
    TargetTally,
    label_cautions,
    reply_cautions,
    score_cautions,
    undecided_rate,
)


def test_labels():
    assert undecided_rate([]) is None
    assert undecided_rate([0.5, 0.505, 0.52, 0.9]) == 0.5
    assert label_cautions(0.95)[0].startswith("95% of the labels are 0.5")
    assert label_cautions(0.5, 0.5) == label_cautions(None, None) == []
    assert "same option in both orders in 97%" in label_cautions(0.1, 0.97)[0]


def test_scores():
    assert score_cautions([0.3] * 3) == [] and score_cautions([]) == []
    assert "all 4 scores are 0.3" in score_cautions([0.3] * 4)[0]
    assert score_cautions([0.3, 0.3, 0.3, 0.301]) == []
    assert score_cautions([1e9, 1e9, 1e9, 1e9 + 1]) != []


def test_targets_and_replies():
    helpful, refusing = (
        [text.format(n) for n in range(6)] for text in ("Mix flour {}.", "I'm sorry, I can't help with {}.")
    )
    assert target_cautions(helpful + refusing) == []
    assert "60% of the completions refuse" in target_cautions(helpful[:4] + refusing)[0]
    assert "9 of 9 completions are the same text, 'Yes.'" in target_cautions(["Yes."] * 9)
    assert len(reply_cautions(["a"] * 5, [0.1] * 5, [True] * 5)) == 3
    assert reply_cautions(["a", "b", "c", "d"], [1, 2, 3, 4], [True, False, True, False]) == []


def target_cautions(texts: list[str]) -> list[str]:
    tally = TargetTally()
    for text in texts:
        tally.add(text)
    return tally.cautions()


def test_a_text_that_nearly_all_targets_are_is_found_wherever_it_stands():
    for others in ([0, 1], [0, 19], [18, 19], [7, 11]):
        texts = [f"{n}." if n in others else "Yes." for n in range(20)]
        assert target_cautions(texts) == ["18 of 20 completions are the same text, 'Yes.'"]
        assert target_cautions([*texts, "No."]) == []


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("cautions")
    base = make_family(folder / "base", "llama")
    return base, make_pm(base, folder / "pm")


def kept(file: Path) -> list[str]:
    return json.loads(file.read_text())["warnings"]


def test_training_stages_say_them_and_keep_them(cai, models, tmp_path):
    base, _ = models
    samples = write_samples(tmp_path / "s.jsonl", 8, "I'm sorry, I can't help with number {n}.")
    result = cai("sft", "--model", base, "--data", samples, "--out", tmp_path / "sl", "--device", "cpu")
    assert result.returncode == 0 and "warning: 100% of the completions refuse" in result.stderr
    assert len(kept(tmp_path / "sl/cai.json")) == 1
    even = write_comparisons(tmp_path / "even.jsonl", 8, 0.5)
    result = cai(
        "train-pm", "--model", base, "--comparisons", even, "--out", tmp_path / "even", "--device", "cpu"
    )
    assert result.returncode == 0 and "warning: 100% of the labels are 0.5" in result.stderr
    assert len(kept(tmp_path / "even/cai.json")) == 1
    sure = write_comparisons(tmp_path / "sure.jsonl", 8)
    result = cai(
        "train-pm", "--model", base, "--comparisons", sure, "--out", tmp_path / "sure", "--device", "cpu"
    )
    assert (
        result.returncode == 0 and "warning:" not in result.stderr and kept(tmp_path / "sure/cai.json") == []
    )


def test_scoring_and_ppo_say_them_and_keep_them(cai, models, tmp_path):
    import torch

    from cai_cli.models.load import load_pm
    from cai_cli.models.tokenizers import load_tokenizer

    base, pm = models
    blind, comparisons = load_pm(str(pm), "cpu"), write_comparisons(tmp_path / "c.jsonl", 8)
    with torch.no_grad():
        blind.score.weight.zero_()
    blind.save_pretrained(tmp_path / "blind")
    load_tokenizer(str(pm)).save_pretrained(tmp_path / "blind")
    for out in (tmp_path / "x.jsonl", "-"):
        result = cai("score", comparisons, "--pm", tmp_path / "blind", "--out", out, "--device", "cpu")
        assert result.returncode == 0 and "warning: all 16 scores are 0:" in result.stderr
    assert len(kept(tmp_path / "x.manifest.json")) == 1
    assert (
        cai("score", comparisons, "--pm", pm, "--out", tmp_path / "y.jsonl", "--device", "cpu").returncode
        == 0
    )
    assert kept(tmp_path / "y.manifest.json") == []
    prompts = write_samples(tmp_path / "p.jsonl", 4)
    words = (
        "--model",
        base,
        "--pm",
        tmp_path / "blind",
        "--prompts",
        prompts,
        "--out",
        tmp_path / "rl",
        "--device",
        "cpu",
    )
    result = cai("ppo", *words, "--steps", 1, "--rollout-batch-size", 4, "--max-new-tokens", 4)
    assert result.returncode == 0 and "warning: all 4 scores are 0:" in result.stderr
    assert any("scores are 0" in line for line in kept(tmp_path / "rl/cai.json"))


def test_labels_of_a_judge_that_reads_the_position_are_told(cai, models, tmp_path):
    """A random model prefers an option whatever stands there."""
    base, _ = models
    words = (
        "--pairs",
        write_comparisons(tmp_path / "c.jsonl", 12),
        "--feedback-model",
        base,
        "--min-mass",
        0,
    )
    result = cai("label", *words, "--out", tmp_path / "l.jsonl", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    warnings = kept(tmp_path / "l.manifest.json")
    assert warnings and all(f"warning: {line}" in result.stderr for line in warnings)
