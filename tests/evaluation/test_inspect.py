"""`cai inspect`: what a reader sees of each kind of file."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cai, mistake

from cai_cli.stages.inspect_file import GAINED, LOST, difference

PROMPT = [{"role": "user", "content": "How do I pick a lock?"}]


def reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def revision(number: int, final: str = "I will not help with that.") -> dict:
    names = ("critique_request", "critique", "revision_request")
    steps = [
        {"principle": "harm", **dict.fromkeys(names, "It harms."), "revision": text}
        for text in ("No, sorry.", final)
    ]
    draft = "Sure, use \x1b[2J a hook. [bold]x[/bold]"
    row = {
        "prompt": PROMPT,
        "completion": reply(final),
        "initial": reply(draft),
        "kind": "harmful",
        "rounds": steps,
    }
    return {"id": f"a/{number}", **row}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_what_changed_word_by_word() -> None:
    parts = difference("keep this old word", "keep this new fine word")
    assert ("old ", LOST) in parts and ("new fine ", GAINED) in parts
    assert "".join(text for text, style in parts if style != LOST) == "keep this new fine word"
    assert "".join(text for text, style in parts if style != GAINED) == "keep this old word"


def test_a_chain_in_plain_text(cai: Cai, tmp_path: Path) -> None:
    file = write(tmp_path / "revisions.jsonl", [revision(0), revision(1, "No, sorry.")])
    shown = cai("inspect", file)
    assert shown.returncode == 0 and shown.stderr == ""
    assert (
        "[-Sure, use \\x1b[2J a hook. [bold]x[/bold]-]" in shown.stdout and "{+No, sorry.+}" in shown.stdout
    )
    assert "\x1b" not in shown.stdout
    assert (
        "round 2: harm" in shown.stdout
        and "revision  (unchanged, keeps 0% of the draft's words)" in shown.stdout
    )
    one = cai("inspect", file, "--from", 2, "--limit", 1)
    assert "row 2  a/1" in one.stdout and "a/0" not in one.stdout
    assert cai("inspect", file, "--id", "a/1").stdout == one.stdout
    mistake(cai("inspect", file, "--id", "b"), "no row with id b")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": "p", "prompt": PROMPT}, "How do I pick a lock?"),
        ({"id": "s", "prompt": PROMPT, "completion": reply("No."), "finish_reason": "stop"}, "stop"),
        ({"id": "r", "reason": "empty", "detail": "nothing", "row": {"line": 3}}, "rejected: empty"),
        (
            {"reason": "not_json", "detail": "", "line": 7, "row": "{broken \u202e"},
            "line: 7\n  row: {broken \\u202e",
        ),
        (
            {
                "id": "c",
                "prompt": PROMPT,
                "chosen": reply("No way."),
                "rejected": reply("Sure way."),
                "probability": 0.75,
            }
            | {"origin": "human"},
            "chosen, probability 0.750, human",
        ),
    ],
)
def test_other_files(cai: Cai, tmp_path: Path, row: dict, expected: str) -> None:
    shown = cai("inspect", write(tmp_path / "rows.jsonl", [row]))
    assert shown.returncode == 0, shown.stderr
    assert expected in shown.stdout


def test_a_malformed_row_is_named(cai: Cai, tmp_path: Path) -> None:
    broken = revision(0)
    del broken["rounds"][1]["revision"]
    result = cai("inspect", write(tmp_path / "revisions.jsonl", [broken]))
    assert result.returncode == 2
    assert "revisions.jsonl:1" in result.stderr and "rounds[1].revision" in result.stderr


def on_a_terminal(*args: object, columns: int) -> list[str]:
    """The lines that `cai ARGS` writes to a terminal of so many columns, without colours."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PAGER": "cat", "COLUMNS": str(columns), "TERM": "xterm"}
    command = [sys.executable, "-m", "cai_cli", *map(str, args)]
    process = subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = b""
    try:
        while block := os.read(ours, 4096):
            written += block
    except OSError:  # the terminal was closed
        pass
    os.close(ours)
    assert process.wait() == 0, written.decode()
    return re.sub(r"\x1b\[[0-9;]*m", "", written.decode()).replace("\r", "").split("\n")


def test_on_a_terminal_lines_that_are_broken_keep_their_indent(tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten eleven twelve thirteen"
    lines = on_a_terminal(
        "inspect", write(tmp_path / "r.jsonl", [revision(0, f"{long}\n    code {long}")]), columns=40
    )
    assert all(len(line) <= 40 for line in lines)
    start = next(n for n, line in enumerate(lines) if line.startswith("  ") and "one two" in line)
    assert all(line.startswith("  ") for line in lines[start : start + 2]) and "thirteen" in " ".join(
        lines[start : start + 4]
    )
    code = next(n for n, line in enumerate(lines) if line.startswith("      code"))
    assert lines[code + 1].startswith("      ") and lines[code + 1].strip()


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path: Path) -> None:
    file = write(tmp_path / "revisions.jsonl", [revision(n) for n in range(400)])
    command = [sys.executable, "-m", "cai_cli", "inspect", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    assert process.stdout.readline().startswith("row 1")
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait() == 141 and said == ""  # 128 + SIGPIPE, as of `cat`


def test_a_file_without_rows_and_a_start_behind_its_end_are_each_one_line(cai: Cai, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    done = cai("inspect", empty)
    assert done.returncode == 0 and done.stderr == f"{empty}: no rows\n", done.stderr
    one = tmp_path / "one.jsonl"
    one.write_text('{"id": "a", "prompt": [{"role": "user", "content": "Hi"}]}\n')
    mistake(cai("inspect", one, "--from", 3), "has 1 rows, none at --from 3")
