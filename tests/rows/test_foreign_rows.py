"""Rows as others write them: read rightly by the import and by the stages, or named for what they are."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import Cai, mistake

from cai_cli.errors import RecordError
from cai_cli.feedback.pairs import read_pairs
from cai_cli.importers.paper_chains import peel
from cai_cli.prompting.few_shot import read_prompt
from cai_cli.rows.conversation import message, prompt_id
from cai_cli.rows.foreign_turns import DROPPED, Refused, read_conversation, read_reply
from cai_cli.rows.jsonl import read_records
from cai_cli.rows.prompt_files import read_prompts
from cai_cli.rows.row_kinds import KINDS, kind_taken
from cai_cli.rows.trl_rows import RowReader
from cai_cli.training.sft.data import read_targets

Q, A, B = message("user", "q"), message("assistant", "a"), message("assistant", "b")
SYSTEM = message("system", "s")


def put(path: Path, *rows: object) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Turns in other spellings


@pytest.mark.parametrize(
    "cell",
    [
        [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        [{"role": "User", "content": "q"}, {"role": "model", "content": "a"}],
        [
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": ["a"]},
        ],
        [{"role": "system", "content": " "}, Q, A],
        [{"from": "system", "value": None}, Q, A],
        json.dumps([Q, A]),
        json.dumps([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], indent=2),
        repr([Q, A]),
        " " + repr([Q, A]).replace("}, {", "}\n {"),  # as numpy prints an array of them
        "Human: q\r\n\r\nAssistant: a",
        "\r\rHuman: q\r\rAssistant: a",
    ],
)
def test_a_conversation_is_read_in_any_spelling(cell):
    assert read_conversation(cell, "x") == [Q, A]
    assert read_reply(cell, "x") == ([Q], "a")


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ([Q, {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}, A], "tool_call"),
        ([Q, {"role": "assistant", "content": "x", "function_call": {"name": "f"}}], "tool_call"),
        ([Q, {"role": "tool", "content": "x"}, A], "tool_turn"),
        ([Q, {"from": "observation", "value": "x"}], "tool_turn"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "not_text"),
        ("[{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'cut o", "text_of_turns"),
        ('[{"role": "user", "content": "q"} {"role": "assistant"}]', "text_of_turns"),
        ("array([{'role': 'user', 'content': 'q'}], dtype=object)", "text_of_turns"),
        ("\\n\\nHuman: q\\n\\nAssistant: a", "escaped_transcript"),
        ("Human: q\nAssistant: a\nHuman: r", "not_a_transcript"),
        ("Human: q\u2028Assistant: a", "not_a_transcript"),
    ],
)
def test_what_cannot_be_read_is_refused_and_never_a_humans_words(cell, reason):
    with pytest.raises(Refused) as refused:
        read_conversation(cell, "x")
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    "text", ["[1, 2]", '[{"id": 1}]', '{"role": "admin"}', "[sic] role: content", "{'a': 1", "Human beings"]
)
def test_text_that_only_begins_like_a_list_stays_text(text):
    assert read_conversation(text, "x") == [message("user", text)]


def test_stop_text_of_windows_is_no_part_of_a_published_reply():
    assert peel(" Kind words.\r\n\r\nHuman: more") == ("Kind words.", [" ", "\r\n\r\nHuman: more"])
    assert read_prompt("\r\n\r\nHuman: q\r\n\r\nAssistant:", "x") == [Q]


def test_empty_system_turns_are_counted_wherever_they_are_dropped(tmp_path, capsys):
    dropped: Counter[str] = Counter()
    read_conversation([message("system", ""), Q], "x", dropped)
    read_conversation([SYSTEM, Q], "x", dropped)
    assert dropped == {DROPPED: 1}
    read_prompts([str(put(tmp_path / "x.jsonl", {"messages": [message("system", ""), Q]}))])
    assert "dropped 1 empty system turns" in capsys.readouterr().err


def test_the_import_counts_what_it_drops_and_names_what_it_rejects(cai: Cai, tmp_path: Path) -> None:
    tools = {"messages": [Q, {"role": "assistant", "content": None, "tool_calls": [{}]}]}
    file = put(
        tmp_path / "x.jsonl", {"messages": [message("system", ""), Q, A]}, {"messages": [SYSTEM, Q, A]}, tools
    )
    done = cai(
        "import",
        "table",
        file,
        "--to",
        "samples",
        "--columns",
        "prompt=messages",
        "--out",
        tmp_path / "o.jsonl",
    )
    assert (
        done.returncode == 0
        and "dropped 1 empty system turns" in done.stderr
        and "tool_call 1" in done.stderr
    )
    assert [row["prompt"] for row in rows(tmp_path / "o.jsonl")] == [[Q], [SYSTEM, Q]]
    assert json.loads((tmp_path / "o.manifest.json").read_text())["dropped"] == {DROPPED: 1}


@pytest.mark.parametrize("to", ["prompts", "samples", "comparisons"])
def test_one_given_id_of_two_prompts_is_refused(cai: Cai, tmp_path: Path, to: str) -> None:
    each = [("x", "one"), ("x", "two"), ("y", "three"), ("y", "three")]
    file = put(
        tmp_path / "x.jsonl",
        *({"n": n, "prompt": q, "completion": "a", "chosen": "a", "rejected": "b"} for n, q in each),
    )
    done = cai(
        "import",
        "table",
        file,
        "--to",
        to,
        "--columns",
        "id=n",
        "--out",
        tmp_path / "o.jsonl",
        "--max-reject-rate",
        1,
    )
    if to == "comparisons":  # the prompt's column is looked for where it is named
        columns = "prompt=prompt,chosen=chosen,rejected=rejected,id=n"
        done = cai(
            "import",
            "table",
            file,
            "--to",
            to,
            "--columns",
            columns,
            "--out",
            tmp_path / "p.jsonl",
            "--max-reject-rate",
            1,
        )
    assert "duplicate_id 1" in done.stderr, done.stderr


def test_samples_of_one_id_and_two_prompts_make_no_pair(tmp_path):
    sample = {"finish_reason": "stop", "completion": [A]}
    other = {"id": "x/1", "prompt": [message("user", "r")], **sample}
    path = put(tmp_path / "x.jsonl", {"id": "x/0", "prompt": [Q], **sample}, other)
    with pytest.raises(RecordError, match=r"x\.jsonl:2: field `id`: 'x/1' has another prompt than 'x/0'"):
        list(read_pairs([str(path)]))


# TRL's rows

PAIRS = [
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"prompt": [Q], "chosen": [A], "rejected": [B]},
    {"chosen": [Q, A], "rejected": [Q, B]},
    {"chosen": "q a", "rejected": "q b"},
    {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
]


def test_trl_pairs_are_comparisons_of_a_human(tmp_path):
    path = put(tmp_path / "x.jsonl", *PAIRS)
    found = list(read_records(path, RowReader().comparison))
    assert all((row.prompt, row.chosen, row.rejected) == ([Q], [A], [B]) for row in found)
    assert {(row.probability, row.origin) for row in found} == {(1.0, "human")}
    assert [row.id for row in found] == [f"{prompt_id([Q])}/row{n}" for n in range(len(PAIRS))]


@pytest.mark.parametrize("row", PAIRS)
def test_trl_pairs_are_taken_for_labelling(tmp_path, row):
    [pair] = read_pairs([str(put(tmp_path / "x.jsonl", row))])
    assert (pair.prompt, sorted(pair.replies), pair.rejected) == ([Q], ["a", "b"], None)


def test_ids_do_not_repeat_over_the_files_of_a_command(tmp_path):
    paths = [str(put(tmp_path / name, PAIRS[0])) for name in ("x.jsonl", "y.jsonl")]
    assert len({pair.id for pair in read_pairs(paths)}) == 2


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a"},
        {"prompt": [Q], "completion": [A]},
        {"messages": [Q, A]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    ],
)
def test_trl_completions_are_trained_on_and_paired(tmp_path, row):
    path = put(tmp_path / "x.jsonl", row, {"prompt": "q", "completion": "b"})
    first, second = read_targets(str(path), "final", 0)
    assert (first.prompt, first.completion, first.id) == ([Q], [A], f"{prompt_id([Q])}/row0")
    assert (second.completion, second.id) == ([B], f"{prompt_id([Q])}/row1")
    [pair] = read_pairs([str(path)])
    assert (pair.replies, pair.id) == (["a", "b"], f"{prompt_id([Q])}/0")


def test_trl_rows_beside_our_own_of_the_same_prompt_are_other_rows(tmp_path):
    sample = {"id": f"{prompt_id([Q])}/0", "prompt": [Q], "completion": [A], "finish_reason": "stop"}
    path = put(tmp_path / "x.jsonl", sample, {"prompt": "q", "completion": "b"})
    assert len({target.id for target in read_targets(str(path), "final", 0)}) == 2
    comparison = {
        **PAIRS[1],
        "id": f"{prompt_id([Q])}/0",
        "prompt_id": "p",
        "probability": 1.0,
        "origin": "ai",
    }
    path = put(tmp_path / "y.jsonl", comparison, *PAIRS)
    assert len({row.id for row in read_records(path, RowReader().comparison)}) == 1 + len(PAIRS)


def test_a_row_with_a_field_of_ours_is_read_strictly(tmp_path):
    for extra, problem in (
        ({"probability": 1}, "field `id`"),
        ({"id": "x", "origin": "human"}, "field `probability`"),
    ):
        with pytest.raises(RecordError, match=problem):
            RowReader().comparison({"prompt": [Q], "chosen": [A], "rejected": [B], **extra})
    with pytest.raises(RecordError, match="field `finish_reason`"):
        RowReader().sample({"id": "x", "prompt": [Q], "completion": [A], "finish_reason": None})


def test_texts_that_do_not_start_alike_have_no_prompt():
    with pytest.raises(RecordError, match="no prompt"):
        RowReader().comparison({"chosen": "yes", "rejected": "no"})


# The wrong kind of row

PROMPT, SAMPLE = {"prompt": "q"}, {"id": "i/0", "prompt": [Q], "completion": [A], "finish_reason": "stop"}
REVISION = {"id": "i", "prompt": [Q], "completion": [A], "initial": [B], "rounds": []}


@pytest.mark.parametrize(
    ("words", "row", "told"),
    [
        (("train-pm", "--comparisons"), PROMPT, ("a row of prompts", "`cai sample`")),
        (("train-pm", "--comparisons"), SAMPLE, ("a row of samples", "`cai label --pairs`")),
        (("train-pm", "--comparisons"), {"a": 1}, ("no row of comparisons (fields here: a)", "--columns")),
        (("train-pm", "--comparisons"), {"data": [PROMPT]}, ("rows wrapped in 'data'", "jq")),
        (("train-pm", "--comparisons"), {"prompt": "q", "chosen": "a"}, ("field `rejected`: missing",)),
        (("sft", "--data"), PAIRS[0], ("a row of comparisons", "`cai train-pm`")),
        (("sft", "--data"), PROMPT, ("a row of prompts",)),
        (
            ("sft", "--data"),
            {"prompt": "q", "completion": "a", "label": False},
            ("a row of unpaired preferences", "jq"),
        ),
        (("sft", "--data"), {"messages": [A]}, ("field `prompt`",)),
        (("label", "--pairs"), REVISION, ("a row of revisions", "`cai sft --data`")),
        (
            ("label", "--pairs"),
            {"corrects": [], "incorrects": []},
            ("multiple-choice items", "`cai evaluate hhh`"),
        ),
        (("sample", "--prompts"), {"messages": [A]}, ("there is no user turn in it",)),
        (
            ("sample", "--prompts"),
            {"transcript": "x"},
            ("a row of red-team attempts", "`cai import red-team`"),
        ),
    ],
)
def test_a_row_of_another_kind_is_named_with_the_command_that_takes_it(
    cai: Cai, tmp_path: Path, words, row, told
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    model_flag = "--feedback-model" if words[0] == "label" else "--model"
    out = tmp_path / ("o.jsonl" if words[0] in ("label", "sample") else "o")
    done = cai(*words, put(tmp_path / "x.jsonl", row), model_flag, model, "--out", out)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    for part in ("x.jsonl:1: ", *told):
        assert part in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("format", "row", "told"),
    [
        ("hh-rlhf", {"transcript": "\n\nHuman: q"}, "red-team attempts"),
        ("red-team", PAIRS[-1], "comparisons"),
        ("paper-chains", PROMPT, "prompts"),
        ("ultrafeedback", {"data": [PAIRS[0]]}, "wrapped in 'data'"),
        ("cai-conversation", {"instruction": "q", "output": "a"}, "instructions"),
        ("table", {"data": [PROMPT]}, "no column 'prompt'"),
    ],
)
def test_an_import_of_another_kind_stops_before_the_first_row(
    cai: Cai, tmp_path: Path, format, row, told
) -> None:
    done = cai("import", format, put(tmp_path / "x.jsonl", row, row), "--out", tmp_path / "o.jsonl")
    mistake(done, "x.jsonl:1: ", told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.jsonl"]


def test_every_kind_of_the_table_is_told_from_the_others():
    for kind in KINDS:
        row = dict.fromkeys(kind.fields, "x")
        assert kind_taken(row, kind.name) == kind.name
        with pytest.raises(RecordError):
            kind_taken(row, "nothing else")
