"""`cai evaluate responses`: scripted replies counted by hand, models that answer first, a judge's scores."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from conftest import mistake

from cai_cli.evaluation.bootstrap import Bootstrap
from cai_cli.evaluation.calibration import wilson
from cai_cli.evaluation.harm import RUBRIC, SCORES, harm_of, harm_question
from cai_cli.evaluation.response_rates import contrasts, measure
from cai_cli.evaluation.responses import read_responses
from cai_cli.rows.conversation import message
from cai_cli.rows.records import Prompt

BARE, REASONED = "I can't help with that.", "I won't help with that, because it would hurt people."
SERMON = "You should be ashamed of yourself. I won't tell you."
LOOP = "say it once more now " * 4
ANSWER = "Take the second door on the left."


def sample(number: int, prompt: str, reply: str, **fields: str) -> dict:
    row = {
        "id": f"{number}",
        "prompt": [message("user", prompt)],
        "completion": [message("assistant", reply)],
    }
    return {**row, "finish_reason": "stop", **fields}


def put(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scripted() -> list[dict]:
    """Two replies to each of three harmful prompts, one to each of four helpful ones."""
    harmful = [(BARE, REASONED), (SERMON, ANSWER), (BARE, ANSWER)]
    helpful = [ANSWER, LOOP, BARE, ""]
    rows = [
        sample(10 * n + k, f"harm {n}", reply, kind="harmful", source="set/contrast_x")
        for n, pair in enumerate(harmful)
        for k, reply in enumerate(pair)
    ]
    rows += [
        sample(100 + n, f"help {n}", reply, kind="helpful", source="set/x", finish_reason="length")
        for n, reply in enumerate(helpful)
    ]
    return rows


def shares(group: dict) -> list[float]:
    names = ("refusal", "bare", "preaching", "repetition", "empty", "truncated")
    return [group[name]["share"] for name in names]


@pytest.fixture(scope="module")
def run(cai, tmp_path_factory) -> tuple[Path, object]:
    """Scripted replies of one model, and nothing but answers of another, measured by the command."""
    folder = tmp_path_factory.mktemp("responses")
    put(folder / "a.jsonl", scripted())
    put(folder / "b.jsonl", [{"prompt": f"help {n}", "completion": ANSWER} for n in range(4)])
    put(folder / "prompts.jsonl", [{"prompt": f"help {n}", "kind": "helpful"} for n in range(4)])
    words = ("evaluate", "responses", "a.jsonl", "other=b.jsonl", "--prompts", "prompts.jsonl")
    return folder, cai(*words, "--out", "out.json", cwd=folder)


def test_counts_are_those_by_hand(run):
    folder, done = run
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    one, other = found["models"]
    assert (one["name"], other["name"], other["path"]) == ("a", "other", "b.jsonl")
    groups = one["groups"]
    assert {name: group["n"] for name, group in groups.items()} == {
        "all": 10,
        "harmful": 6,
        "helpful": 4,
        "set/contrast_x": 6,
        "set/x": 4,
    }
    assert shares(groups["harmful"]) == pytest.approx([4 / 6, 3 / 6, 1 / 6, 0, 0, 0])
    assert shares(groups["helpful"]) == pytest.approx([1 / 4, 1 / 4, 0, 1 / 4, 1 / 4, 1])
    assert shares(groups["all"]) == pytest.approx([5 / 10, 4 / 10, 1 / 10, 1 / 10, 1 / 10, 4 / 10])
    assert groups["helpful"]["words"] == {"median": 6.0, "mean": (7 + 20 + 5 + 0) / 4}
    assert one["over_refusal"]["share"] == 1 / 4 and one["compliance"]["share"] == pytest.approx(2 / 6)
    assert one["contrasts"]["set/x"]["difference"]["share"] == pytest.approx(4 / 6 - 1 / 4)
    assert other["over_refusal"]["share"] == 0 and other["compliance"] is None, "kinds of --prompts"
    assert (found["judge"], found["rubric"], groups["all"]["harm"]) == (None, None, None)
    assert (folder / "out.png").stat().st_size > 10_000 and "over-refusal" in done.stderr
    manifest = json.loads((folder / "out.manifest.json").read_text(encoding="utf-8"))
    assert manifest["counts"] == {"in": 14, "out": 14, "rejected": {}}


def test_each_reply_has_a_row_that_says_why(run):
    folder, _ = run
    rows = {row["id"]: row for row in rows_of(folder / "out.rows.jsonl")}
    assert len(rows) == 14 and rows["a/0"]["bare_refusal"] and rows["a/1"]["refusal"]
    assert not rows["a/1"]["bare_refusal"] and rows["a/10"]["preaching"] and rows["a/101"]["repetition"]
    assert rows["a/103"]["empty"] and not rows["a/103"]["refusal"] and rows["a/103"]["truncated"]
    assert rows["a/101"]["prompt"] == [message("user", "help 1")] and rows["a/101"]["harm"] is None


def test_done_is_left_alone_and_other_replies_are_told(run, cai):
    folder, _ = run
    words = ("evaluate", "responses", "a.jsonl", "--out", "out.json")
    again = cai(*words[:3], "other=b.jsonl", "--prompts", "prompts.jsonl", *words[3:], cwd=folder)
    assert again.returncode == 0 and "already done" in again.stderr
    mistake(cai(*words, cwd=folder), "made differently", "--models")


def test_intervals_are_bootstrapped_over_prompts():
    rows = [response.to_row() | {"harm": None} for response in (parsed(row) for row in scripted())]
    found = measure(rows)["groups"]["harmful"]["refusal"]
    drawn = Bootstrap(["a", "a", "b", "b", "c", "c"], 0)
    import numpy as np

    # by prompt: both, one of two, one of two; whichever of the six replies of a draw
    low, high = drawn.interval(np.array([1, 1, 1, 0, 1, 0], dtype=float))
    assert low == pytest.approx(0.5) and high == pytest.approx(1.0)
    assert found["low"] == pytest.approx(0.5) and found["high"] == pytest.approx(1.0)
    alike = measure(rows)["groups"]["helpful"]["truncated"]
    assert (alike["share"], alike["low"], alike["high"]) == pytest.approx((1, *wilson(4, 4)))


def parsed(row: dict):
    """The row as the command reads it."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        (found,) = read_responses("a", put(Path(folder) / "one.jsonl", [row]), [], None)
    return found


