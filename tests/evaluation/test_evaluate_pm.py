"""`cai evaluate pm` and `cai score` beside plain transformers: text by hand, its own forward of a padded
batch.
"""

from __future__ import annotations

import json
import math
import re
from random import Random

import pytest
import torch
from conftest import mistake
from ppo_setup import make_pm
from tiny import make_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cai_cli.rows.conversation import message
from cai_cli.rows.jsonl import read_rows
from cai_cli.stages.score import texts_of

ORIGINS = ("ai", "human")
WORDS = ("bake", "bread", "paint", "a fence", "quietly", "and then", "with care", "stop")


@pytest.fixture(scope="module")
def pm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pm")
    return make_pm(make_model(folder / "lm"), folder / "pm")


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory):
    """Twenty pairs of different lengths, and one far beyond the model's context."""
    rng = Random(0)
    rows = []
    for n in range(21):
        replies = [" ".join(rng.choices(WORDS, k=rng.randint(1, 9) if n < 20 else 3000)) for _ in range(2)]
        rows.append(
            {
                "id": f"c{n}",
                "prompt": [message("user", f"Question {n}?")],
                "chosen": [message("assistant", replies[0])],
                "rejected": [message("assistant", replies[1])],
                "probability": (0.5, 0.7, 1.0)[n % 3],
                "origin": ORIGINS[n % 2],
                "kind": ("harmful", "helpful")[n % 2],
                "note": n,
            }
        )
    file = tmp_path_factory.mktemp("data") / "comparisons.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def chatml(prompt: str, reply: str) -> str:
    """By hand: closed by the end of turn, which is EOS, and without the newline that the template puts after
    it.
    """
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{reply}<|im_end|>"


def plain_scores(pm, texts: list[str], side: str = "right") -> list[float]:
    """What a user gets who knows nothing of this project: one padded batch through the classifier's own
    forward.
    """
    tokenizer = AutoTokenizer.from_pretrained(pm, padding_side=side)
    model = AutoModelForSequenceClassification.from_pretrained(pm)
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        return model(**batch).logits[:, 0].tolist()


def expected_of(pm, comparisons) -> list[tuple[float, float]]:
    rows = [row for _, row in read_rows(comparisons)][:20]
    chosen, rejected = (
        plain_scores(pm, [chatml(row["prompt"][0]["content"], row[name][0]["content"]) for row in rows])
        for name in ("chosen", "rejected")
    )
    return list(zip(chosen, rejected, strict=True))


def test_scores_are_added_to_comparisons(cai, pm, comparisons, tmp_path):
    out = tmp_path / "scored.jsonl"
    done = cai("score", "--pm", pm, comparisons, "--out", out, "--limit", 7, "--batch-size", 1)
    assert done.returncode == 0, done.stderr
    first = out.read_text()
    done = cai("score", "--pm", pm, comparisons, "--out", out, "--batch-size", 32)  # goes on from there
    assert done.returncode == 0 and "continuing after 7 rows" in done.stderr, done.stderr
    assert out.read_text().startswith(first)
    rows = [row for _, row in read_rows(out)]
    assert [row["id"] for row in rows] == [f"c{n}" for n in range(20)]
    got = [(row["chosen_score"], row["rejected_score"]) for row in rows]
    for (high, low), (chosen, rejected) in zip(got, expected_of(pm, comparisons), strict=True):
        assert (high, low) == pytest.approx((chosen, rejected), abs=1e-5)
    given = [row for _, row in read_rows(comparisons)]
    assert all(row.items() >= given[n].items() for n, row in enumerate(rows))  # nothing lost, nothing changed
    (rejected,) = [row for _, row in read_rows(tmp_path / "scored.rejects.jsonl")]
    assert (rejected["id"], rejected["reason"]) == ("c20", "too_long")
    again = cai("score", "--pm", pm, out, "--out", tmp_path / "twice.jsonl")
    mistake(again, "scored.jsonl:1", "`chosen_score`", "--field")


