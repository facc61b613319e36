"""Solved comparison questions: the shipped sets, the paper's published files, what is drawn, what is refused."""

from __future__ import annotations

import json

import pytest

from cai_cli.errors import UserError
from cai_cli.prompting.choices import PAPER_COT, PLAIN, TWO_STEP, ask
from cai_cli.prompting.constitution import load_constitution
from cai_cli.prompting.prompts import OPTION_LABELS
from cai_cli.prompting.solved_questions import load_comparison_demonstrations, solve
from cai_cli.rows.conversation import message

THOROUGH = load_constitution("thorough")
PAIRS, REASONED = (
    "constitutional-ai/RLMadisonFewShotPrompts.json",
    "constitutional-ai/RLMadisonPrecogFewShotPrompts.json",
)


def write(path, value) -> str:
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


def test_shipped_demonstrations():
    shipped = load_comparison_demonstrations("default")
    assert len(shipped) == 5 and len(shipped[3].prompt) == 3
    assert len({item.better for item in shipped} | {item.worse for item in shipped}) == 10
    assert load_comparison_demonstrations("none") == []


@pytest.mark.parametrize("form", [PAPER_COT, TWO_STEP])
def test_shipped_reasoning_speaks_of_the_letters_that_were_drawn(form):
    shipped = load_comparison_demonstrations("default", reasoned=True)
    for labels in (("(A)", "(B)"), ("1.", "2.")):
        for item, solved in zip(shipped, solve(shipped, THOROUGH, labels, form, 0), strict=True):
            assert f" {solved.answer} [[[{item.better}]]]" in solved.question
            assert (
                solved.rationale.endswith(f"{solved.answer} is the better response.")
                and "{" not in solved.rationale
            )
            other = next(label for label in labels if label != solved.answer)
            assert f" {other} [[[{item.worse}]]]" in solved.question and other in solved.rationale


def test_letters_are_balanced_and_answers_right():
    items = load_comparison_demonstrations("default")
    counts, texts, principles = set(), set(), set()
    for seed in range(20):
        solved = solve(items, THOROUGH, OPTION_LABELS, PLAIN, seed)
        assert solved == solve(items, THOROUGH, OPTION_LABELS, PLAIN, seed)
        for item, question in zip(items, solved, strict=True):
            assert f" {question.answer} {item.better}" in question.question
        texts.add(str(solved))
        counts.add(sum(question.answer == "(A)" for question in solved))
        principles |= {
            principle.id for principle in THOROUGH.principles if principle.comparison in solved[0].question
        }
    assert counts == {2, 3} and len(texts) == 20 and len(principles) > 8
    assert {solve(items[:1], THOROUGH, OPTION_LABELS, PLAIN, seed)[0].answer for seed in range(20)} == {
        "(A)",
        "(B)",
    }


def test_transcript_of_plain_demonstrations():
    items = load_comparison_demonstrations("default")
    text = ask("Q", PLAIN, solve(items, THOROUGH, OPTION_LABELS, PLAIN, 0), chat=False)
    blocks = text.split("Consider the following conversation between a human and an assistant:")[1:]
    assert len(blocks) == 5 and text.endswith("\n\nQ\nThe answer is:")
    for block in blocks[:-1]:
        assert block.rstrip().endswith(("The answer is: (A)", "The answer is: (B)"))


# The paper's files


def test_published_pairs(data):
    path = data(PAIRS)
    published = load_comparison_demonstrations(str(path))
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert [item.better for item in published] == [row["corrects"][0] for row in raw]
    assert [item.worse for item in published] == [row["incorrects"][0] for row in raw]
    assert [f"\n\nHuman: {item.prompt[0]['content']}\n\nAssistant:" for item in published] == [
        r["prompt"] for r in raw
    ]
    with pytest.raises(UserError, match=r"demonstrations\[0\]: field `rationale`: missing"):
        load_comparison_demonstrations(str(path), reasoned=True)


