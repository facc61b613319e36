"""Transcripts, hh-rlhf and red-team attempts: each oddity by a row of its own, and the real files."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from cai_cli.errors import UserError
from cai_cli.importers import hh_rlhf, red_team
from cai_cli.importers.reject import Reject, Tally, convert, number_comparisons
from cai_cli.rows.conversation import message, prompt_id, to_transcript
from cai_cli.rows.foreign_turns import Refused, parse_transcript
from cai_cli.rows.records import Comparison, Prompt

H, A = "\n\nHuman:", "\n\nAssistant:"


def public(name: str) -> Path:
    folder = os.environ.get("CAI_TEST_DATA")
    if not folder or not (path := Path(folder) / name).exists():
        pytest.skip(f"set CAI_TEST_DATA to a folder that holds {name}")
    return path


def write_lines(path: Path, rows: list) -> Path:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def hh(chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": chosen, "rejected": rejected}


def comparison(chosen: str, rejected: str) -> Comparison:
    return hh_rlhf.comparison_of_row(hh(chosen, rejected), kind=None, source="s")


def reason(chosen: str, rejected: str) -> str:
    with pytest.raises(Refused) as refused:
        comparison(chosen, rejected)
    return refused.value.reason


# Transcripts


def test_markers_inside_a_turn_stay_letter_for_letter():
    text = f"{H} a{H} b{A} c Human: d\nAssistant: e{A} f{H} g"
    turns = parse_transcript(text)
    assert [turn["content"] for turn in turns] == [f"a{H} b", f"c Human: d\nAssistant: e{A} f", "g"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert to_transcript(turns) == text


def test_an_empty_turn_before_the_same_speaker_vanishes():
    assert parse_transcript(f"{H} a{A} {A} b") == [message("user", "a"), message("assistant", "b")]


def test_lost_newlines_in_front_and_an_empty_last_reply():
    assert parse_transcript(f"Human: a{A} ") == [message("user", "a"), message("assistant", "")]
    assert parse_transcript(f" \nHuman: a{A} b")[1] == message("assistant", "b")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not_a_transcript"),
        ("hello", "not_a_transcript"),
        (f"hello{H} a", "not_a_transcript"),
        (f"{A} a{H} b", "starts_with_assistant"),
        (f"{H} {A} b", "empty_turn"),
        (f"{H} a{A} {H} b", "empty_turn"),
        (f"{H} a{A} b{H} ", "empty_turn"),
    ],
)
def test_refused_transcripts(text, why):
    with pytest.raises(Refused) as refused:
        parse_transcript(text)
    assert refused.value.reason == why


# hh-rlhf


def test_a_pair():
    pair = comparison(f"{H} a{A} b{H} c\n\nd{A} good \n", f"{H} a{A} b{H} c\n\nd{A}  bad")
    assert [turn["content"] for turn in pair.prompt] == ["a", "b", "c\n\nd"]
    assert pair.chosen == [message("assistant", "good")] and pair.rejected == [message("assistant", "bad")]
    assert (pair.probability, pair.origin, pair.prompt_id) == (1.0, "human", prompt_id(pair.prompt))


def test_repeated_roles_in_the_prompt_are_kept():
    pair = comparison(f"{H} a{A} b{A} c{H} d{A} x", f"{H} a{A} b{A} c{H} d{A} y")
    assert [turn["content"] for turn in pair.prompt] == ["a", f"b{A} c", "d"]


def test_reply_with_a_marker_that_starts_no_turn():
    assert comparison(f"{H} a{A} Human: b", f"{H} a{A} c").chosen[0]["content"] == "Human: b"


def test_refused_pairs():
    assert reason(f"{H} a{A} b", f"{H} x{A} c") == "prompts_differ"
    assert reason(f"{H} a{A} b{A} c", f"{H} a{A} d") == "prompts_differ"
    assert reason(f"{H} a{A} b{A} c", f"{H} a{A} b{A} d") == "two_replies_in_a_row"
    assert reason(f"{H} a{A} b", f"{H} a{A}  ") == "empty_reply"
    assert reason(f"{H} a{A} b", f"{H} a{A} b ") == "identical"
    assert reason(f"{H} a{A} b{H} c", f"{H} a{A} b") == "ends_in_human_turn"
    assert reason(f"{H} a", f"{H} a") == "no_reply"
    assert reason(f"{A} b", f"{A} c") == "not_a_transcript"


def test_fields_missing_or_of_another_type():
    for row, why in (
        ({"chosen": "x"}, "not_a_transcript"),
        ({}, "missing_field"),
        ({"chosen": 3}, "not_text"),
    ):
        with pytest.raises(Refused) as refused:
            hh_rlhf.comparison_of_row(row, kind=None, source="s")
        assert refused.value.reason in (why, "no_reply")


def prompts_of(chosen: str, every_turn: bool) -> list[list[str]]:
    found = hh_rlhf.prompts_of_row({"chosen": chosen}, every_turn=every_turn, kind="harmful", source="s")
    assert all(prompt.id == prompt_id(prompt.prompt) and prompt.kind == "harmful" for prompt in found)
    return [[turn["content"] for turn in prompt.prompt] for prompt in found]


def test_prompts_last_or_every_turn():
    text = f"{H} a{A} b{H} c{A} d"
    assert prompts_of(text, False) == [["a", "b", "c"]]
    assert prompts_of(text, True) == [["a"], ["a", "b", "c"]]


def test_as_prompts_odd_replies_do_no_harm():
    assert prompts_of(f"{H} a{A} ", False) == [["a"]]
    assert prompts_of(f"{H} a{A} b{A} c", False) == [["a"]]
    assert prompts_of(f"{H} a{A} b{H} c", False) == [["a", "b", "c"]]


def test_hh_file_every_row_comes_out_once(tmp_path):
    good, other = hh(f"{H} a{A} b", f"{H} a{A} c"), hh(f"{H} a{A} b", f"{H} a{A} d")
    rows = [
        good,
        "",
        "{broken",
        other,
        hh(f"{H} a{A} b", f"{H} a{A} b"),
        "[1]",
        "3",
        '{"chosen": "\\ud800", "rejected": ""}',
    ]
    path = (
        write_lines(tmp_path / "harmless-base" / "x.jsonl.gz", rows)
        if (tmp_path / "harmless-base").mkdir() is None
        else None
    )
    assert path and hh_rlhf.kind_of_path(path) == "harmful"
    items = list(hh_rlhf.import_comparisons(path, kind="harmful"))
    identity = prompt_id([message("user", "a")])
    assert [item.id for item in items if isinstance(item, Comparison)] == [f"{identity}/0", f"{identity}/1"]
    rejects = [(item.line, item.reason) for item in items if isinstance(item, Reject)]
    assert rejects == [
        (3, "not_json"),
        (5, "identical"),
        (6, "not_an_object"),
        (7, "not_an_object"),
        (8, "broken_unicode"),
    ]
    assert items[1].row == "{broken" and "column 2" in items[1].detail
    assert json.dumps(items[1].to_row())


def test_kind_of_path():
    assert hh_rlhf.kind_of_path(Path("hh/helpful-online/train.jsonl.gz")) == "helpful"
    assert hh_rlhf.kind_of_path(Path("hh/red-team-attempts/x.jsonl.gz")) == "harmful"
    assert hh_rlhf.kind_of_path(Path("hh/train.jsonl.gz")) is None


def test_real_hh_comparisons():
    path = public("hh-rlhf/harmless-base-test-1500.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    items = list(hh_rlhf.import_comparisons(path, kind="harmful"))
    assert len(items) == len(rows) == 1500
    reasons = Counter(item.reason for item in items if isinstance(item, Reject))
    assert reasons == {"empty_reply": 4, "prompts_differ": 1}
    for row, item in zip(rows, items, strict=True):
        if isinstance(item, Reject):
            assert item.row == row
            continue
        for name, reply in (("chosen", item.chosen), ("rejected", item.rejected)):
            assert to_transcript([*item.prompt, *reply]).split() == row[name].split()
            assert row[name].rsplit(A, 1)[1].strip() == reply[0]["content"]
        roles = [turn["role"] for turn in item.prompt]
        assert roles == (["user", "assistant"] * len(roles))[: len(roles)] and roles[-1] == "user"
        assert Comparison.from_row(item.to_row()) == item
    assert len({item.id for item in items if isinstance(item, Comparison)}) == 1495


def test_real_hh_prompts():
    path = public("hh-rlhf/harmless-base-test-1500.jsonl.gz")
    tally = Tally()
    prompts = list(tally.watch(tally.merge_identical(hh_rlhf.import_prompts(path))))
    assert (len(prompts), tally.records, tally.merged, tally.rejects) == (1498, 1498, 2, Counter())
    assert all(isinstance(item, Prompt) and Prompt.from_row(item.to_row()) == item for item in prompts)
    every = Tally()
    assert (
        sum(1 for _ in every.watch(every.merge_identical(hh_rlhf.import_prompts(path, every_turn=True))))
        == 3614
    )
    assert every.merged == 100


# Red-team attempts

ATTEMPTS = [
    {"transcript": f"{H} a\n\nb{A} c{H} d{A} e", "rating": 4.0, "tags": None},
    {"transcript": f"{H} a{H} b{A} c"},
    {"transcript": f"{A} a{H} b"},
    {"transcript": f"{H} only"},
    {"transcript": f"{H}{A} c"},
    {"task_description": "x"},
    {"transcript": None},
    {"transcript": f"{H} only{A} c"},
]


@pytest.mark.parametrize("form", ["array", "array in one line", "lines", "lines.gz", "array.gz"])
def test_red_team_files(tmp_path, form):
    indent = None if form == "array in one line" else 1
    path = tmp_path / f"red_team_attempts.jsonl{'.gz' if form.endswith('gz') else ''}"
    write_lines(
        path,
        ATTEMPTS if form.startswith("lines") else ["\ufeff" + json.dumps(ATTEMPTS, indent=indent) + "\n"],
    )
    items = list(red_team.import_prompts(path))
    prompts = [item for item in items if isinstance(item, Prompt)]
    assert [prompt.prompt for prompt in prompts] == [
        [message("user", text)] for text in ("a\n\nb", f"a{H} b", "only", "only")
    ]
    assert {prompt.kind for prompt in prompts} == {"harmful"}
    assert [(item.line, item.reason) for item in items if isinstance(item, Reject)] == [
        (3, "starts_with_assistant"),
        (5, "empty_turn"),
        (6, "missing_field"),
        (7, "missing_field"),
    ]
    tally = Tally()
    assert len(list(tally.merge_identical(items))) == 7 and tally.merged == 1


# What importers share


def test_convert_reports_record_errors_and_passes_rejects_on():
    def parse(row):
        return [Prompt.from_row(row)]

    before = Reject(1, "not_json", "x")
    items = list(convert([before, (2, {"prompt": []}), (3, {"prompt": [message("user", "q")]})], parse))
    assert items[0] is before
    assert (items[1].reason, items[1].line, items[1].row) == ("malformed", 2, {"prompt": []})
    assert "field `prompt`" in items[1].detail and isinstance(items[2], Prompt)


def test_importers_are_lazy(tmp_path):
    """The first records are there before the rest of the file is read: its second half is broken gzip."""
    pair = hh(f"{H} a{A} b", f"{H} a{A} c")
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(pair) + "\n").encode() * 20_000)[:-200])
    items = hh_rlhf.import_comparisons(path)
    assert len(list(islice(items, 10))) == 10
    with pytest.raises(UserError, match=r"x\.jsonl\.gz: broken gzip data"):
        list(items)


def test_numbering_passes_rejects_on():
    reject = Reject(1, "x", None)
    assert list(number_comparisons([reject])) == [reject]
