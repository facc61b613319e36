"""Reading public files row by row, and preference data by columns: Hub schemas, CSV, JSON lines."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cai_cli.errors import UserError
from cai_cli.importers import preferences, tables
from cai_cli.importers.public_files import check_columns, read_public_rows
from cai_cli.importers.reject import Reject
from cai_cli.importers.tables import Columns
from cai_cli.rows.conversation import message, prompt_id
from cai_cli.rows.records import Comparison, Prompt, Revision


def file(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def outcome(items) -> list:
    return [(item.line, item.reason) if isinstance(item, Reject) else item for item in items]


# Files


def test_json_lines_go_on_after_a_bad_line(tmp_path):
    content = b'\xef\xbb\xbf{"a": 1}\n\n{"a": \xff}\r\n  \n{"a": 2}\r\n"x"\n{"a": "\\uD83D\\uDE42"}\n{"a": "\\udead"}\n{"a": 3}'
    rows = outcome(read_public_rows(file(tmp_path, "x.jsonl", content)))
    assert rows == [
        (1, {"a": 1}),
        (3, "not_utf8"),
        (5, {"a": 2}),
        (6, "not_an_object"),
        (7, {"a": "🙂"}),
        (8, "broken_unicode"),
        (9, {"a": 3}),
    ]


def test_empty_file_has_no_rows(tmp_path):
    assert list(read_public_rows(file(tmp_path, "x.jsonl", " \n"))) == []
    assert list(read_public_rows(file(tmp_path, "y.json", "[ ]"))) == []


@pytest.mark.parametrize("size", [1, 3, 7, 1 << 16])
def test_arrays_do_not_depend_on_the_chunks(tmp_path, monkeypatch, size):
    monkeypatch.setattr("cai_cli.importers.public_files.CHUNK", size)
    items = [
        {"a": 'x"]},{[\\' * 5},
        {"b": [1.5e-300, True, None, "é🙂\u2028"]},
        12345678901234567890,
        "s",
        [],
        {},
    ]
    for separators in ((",", ":"), (" ,\n ", " : ")):
        path = file(tmp_path, "x.json.gz", json.dumps(items, separators=separators) + " \n")
        rows = list(read_public_rows(path))
        values = [row.row if isinstance(row, Reject) else row[1] for row in rows]
        assert values == items and [row.line for row in rows if isinstance(row, Reject)] == [3, 4, 5]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[{"a": 1} {"a": 2}]', "expected ','"),
        (
            '[{"a": 1}, {"a" 2}, {"a": 3, "long enough to be far from the end of the buffer": 0}]',
            "item 2 of the array",
        ),
        ('[{"a": 1}, {"a": "', "item 2 of the array"),
        ('[{"a": 1}', "found 'the end'"),
        ('[{"a": 1}] x', "after the end"),
        ("[{}, ", "item 2 of the array"),
        (b'[{"a": "\xff"}]', "not UTF-8"),
    ],
)
def test_broken_arrays(tmp_path, content, problem):
    with pytest.raises(UserError, match=r"x\.json") as error:
        list(read_public_rows(file(tmp_path, "x.json", content)))
    assert problem in error.value.message


def test_arrays_are_read_in_little_memory(tmp_path):
    path = file(tmp_path, "x.json", "[" + ",".join([json.dumps({"a": "x" * 1000})] * 3000) + "]")
    tracemalloc.start()
    assert sum(1 for _ in read_public_rows(path)) == 3000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 3_000_000 and peak < 1_000_000


def test_csv(tmp_path):
    content = '\ufeffp,c,r\n"a\nb, ""q""",good,bad\n\nonly,two\n"x"y,1,2\nlast,1,2\n'
    rows = outcome(read_public_rows(file(tmp_path, "x.csv.gz", content)))
    assert rows == [
        (3, {"p": 'a\nb, "q"', "c": "good", "r": "bad"}),
        (5, "wrong_number_of_cells"),
        (6, "not_csv"),
        (7, {"p": "last", "c": "1", "r": "2"}),
    ]
    assert outcome(read_public_rows(file(tmp_path, "x.tsv", "a\tb\n1\t,2\n"))) == [(2, {"a": "1", "b": ",2"})]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", ":1: expected a header"),
        ("a,a\n1,2\n", ":1: expected a header"),
        ('a,b\n1,2\n3,"4\n5,6\n', ":3: not valid CSV"),
    ],
)
def test_broken_csv(tmp_path, content, problem):
    with pytest.raises(UserError) as error:
        list(read_public_rows(file(tmp_path, "x.csv", content)))
    assert f"x.csv{problem}" in error.value.message


