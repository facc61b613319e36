"""Prompts in every shape that is taken, and where a mistake in one of them is."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cai_cli.errors import RecordError, UserError
from cai_cli.rows.conversation import message, prompt_id
from cai_cli.rows.prompt_files import read_prompts

Q, A = message("user", "q"), message("assistant", "a")
TRANSCRIPT = "\n\nHuman: q\n\nAssistant: a"


def put(path: Path, *rows: object) -> str:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


SHAPES = {
    "conversation": {"prompt": [Q]},
    "text": {"prompt": "q"},
    "transcript": {"prompt": "\n\nHuman: q"},
    "transcript with cue": {"prompt": "\n\nHuman: q\n\nAssistant:"},
    "transcript with reply": {"prompt": TRANSCRIPT},
    "transcript without newlines": {"prompt": TRANSCRIPT.strip()},
    "messages": {"messages": [Q, A]},
    "messages that end in a user turn": {"messages": [Q]},
    "hh-rlhf": {"chosen": TRANSCRIPT, "rejected": TRANSCRIPT},
    "preference conversations": {"chosen": [Q, A], "rejected": [Q, A]},
    "other fields": {"prompt": "q", "score": 3, "tags": None},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json"])
def test_shapes(tmp_path, shape, suffix):
    (prompt,) = read_prompts([put(tmp_path / f"x{suffix}", SHAPES[shape])])
    assert (prompt.prompt, prompt.id) == ([Q], prompt_id([Q]))


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_plain_text_is_a_prompt_a_line(tmp_path, suffix):
    prompts = read_prompts([put(tmp_path / f"x{suffix}", "\ufeffone ", "", '{"prompt": "two"}')])
    assert [prompt.prompt[0]["content"] for prompt in prompts] == ["one", '{"prompt": "two"}']


def test_earlier_turns_system_kind_and_source_are_kept(tmp_path):
    talk = [message("system", "s"), Q, A, message("user", "r")]
    row = {"id": "mine", "prompt": talk, "kind": "helpful", "source": "here"}
    (prompt,) = read_prompts([put(tmp_path / "x.jsonl", row)])
    assert prompt.to_row() == row


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"prompt": ', "not a JSON object"),
        ({"prompt": ""}, "field `prompt[0].content`: is empty"),
        ({"prompt": 3}, "field `prompt`: expected a non-empty list"),
        ({"prompt": [Q, A]}, "field `prompt[1].role`"),
        ({"messages": [A]}, "field `messages`"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "field `messages[0].role`"),
        ({"question": "q", "answer": "a"}, "field `prompt`: missing (fields here: answer, question)"),
        ({"chosen": "hello"}, None),
        ({"chosen": "\n\nHuman: \n\nAssistant: a"}, "field `chosen`: empty turn"),
        ({"prompt": "q", "kind": "evil"}, "field `kind`: expected one of harmful, helpful"),
        ('{"prompt": "\\ud800"}', "field `prompt`: holds half of a surrogate pair"),
    ],
)
def test_a_malformed_row_stops_with_its_place_and_field(tmp_path, row, problem):
    path = put(tmp_path / "x.jsonl", {"prompt": "q"}, row)
    if problem is None:
        assert len(read_prompts([path])) == 2
        return
    with pytest.raises(RecordError) as error:
        read_prompts([path])
    assert str(error.value).startswith(f"{path}:2: {problem}")


def test_text_that_is_not_utf8_names_its_line(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\ntwo\nd\xe9j\xe0 vu\n")
    with pytest.raises(RecordError) as error:
        read_prompts([str(path)])
    assert (
        str(error.value)
        == f"{path}:3: not UTF-8 text at byte 2 of the line (text is read as UTF-8: convert it with iconv)"
    )


def test_identical_prompts_are_merged_and_counted(tmp_path, capsys):
    first = put(tmp_path / "a.jsonl", {"prompt": "q"}, {"messages": [Q, A]}, {"prompt": "r"})
    second = put(tmp_path / "b.txt", "r", "s")
    prompts = read_prompts([first, second])
    assert [prompt.prompt[0]["content"] for prompt in prompts] == ["q", "r", "s"]
    assert "merged 2 repeated prompts" in capsys.readouterr().err


def test_given_ids(tmp_path):
    path = put(tmp_path / "a.jsonl", {"id": "1", "prompt": "q"}, {"id": "2", "prompt": "q"})
    again = put(tmp_path / "again.jsonl", {"id": "1", "prompt": "q"})
    assert [prompt.id for prompt in read_prompts([path, again])] == ["1", "2"]
    twice = put(
        tmp_path / "twice.jsonl",
        {"id": "1", "prompt": "q"},
        {"id": "2", "prompt": "q"},
        {"id": "1", "prompt": "q"},
    )
    with pytest.raises(RecordError) as error:
        read_prompts([twice])
    assert str(error.value).startswith(
        f"{twice}:3: field `id`: '1' is on line 1 too (ids are unique in a file)"
    )
    other = put(tmp_path / "b.jsonl", {"prompt": "z"}, {"id": "2", "prompt": "r"})
    with pytest.raises(RecordError) as error:
        read_prompts([path, other])
    assert (
        str(error.value)
        == f"{other}:2: field `id`: '2' is used for two prompts (the other one is at {path}:2; ids are unique)"
    )


def test_limit_proportion_and_empty_sources(tmp_path):
    path = put(tmp_path / "a.txt", *"abcdef")
    assert [prompt.prompt[0]["content"] for prompt in read_prompts([f"{path}:0.5", path], limit=2)] == [
        "a",
        "b",
    ]
    assert len(read_prompts([f"{path}:0.5"])) == 6  # a proportion is the caller's business
    with pytest.raises(UserError, match=r"empty\.jsonl: no prompts in it"):
        read_prompts([put(tmp_path / "empty.jsonl", "")])


def test_a_limit_reads_no_further(tmp_path):
    path = put(tmp_path / "a.jsonl", {"prompt": "q"}, {"prompt": "r"}, "{broken")
    assert len(read_prompts([path], limit=2)) == 2


def test_hub_data_sets(monkeypatch):
    asked = []

    def load_dataset(name, split, streaming):
        asked.append((name, split, streaming))
        if name == "org/nix":
            raise ConnectionError("offline\nmore")
        return [{"prompt": "q"}, {"bad": 1}] if name == "org/bad" else [{"prompt": "q"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert len(read_prompts(["hf:org/name:test"])) == len(read_prompts(["hf:org/name"])) == 1
    assert asked == [("org/name", "test", True), ("org/name", "train", True)]
    with pytest.raises(RecordError, match=r"^hf:org/bad: row 2: field `prompt`: missing"):
        read_prompts(["hf:org/bad"])
    with pytest.raises(
        UserError, match=r"^hf:org/nix: is not cached here, and HF_HUB_OFFLINE is set \(fetch it"
    ):
        read_prompts(["hf:org/nix"])