def test_published_reasoning_comes_out_as_it_went_in(data):
    """Letter for letter, with a principle in the slot; two of the six have lost line breaks at their start."""
    path = data(REASONED)
    raw = json.loads(path.read_text(encoding="utf-8"))
    items = load_comparison_demonstrations(str(path), reasoned=True)
    solved = solve(items, THOROUGH, OPTION_LABELS, PAPER_COT, 0)
    assert [question.answer for question in solved] == ["(B)", "(B)", "(A)", "(B)", "(A)", "(B)"]
    text = ask("Q", PAPER_COT, solved, chat=False)
    wanted = ""
    for row, question in zip(raw, solved, strict=True):
        head, tail = row["prompt"].split("{}", 1)
        drawn = question.question[len(head.strip().removeprefix("Human: ")) :].split(" Options:")[0].strip()
        assert drawn in {principle.comparison for principle in THOROUGH.principles}
        wanted += f"\n\n{head.lstrip()}{drawn} Options:{tail}"
    assert text == f"{wanted}\n\nHuman: Q\n\nAssistant: Let's think step by step:"
    with pytest.raises(UserError, match="use it with --cot"):
        load_comparison_demonstrations(str(path))
    with pytest.raises(UserError, match="leave --option-format at"):
        solve(items, THOROUGH, ("1", "2"), PAPER_COT, 0)


def test_braces_in_a_published_text_are_text(tmp_path):
    prompt = "Human: H: what is {x}?\n\n{}\n (A) [[[{y} {}]]]\n (B) [[[b]]]\n\nAssistant: Let's think step-by-step: {z}"
    path = write(tmp_path / "a.json", [{"prompt": f"{prompt}\n\nHuman:\nSo the answer is: (A)"}])
    [solved] = solve(
        load_comparison_demonstrations(path, reasoned=True), THOROUGH, OPTION_LABELS, PAPER_COT, 0
    )
    assert (
        "what is {x}?" in solved.question and "[[[{y} {}]]]" in solved.question and solved.rationale == " {z}"
    )


# Mistakes


def test_errors_name_file_number_and_field(tmp_path):
    two = write(tmp_path / "a.json", [{"prompt": "p", "corrects": ["a", "b"], "incorrects": ["c"]}])
    with pytest.raises(
        UserError, match=r"a\.json: demonstrations\[0\]: field `corrects`: expected one answer, got 2"
    ):
        load_comparison_demonstrations(two)
    for item, problem in (
        ({"prompt": "p", "better": "a"}, "field `worse`"),
        ({"prompt": " ", "better": "a", "worse": "b"}, r"field `prompt\[0\]\.content`: is empty"),
        ({"prompt": "Human: {} (A) a (B) b"}, "field `prompt`: not a solved question"),
        ({"prompt": "p", "better": "a", "worse": "b", "rationale": ""}, "field `rationale`"),
        ("text", "expected the fields prompt, better, worse"),
    ):
        with pytest.raises(UserError, match=rf"demonstrations\[0\]: {problem}"):
            load_comparison_demonstrations(write(tmp_path / "b.json", [item]))


def test_chats_show_demonstrations_as_turns():
    item = load_comparison_demonstrations("default", reasoned=True)[:1]
    for form, last in ((PLAIN, "The answer is:"), (PAPER_COT, "Let's think step by step:")):
        turns = ask("Q", form, solve(item, THOROUGH, OPTION_LABELS, form, 0), chat=True)
        assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "assistant"]
        assert turns[2] == message("user", "Q") and turns[3] == message("assistant", last)
        assert turns[1]["content"].endswith(("is: (A)", "is: (B)"))
    turns = ask("Q", TWO_STEP, solve(item, THOROUGH, OPTION_LABELS, TWO_STEP, 0), chat=True)
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2 + ["user"] and turns[-1][
        "content"
    ].startswith("Q\n\n")
