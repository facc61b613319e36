"""`cai pmp --data-only`: the pairs of a dump as a file, without a model."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import mistake
from stack_exchange_dumps import answer, dump, question, site_rows

from cai_cli.rows.jsonl import read_records
from cai_cli.rows.records import Comparison


def rows_of(folder: Path) -> list[Comparison]:
    return list(read_records(folder / "comparisons.jsonl", Comparison.from_row))


def test_data_only_needs_no_model_and_gives_one_pair_a_usable_question(cai, tmp_path):
    posts = dump(tmp_path / "s.Posts.xml", site_rows())
    out = tmp_path / "pmp"
    done = cai("pmp", "--posts", posts, "--data-only", "--out", out)
    assert done.returncode == 0, done.stderr
    rows = rows_of(out)
    assert len(rows) == 24  # of 40 questions 8 have one answer, 8 two of equal score
    assert {(row.probability, row.origin, row.source) for row in rows} == {(1.0, "votes", "s")}
    counts = json.loads((out / "comparisons.manifest.json").read_text())["counts"]
    assert (counts["questions"], counts["usable_questions"], counts["pairs"], counts["out"]) == (
        40,
        24,
        24,
        24,
    )
    assert "questions" in done.stderr and "24" in done.stderr
    assert not (out / "cai.json").exists() and not (out / "comparisons.rejects.jsonl").exists()

    content = (out / "comparisons.jsonl").read_bytes()
    again = cai("pmp", "--posts", posts, "--data-only", "--out", out)
    assert again.returncode == 0 and "already done" in again.stderr
    mistake(
        cai("pmp", "--posts", posts, "--data-only", "--binarise", "--out", out),
        "--binarise was False, now True",
    )
    assert (out / "comparisons.jsonl").read_bytes() == content
    mistake(cai("pmp", "--posts", posts, "--out", out), "--model is missing", "--data-only")


def test_binarise_doubles_the_rows(cai, tmp_path):
    posts = dump(tmp_path / "s.Posts.xml", [question(1), answer(2, 1, 5), answer(3, 1, 0)])
    assert (
        cai("pmp", "--posts", posts, "--data-only", "--binarise", "--out", tmp_path / "pmp").returncode == 0
    )
    texts = [(row.chosen[0]["content"], row.rejected[0]["content"]) for row in rows_of(tmp_path / "pmp")]
    assert texts == [
        ("GOOD: Answer number 2.", "BAD: Answer number 2."),
        ("BAD: Answer number 3.", "GOOD: Answer number 3."),
    ]


def test_a_dump_without_a_pair_fails_and_says_what_was_read(cai, tmp_path):
    posts = dump(
        tmp_path / "s.Posts.xml",
        [question(1), answer(2, 1, 5), question(3), answer(4, 3, 1), answer(5, 3, 1)],
    )
    result = cai("pmp", "--posts", posts, "--data-only", "--out", tmp_path / "pmp")
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert "2 questions and 3 answers were read" in result.stderr
    assert not list((tmp_path / "pmp").glob("comparisons.jsonl*"))
