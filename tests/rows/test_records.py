"""Records and conversations: what is taken, which field each mistake is in, and that rows read back as they
were written.
"""

from __future__ import annotations

import json
import math

import pytest

from cai_cli.errors import RecordError
from cai_cli.rows.conversation import (
    TranscriptError,
    check_conversation,
    first_human_turn,
    from_transcript,
    message,
    prompt_id,
    system_in_first_user_turn,
    to_transcript,
)
from cai_cli.rows.records import Comparison, Judgement, Prompt, Revision, Sample

USER, REPLY, OTHER = [message("user", "q")], [message("assistant", "a")], [message("assistant", "b")]
ROUND = {
    "principle": "p",
    "critique_request": "cr",
    "critique": "c",
    "revision_request": "rr",
    "revision": "a",
}
ROUND |= {"critique_thinking": "hm", "revision_thinking": ""}
JUDGEMENT = {
    "principle": "p",
    "order": "chosen_first",
    "logprob_a": -0.5,
    "logprob_b": -1.5,
    "mass": 0.8,
    "rationale": None,
}
ROWS = {
    Prompt: {"id": "i", "prompt": USER, "kind": "harmful", "source": "s"},
    Revision: {
        "id": "i/0",
        "prompt": USER,
        "completion": REPLY,
        "initial": OTHER,
        "rounds": [ROUND],
        "kind": None,
    }
    | {"initial_thinking": "", "hygiene": "truncated draft, lead_in revision 2"},
    Sample: {"id": "i/0", "prompt": USER, "completion": REPLY, "finish_reason": "stop", "kind": "helpful"}
    | {"thinking": "hm", "hygiene": "", "source": "xstest/homonyms"},
    Comparison: {
        "id": "i/0",
        "prompt_id": "i",
        "prompt": USER,
        "chosen": REPLY,
        "rejected": OTHER,
        "probability": 0.75,
        "origin": "ai",
        "kind": None,
        "source": None,
        "judgements": [JUDGEMENT],
        "attribution": None,
    },
}


@pytest.mark.parametrize("kind", ROWS, ids=lambda kind: kind.__name__)
def test_rows_read_back_as_written(kind):
    row = ROWS[kind]
    record = kind.from_row(json.loads(json.dumps(row)))
    assert record.to_row() == row
    assert kind.from_row(record.to_row()) == record


@pytest.mark.parametrize(
    ("kind", "change", "field"),
    [
        (Prompt, {"prompt": None}, "prompt"),
        (Prompt, {"prompt": []}, "prompt"),
        (Prompt, {"prompt": [*USER, *REPLY]}, "prompt[1].role"),
        (Prompt, {"prompt": ["q"]}, "prompt[0]"),
        (Prompt, {"prompt": [message("human", "q")]}, "prompt[0].role"),
        (Prompt, {"prompt": [*USER, message("system", "s"), *USER]}, "prompt[1].role"),
        (Prompt, {"prompt": [{"role": "user", "content": 3}]}, "prompt[0].content"),
        (Prompt, {"prompt": [message("user", " \n")]}, "prompt[0].content"),
        (Prompt, {"prompt": [message("user", "\ud800")]}, "prompt[0].content"),
        (Prompt, {"kind": "benign"}, "kind"),
        (Prompt, {"id": 7}, "id"),
        (Prompt, {"id": ""}, "id"),
        (Prompt, {"id": "\udfff"}, "id"),
        (Prompt, {"source": 1}, "source"),
        (Revision, {"id": None}, "id"),
        (Revision, {"rounds": []}, "rounds"),
        (Revision, {"rounds": "x"}, "rounds"),
        (Revision, {"rounds": [ROUND, {**ROUND, "critique": None}]}, "rounds[1].critique"),
        (Revision, {"rounds": [{**ROUND, "revision": ""}]}, "rounds[0].revision"),
        (Revision, {"completion": USER}, "completion[0].role"),
        (Revision, {"initial": [*REPLY, *OTHER]}, "initial"),
        (Revision, {"hygiene": "truncated"}, "hygiene"),
        (Sample, {"finish_reason": "eos"}, "finish_reason"),
        (Sample, {"completion": None}, "completion"),
        (Comparison, {"probability": 0.4}, "probability"),
        (Comparison, {"probability": 1.5}, "probability"),
        (Comparison, {"probability": True}, "probability"),
        (Comparison, {"probability": math.nan}, "probability"),
        (Comparison, {"origin": None}, "origin"),
        (Comparison, {"chosen": []}, "chosen"),
        (Comparison, {"judgements": [3]}, "judgements"),
        (Comparison, {"judgements": [{**JUDGEMENT, "order": "x"}]}, "judgements[0].order"),
        (Comparison, {"judgements": [JUDGEMENT, {**JUDGEMENT, "logprob_b": 0.1}]}, "judgements[1].logprob_b"),
        (Comparison, {"judgements": [{**JUDGEMENT, "mass": 1.1}]}, "judgements[0].mass"),
        (Comparison, {"judgements": [{**JUDGEMENT, "rationale": 3}]}, "judgements[0].rationale"),
    ],
)
def test_the_field_at_fault_is_named(kind, change, field):
    with pytest.raises(RecordError) as error:
        kind.from_row({**ROWS[kind], **change})
    assert error.value.field == field
    assert str(error.value.at("x.jsonl:7")).startswith(f"x.jsonl:7: field `{field}`: ")