def test_long_csv_cells(tmp_path):
    rows = list(read_public_rows(file(tmp_path, "x.csv", f"a\n{'x' * 300_000}\n")))
    assert len(rows[0][1]["a"]) == 300_000


def test_a_misspelt_column_stops_before_the_first_row(tmp_path):
    path = file(tmp_path, "x.csv", "prompt,chosen\n1,2\n")
    with pytest.raises(UserError, match=r"x\.csv:2: no column 'promt'") as error:
        list(check_columns(path, read_public_rows(path), ["promt"]))
    assert error.value.hint == "did you mean 'prompt'?"
    assert len(list(check_columns(path, read_public_rows(path), ["chosen"]))) == 1


def test_a_pointer_in_place_of_a_file_of_git_lfs(tmp_path):
    (tmp_path / "test.jsonl.gz").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:39a4\nsize 1053578\n"
    )
    with pytest.raises(UserError, match="pointer of Git LFS") as error:
        list(read_public_rows(tmp_path / "test.jsonl.gz"))
    assert "git lfs pull" in (error.value.hint or "")


@pytest.mark.parametrize("form", ["{row}\n", "[{row}]"])
def test_numbers_that_are_no_json_are_missing_values(tmp_path, form):
    row = '{"transcript": "Human: q", "rating": NaN, "score": -Infinity}'
    items = list(read_public_rows(file(tmp_path, "x.json", form.format(row=row))))
    assert items == [(1, {"transcript": "Human: q", "rating": None, "score": None})]
    json.dumps(items[0][1], allow_nan=False)


def test_missing_files(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError):
            list(read_public_rows(path))


# Pairs by columns

USER, SYSTEM = message("user", "q"), message("system", "s")


def pairs(row: dict, columns: Columns | None = None, **options) -> list:
    return outcome(tables.import_comparisons([(1, row)], columns or Columns(), **options))


