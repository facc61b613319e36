"""Readers that have gone, a full disk behind stdout, streams that are closed: quiet or one line, and the work
goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cai_cli.rows.conversation import message
from cai_cli.rows.jsonl import read_rows

ROOM = "make room, or choose a place that can be written to"


def put(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shell(line: str, *words: object) -> subprocess.CompletedProcess[str]:
    """A line of bash in which `"$@"` is the command."""
    command = ["bash", "-c", line, "bash", sys.executable, "-m", "cai_cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    put(folder / "prompts.jsonl", *({"prompt": [message("user", f"question {n} " * 20)]} for n in range(500)))
    put(
        folder / "attempts.jsonl",
        *({"transcript": f"\n\nHuman: attempt {n}\n\nAssistant: no"} for n in range(900)),
    )
    return folder


@pytest.mark.parametrize(
    "words", ["--help", "--version", "sft --help", "constitution show article", "inspect {}/prompts.jsonl"]
)
@pytest.mark.parametrize(
    "line", ['"$@" | true; exit ${PIPESTATUS[0]}', '"$@" >&-', '"$@" | head -c 1 >/dev/null']
)
def test_output_that_nobody_reads_is_quiet(world, words, line):
    done = shell(line, *words.replace("{}", str(world)).split())
    assert done.returncode in (0, 141) and done.stderr == "", done


def test_rows_for_a_reader_that_has_gone(world):
    words = ("import", "red-team", world / "attempts.jsonl", "--out", "-")
    assert shell('"$@" | head -1; exit ${PIPESTATUS[0]}', *words).stderr == ""
    done = shell('"$@" | sleep 0; exit ${PIPESTATUS[0]}', *words)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_behind_stdout(cai, world, tmp_path):
    for words in (
        "--help",
        "--version",
        "constitution show article",
        f"import red-team {world}/attempts.jsonl --out -",
    ):
        done = shell('"$@" >/dev/full', *words.split())
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
        assert f"No space left on device — {ROOM}" in done.stderr
    (tmp_path / "full.jsonl.partial").symlink_to("/dev/full")
    done = cai("import", "red-team", world / "attempts.jsonl", "--out", tmp_path / "full.jsonl")
    assert done.returncode in (1, 2) and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    "line", ['"$@" 2>&-', '"$@" 2>/dev/full', '"$@" 2>&1 >&3 3>&- | true', '"$@" >&- 2>&-']
)
def test_work_goes_on_where_nobody_listens(world, tmp_path, line):
    """Neither is the talk mixed into the rows, nor does it stop the work."""
    out = tmp_path / "rows.jsonl"
    done = shell(f"exec 3>&1; {line}", "import", "red-team", world / "attempts.jsonl", "--out", out)
    assert done.stdout == "" and len(list(read_rows(out))) == 900, done
    streamed = shell('2>&- exec "$@"', "import", "red-team", world / "attempts.jsonl", "--out", "-")
    assert [json.loads(row)["id"] for row in streamed.stdout.splitlines()] == [
        row["id"] for _, row in read_rows(out)
    ]
