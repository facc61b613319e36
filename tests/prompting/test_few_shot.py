"""Demonstrations: the shipped sets, the paper's published files, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cai_cli.console.groups import build
from cai_cli.errors import UserError
from cai_cli.prompting import few_shot
from cai_cli.prompting.prompts import critique_prompt
from cai_cli.rows.conversation import message

STEP = "\n\nCritiqueRequest: cr\n\nCritique: c\n\nRevisionRequest: rr\n\nRevision: r"
DEMO = "\n\nHuman: h\n\nAssistant: a" + STEP


def public(name: str) -> Path:
    folder = os.environ.get("CAI_TEST_DATA")
    if not folder or not (path := Path(folder) / name).exists():
        pytest.skip(f"set CAI_TEST_DATA to a folder that holds {name}")
    return path


def write(path: Path, value: object) -> str:
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


def test_shipped_critique_demonstrations_are_whole_transcripts():
    texts = few_shot.load_critique_demonstrations("default")
    assert len(texts) == 5
    for text in texts:
        marks = [
            "\n\nHuman: ",
            "\n\nAssistant: ",
            "\n\nCritiqueRequest: ",
            "\n\nCritique: ",
            "\n\nRevisionRequest: ",
        ]
        places = [text.index(mark) for mark in [*marks, "\n\nRevision: "]]
        assert places == sorted(places) and places[0] == 0
        assert text == text.rstrip() and "  " not in text
    assert texts == few_shot.load_critique_demonstrations("critique_revision")


def test_prefix_joins_with_the_prompt_and_none_is_empty():
    prefix = few_shot.few_shot_prefix([DEMO, DEMO])
    prompt = critique_prompt([message("user", "q")], "a", "cr", prefix)
    assert (
        prompt.count("\n\nHuman: ") == 3
        and "\n\nHuman:\n" not in prompt
        and prompt.startswith("\n\nHuman: h")
    )
    assert few_shot.few_shot_prefix(few_shot.load_critique_demonstrations("none")) == ""


def test_published_critique_demonstrations():
    path = public("constitutional-ai/CritiqueRevisionFewShotPrompts.json")
    published = json.loads(path.read_text(encoding="utf-8"))
    texts = few_shot.load_critique_demonstrations(str(path))
    assert len(texts) == 5
    assert [text + "\n\nHuman:" for n, text in enumerate(texts) if n != 3] == [
        p for n, p in enumerate(published) if n != 3
    ]
    assert texts[3] == published[3]


def test_dangling_turns_are_cut(tmp_path):
    items = [
        DEMO + "\n\nHuman:",
        DEMO + "\n\nHuman: ",
        DEMO,
        DEMO + "\n\nHuman:\n\nAssistant:",
        DEMO.strip() + "\n",
    ]
    assert few_shot.load_critique_demonstrations(write(tmp_path / "a.json", items)) == [DEMO] * 5


@pytest.mark.parametrize(
    "item",
    [
        "",
        "\n\nHuman: h",
        "\n\nHuman: h\n\nAssistant: a\n\nRevision: r\n\nRevisionRequest: rr",
        DEMO[:-2],
        {"prompt": "h"},
        3,
    ],
)
def test_broken_critique_demonstrations_name_file_and_number(tmp_path, item):
    with pytest.raises(UserError, match=r"a\.json: demonstrations\[1\]"):
        few_shot.load_critique_demonstrations(write(tmp_path / "a.json", [DEMO, item]))


def test_missing_field_is_named(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "demonstrations:\n  - {prompt: h, response: a, critique_request: b, critique: c, revision: d}\n"
    )
    with pytest.raises(UserError, match=r"demonstrations\[0\]: field `revision_request`"):
        few_shot.load_critique_demonstrations(str(path))


@pytest.mark.parametrize("content", ["[1,", "[]", "{}"])
def test_broken_files(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"a\.json"):
        few_shot.load_critique_demonstrations(str(path))
    path = tmp_path / "b.yaml"
    path.write_text("a: [1,\nb: }")
    with pytest.raises(UserError, match=r"b\.yaml:2: not valid YAML"):
        few_shot.load_critique_demonstrations(str(path))


def test_unknown_name():
    with pytest.raises(UserError, match="no demonstrations 'defualt'"):
        few_shot.load_critique_demonstrations("defualt")


def test_without_critique_leaves_the_direct_form():
    assert (
        few_shot.without_critique(DEMO)
        == "\n\nHuman: h\n\nAssistant: a\n\nRevisionRequest: rr\n\nRevision: r"
    )
    direct = few_shot.without_critique(DEMO)
    assert few_shot.without_critique(direct) == direct


@pytest.mark.parametrize("rendering", ["transcript", "chat"])
def test_demonstrations_stand_in_front_of_critiques_and_revisions_alone(llama, rendering):
    """A draft behind them would answer as they end: with what has been revised."""
    from cai_cli.models.chat import Renderer
    from cai_cli.models.tokenizers import load_tokenizer
    from cai_cli.prompting.constitution import load_constitution
    from cai_cli.rows.records import Prompt
    from cai_cli.stages.revise import Chain, Options, Texts

    options = build(
        Options, model=str(llama), prompts=["x"], out=Path("x.jsonl"), rendering=rendering, few_shot="default"
    )
    texts = Texts(options, Renderer(load_tokenizer(str(llama)), "--model"))
    prompt = [message("user", "How do I pick a lock?")]
    chain = Chain("a/0", Prompt("a", prompt))
    chain.principle = load_constitution("article", needs=("critique", "revision")).draw(
        0, "principle", "a/0", 1
    )
    chain.response, chain.critique = "Slide a pin in.", "It helps a thief."
    assert texts.draft(chain) == (
        prompt if rendering == "chat" else "\n\nHuman: How do I pick a lock?\n\nAssistant:"
    )
    demonstrations = few_shot.load_critique_demonstrations()
    for asked in (texts.critique(chain), texts.revision(chain)):
        if rendering == "chat":
            turns = [turn for text in demonstrations for turn in few_shot.demonstration_turns(text)]
            assert asked[: len(turns)] == turns and asked[len(turns)] == prompt[0]
        else:
            assert asked.startswith("".join(demonstrations) + "\n\nHuman: How do I pick a lock?")