def test_kind_and_source_come_from_the_prompts_where_a_row_has_none(tmp_path):
    path = put(tmp_path / "x.jsonl", [sample(1, "q", "a"), sample(2, "other", "a", kind="harmful")])
    prompts = [Prompt("p", [message("user", text)], "helpful", "set/x") for text in ("q", "other")]
    found = [(one.sample.kind, one.sample.source) for one in read_responses("m", path, prompts, None)]
    assert found == [("helpful", "set/x"), ("harmful", "set/x")]
    assert len(list(read_responses("m", path, prompts, 1))) == 1


def test_contrasts_pair_types_that_belong_together():
    def rows(source: str, refused: int, count: int) -> list[dict]:
        prompts = [[message("user", f"{source} {n}")] for n in range(count)]
        return [
            {"source": source, "prompt": prompt, "refusal": n < refused} for n, prompt in enumerate(prompts)
        ]

    found = contrasts(
        rows("xstest/privacy_public", 1, 4)
        + rows("xstest/privacy_fictional", 0, 4)
        + rows("xstest/contrast_privacy", 3, 4)
        + rows("xstest/homonyms", 2, 4)
        + rows("xstest/contrast_unknown", 1, 4),
        seed=0,
    )
    assert set(found) == {"xstest", "xstest/privacy"}
    privacy = found["xstest/privacy"]
    assert (privacy["safe"]["share"], privacy["unsafe"]["share"]) == (1 / 8, 3 / 4)
    one, other, difference = privacy["unsafe"], privacy["safe"], privacy["difference"]
    low = 0.625 - math.hypot(0.75 - one["low"], other["high"] - 0.125)
    assert difference["share"] == 0.625 and difference["low"] == pytest.approx(low)
    assert difference["low"] < 0.625 < difference["high"] <= 1


# XSTest


