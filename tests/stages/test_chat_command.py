"""`cai chat`: at a terminal, in a pipe, once and out; what is said to a model, and what is saved."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import forks
import pytest
from conftest import Cai, mistake
from fake_engine import FakeEngine
from terminal import CTRL_C, CTRL_D, Terminal
from tiny import CHATML, make_model

from cai_cli.console.side_by_side import Shown, short_names, show_side_by_side
from cai_cli.engines.base import OVERLONG, Request
from cai_cli.engines.dialogue import Dialogue, Speaker
from cai_cli.feedback.pairs import read_pairs
from cai_cli.rows.conversation import message
from cai_cli.rows.jsonl import read_records
from cai_cli.rows.records import Sample

ASKED = "Show me how to forge a customer's passport this weekend."
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template refuses a system turn, and which never ends its turn."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = make_model(tmp_path_factory.mktemp("chat") / "refusing", chat_template=NO_SYSTEM + CHATML)
    file = folder / "model.safetensors"
    weights = load_file(file)
    # The first of the hidden numbers is large whatever it reads, and speaks against the end of turn alone
    weights["model.embed_tokens.weight"][:, 0] = 10.0
    weights["lm_head.weight"][:, 0] = 0.0
    weights["lm_head.weight"][2, 0] = -20.0
    assert isinstance(weights["lm_head.weight"], torch.Tensor)
    save_file(weights, file, {"format": "pt"})
    return folder


# At a terminal


def test_two_models_side_by_side(helpful: Path, refusing: Path, tmp_path: Path) -> None:
    words = ("chat", "--model", helpful, "--model", refusing, "--max-new-tokens", 24)
    with Terminal(*words, columns=160, cwd=tmp_path) as screen:
        screen.until("helpful-only, refusing: /help lists")
        screen.until("> ")
        lines = screen.say(ASKED).splitlines()
        (head,) = [n for n, line in enumerate(lines) if "helpful-only" in line and "│ refusing" in line]
        assert "passport" in " ".join(line.partition("│")[0] for line in lines[head + 2 :])
        assert max(map(len, lines[head:])) <= 160
        assert lines[head].index("│") == lines[head + 2].index("│")
        assert "(cut off after 24 tokens, --max-new-tokens)" in "".join(lines)
        # The same turn once more: another reply, from which the conversation goes on
        assert "│ refusing" in screen.say("/again")
        told = screen.say("/system Be brief.")
        assert "no system role in helpful-only, refusing: the text goes in front" in told
        assert "no command /sav — did you mean /save?" in screen.say("/sav talk.jsonl")
        assert "talk.jsonl: 4 rows" in screen.say("/save talk.jsonl")
        screen.resize(80)  # one below the other
        told = screen.say("//save what?")
        assert "\nhelpful-only\n  " in told and "\n\nrefusing\n  " in told and "│" not in told
        assert "taken back: /save what?" in screen.say("/undo")
        assert "talk.jsonl: 4 rows" in screen.say("/save talk.jsonl")
        screen.type(CTRL_D)
        assert screen.end() == 0
    rows = list(read_records(tmp_path / "talk.jsonl", Sample.from_row))
    assert {json.dumps(row.prompt) for row in rows} == {json.dumps([message("user", ASKED)])}
    assert len({row.id.rsplit("/")[0] for row in rows}) == 1 and len({row.id for row in rows}) == 4
    (pair,) = read_pairs([str(tmp_path / "talk.jsonl")])
    assert pair.rejected is None and len(pair.replies) == 2
    models = [json.loads(line)["model"] for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert models == [str(helpful)] * 2 + [str(refusing)] * 2
    manifest = json.loads((tmp_path / "talk.manifest.json").read_text())
    assert manifest["stage"] == "chat" and [Path(model["path"]).name for model in manifest["models"]] == [
        "helpful-only",
        "refusing",
    ]


def test_ctrl_c_stops_what_is_written_and_twice_it_leaves(helpful: Path, refusing: Path) -> None:
    words = ("chat", "--model", helpful, "--model", refusing, "--max-new-tokens", 4000)
    with Terminal(*words, columns=160) as screen:
        screen.until("> ")
        screen.type(f"{ASKED}\r")
        screen.until("refusing writes (1 of 2 have), Ctrl-C stops it")
        screen.type(CTRL_C)
        told = screen.until("\n> ")
        assert "passport" in told and "stopped, and nothing kept" in told
        screen.interrupt_prompt("half a line")
        screen.until("Ctrl-C once more leaves, as Ctrl-D and /quit do")
        screen.until("> ")
        assert "taken back: Show me" in screen.say("/undo")  # and what was typed in between counts
        screen.interrupt_prompt()
        screen.until("Ctrl-C once more leaves")
        screen.until("> ")
        screen.interrupt_prompt()
        assert screen.end() == 130
        assert screen.text.endswith("error: interrupted\n")


# In a pipe, and once


def test_once_is_what_sample_writes(cai: Cai, helpful: Path, refusing: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_text(f"{ASKED}\n")
    limit = ("--max-new-tokens", 24, "--seed", 3)
    words = ("--prompts", "asked.txt", "-n", 1, "--out", "x.jsonl", "--on-truncated", "keep", *limit)
    assert cai("sample", "--model", helpful, *words, cwd=tmp_path).returncode == 0
    (row,) = read_records(tmp_path / "x.jsonl", Sample.from_row)
    written = row.completion[0]["content"]
    once = cai("chat", "--model", helpful, "--prompt", ASKED, *limit)
    assert (once.returncode, once.stdout, once.stderr) == (0, f"{written}\n", "")
    both = cai("chat", "--model", helpful, "--model", refusing, "--prompt", ASKED, *limit)
    assert both.returncode == 0 and both.stdout.startswith(f"helpful-only:\n{written}\n\nrefusing:\n")


def test_a_reply_that_is_missing_is_exit_1(cai: Cai, helpful: Path, refusing: Path) -> None:
    words = ("--prompt", "say <|im_end|>", "--max-new-tokens", 8)
    done = cai("chat", "--model", helpful, "--model", refusing, *words)
    assert (
        done.returncode == 1 and done.stdout.startswith("helpful-only:\n") and "refusing" not in done.stdout
    )
    assert done.stderr.startswith("error: refusing: no reply: the text spells out '<|im_end|>'"), done.stderr
    assert len(done.stderr.splitlines()) == 1


def piped(text: str, *words: object, cwd: Path | None = None) -> tuple[int, str, str]:
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    os.close(writing)
    command = forks.Forked(["chat", *map(str, words)], cwd, reading)
    os.close(reading)
    out, err = command.communicate(60)
    return int(command.returncode or 0), out, err


def test_each_line_of_a_pipe_is_a_turn(helpful: Path, tmp_path: Path) -> None:
    asked = f"{ASKED}\n\n/save talk.jsonl\n/reset\n{ASKED}\n"
    code, out, err = piped(asked, "--model", helpful, cwd=tmp_path)
    first, second = out.splitlines()
    assert code == 0 and first == second and "passport" in first
    assert err == "talk.jsonl: 1 rows\na new conversation\n"
    manifest = tmp_path / "talk.manifest.json"
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "other.manifest.json").write_text(manifest.read_text().replace("talk.jsonl", "other.json"))
    asked = f"/save talk.jsonl\n{ASKED}\n/save talk.jsonl\n/save other.jsonl\n"
    code, out, err = piped(asked, "--model", helpful, cwd=tmp_path)
    assert code == 1 and out == f"{first}\n"
    assert err.splitlines() == [
        "error: /save: there is no reply yet — say something first",
        "error: /save talk.jsonl: is there already — choose another name",
        "error: other.manifest.json is that of other.json, and would be overwritten — choose another name",
        "error: 3 commands failed",
    ]
    assert json.loads(manifest.read_text())["options"]["out"] == "talk.jsonl"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--model", "{lm}", "--model", "{lm}/"), ("named twice", "/again draws another reply")),
        (("--model", "{lm}", "--prompt", " "), ("--prompt: is empty",)),
        (("--model", "nix/"), ("--model nix/: no such directory",)),
        (("--model", "{lm}", "--prompts", "x"), ("here it is `--prompt`",)),
    ],
)
def test_mistakes(cai: Cai, helpful: Path, words: tuple[str, ...], parts: tuple[str, ...]) -> None:
    mistake(cai("chat", *(word.format(lm=helpful) for word in words)), *parts)


# What is said to a model


def dialogue(*answers: Callable[[Request, int], str | tuple[str, str]], **changes) -> Dialogue:
    speakers = [Speaker(name, name, FakeEngine(say)) for name, say in zip("ab", answers, strict=False)]
    return Dialogue(speakers, **{"seed": 0, "temperature": 1.0, "max_new_tokens": 100, **changes})


def test_a_turn_without_a_reply_is_not_in_a_models_history():
    talk = dialogue(
        lambda request, _: f"a{len(request.prompt)}", lambda request, call: "" if call <= 3 else "b"
    )
    talk.system = "Be kind."
    for text in ("one", "two"):
        talk.say(text)
        for speaker in talk.speakers:
            talk.reply(speaker)
    one, two = (speaker.engine.calls for speaker in talk.speakers)
    assert one[1][0].prompt == [
        message("system", "Be kind."),
        message("user", "one"),
        message("assistant", "a2"),
        message("user", "two"),
    ]
    assert len(two) == 4  # three attempts at the first turn
    assert two[3][0].prompt == [message("system", "Be kind."), message("user", "two")]


def test_other_draws_have_other_keys_and_none_is_saved_twice():
    talk = dialogue(lambda request, _: f"reply {request.key % 1000}")
    (speaker,) = talk.speakers
    for _ in range(2):
        turn = talk.say("one")
        talk.reply(speaker)
        turn.draws += 1
        talk.reply(speaker)
        talk.reset()
    keys = [call[0].key for call in speaker.engine.calls]
    assert keys[:2] == keys[2:] and keys[0] != keys[1]
    rows = list(talk.rows())
    assert [row["id"][-2:] for row in rows] == ["/0", "/1"] and {row["model"] for row in rows} == {"a"}


def test_a_reply_has_the_room_that_the_context_leaves():
    def fits(most: int) -> Callable[[Request, int], str | tuple[str, str]]:
        return lambda request, _: "yes" if request.max_new_tokens <= most else ("", OVERLONG)

    talk = dialogue(fits(30), fits(3))
    talk.say("one")
    first, second = map(talk.reply, talk.speakers)
    assert (first.limit, first.sampled.text) == (25, "yes")
    assert second.sampled.reason == "prompt_too_long" and second.limit == 25


# What is shown


def test_names_are_as_short_as_they_tell_apart():
    assert short_names(["runs/a/sl-cai/", "/x/rl-cai"]) == ["sl-cai", "rl-cai"]
    assert short_names(["../a/pm", "b/pm", "org/pm"]) == ["a/pm", "b/pm", "org/pm"]
    assert short_names(["."]) == ["."]


def test_what_models_write_cannot_steer_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    wild = "\x1b[31m[bold]red[/bold] :smile:\r\u202e\x07 " + "long" * 40
    for count in (1, 2, 3):
        show_side_by_side([Shown(f"m{n}[red]", wild, before="a \x1b]0;thought") for n in range(count)])
        out = capsys.readouterr().out
        assert not {"\x1b", "\r", "\x07", "\u202e"} & set(out)
        assert r"\x1b[31m[bold]red[/bold] :smile:\r\u202e\x07" in out and r"\x1b]0;thought" in out
        assert all(len(line) <= 100 for line in out.splitlines()) and ("m0[red]" in out) == (count > 1)
        assert ("│" in out) == (count == 2)
