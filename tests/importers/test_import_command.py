"""`cai import`, `cai export` and splits through the command line: every row arrives or is named, nothing is
ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Cai, mistake

from cai_cli.rows.conversation import first_human_turn
from cai_cli.rows.splits import group_key


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def chain(number: int, **extra: str) -> dict:
    """A published chain in the schema of the paper's files."""
    step = {
        "critique": {"sample": " It is rude."},
        "revision": {"sample": f" Kind words {number}.\n\nHuman:"},
    }
    value = {
        "prompt": ["\n\nCritiqueRequest: Why?\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Mend it.\n\nRevision:",
    }
    steps = [{"cst_key": f"harmful{n}", "cst_value": value, **step} for n in range(4)]
    head = {
        "rl_prompt": f"\n\nHuman: Insult me {number}.\n\nAssistant:",
        "comparison_dataset": "LaMDA",
        **extra,
    }
    return {**head, "initial_response": [{"sample": " You fool.\n\nHuman:"}], "cst": steps}


def test_chains_of_other_files_come_back_as_published(cai: Cai, tmp_path: Path) -> None:
    published = [chain(1, comparison_model="Another reply."), chain(2, comparison_model="")]
    file = tmp_path / "LAMDA_SLMADISON.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in published), encoding="utf-8")
    assert cai("import", "paper-chains", file, "--out", tmp_path / "chains.jsonl").returncode == 0
    chains = rows(tmp_path / "chains.jsonl")
    assert [len(row["rounds"]) for row in chains] == [4, 4]
    assert chains[0]["completion"][0]["content"] == "Kind words 1."
    assert [step["principle"] for step in chains[0]["rounds"]] == [
        "harmful0",
        "harmful1",
        "harmful2",
        "harmful3",
    ]
    assert (
        cai("export", "paper-chains", tmp_path / "chains.jsonl", "--out", tmp_path / "back.jsonl").returncode
        == 0
    )
    assert rows(tmp_path / "back.jsonl") == published


def test_the_published_chains_come_back(cai: Cai, data: Callable[[str], Path], tmp_path: Path) -> None:
    file = data("constitutional-ai/PALMS_SLMADISON.jsonl")
    assert cai("import", "paper-chains", file, "--out", tmp_path / "chains.jsonl").returncode == 0
    assert (
        cai("export", "paper-chains", tmp_path / "chains.jsonl", "--out", tmp_path / "back.jsonl").returncode
        == 0
    )
    assert rows(tmp_path / "back.jsonl") == rows(file)
    again = cai("export", "paper-chains", tmp_path / "chains.jsonl", "--out", tmp_path / "back.jsonl")
    assert again.returncode == 0 and "nothing to do" in again.stderr


def test_no_part_takes_the_place_of_the_whole(cai: Cai, tmp_path: Path) -> None:
    """The whole import lies beside the parts, and the same command again reads it."""
    file = tmp_path / "attempts.jsonl"
    attempts = [{"transcript": f"\n\nHuman: attempt {n}\n\nAssistant: no"} for n in range(9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in attempts), encoding="utf-8")
    words = ("import", "red-team", file, "--out", tmp_path / "parts", "--split")
    mistake(cai(*words, "all=0.5,test=0.5"), "--split: no part can be called 'all'", "all.jsonl")
    assert not (tmp_path / "parts").exists()
    for _ in range(2):
        assert cai(*words, "most=0.5,test=0.5").returncode == 0
        assert len(rows(tmp_path / "parts/all.jsonl")) == 9


def test_conversations_never_straddle_a_split(cai: Cai, data: Callable[[str], Path], tmp_path: Path) -> None:
    file = data("hh-rlhf/harmless-base-test-1500.jsonl.gz")
    split = ("--every-turn", "--split", "sft=0.5,rl=0.3,test=0.2")
    done = cai("import", "hh-rlhf", file, "--to", "prompts", *split, "--out", tmp_path / "parts")
    assert done.returncode == 0, done.stderr
    parts = {name: rows(tmp_path / "parts" / f"{name}.jsonl") for name in ("sft", "rl", "test")}
    starts = [{group_key(first_human_turn(row["prompt"])) for row in part} for part in parts.values()]
    assert not starts[0] & starts[1] and not starts[0] & starts[2] and not starts[1] & starts[2]
    assert sum(map(len, parts.values())) == len(rows(tmp_path / "parts" / "all.jsonl")) > 1500


def test_a_table_with_quotes_newlines_and_bad_rows(cai: Cai, tmp_path: Path) -> None:
    file = tmp_path / "questions.csv"
    file.write_bytes('\ufeffquestion,topic\r\n"Say ""hi"",\nplease",a\r\n,b\r\nWhy?,c\r\n'.encode())
    out = tmp_path / "prompts.jsonl"
    done = cai("import", "table", file, "--columns", "prompt=question", "--out", out)
    assert done.returncode == 0, done.stderr
    assert [row["prompt"][0]["content"] for row in rows(out)] == ['Say "hi",\nplease', "Why?"]
    assert len(rows(tmp_path / "prompts.rejects.jsonl")) == 1
    mistake(
        cai("import", "table", file, "--columns", "prompt=qestion", "--out", tmp_path / "b.jsonl"),
        "qestion",
        "question",
    )


def test_red_team_attempts_as_an_array_and_as_lines(cai: Cai, tmp_path: Path) -> None:
    attempts = [{"transcript": f"\n\nHuman: Bad {n}?\n\nAssistant: No.", "rating": 1.0} for n in range(3)]
    (tmp_path / "array.json").write_text(json.dumps(attempts), encoding="utf-8")
    (tmp_path / "lines.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in attempts), encoding="utf-8"
    )
    for name in ("array.json", "lines.jsonl"):
        assert (
            cai("import", "red-team", tmp_path / name, "--out", tmp_path / f"{name}.out.jsonl").returncode
            == 0
        )
    assert rows(tmp_path / "array.json.out.jsonl") == rows(tmp_path / "lines.jsonl.out.jsonl")
    assert len(rows(tmp_path / "array.json.out.jsonl")) == 3


@pytest.mark.parametrize(
    "words", [("--every-turn",), ("--limit", 3), ("--split", "a=1"), ("--kind", "harmful")]
)
def test_flags_that_a_constitution_has_no_use_for(cai: Cai, tmp_path: Path, words: tuple) -> None:
    (tmp_path / "c.json").write_text("{}", encoding="utf-8")
    result = cai("import", "paper-constitution", tmp_path / "c.json", "--out", tmp_path / "c.yaml", *words)
    mistake(result, f"{words[0]} is for rows")


def test_a_constitution_is_written_once_and_anew_on_request(cai: Cai, tmp_path: Path) -> None:
    value = {
        "prompt": ["\n\nCritiqueRequest: Why?\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Mend it.\n\nRevision:",
    }
    (tmp_path / "c.json").write_text(json.dumps({"a": value}), encoding="utf-8")
    command = ("import", "paper-constitution", tmp_path / "c.json", "--out", tmp_path / "c.yaml")
    assert "1 principles" in cai(*command).stderr and "nothing to do" in cai(*command).stderr
    first = (tmp_path / "c.yaml").read_bytes()
    (tmp_path / "c.json").write_text(json.dumps({"a": value, "b": value}), encoding="utf-8")
    mistake(cai(*command), "c.yaml was made differently: --file has other content")
    assert (tmp_path / "c.yaml").read_bytes() == first
    assert "2 principles" in cai(*command, "--if-changed", "restart").stderr
    assert (tmp_path / "c.yaml.bak").read_bytes() == first
    assert "cai import" in cai("lineage", tmp_path / "c.yaml").stdout


def test_kind_and_source_are_kept_or_refused(cai: Cai, tmp_path: Path) -> None:
    file = tmp_path / "chains.jsonl"
    file.write_text(json.dumps(chain(1)) + "\n", encoding="utf-8")
    command = ("import", "paper-chains", file, "--out", tmp_path / "out.jsonl", "--kind", "helpful")
    mistake(cai(*command, "--source", "x"), "--source: revisions have no place for it")
    assert cai(*command).returncode == 0 and rows(tmp_path / "out.jsonl")[0]["kind"] == "helpful"
    turns = [{"role": "user", "content": "q"}]
    pair = {name: [*turns, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    file = tmp_path / "ultra.jsonl"
    file.write_text(
        json.dumps({**pair, "prompt_id": "p", "score_chosen": 8, "score_rejected": 3}) + "\n",
        encoding="utf-8",
    )
    command = (
        "import",
        "ultrafeedback",
        file,
        "--out",
        tmp_path / "pairs.jsonl",
        "--kind",
        "harmful",
        "--source",
        "mine",
    )
    assert cai(*command).returncode == 0
    assert [(row["kind"], row["source"], row["origin"]) for row in rows(tmp_path / "pairs.jsonl")] == [
        ("harmful", "mine", "ai")
    ]


@pytest.mark.parametrize(
    ("columns", "to", "told"),
    [
        ("prompt=q,completion=a", "prompts", "--columns completion=...: prompts have no place for it"),
        ("prompt=q,rejected=a", "samples", "--columns rejected=...: samples have no place for it"),
        (
            "prompt=q,probability=a,completion=a",
            "comparisons",
            "--columns completion=...: comparisons have no",
        ),
    ],
)
def test_a_column_that_is_named_is_read(cai: Cai, tmp_path: Path, columns: str, to: str, told: str) -> None:
    (tmp_path / "x.csv").write_text("q,a\nWhy?,Because.\n")
    words = ("import", "table", "x.csv", "--columns", columns, "--to", to, "--out", "x.jsonl")
    mistake(cai(*words, cwd=tmp_path), told, "or pass --to ")
    done = cai(
        "import",
        "table",
        "x.csv",
        "--columns",
        "prompt=q,completion=a",
        "--to",
        "samples",
        "--out",
        "x.jsonl",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_a_constitution_without_its_comparisons_is_told(cai: Cai, tmp_path: Path) -> None:
    value = {
        "prompt": ["\n\nCritiqueRequest: Why?\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Mend it.\n\nRevision:",
    }
    (tmp_path / "c.json").write_text(json.dumps({"a": value}))
    (tmp_path / "r.json").write_text(json.dumps(["\nWhich is better? Options:"]))
    done = cai("import", "paper-constitution", "c.json", "--out", "c.yaml", cwd=tmp_path)
    assert "warning: no --comparisons: `label` will ask the same general question" in done.stderr
    done = cai(
        "import", "paper-constitution", "c.json", "--comparisons", "r.json", "--out", "d.yaml", cwd=tmp_path
    )
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