def reply(text: str) -> list:
    return [message("assistant", text)]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("q", "a", "b"),
        (" q ", " a ", "b\n"),
        ([USER], reply("a"), reply("b")),
        ("q", [USER, *reply("a")], [USER, *reply("b")]),
        (None, [USER, *reply("a")], [USER, *reply("b")]),
        (None, "\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant: b"),
        ("\n\nHuman: q\n\nAssistant:", "a", "b"),
        ("\n\nHuman: q\n\nAssistant:", "\n\nHuman: q\n\nAssistant: a", "b"),
        (json.dumps([USER]), json.dumps(reply("a")), json.dumps([USER, *reply("b")])),
    ],
)
def test_shapes_of_pairs(prompt, chosen, rejected):
    [item] = pairs({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    assert (item.prompt, item.chosen, item.rejected) == ([USER], reply("a"), reply("b"))
    assert (item.id, item.probability, item.origin) == (f"{prompt_id([USER])}/0", 1.0, "human")
    assert Comparison.from_row(item.to_row()) == item


def test_the_conversation_may_say_more_than_the_prompt_column():
    [item] = pairs(
        {"prompt": "q", "chosen": [SYSTEM, USER, *reply("a")], "rejected": [SYSTEM, USER, *reply("b")]}
    )
    assert item.prompt == [SYSTEM, USER]


def test_text_that_only_looks_like_turns():
    [item] = pairs({"prompt": '[{"id": 1}]', "chosen": "Human: beings", "rejected": "[{not json"})
    assert item.prompt == [message("user", '[{"id": 1}]')]
    assert (item.chosen, item.rejected) == (reply("Human: beings"), reply("[{not json"))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": " a"}, "identical"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "empty_reply"),
        ({"prompt": "q", "chosen": "a"}, "missing_field"),
        ({"chosen": "a", "rejected": "b"}, "missing_field"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "malformed"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "malformed"),
        ({"prompt": reply("q"), "chosen": "a", "rejected": "b"}, "malformed"),
        ({"prompt": "q", "chosen": [USER], "rejected": "b"}, "no_reply"),
        ({"prompt": "q", "chosen": [], "rejected": "b"}, "no_reply"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "no_reply"),
        ({"prompt": "q", "chosen": [USER, {"role": "assistant", "content": 1}], "rejected": "b"}, "not_text"),
        (
            {"chosen": [USER, *reply("a")], "rejected": [message("user", "other"), *reply("b")]},
            "prompts_differ",
        ),
        (
            {"prompt": "other", "chosen": [USER, *reply("a")], "rejected": [USER, *reply("b")]},
            "prompts_differ",
        ),
        ({"prompt": "q", "chosen": [*reply("x"), *reply("a")], "rejected": "b"}, "malformed"),
    ],
)
def test_refused_pairs(row, why):
    assert pairs(row) == [(1, why)]


def test_columns_by_other_names():
    columns = Columns("frage", "gut", "schlecht", id="nr", kind="art", probability="p")
    row = {"frage": "q", "gut": "a", "schlecht": "b", "nr": 7, "art": "helpful", "p": "0.25"}
    [item] = pairs(row, columns, kind="harmful", origin="votes", source="x")
    # a probability under one half turns the pair round
    assert (item.chosen, item.rejected, item.probability) == (reply("b"), reply("a"), 0.75)
    assert (item.id, item.prompt_id, item.kind, item.origin, item.source) == (
        "7/0",
        "7",
        "helpful",
        "votes",
        "x",
    )
    assert pairs({**row, "p": "1.5"}, columns) == [(1, "not_a_probability")]
    assert pairs({**row, "p": "nan"}, columns) == [(1, "not_a_number")]
    assert pairs({**row, "p": ""}, columns) == [(1, "not_a_number")]
    assert pairs({**row, "art": "nice"}, columns) == [(1, "unknown_kind")]
    assert pairs({**row, "art": ""}, columns, kind="harmful")[0].kind == "harmful"


ULTRA = {
    "prompt": "q",
    "prompt_id": "f0e37e9f7800261167ce91143f98f511f768847236f133f2d0aed60b444ebe57",
    "chosen": [USER, *reply("a")],
    "rejected": [USER, *reply("b")],
    "messages": [USER, *reply("a")],
    "score_chosen": 8.5,
    "score_rejected": 3.0,
}


def test_ultrafeedback():
    rows = [
        ULTRA,
        {**ULTRA, "score_rejected": 8.5},
        {**ULTRA, "score_rejected": 9},
        {**ULTRA, "score_chosen": None},
    ]
    first, *others = preferences.import_ultrafeedback(enumerate(rows, 1))
    assert (first.id, first.kind, first.origin) == (f"{ULTRA['prompt_id']}/0", "helpful", "ai")
    assert outcome(others) == [(2, "tied_scores"), (3, "scores_contradict"), (4, "missing_field")]


CAI = {
    "init_prompt": "bad question",
    "init_response": " yes ",
    "critic_prompt": "criticise",
    "critic_response": "was bad",
    "revision_prompt": "revise",
    "revision_response": "no",
    "prompt": "bad question",
    "messages": [],
    "chosen": [message("user", "bad question"), *reply("no")],
    "rejected": [message("user", "bad question"), *reply("yes")],
}