def test_measurements_agree_with_plain_transformers(cai, pm, comparisons, tmp_path):
    out = tmp_path / "pm.json"
    done = cai("evaluate", "pm", "--pm", pm, "--comparisons", comparisons, "--out", out, "--batch-size", 3)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    rows = [row for _, row in read_rows(comparisons)][:20]
    pairs = [(1 / (1 + math.exp(low - high)), row["probability"], row["origin"]) for (high, low), row in
             zip(expected_of(pm, comparisons), rows, strict=True)]  # fmt: skip
    for name, chosen in (("all", ORIGINS), ("origin ai", ("ai",)), ("origin human", ("human",))):
        group = [(p, t) for p, t, origin in pairs if origin in chosen]
        decided = [p > 0.5 for p, t in group if t != 0.5]
        measured = result["groups"][name]
        assert (measured["pairs"], measured["decided"]) == (len(group), len(decided))
        assert measured["accuracy"] == pytest.approx(sum(decided) / len(decided))
        low, high = measured["accuracy_interval"]
        assert low < measured["accuracy"] < high
        assert measured["brier"] == pytest.approx(sum((p - t) ** 2 for p, t in group) / len(group), abs=1e-5)
    assert {"kind harmful", "kind helpful"} <= result["groups"].keys()
    assert sum(cell["pairs"] for cell in result["reliability"]["all"]) == 20
    assert result["counts"] == {"in": 21, "out": 20, "rejected": {"too_long": 1}}
    assert result["overlap"]["lineage_known"] is False and "is not known" in done.stderr
    assert (tmp_path / "pm.png").read_bytes().startswith(b"\x89PNG")
    assert "after length matching" in done.stderr and "too_long 1" in done.stderr
    assert done.stdout == ""
    again = cai("evaluate", "pm", "--pm", pm, "--comparisons", comparisons, "--out", out)
    assert again.returncode == 0 and "already done" in again.stderr


def test_a_language_model_is_no_preference_model(cai, pm, comparisons):
    mistake(
        cai("evaluate", "pm", "--pm", pm.parent / "lm", "--comparisons", comparisons),
        "is a language model",
        "train-pm",
    )


def test_a_trained_model_loads_as_it_is_and_its_own_forward_gives_our_scores(cai, comparisons, tmp_path):
    """From a tokenizer whose pad is its EOS, which `train-pm` repairs: a pad token apart is saved with the
    model.
    """
    lm = make_model(tmp_path / "lm", "qwen2")
    tokenizer = AutoTokenizer.from_pretrained(lm)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(lm)
    pm = tmp_path / "pm"
    words = (
        "train-pm",
        "--model",
        lm,
        "--comparisons",
        comparisons,
        "--out",
        pm,
        "--held-out",
        0.3,
        "--learning-rate",
        1e-3,
    )
    done = cai(*words)
    assert done.returncode == 0, done.stderr
    saved = AutoTokenizer.from_pretrained(pm)
    model = AutoModelForSequenceClassification.from_pretrained(pm)
    assert saved.pad_token_id != saved.eos_token_id and model.config.pad_token_id == saved.pad_token_id
    scored = cai("score", "--pm", pm, comparisons)
    assert scored.returncode == 0, scored.stderr
    rows = [json.loads(line) for line in scored.stdout.splitlines()]
    texts = [chatml(row["prompt"][0]["content"], row["chosen"][0]["content"]) for row in rows]
    ours = [row["chosen_score"] for row in rows]
    assert len(ours) == 20 and max(ours) - min(ours) > 0.01
    for side in ("right", "left"):
        assert plain_scores(pm, texts, side) == pytest.approx(ours, abs=1e-5)
    told = cai("evaluate", "pm", "--pm", pm, "--comparisons", comparisons)
    assert re.search(
        r"warning: 21 of the 21 prompts are in the lineage of .*: 21 in .*comparisons\.jsonl", told.stderr
    )


USER, REPLY = [message("user", "Hi")], [message("assistant", "Yo")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": USER, "completion": REPLY}, {"s": (USER, REPLY)}),
        ({"prompt": "Hi", "completion": "Yo"}, {"s": (USER, REPLY)}),
        ({"messages": [*USER, *REPLY]}, {"s": (USER, REPLY)}),
        (
            {"prompt": USER, "chosen": REPLY, "rejected": REPLY},
            {"chosen_s": (USER, REPLY), "rejected_s": (USER, REPLY)},
        ),
        (
            {"prompt": "Hi", "chosen": [*USER, *REPLY], "rejected": [*USER, *REPLY]},
            {"chosen_s": (USER, REPLY), "rejected_s": (USER, REPLY)},
        ),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Yo", "rejected": "\n\nHuman: Hi\n\nAssistant: Yo"},
            {"chosen_s": (USER, REPLY), "rejected_s": (USER, REPLY)},
        ),
    ],
)
def test_shapes_of_rows(row, expected):
    assert texts_of(row, "s") == expected


def test_rows_without_a_reply_stop_with_file_line_and_field(cai, pm, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Hi", "completion": "Yo"}\n{"prompt": "Hi"}\n')
    mistake(cai("score", "--pm", pm, file), "rows.jsonl:2", "`completion`", "missing")