def test_optional_fields_and_ids():
    assert Prompt.from_row({"prompt": USER}) == Prompt(prompt_id(USER), USER)
    row = {
        name: value
        for name, value in ROWS[Comparison].items()
        if name not in ("prompt_id", "judgements", "kind")
    }
    assert Comparison.from_row(row).prompt_id == prompt_id(USER)
    assert Comparison.from_row(row).judgements == []


def test_prompt_ids_are_pinned_and_see_the_turns_only():
    assert prompt_id(USER) == "49b16c132664bd36"
    assert prompt_id([message("user", "grün 🌍")]) == "01cac67c0e61d602"
    noisy = [{"content": "q", "role": "user", "weight": 1}]
    assert Prompt.from_row({"prompt": noisy}).id == prompt_id(USER)
    assert prompt_id([message("system", "s"), *USER]) != prompt_id(USER)


def test_probability_of_chosen_is_the_softmax_seen_from_chosen():
    a, b = math.log(0.6), math.log(0.2)
    assert Judgement("p", "chosen_first", a, b, 0.8).probability_chosen == pytest.approx(0.75)
    assert Judgement("p", "rejected_first", a, b, 0.8).probability_chosen == pytest.approx(0.25)
    assert Judgement("p", "chosen_first", -2000.0, -1.0, 0.3).probability_chosen == 0.0
    assert Judgement("p", "chosen_first", -1.0, -2000.0, 0.3).probability_chosen == 1.0


# Conversations


def test_system_turns():
    talk = [message("system", "s"), *USER, *REPLY]
    assert check_conversation(talk, "x") == talk
    assert to_transcript(talk) == "\n\nHuman: s\n\nq\n\nAssistant: a"
    assert system_in_first_user_turn(talk) == [message("user", "s\n\nq"), *REPLY]
    assert system_in_first_user_turn(USER) == USER
    assert first_human_turn(talk) == "q"


def test_transcripts_back_and_forth():
    text = "\n\nHuman: a\n\nb\n\nAssistant: c\nHuman: d\n\nHuman: e"
    turns = from_transcript(text)
    assert [turn["content"] for turn in turns] == ["a\n\nb", "c\nHuman: d", "e"]
    assert to_transcript(turns) == text
    with pytest.raises(TranscriptError, match="starts with assistant"):
        from_transcript("\n\nAssistant: a")


def test_prompt_files_and_importer_read_a_transcript_alike():
    from cai_cli.importers.hh_rlhf import prompts_of_row
    from cai_cli.rows.prompt_files import prompt_from_row

    for text in (
        "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: d\n\nHuman: e\n\nAssistant: f",
        "Human: a\n\nAssistant: \n\nAssistant: b\n\nHuman: c\n\nAssistant:",
    ):
        row = {"chosen": text, "rejected": text}
        (imported,) = prompts_of_row(row, every_turn=False, kind=None, source="s")
        assert prompt_from_row(row).prompt == imported.prompt
