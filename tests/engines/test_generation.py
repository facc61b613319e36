"""Sampling segments, and the chains of `revise` and `sample` around them, on an engine that says what it is
told to.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_engine import FakeEngine, segment

from cai_cli.artifacts.chunks import chunks
from cai_cli.console.groups import build
from cai_cli.engines.base import LENGTH, OVERLONG, STOP, Request
from cai_cli.engines.segments import SegmentSettings, attempts_at, sample_segment
from cai_cli.errors import RunError
from cai_cli.keys import key
from cai_cli.prompting.hygiene import CRITIQUE, REVISION
from cai_cli.prompting.prompts import TRANSCRIPT_STOPS
from cai_cli.rows.conversation import message
from cai_cli.rows.records import Revision
from cai_cli.stages import revise, sample

# sample_segment


def test_requests_carry_prompt_settings_and_the_key_of_their_attempt():
    engine = FakeEngine(lambda request, call: "" if call < 3 else "good")
    (result,) = sample_segment(engine, ["a"], segment())
    assert (result.text, result.finish_reason, result.reason, result.tokens) == ("good", STOP, None, 9)
    assert [requests[0].key for requests in engine.calls] == [key(0, "a", attempt) for attempt in range(3)]
    assert engine.calls[0][0] == Request("prompt a", key(0, "a", 0), 9, ("\n\nHuman:",))


def test_only_what_failed_is_drawn_again_and_order_is_kept():
    def say(request, call):
        return (
            ""
            if request.prompt in ("prompt b", "prompt d") and call == 1
            else f"{request.prompt} in call {call}"
        )

    engine = FakeEngine(say)
    results = sample_segment(engine, list("abcd"), segment())
    assert [len(requests) for requests in engine.calls] == [4, 2]
    assert [r.text for r in results] == [
        "prompt a in call 1",
        "prompt b in call 2",
        "prompt c in call 1",
        "prompt d in call 2",
    ]


@pytest.mark.parametrize(
    ("said", "reason", "attempts"),
    [
        (" \n", "empty", 3),
        ("\n\nHuman: more", "leaked_role", 3),
        (("cut off", LENGTH), "truncated", 3),
        (("", LENGTH), "truncated", 3),
        (("", OVERLONG), "prompt_too_long", 1),
    ],
)
def test_what_fails_to_the_end_keeps_its_reason(said, reason, attempts):
    engine = FakeEngine(lambda request, call: said)
    (result,) = sample_segment(engine, ["a"], segment())
    assert (result.reason, len(engine.calls)) == (reason, attempts)
    assert result.tokens == (0 if reason == "prompt_too_long" else 3 * attempts)


def test_truncated_text_is_kept_on_request():
    (result,) = sample_segment(
        FakeEngine(lambda *_: ("cut off", LENGTH)), ["a"], segment(SegmentSettings(9, keep_truncated=True))
    )
    assert (result.text, result.finish_reason, result.reason) == ("cut off", LENGTH, None)


def test_kind_and_check_of_the_segment():
    """The lead-in is stripped for a revision, the check sees what is left, and what happened is told."""
    engine = FakeEngine(lambda request, call: "bad" if call == 1 else "Here is the revised response: good")
    judged = segment(kind=REVISION, check=lambda item, text: "no_good" if text == "bad" else None)
    (result,) = sample_segment(engine, ["a"], judged)
    assert (result.text, result.events) == ("good", ("no_good", "lead_in"))
    (result,) = sample_segment(FakeEngine(lambda *_: "Revision: no"), ["a"], segment(kind=CRITIQUE))
    assert (result.reason, result.events) == ("role_confused", ("role_confused",) * 3)


def test_what_comes_before_another_turn_is_whole():
    """A model that never stops but changes the speaker: its own turn is kept, and counted as trimmed."""
    engine = FakeEngine(lambda *_: ("good\n\nHuman: and\n\nAssistant: so on and", LENGTH))
    (result,) = sample_segment(engine, ["a"], segment())
    assert (result.text, result.reason, result.finish_reason, result.events) == (
        "good",
        None,
        STOP,
        ("leaked_role",),
    )


def test_at_temperature_0_nothing_is_drawn_again():
    assert attempts_at(0.0, 3) == 1
    assert attempts_at(0.7, 3) == 3
    engine = FakeEngine(lambda *_: "")
    sample_segment(engine, ["a"], segment(SegmentSettings(9, attempts=attempts_at(0.0, 3))))
    assert len(engine.calls) == 1


def test_nothing_to_do_asks_nothing_of_the_engine_twice():
    assert sample_segment(FakeEngine(lambda *_: "x"), [], segment()) == []


def test_chunks():
    assert list(chunks([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
    assert list(chunks([1, 2, 3, 4, 5], 2, first=1)) == [[1], [2, 3], [4, 5]]
    assert list(chunks([1], 2, first=3)) == [[1]] and not list(chunks([], 2, first=3))


# revise and sample, run whole


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    rows = [{"id": name, "prompt": f"question {name}"} for name in "abcd"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run_stage(monkeypatch, files: Path, stage, engine: FakeEngine, **settings) -> list[dict]:
    monkeypatch.setattr("cai_cli.engines.replies.open_engine", lambda *_: engine)
    monkeypatch.setitem(sys.modules, "cai_cli.engines.open", SimpleNamespace(open_engine=lambda *_: engine))
    out = files / "out.jsonl"
    stage.run(
        build(
            stage.Options,
            model=str(files / "model"),
            prompts=[str(files / "prompts.jsonl")],
            out=out,
            **settings,
        )
    )
    return [json.loads(line) for line in out.read_text().splitlines()]


def by_segment(draft, critique, revision) -> Callable[[Request, int], str]:
    """Answers for chats of 1, 3 and 5 turns: the draft, the critique, the revision after it."""

    def say(request: Request, call: int):
        part = {1: draft, 3: critique, 5: revision}[len(request.prompt)]
        return part(request, call) if callable(part) else part

    return say


def rejects(files: Path) -> dict[str, str]:
    path = files / "out.rejects.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["id"]: row["reason"] for row in rows}


def test_revisions_are_spliced_in_place_of_the_response(monkeypatch, files):
    engine = FakeEngine(by_segment("draft", "critique", lambda request, call: f"revision in call {call}"))
    rows = run_stage(monkeypatch, files, revise, engine, rounds=2, limit=1)
    record = Revision.from_row(rows[0])
    assert record.initial == [message("assistant", "draft")]
    assert [step.revision for step in record.rounds] == ["revision in call 3", "revision in call 5"]
    assert record.completion == [message("assistant", "revision in call 5")]
    assert [step.critique for step in record.rounds] == ["critique"] * 2
    seen = [[turn["content"] for turn in requests[0].prompt] for requests in engine.calls]
    assert [turns[0] for turns in seen] == ["question a"] * 5
    assert [turns[1] for turns in seen[1:]] == ["draft", "draft", "revision in call 3", "revision in call 3"]
    assert seen[2][2] == record.rounds[0].critique_request and seen[2][4] == record.rounds[0].revision_request
    assert len({requests[0].key for requests in engine.calls}) == 5


BAD = [
    ("", "empty"),
    ("Human: go on", "leaked_role"),
    (("half", LENGTH), "truncated"),
    (("", OVERLONG), "prompt_too_long"),
]


@pytest.mark.parametrize(
    ("where", "bad", "reason"),
    [
        *((where, *bad) for where in ("draft", "critique", "revision") for bad in BAD),
        ("revision", "The assistant's response is harmful.", "role_confused"),
        ("revision", "good Draft!", "unrevised"),
        ("revision", "Here is the revised response: good draft", "unrevised"),
        ("critique", "good draft", "role_confused"),
        ("critique", "I'm sorry, I can't help you with that.", "role_confused"),
    ],
)
def test_nothing_unrevised_gets_into_revisions(monkeypatch, files, where, bad, reason):
    def part(name):
        return lambda request, call: (
            bad if name == where and "question b" in request.prompt[0]["content"] else f"good {name}"
        )

    engine = FakeEngine(by_segment(*map(part, ("draft", "critique", "revision"))))
    rows = run_stage(monkeypatch, files, revise, engine, rounds=2)
    assert [row["id"] for row in rows] == ["a/0", "c/0", "d/0"]
    assert all(row["completion"][0]["content"] == "good revision" and len(row["rounds"]) == 2 for row in rows)
    assert rejects(files) == {"b/0": reason}
    asked = [r for requests in engine.calls for r in requests if "question b" in r.prompt[0]["content"]]
    draws = 1 if reason == "prompt_too_long" else 3
    assert len(asked) == ["draft", "critique", "revision"].index(where) + draws, "a rejected chain is let be"
    manifest = json.loads((files / "out.manifest.json").read_text())
    assert manifest["counts"] == {"in": 4, "out": 3, "rejected": {reason: 1}}


def test_a_second_draw_saves_the_chain(monkeypatch, files):
    engine = FakeEngine(
        by_segment("draft", "critique", lambda request, call: "" if call == 3 else "revision")
    )
    assert len(run_stage(monkeypatch, files, revise, engine, rounds=1)) == 4
    assert len(engine.calls) == 4 and not (files / "out.rejects.jsonl").exists()


def test_at_temperature_0_a_chain_is_rejected_at_once(monkeypatch, files):
    say = by_segment(
        "draft", lambda request, call: "" if "question b" in request.prompt[0]["content"] else "c", "revision"
    )
    engine = FakeEngine(say)
    run_stage(monkeypatch, files, revise, engine, rounds=1, temperature=0.0)
    assert len(engine.calls) == 3 and rejects(files) == {"b/0": "empty"}


@pytest.mark.parametrize("stage", [revise, sample])
def test_too_many_rejects_fail_with_advice_and_keep_what_is_done(monkeypatch, files, stage):
    settings = {"rounds": 1} if stage is revise else {"num_samples": 1}
    bad = ("question a", "question b", "question c")
    engine = FakeEngine(lambda request, call: "" if request.prompt[0]["content"] in bad else f"good {call}")
    with pytest.raises(RunError) as error:
        run_stage(monkeypatch, files, stage, engine, **settings)
    assert error.value.exit_code == 1
    assert "3 of 4 rows were rejected (empty 3)" in error.value.message
    assert "out.rejects.jsonl" in (error.value.hint or "") and "--max-reject-rate" in (error.value.hint or "")
    assert not (files / "out.jsonl").exists()
    silent = FakeEngine(lambda *_: pytest.fail("nothing is drawn again"))
    assert [
        row["id"] for row in run_stage(monkeypatch, files, stage, silent, max_reject_rate=0.9, **settings)
    ] == ["d/0"]


# The misbehaving models, and what becomes of their chains: (draft, critique, revision) -> rows kept, reason,
# advice.
MISBEHAVING = {
    "answers its critique prompt with a revision": (
        ("Mix it.", "I'm sorry, I can't help you with that.", "No."),
        "role_confused",
        "or --no-critique",
    ),
    "repeats the draft": (
        ("Mix it.", "The response is harmful.", "Mix it."),
        "unrevised",
        "the model repeats its draft",
    ),
    "never stops": ((("Mix it and", LENGTH), "", ""), "truncated", "raise --max-new-tokens"),
    "emits role markers": (("\n\nHuman: Mix it.", "", ""), "leaked_role", "the model speaks for the human"),
}


@pytest.mark.parametrize("name", MISBEHAVING)
def test_a_misbehaving_model_is_counted_and_fails_with_advice(monkeypatch, files, name):
    said, reason, advice = MISBEHAVING[name]
    with pytest.raises(RunError) as error:
        run_stage(monkeypatch, files, revise, FakeEngine(by_segment(*said)), rounds=2)
    assert error.value.exit_code == 1 and f"4 of 4 rows were rejected ({reason} 4)" in error.value.message
    assert advice in (error.value.hint or "")
    assert rejects(files) == {f"{name}/0": reason for name in "abcd"} and not (files / "out.jsonl").exists()


def test_where_all_may_be_rejected_a_model_that_revises_nothing_is_no_error(monkeypatch, files):
    said, reason, _ = MISBEHAVING["repeats the draft"]
    run_stage(monkeypatch, files, revise, FakeEngine(by_segment(*said)), rounds=2, max_reject_rate=1.0)
    assert rejects(files) == {f"{name}/0": reason for name in "abcd"}
    assert (files / "out.jsonl").read_text() == ""


def test_role_markers_behind_a_good_text_are_cut_and_counted(monkeypatch, files):
    """A model that goes on as the human after every segment: none of it gets into a row."""
    tail = "\n\nHuman: And then?\n\nAssistant: Mix it and"
    said = [(text + tail, LENGTH) for text in ("Mix it.", "The response is harmful.", "No.")]
    rows = run_stage(monkeypatch, files, revise, FakeEngine(by_segment(*said)), rounds=2)
    assert len(rows) == 4 and not any(
        "Human:" in json.dumps(row["completion"]) + json.dumps(row["rounds"]) for row in rows
    )
    summary = json.loads((files / "out.manifest.json").read_text())["summary"]
    assert sum(summary["hygiene"]["leaked_role"].values()) == 4 * 5


def test_without_critique_the_request_follows_the_response(monkeypatch, files):
    engine = FakeEngine(lambda request, call: f"text {call}")
    rows = run_stage(monkeypatch, files, revise, engine, rounds=1, critique=False, limit=1)
    assert len(engine.calls) == 2 and len(engine.calls[1][0].prompt) == 3
    step = rows[0]["rounds"][0]
    assert (step["critique_request"], step["critique"], step["revision"]) == ("", "", "text 2")
    assert engine.calls[1][0].prompt[2]["content"] == step["revision_request"]


@pytest.mark.parametrize("critique", [True, False])
def test_transcripts_carry_demonstrations_of_the_same_kind(monkeypatch, files, critique):
    engine = FakeEngine(lambda request, call: f"text {call}", chat=False)
    run_stage(monkeypatch, files, revise, engine, rounds=1, critique=critique, limit=1)
    prompts = [requests[0].prompt for requests in engine.calls]
    assert all(requests[0].stop == TRANSCRIPT_STOPS for requests in engine.calls)
    assert prompts[0].endswith("\n\nHuman: question a\n\nAssistant:") and prompts[-1].endswith(
        "\n\nRevision:"
    )
    assert "\n\nRevisionRequest:" not in prompts[0]  # the draft is the model's own
    assert [text.count("\n\nRevisionRequest:") for text in prompts[1:]] == ([5, 6] if critique else [6])
    assert [text.count("\n\nCritique:") for text in prompts[1:]] == ([6, 6] if critique else [0])


def test_keys_do_not_depend_on_batch_size_or_neighbours(monkeypatch, files):
    keys = []
    for number, settings in enumerate(({"batch_size": 1}, {"limit": 2})):
        engine = FakeEngine(lambda request, call: "x")
        folder = files / str(number)
        folder.mkdir()
        for name in ("model", "prompts.jsonl"):
            (folder / name).symlink_to(files / name)
        run_stage(monkeypatch, folder, sample, engine, num_samples=2, **settings)
        keys.append({(r.prompt[0]["content"], r.key) for requests in engine.calls for r in requests})
    assert len(keys[0]) == 8 and len(keys[1]) == 4 and keys[1] < keys[0]


def test_shards_that_reject_everything_are_merged_into_an_empty_file(cai, monkeypatch, files):
    said, reason, _ = MISBEHAVING["repeats the draft"]
    for part in range(2):
        engine = FakeEngine(by_segment(*said))
        run_stage(monkeypatch, files, revise, engine, rounds=1, max_reject_rate=1.0, shard=f"{part}/2")
        for name in ("out.jsonl", "out.manifest.json", "out.rejects.jsonl"):
            (files / name).rename(files / name.replace("out", f"part{part}"))
    done = cai("merge", files / "part0.jsonl", files / "part1.jsonl", "--out", files / "whole.jsonl")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (files / "whole.jsonl").read_text() == ""
    counts = json.loads((files / "whole.manifest.json").read_text())["counts"]
    assert counts == {"in": 4, "out": 0, "rejected": {reason: 4}}