def test_cai_conversations():
    [pair] = preferences.import_cai_comparisons([(1, CAI)])
    assert (pair.chosen, pair.rejected, pair.kind, pair.origin) == (
        reply("no"),
        reply("yes"),
        "harmful",
        "ai",
    )
    old = {
        name: message("x", value) if isinstance(value, str) and name != "prompt" else value
        for name, value in CAI.items()
    }
    for row in (CAI, old):
        [chain] = preferences.import_cai_revisions([(1, row)])
        assert Revision.from_row(chain.to_row()) == chain
        assert (chain.initial, chain.completion) == (reply("yes"), reply("no"))
        step = chain.rounds[0]
        assert (step.critique_request, step.critique, step.revision_request) == (
            "criticise",
            "was bad",
            "revise",
        )
    other = next(iter(preferences.import_cai_revisions([(1, {**CAI, "critic_prompt": "another"})])))
    assert other.rounds[0].principle != step.principle
    assert outcome(preferences.import_cai_revisions([(1, {**CAI, "critic_response": " "})])) == [
        (1, "empty_text")
    ]
    assert outcome(preferences.import_cai_revisions([(1, {**CAI, "init_prompt": None})])) == [
        (1, "missing_field")
    ]


def test_parquet_and_the_hub_have_the_rows_as_they_are_published(tmp_path, monkeypatch):
    """Lists of turns and structs, as datasets writes them; a row that is refused can be kept as JSON, times
    and all.
    """
    import datasets
    import pyarrow
    from pyarrow import parquet

    when = datetime(2024, 2, 2, tzinfo=UTC)
    rows = [{**ULTRA, "at": when}, {**ULTRA, "score_rejected": 8.5, "at": when}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test_prefs-00000-of-00001.parquet")
    first, other = preferences.import_ultrafeedback(
        read_public_rows(tmp_path / "test_prefs-00000-of-00001.parquet")
    )
    assert (first.id, first.chosen) == (f"{ULTRA['prompt_id']}/0", reply("a"))
    assert (other.line, other.reason) == (2, "tied_scores") and json.dumps(other.row)
    datasets.Dataset.from_list([{**CAI, "messages": CAI["chosen"]}]).to_parquet(tmp_path / "chains")
    [chain] = preferences.import_cai_revisions(read_public_rows(tmp_path / "chains"))
    [same] = preferences.import_cai_revisions([(1, CAI)])
    assert chain == same
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="not a readable parquet file"):
        list(read_public_rows(tmp_path / "bad.parquet"))
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, split, streaming: asked.append((name, split)) or [CAI]
    )
    [chain] = preferences.import_cai_revisions(read_public_rows(Path("hf:HuggingFaceH4/cai:test_sft")))
    assert chain == same and asked == [("HuggingFaceH4/cai", "test_sft")]


def test_prompts_by_columns():
    rows = [
        {"x": "q"},
        {"x": [USER, *reply("a")]},
        {"x": "Human: q\n\nAssistant: a"},
        {"x": ""},
        {"x": reply("a")},
        {},
    ]
    items = outcome(
        tables.import_prompts(enumerate(rows, 1), Columns(prompt="x"), kind="helpful", source="s")
    )
    assert items[:3] == [Prompt(prompt_id([USER]), [USER], "helpful", "s")] * 3
    assert items[3:] == [(4, "malformed"), (5, "no_human_turn"), (6, "missing_field")]
    [named] = tables.import_prompts([(1, {"x": "q", "n": "id-1"})], Columns(prompt="x", id="n"))
    assert named.id == "id-1"


def test_nothing_here_imports_torch():
    modules = ["hh_rlhf", "red_team", "paper_chains", "preferences", "tables", "registry"]
    code = f"import sys, cai_cli.rows.splits, cai_cli.prompting.few_shot; from cai_cli.importers import {', '.join(modules)}; "
    code += "print([name for name in ('torch', 'transformers', 'datasets', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
