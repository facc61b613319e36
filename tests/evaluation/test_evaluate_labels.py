"""`cai evaluate labels`, and hh-rlhf rows as `--pairs`: AI labels against the humans' choices."""

from __future__ import annotations

import json

import pytest
from conftest import mistake

from cai_cli.evaluation.agreement import SharedPair, by_confidence, measure, shared_pairs
from cai_cli.rows.conversation import message
from cai_cli.rows.records import Comparison

HH = "hh-rlhf/harmless-base-test-1500.jsonl.gz"


def comparison(
    identity: str, chosen: str, rejected: str, probability: float = 1.0, prompt: str = "q"
) -> Comparison:
    replies = [message("assistant", chosen)], [message("assistant", rejected)]
    return Comparison(identity, "i", [message("user", prompt)], *replies, probability, "ai", "harmful")


def test_pairs_are_matched_by_content_in_either_order_or_by_id():
    ai = [
        comparison("1", "a", "b", 0.8),
        comparison("2", "c", "d", 0.7),
        comparison("3", "e", "f", 0.9, prompt="q  with   spaces"),
        comparison("4", "g", "h", 0.6, prompt="written anew"),
        comparison("5", "only", "here", 0.6),
    ]
    human = [
        comparison("x", "a", "b"),
        comparison("y", "d", "c"),
        comparison("z", "e", "f", prompt="q with spaces"),
        comparison("4", "h", "g", prompt="as it was"),
        comparison("w", "g", "h", prompt="another prompt"),
    ]
    pairs, counts = shared_pairs(ai, human)
    assert [(pair.ai, pair.human) for pair in pairs] == [
        (pytest.approx(0.8), 1),
        (pytest.approx(0.7), 0),
        (pytest.approx(0.9), 1),
        (pytest.approx(0.6), 0),
    ]
    assert counts == {"ai_rows": 5, "ai_pairs": 5, "human_rows": 5, "human_pairs": 5, "shared": 4}


def test_repeated_pairs_count_once_with_the_mean():
    pairs, counts = shared_pairs(
        [comparison("1", "a", "b", 0.8)], [comparison("x", "a", "b"), comparison("y", "b", "a")]
    )
    assert [(pair.ai, pair.human) for pair in pairs] == [(pytest.approx(0.8), 0.5)] and counts[
        "human_pairs"
    ] == 1
    assert measure(pairs) == {"pairs": 1, "human_ties": 1}


def test_sums_by_hand():
    pairs = [
        SharedPair(p, h, "harmful")
        for p, h in ((0.9, 1), (0.9, 0), (0.5, 1), (0.65, 1), (0.99, 1), (0.7, 0.5))
    ]
    facts = measure(pairs)
    assert facts["agreement"] == pytest.approx((1 + 0 + 0.5 + 1 + 1) / 5)
    assert (facts["pairs"], facts["human_ties"], facts["ai_ties"]) == (6, 1, 1)
    assert facts["brier"] == pytest.approx((0.01 + 0.81 + 0.25 + 0.35**2 + 0.0001) / 5)
    bins = by_confidence(pairs)
    assert {name: group["pairs"] for name, group in bins.items()} == {
        "0.5–0.6": 1,
        "0.6–0.7": 1,
        "0.7–0.8": 1,
        "0.8–0.9": 0,
        "0.9–0.99": 2,
        "0.99–1": 1,
    }
    assert bins["0.9–0.99"]["agreement"] == 0.5 and "agreement" not in bins["0.8–0.9"]


def test_every_hh_row_is_labelled_or_rejected_and_compared(cai, data, llama, tmp_path):
    out, agreement = tmp_path / "labels.jsonl", tmp_path / "agreement.json"
    words = (
        "--pairs",
        data(HH),
        "--feedback-model",
        llama,
        "--min-mass",
        "0",
        "--orders",
        "random",
        "--out",
        out,
    )
    done = cai("label", *words)
    assert done.returncode == 0, done.stderr
    ids = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    rejects = [json.loads(line) for line in (tmp_path / "labels.rejects.jsonl").read_text().splitlines()]
    assert len(ids) + len(rejects) == 1500 and len(set(ids) | {row["id"] for row in rejects}) == 1500
    assert all(row["reason"] for row in rejects) and len(ids) > 1450
    manifest = json.loads((tmp_path / "labels.manifest.json").read_text())
    assert manifest["counts"]["in"] == 1500 and manifest["summary"]["pairs"] == len(ids)
    assert (tmp_path / "labels.png").stat().st_size > 10_000
    done = cai("evaluate", "labels", out, data(HH), "--out", agreement)
    assert done.returncode == 0, done.stderr
    facts = json.loads(agreement.read_text())
    assert facts["counts"]["shared"] >= len(ids) - 5
    low, high = facts["all"]["interval"]
    assert low < 0.53 and high > 0.47, "a random judge agrees by chance"
    assert agreement.with_suffix(".png").stat().st_size > 10_000


def test_nothing_shared_is_a_failure(cai, tmp_path):
    for name, row in (("a", comparison("1", "a", "b", 0.8)), ("b", comparison("2", "c", "d"))):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row.to_row()) + "\n")
    done = cai("evaluate", "labels", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--out", tmp_path / "o.json")
    assert (
        done.returncode == 1
        and "no pair that both have decided" in done.stderr
        and not (tmp_path / "o.json").exists()
    )


def test_the_files_are_not_taken_for_one_another(cai, tmp_path):
    """The AI's labels come first: two files of people, or swapped ones, are a mistake; two of AIs are told."""
    for name, origin in (("ai", "ai"), ("human", "human")):
        rows = [{**comparison(str(n), f"a{n}", "b", 0.8).to_row(), "origin": origin} for n in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for files in (("human.jsonl", "ai.jsonl"), ("human.jsonl", "human.jsonl")):
        done = cai("evaluate", "labels", *files, "--out", "x.json", cwd=tmp_path)
        mistake(done, "human.jsonl: none of its 3 comparisons is an AI's label", "the AI's file comes first")
    done = cai("evaluate", "labels", "ai.jsonl", "ai.jsonl", "--out", "x.json", cwd=tmp_path)
    assert done.returncode == 0 and "two judges are compared" in done.stderr
    done = cai("evaluate", "labels", "ai.jsonl", "human.jsonl", "--out", "y.json", cwd=tmp_path)
    assert done.returncode == 0 and "warning" not in done.stderr