def test_scripted_replies_on_xstest(cai, data, tmp_path):
    """Refuse what has `kill` in it, whatever it is."""
    assert cai("import", "xstest", data("xstest_prompts.csv"), "--out", tmp_path / "p.jsonl").returncode == 0
    prompts = rows_of(tmp_path / "p.jsonl")
    replies = {
        row["id"]: BARE if "kill" in row["prompt"][0]["content"].lower() else ANSWER for row in prompts
    }
    put(
        tmp_path / "replies.jsonl",
        [sample(0, row["prompt"][0]["content"], replies[row["id"]]) | {"id": row["id"]} for row in prompts],
    )
    words = ("evaluate", "responses", "replies.jsonl", "--prompts", "p.jsonl", "--out", "out.json")
    done = cai(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (model,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["models"]

    def refused(name: str, value: str) -> int:
        return sum(replies[row["id"]] == BARE for row in prompts if row[name] == value)

    assert model["over_refusal"]["share"] == pytest.approx(refused("kind", "helpful") / 250)
    assert model["compliance"]["share"] == pytest.approx(1 - refused("kind", "harmful") / 200)
    for source in {row["source"] for row in prompts}:
        assert model["groups"][source]["refusal"]["share"] == pytest.approx(refused("source", source) / 25)
    assert len(model["contrasts"]) == 9, "the whole set, and eight types"
    assert refused("kind", "helpful") > 0 and refused("kind", "harmful") > 0


# Models and judges


def test_a_model_answers_and_a_judge_scores(cai, llama, qwen, tmp_path):
    """The judge's score tokens sum to the mass that is stated, and are those of a plain forward pass."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    put(tmp_path / "p.jsonl", [{"prompt": f"Question {n}?", "kind": "helpful"} for n in range(3)])
    words = ["evaluate", "responses", f"tiny={llama}", "--prompts", "p.jsonl", "--max-new-tokens", "8"]
    words += ["--judge", str(qwen), "-n", "2", "--out", "out.json"]
    done = cai(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    samples, rows = rows_of(tmp_path / "out.tiny.samples.jsonl"), rows_of(tmp_path / "out.rows.jsonl")
    assert len(samples) == len(rows) and {row["kind"] for row in rows} == {"helpful"}
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    harm = found["models"][0]["groups"]["all"]["harm"]
    assert found["rubric"] == RUBRIC and found["judge"] == str(qwen)
    assert harm["mass"] == pytest.approx(sum(row["harm"]["mass"] for row in rows) / len(rows))
    assert harm["mean"] == pytest.approx(sum(row["harm"]["score"] for row in rows) / len(rows))
    assert "the judge puts" in done.stderr, "a random judge puts next to nothing on the scores"

    tokenizer, model = AutoTokenizer.from_pretrained(qwen), AutoModelForCausalLM.from_pretrained(qwen)
    row = rows[0]
    turns = [
        message("user", harm_question(row["prompt"], row["completion"][0]["content"])),
        message("assistant", "The answer is:"),
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, continue_final_message=True)
    start = len(tokenizer(text)["input_ids"])
    expected = {}
    for score in SCORES:
        ids = tokenizer(f"{text} {score}")["input_ids"]
        with torch.no_grad():
            table = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        expected[score] = math.exp(sum(table[n - 1, ids[n]].item() for n in range(start, len(ids))))
    assert row["harm"]["probabilities"] == pytest.approx(expected, rel=1e-3)
    assert row["harm"]["mass"] == pytest.approx(sum(expected.values()), rel=1e-3)

    # a run that was killed after the replies goes on from them
    for name in ("out.json", "out.rows.jsonl"):
        (tmp_path / name).unlink()
    before = (tmp_path / "out.tiny.samples.jsonl").stat().st_mtime_ns
    again = cai(*words, cwd=tmp_path)
    assert again.returncode == 0 and "out.tiny.samples.jsonl: already done" in again.stderr
    assert (tmp_path / "out.tiny.samples.jsonl").stat().st_mtime_ns == before
    assert rows_of(tmp_path / "out.rows.jsonl") == rows

    # fewer prompts: the replies are done, and more than are measured now; one of each part could not be kept
    file = tmp_path / "out.tiny.samples.jsonl"
    put(file, [row for n, row in enumerate(samples) if n not in (0, 5)])
    lost = [{"id": samples[n]["id"], "reason": "empty"} for n in (0, 5)]
    put(file.with_name("out.tiny.samples.rejects.jsonl"), lost)
    fewer = cai(*words, "--limit", "2", "--if-changed", "restart", cwd=tmp_path)
    assert fewer.returncode == 0 and "out.tiny.samples.jsonl: already done" in fewer.stderr, fewer.stderr
    assert [row["id"] for row in rows_of(tmp_path / "out.rows.jsonl")] == [row["id"] for row in rows[1:4]]
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert found["models"][0]["rejected"] == {"empty": 1}
    counts = json.loads((tmp_path / "out.manifest.json").read_text(encoding="utf-8"))["counts"]
    assert counts == {"in": 4, "out": 3, "rejected": {"no_reply": 1}}


def test_the_score_is_the_mean_under_the_probabilities():
    found = harm_of([math.log(p) for p in (0.1, 0.0001, 0.1, 0.0001, 0.2)])
    assert found.mass == pytest.approx(0.4002)
    assert found.score == pytest.approx((0.0001 + 0.2 + 0.0003 + 0.8) / 0.4002)
    assert harm_of([-1000.0] * 5).score == pytest.approx(2), "no probability that a float holds"


def test_mistakes_are_one_line(cai, llama, tmp_path):
    path = put(tmp_path / "a.jsonl", [sample(1, "q", "a")])
    words = ("evaluate", "responses")
    mistake(cai(*words, llama, "--out", tmp_path / "o.json"), "nothing to answer")
    mistake(cai(*words, path, "--feedback-dtype", "float32", "--out", tmp_path / "o.json"), "without --judge")
    unread = cai(*words, path, "--max-new-tokens", 5, "--out", tmp_path / "o.json")
    mistake(unread, "--max-new-tokens does nothing with samples alone", "name a model")
    empty = put(tmp_path / "empty.jsonl", [])
    said = (f"{empty.name}: no replies in it", "leave it out")
    mistake(cai(*words, path, empty, "--out", tmp_path / "o.json"), *said)
    # before a model beside it writes, which may take hours
    prompts = put(tmp_path / "prompts.jsonl", [{"prompt": "q", "kind": "harmful"}])
    mistake(cai(*words, llama, empty, "--prompts", prompts, "--out", tmp_path / "o.json"), *said)
    assert not list(tmp_path.glob("o.*.samples.jsonl"))
    dry = cai(*words, path, "--judge", llama, "--dry-run", "--out", tmp_path / "o.json")
    assert dry.returncode == 0 and "0: not harmful" in dry.stdout and not (tmp_path / "o.json").exists()
