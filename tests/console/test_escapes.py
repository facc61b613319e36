"""Whatever is in a name, a file or a model's text, what a person is shown cannot steer the terminal, and an
error is one line.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import mistake

from cai_cli.console.messages import LONGEST, fail, progress, say, show_text, table, visible, warn
from cai_cli.rows.conversation import message

# A colour, the 8-bit form of the same, text turned round, a line's end, a bell, and what no terminal shows.
BAD = "\x1b[31mred\x9b0m\u202etxt\r\nerror: forged\x07\u200b"
SAID = "\\x1b[31mred\\x9b0m\\u202etxt"
STEERS = [
    chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x200B, 0x202E, 0x2028, 0x2066, 0xFEFF, 0xE0041)
]


def unharmed(text: str) -> None:
    """Nothing in the text but the ends of its lines steers."""
    found = [character for character in text if character in STEERS and character != "\n"]
    assert not found, (found, text)


def put(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return put(tmp_path / "prompts.jsonl", {"prompt": "one"}, {"prompt": "two"})


def said(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    unharmed(result.stdout + mistake(result, *parts))


def test_names_of_files_fields_and_ids(cai, tmp_path, prompts):
    out = tmp_path / "out"
    said(cai("split", tmp_path / f"{BAD}.jsonl", "--parts", "a=1", "--out", out), SAID, "no such file")
    field = put(tmp_path / "field.jsonl", {BAD: 1})
    said(cai("split", field, "--parts", "a=1", "--out", out), "field.jsonl:1", SAID)
    twice = put(tmp_path / "id.jsonl", {"id": BAD, "prompt": "one"}, {"id": BAD, "prompt": "two"})
    said(cai("split", twice, "--parts", "a=1", "--out", out), "id.jsonl:2")
    said(cai("inspect", prompts, "--id", BAD), SAID)
    said(cai("lineage", tmp_path / BAD), SAID)


def test_options_and_arguments_of_typers_own_mistakes(cai, tmp_path, prompts):
    for words in (
        (BAD,),
        ("split", prompts, f"--{BAD}"),
        ("split", prompts, "--parts", "a=1", "--out", "o", "--seed", BAD),
    ):
        said(cai(*words))
    said(cai("split", prompts, "--parts", f"{BAD}=x", "--out", tmp_path / "out"))


def test_keys_of_configurations_and_principles(cai, tmp_path, prompts):
    config = tmp_path / "c.yaml"
    config.write_text('"\\e[31mkey\\u202e": 1\n')
    said(cai("split", prompts, "--config", config), "unknown key `\\x1b[31mkey\\u202e`")
    texts = "critique: c, revision: r, comparison: d"
    own = tmp_path / "own.yaml"
    own.write_text(f'principles:\n- {{id: "\\e[1m", {texts}}}\n- {{id: "\\e[1m", {texts}}}\n')
    said(cai("constitution", "check", own), "\\x1b[1m", "twice")
    own.write_text(f'principles:\n- {{"\\e[2J": x, id: a, {texts}}}\n')
    said(cai("constitution", "check", own), "\\x1b[2J")
    own.write_text(f'name: "\\e[2J"\nprinciples:\n- {{id: "i\\e[1m", {texts}}}\n')
    checked = cai("constitution", "check", own)
    assert checked.returncode == 0 and "i\\x1b[1m" in checked.stderr
    unharmed(checked.stderr)


def test_an_error_is_short_and_keeps_its_next_step(cai, tmp_path, prompts, capsys):
    field = put(tmp_path / "field.jsonl", {"start" + "x" * 5000 + "end": 1})
    line = mistake(
        cai("split", field, "--parts", "a=1", "--out", tmp_path / "out"), "…", "give prompt, messages"
    )
    assert len(line) == LONGEST and "start" in line
    assert len(mistake(cai("split", prompts, "--" + "y" * 3000), "…", "see `cai split --help`")) <= LONGEST
    fail("m" * 2000, "h" * 2000)
    warn("w" * 2000)
    lines = capsys.readouterr().err.splitlines()
    assert [len(line) for line in lines] == [LONGEST, LONGEST] and lines[0].count("…") == 2
    fail("m" * 20, "h" * 240)
    assert capsys.readouterr().err == f"error: {'m' * 20} — {'h' * 240}\n"


def test_lines_that_an_old_terminal_cannot_show_are_short_too(tmp_path):
    """What is spelled out for its encoding counts."""
    command = [
        sys.executable,
        "-m",
        "cai_cli",
        "split",
        f"{tmp_path}/{'é' * 100}",
        "--parts",
        "a=1",
        "--out",
        "x",
    ]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [*command, "--" + "ü" * 900], env=environment, capture_output=True, text=True, check=False
    )
    assert (
        done.returncode == 2
        and len(done.stderr) <= LONGEST + 1
        and done.stderr.isascii()
        and "\\u2026" in done.stderr
    )


def test_names_that_are_no_text(cai, tmp_path, prompts):
    """A file's name may hold any bytes; they come as halves of surrogate pairs."""
    odd = shutil.copy(prompts, os.fsencode(tmp_path) + b"/\xff.jsonl")
    missing = mistake(
        cai("split", os.fsdecode(os.fsencode(tmp_path) + b"/\xfe"), "--parts", "a=1", "--out", tmp_path / "o")
    )
    assert "\\udcfe: no such file" in missing
    done = cai("split", os.fsdecode(odd), "--parts", "a=1", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    tree = cai("lineage", tmp_path / "out" / "a.jsonl")
    assert (
        tree.returncode == 0 and "\\udcff.jsonl" in tree.stdout and "stale" not in tree.stdout + tree.stderr
    ), tree


def test_all_ways_to_say_a_thing(capsys):
    say(BAD)
    warn(BAD)
    fail(BAD, BAD)
    table(BAD, ["a\nb", BAD], [[BAD, "1"], ["2", BAD]])
    with progress(BAD, 1) as advance:
        advance(1, BAD)
    told = capsys.readouterr().err
    unharmed(told)
    assert told.count("\\x1b[31m") >= 8 and "\\r\\nerror: forged\\x07\\u200b" in told
    assert next(line for line in told.splitlines() if line.startswith("error:")).count("forged") == 2
    show_text("a\tb\nسلام\u200cها 👩\u200d🚀\x1b")
    assert capsys.readouterr().out == "a\tb\nسلام\u200cها 👩\u200d🚀\\x1b\n"


@pytest.mark.parametrize("character", [*STEERS, "\ud800", "\x85", "\u2029", "\u2069", "\u061c", "\U000e0101"])
def test_each_character_that_steers_is_spelled_out(character):
    assert visible(f"a{character}b").isprintable() and visible(f"a{character}b") == visible(
        visible(f"a{character}b")
    )


def test_what_is_printed_to_be_read(cai, tmp_path, prompts, llama):
    """Pages, trees, constitutions and dry runs; rows are data and stay as they are."""
    rows = put(tmp_path / "rows.jsonl", {"id": BAD, "prompt": [message("user", f"q {BAD}")]})
    shown = cai("inspect", rows)
    assert shown.returncode == 0 and "\\x1b[31m" in shown.stdout, shown.stderr
    unharmed(shown.stdout)
    rejects = put(
        tmp_path / "r.jsonl", {"id": "x", "reason": BAD, "detail": BAD, "line": BAD, "row": {BAD: BAD}}
    )
    shown = cai("inspect", rejects)
    assert shown.returncode == 0, shown.stderr
    unharmed(shown.stdout)

    own = tmp_path / "own.yaml"
    own.write_text(
        "principles:\n- {id: a, critique: turned \u202e round, revision: é, comparison: d}\n",
        encoding="utf-8",
    )
    shown = cai("constitution", "show", own)
    assert shown.returncode == 0 and "turned \\u202e round, revision: é" in shown.stdout
    attempts = put(tmp_path / "attempts.jsonl", {"transcript": f"\n\nHuman: {BAD}\n\nAssistant: no"})
    for words in (
        ("import", "red-team", attempts, "--out", tmp_path / "dry.jsonl", "--dry-run"),
        (
            "sample",
            "--model",
            llama,
            "--prompts",
            put(tmp_path / "p.jsonl", {"prompt": BAD}),
            "--out",
            "d.jsonl",
            "--dry-run",
        ),
    ):
        shown = cai(*words, cwd=tmp_path)
        assert shown.returncode == 0 and "forged" in shown.stdout, shown.stderr
        unharmed(shown.stdout)
    data = cai("import", "red-team", attempts, "--out", "-", cwd=tmp_path)
    assert BAD.strip().replace("\r\n", "\n") in json.loads(data.stdout)["prompt"][0]["content"]


def test_the_tree_of_things_with_odd_names(cai, tmp_path, prompts):
    folder = tmp_path / "\x1b[31m"
    folder.mkdir()
    assert cai("split", prompts, "--parts", "a=1", "--out", folder / "s\u202e").returncode == 0
    manifest = folder / "s\u202e" / "a.manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"stage": "x\x1b[2J"}))
    shown = cai("lineage", folder / "s\u202e" / "a.jsonl")
    assert shown.returncode == 0 and "\\x1b[31m" in shown.stdout and "x\\x1b[2J" in shown.stdout
    unharmed(shown.stdout)
