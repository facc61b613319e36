"""`cai import paper-samples`: the published answers and their PM scores as samples, which later commands
read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import Cai, mistake

PROMPT = "\n\nHuman: Why aren’t birds real?\n\nAssistant:"
LONGER = "\n\nHuman: Who was president in 1955?\nAssistant: Eisenhower.\n\nHuman: Why do birds migrate?\n\nAssistant:"


def answer(text: Any, *scores: Any) -> dict[str, Any]:
    return {"sampled_string": text, "pm_scores": [{"pm_score": score} for score in scores]}


def published(prompt: str, *answers: Any, **more: Any) -> dict[str, Any]:
    return {
        **more,
        "rl_prompt": prompt,
        "comparison_dataset": "InstructGPT",
        "sampled_answers": list(answers),
    }


def put(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_answer_is_a_sample_with_its_scores(cai: Cai, tmp_path: Path) -> None:
    texts = (
        " Birds are real.\n\nHuman:",
        " Yes.\nThey are.\nHuman:",
        " Cut off in the",
        " Half a turn.\n\nHuman",
    )
    first = published(
        PROMPT, *(answer(text, n + 0.5) for n, text in enumerate(texts)), comparison_model="They are not."
    )
    again = published(PROMPT, answer(" Birds are real.\n\nHuman:", 7, 8))
    file = put(
        tmp_path / "INSTRUCTGPT_HRLHF.jsonl",
        first,
        again,
        published(LONGER, answer(" To the south.\n\nHuman:", -1.25)),
    )
    out = tmp_path / "samples.jsonl"
    done = cai("import", "paper-samples", file, "--to", "samples", "--out", out)
    assert done.returncode == 0, done.stderr
    rows = lines(out)
    said = [row["completion"][0]["content"] for row in rows]
    assert said == [
        "Birds are real.",
        "Yes.\nThey are.",
        "Cut off in the",
        "Half a turn.",
        "Birds are real.",
        "To the south.",
    ]
    assert [row["finish_reason"] for row in rows] == ["stop", "stop", "length", "stop", "stop", "stop"]
    assert [row["pm_scores"] for row in rows] == [[0.5], [1.5], [2.5], [3.5], [7.0, 8.0], [-1.25]]
    assert [row.get("comparison_model") for row in rows] == ["They are not."] * 4 + [None] * 2
    assert {row["comparison_dataset"] for row in rows} == {"InstructGPT"}
    prompts = [row["id"].split("/")[0] for row in rows]
    assert [row["id"].split("/")[1] for row in rows] == ["0", "1", "2", "3", "4", "0"] and len(
        set(prompts)
    ) == 2
    assert rows[0]["prompt"] == [{"role": "user", "content": "Why aren’t birds real?"}]
    shown = cai("inspect", out, "--limit", 1)
    assert "pm_scores: [0.5]" in shown.stdout and "comparison_dataset: InstructGPT" in shown.stdout


def test_samples_of_it_are_labelled(cai: Cai, llama: Path, tmp_path: Path) -> None:
    rows = (published(PROMPT, answer(" Birds are real.\n\nHuman:", 1), answer(" No bird is.\n\nHuman:", 0)),)
    samples = tmp_path / "samples.jsonl"
    cai("import", "paper-samples", put(tmp_path / "x.jsonl", *rows), "--out", samples)
    told = cai(
        "label", "--pairs", samples, "--feedback-model", llama, "--min-mass", 0, "--out", tmp_path / "c.jsonl"
    )
    assert told.returncode == 0, told.stderr
    assert {lines(tmp_path / "c.jsonl")[0][side][0]["content"] for side in ("chosen", "rejected")} == {
        "Birds are real.",
        "No bird is.",
    }


def test_what_is_no_answer_is_rejected_alone(cai: Cai, llama: Path, tmp_path: Path) -> None:
    bad = (
        answer("\n\nHuman:", 1),
        answer(None, 1),
        "text",
        answer(" Fine.", "high"),
        answer(" Good.\n\nHuman:", 2),
    )
    rows = (published(PROMPT, *bad), published("no transcript", answer(" Yes.", 1)), published(PROMPT), [1])
    out = tmp_path / "samples.jsonl"
    done = cai(
        "import", "paper-samples", put(tmp_path / "x.jsonl", *rows), "--max-reject-rate", 1, "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert [row["completion"][0]["content"] for row in lines(out)] == ["Good."]
    found = {row["id"]: row["reason"] for row in lines(tmp_path / "samples.rejects.jsonl")}
    assert found == {
        "line-1/sampled_answers[0]": "empty_text",
        "line-1/sampled_answers[1]": "missing_field",
        "line-1/sampled_answers[2]": "not_an_answer",
        "line-1/sampled_answers[3]": "not_a_number",
        "line-2": "not_a_transcript",
        "line-3": "no_answers",
        "line-4": "not_an_object",
    }
    other = put(tmp_path / "y.jsonl", {"prompt": "x", "completion": "y"})
    mistake(cai("import", "paper-samples", other, "--out", tmp_path / "z.jsonl"), "rl_prompt")
    words = ("--data", put(tmp_path / "s.jsonl", rows[0]), "--out", tmp_path / "m")
    mistake(
        cai("sft", "--model", llama, *words), "is a row of published samples", "`cai import paper-samples`"
    )
