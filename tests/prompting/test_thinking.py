"""Reasoning in front of answers: which marks are known, what is taken off, what is refused."""

from __future__ import annotations

import pytest
from tiny import byte_level_tokenizer, make_model

from cai_cli.engines.base import Completion, Request
from cai_cli.engines.segments import Segment, SegmentSettings, keep_or_reason
from cai_cli.engines.transformers_engine import TransformersEngine
from cai_cli.models.load import load_lm
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.prompting.thinking import ALL_MARKS, CHANNEL_MARKS, Thinking, thinking_of
from cai_cli.rows.conversation import message


@pytest.mark.parametrize(
    ("text", "opened", "thinking", "answer"),
    [
        ("<think>\nhm\n</think>\n\nNo.", False, "hm", "No."),
        ("hm\n</think>\n\nNo.", True, "hm", "No."),
        ("hm\n</think>No.", False, "hm", "No."),
        ("<think>\n\n</think>\n\nNo.", False, "", "No."),
        ("<think>hm", False, "hm", ""),
        ("hm", True, "hm", ""),
        ("No.", False, "", "No."),
    ],
)
def test_thinking_is_kept_apart(text, opened, thinking, answer):
    assert Thinking().split(text, opened) == (thinking, answer)


def test_thinking_is_put_back():
    for opening, closing in ALL_MARKS:
        marks = Thinking(opening, closing)
        assert marks.split(marks.join("hm", "No.")) == ("hm", "No.")
        assert marks.join("", "No.") == "No."


CHANNELS = Thinking(channels=True)


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>No.",
            "hm",
            "No.",
        ),
        ("<|channel|>final<|message|>No.", "", "No."),
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>so<|end|>",
            "hm\n\nso",
            "",
        ),
        ("<|channel|>analysis<|message|>hm", "hm", ""),
        ("<|channel|>analysis", "", ""),
        ("<|channel|>final <|constrain|>json<|message|>{}", "", "{}"),
        ("<|channel|>final<|message|>No.<|end|><|start|>user<|message|>Yes?", "", "No."),
        ("No.", "", "No."),
    ],
)
def test_only_the_final_channel_is_the_answer(text, thinking, answer):
    assert CHANNELS.split(text) == (thinking, answer)


def test_marks_are_read_from_template_and_vocabulary():
    assert thinking_of({"<|im_end|>"}, "{{ messages }}") == (Thinking(), [])
    assert thinking_of({"[THINK]", "[/THINK]"}, "") == (Thinking("[THINK]", "[/THINK]"), [])
    assert thinking_of(set(), "x<seed:think>y</seed:think>") == (
        Thinking("<seed:think>", "</seed:think>"),
        [],
    )
    assert thinking_of({"<think>", "</think>"}, "{% if enable_thinking %}<think>{% endif %}")[1] == []
    assert thinking_of({"<|channel|>"}, "<|start|>assistant<|channel|>final<|message|>") == (CHANNELS, [])
    assert thinking_of({"<|begin_of_thought|>"}, "") == (Thinking(), ["<|begin_of_thought|>"])
    assert thinking_of(set(), "<reasoning>{{ x }}</reasoning>")[1] == ["</reasoning>", "<reasoning>"]
    assert thinking_of({"<|im_start|>", "<tool_call>", "<|vision_start|>"}, "{# <reasoning> #}") == (
        Thinking(),
        [],
    )


# Among the ids that a model draws

TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
MARKED = TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
HARMONY = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m['content'] }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
    "{% else %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


def engine_of(
    folder, template: str, *added: str, eos: str = "<|im_end|>", special: bool = True
) -> TransformersEngine:
    """A model whose tokenizer has the `added` tokens."""
    tokenizer = byte_level_tokenizer(template)
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    else:
        tokenizer.add_tokens(list(added))
    tokenizer.eos_token = eos
    model = str(make_model(folder, tokenizer=tokenizer))
    tokenizer = load_tokenizer(model)
    return TransformersEngine(load_lm(model, tokenizer=tokenizer), tokenizer)


def said(engine: TransformersEngine, drawn: str) -> Completion:
    """What is kept where the model draws the tokens of this text in answer to a question."""
    prompt = [message("user", "Why?")]
    ids = engine.tokenizer(drawn, add_special_tokens=False)["input_ids"]
    return engine.reader.read(Request(prompt, 0, 99), engine.renderer.encode(prompt), ids, [0.0] * len(ids))


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(("opening", "closing"), [("<think>", "</think>"), ("[THINK]", "[/THINK]")])
def test_marks_that_are_tokens_are_found(tmp_path, opening: str, closing: str, special: bool) -> None:
    engine = engine_of(tmp_path / "m", MARKED, opening, closing, special=special)
    found = said(engine, f"{opening}hm{closing}No.<|im_end|>")
    assert (found.thinking, found.text, found.finish_reason) == ("hm", "No.", "stop")
    assert said(engine, "No.<|im_end|>").text == "No."
    assert said(engine, f"{opening}hm, so").text == ""


def test_channels_are_told_apart(tmp_path) -> None:
    engine = engine_of(tmp_path / "m", HARMONY, *CHANNEL_MARKS, "<|return|>", eos="<|return|>")
    assert engine.reader.stop_ids == [engine.tokenizer.convert_tokens_to_ids("<|return|>")]
    thought = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
    found = said(engine, f"{thought}<|channel|>final<|message|>No.<|return|>")
    assert (found.thinking, found.text, found.finish_reason, found.fault) == ("hm", "No.", "stop", None)
    assert (
        said(engine, thought).text == ""
        and said(engine, "<|channel|>analysis<|message|>hm").finish_reason == "length"
    )


def test_a_template_that_opens_no_reply_has_no_header_to_meet(tmp_path) -> None:
    found = said(engine_of(tmp_path / "m", TURNS), "No.<|im_start|>user\nWhy?<|im_end|>")
    assert (found.fault, found.text) == (None, "No.")


def test_a_reply_that_opens_another_turn_of_its_own_is_no_reply(tmp_path) -> None:
    engine = engine_of(tmp_path / "m", MARKED)
    found = said(engine, "analysis<|im_start|>assistant\nNo.<|im_end|>")
    assert found.fault is not None and found.fault[0] == "own_header"
    segment = Segment("reply", lambda item: [message("user", "Why?")], lambda item: (0,), SegmentSettings(9))
    assert keep_or_reason(found, None, segment).reason == "own_header"
    other = said(engine, "No.<|im_start|>user\nWhy?<|im_end|>")
    assert (other.fault, other.text, keep_or_reason(other, None, segment).reason) == (None, "No.", None)
