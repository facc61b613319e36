"""Rules for generated text: what is trimmed, what is not kept, and how few of the published texts they touch."""

from __future__ import annotations

import gzip
import json

import pytest

from cai_cli.prompting.hygiene import (
    CRITIQUE,
    CRITIQUE_TEXT,
    REPLY,
    REVISION,
    check_critique,
    check_revision,
    clean,
    is_near,
    same_text,
    share_kept,
)


@pytest.mark.parametrize(
    ("text", "kept", "trimmed"),
    [
        (" a\n\nb ", "a\n\nb", ()),
        ("a\n\nHuman: b", "a", ("leaked_role",)),
        ("a\n Assistant: b", "a", ("leaked_role",)),
        ("a\n**Human:** b", "a", ("leaked_role",)),
        ("a\n### Assistant: b", "a", ("leaked_role",)),
        ("a<|im_start|>user\nb", "a", ("leaked_role",)),
        ("a [INST] b", "a", ("leaked_role",)),
        ("a\nCritiqueRequest: b", "a", ("leaked_role",)),
        ("a\n\nUser: b", "a", ("leaked_role",)),
        ("Log in:\nUser: admin\nPassword: secret", "Log in:\nUser: admin\nPassword: secret", ()),
        ("Assistant: a", "a", ()),
        ("Dear Human: a", "Dear Human: a", ()),
        ("The Assistant: a play", "The Assistant: a play", ()),
    ],
)
def test_trimming_of_a_reply(text, kept, trimmed):
    cleaned = clean(text, REPLY)
    assert (cleaned.text, cleaned.trimmed, cleaned.reason) == (kept, trimmed, None)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Here is the revised response:\n\nNo.", "No."),
        ("Sure! Here's a rewritten version of my answer: No.", "No."),
        ("Sure thing, here is a revised response that is harmless: No.", "No."),
        ("**Revised response:** No.", "No."),
        ("Revised answer: No.", "No."),
        ("I have rewritten the response as follows: No.", "No."),
        ('Here is my updated reply: "No, and why."', "No, and why."),
        ("Below is a safer answer: No.", "No."),
    ],
)
def test_lead_ins_are_taken_off_a_revision(text, kept):
    cleaned = clean(text, REVISION)
    assert (cleaned.text, cleaned.trimmed) == (kept, ("lead_in",))


@pytest.mark.parametrize(
    "text",
    [
        "Here is the recipe: flour",
        "I revised it, and no",
        "Here are three ideas: a, b, c",
        'She said: "no."',
        "New plan: leave early. Then call.",
        "Here's how you can get help: call a friend.",
    ],
)
def test_what_is_no_lead_in_stays(text):
    assert clean(text, REVISION).text == text


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        (" \n", REPLY, "empty"),
        ("Human: a", REPLY, "leaked_role"),
        ("\n\nRevisionRequest: a", CRITIQUE, "leaked_role"),
        ("Here is the revised response:", REVISION, "empty"),
        ("Revision: I won't help.", CRITIQUE, "role_confused"),
        ("Critique: it is bad", REVISION, "role_confused"),
        ("Critique: it is bad", CRITIQUE, None),
        ("Revision: No.", REVISION, None),
    ],
)
def test_reasons_found_while_trimming(text, kind, reason):
    assert clean(text, kind).reason == reason


RESPONSE = "Mix these two powders in a closed jar."


@pytest.mark.parametrize(
    "text",
    [
        RESPONSE,
        f"  {RESPONSE.upper()}!",
        "I'm sorry, I can't help with that. Please talk to someone you trust.",
        "I won't help to build it, since it could hurt somebody.",
        "Here is the revised response: no.",
        "Please talk to a friend about how you feel, and call for help if it is too much.",
    ],
)
def test_a_reply_is_no_critique(text):
    assert check_critique(text, RESPONSE) == "role_confused"


@pytest.mark.parametrize(
    "text",
    [
        "The assistant's last response is dangerous, since the jar may burst.",
        "It explains how to make something that hurts people.",
        "I think the advice is fine, although the tone is a little cold.",
        "Die Antwort hilft dabei, jemanden zu verletzen.",
        "这个回答很危险。",
    ],
)
def test_a_critique_is_one_in_any_language(text):
    assert check_critique(text, RESPONSE) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (RESPONSE, "unrevised"),
        ("mix these two powders, in a closed jar", "unrevised"),
        ("The assistant's last response is harmful.", "role_confused"),
        ("The response was rude.", "role_confused"),
        ("My previous answer could be kinder.", "role_confused"),
        ("Overall, the assistant does a poor job here.", "role_confused"),
        ("the critique", "role_confused"),
        ("I won't help with that; it may burst.", None),
        ("The answer is 42.", None),
        ("The answer to your question is no.", None),
        ("My answer is no.", None),
        ("Responses vary from town to town.", None),
        ("The assistant manager can help you.", None),
    ],
)
def test_revisions_are_revised_and_no_critiques(text, reason):
    assert check_revision(text, RESPONSE, "The critique.") == reason


DRAFT = (
    "Sure, first wear soft shoes, then lift the dial slowly, and last slip inside the safe. Take what you find, and close the "
    "door behind you, so that nobody sees before Monday that you were there."
)


@pytest.mark.parametrize(
    "text",
    [
        DRAFT.removeprefix("Sure, "),
        DRAFT.replace("Sure, first", "Well, first"),
        DRAFT.replace("soft shoes", "warm shoes"),
        DRAFT.replace("soft shoes", "warm socks"),
        f"{DRAFT} Please be careful, and do not do this to anybody who would mind; it is not kind.",
        f"I would rather not say. But here you are: {DRAFT}",
        " ".join(reversed(DRAFT.split(". "))),
        DRAFT.replace(",", " -").upper(),
        DRAFT.replace("safe", "ｓａｆｅ"),
    ],
)
def test_the_draft_with_little_changed_is_unrevised(text):
    assert is_near(text, DRAFT) and check_revision(text, DRAFT, "The critique.") == "unrevised"


@pytest.mark.parametrize(
    ("text", "draft"),
    [
        (DRAFT.split(". ")[0], DRAFT),
        (
            DRAFT.replace(" Take what you find,", " Leave it there,").replace("nobody sees", "all can see"),
            DRAFT,
        ),
        ("I won't help with that, since it would be theft.", DRAFT),
        ("No.", "Yes."),
        ("I can't help.", "Sure, I can."),
        ("\N{PERSON WITH FOLDED HANDS}", "\N{WAVING HAND SIGN}"),
        ("", DRAFT),
    ],
)
def test_a_text_that_lost_part_of_the_draft_is_a_revision(text, draft):
    assert not is_near(text, draft)


def test_words_are_counted_in_scripts_without_spaces():
    draft = "你可以先把门打开，然后慢慢走进去，最后拿走保险箱里的钱。"
    assert is_near(draft.replace("慢慢", "轻轻"), draft) and not is_near(
        "我不能帮助你做这件事，因为这是偷窃。", draft
    )


def test_the_share_of_the_draft_that_is_kept():
    assert share_kept("b c c d", "a b c c") == 0.75
    assert share_kept("B, C!", "a b c c") == 0.5
    assert (share_kept("!", "!"), share_kept("?!", "?")) == (1.0, 0.0)


def test_texts_of_signs_only_are_told_apart():
    assert same_text("\N{WAVING HAND SIGN}", " \N{WAVING HAND SIGN} ")
    assert not same_text("\N{WAVING HAND SIGN}", "\N{PERSON WITH FOLDED HANDS}")


# Published texts: the rules are to leave real critiques, revisions and replies alone.


def test_the_published_chains_pass(data):
    """160 critiques and 160 revisions of the paper: none is trimmed, and one refused, which adds four words
    to its draft.
    """
    caught, near = 0, []
    for line in data("constitutional-ai/PALMS_SLMADISON.jsonl").read_text().splitlines():
        row = json.loads(line)
        draft = response = row["initial_response"][0]["sample"]
        for step in row["cst"]:
            critique, revision = (
                clean(step["critique"]["sample"], CRITIQUE),
                clean(step["revision"]["sample"], REVISION),
            )
            assert not critique.trimmed and not revision.trimmed
            assert check_critique(critique.text, response) is None, critique.text
            if reason := check_revision(revision.text, draft, critique.text):
                assert reason == "unrevised"
                near.append(revision.text)
            caught += check_revision(critique.text, draft, "") is not None
            response = revision.text
    assert [text[:32] for text in near] == ["Yes, I think that two consenting"]
    assert caught > 130, "most critiques are seen to be none of the revisions they might stand in for"


def test_published_replies_are_not_taken_for_critiques(data):
    count = 0
    with gzip.open(data("hh-rlhf/harmless-base-test-1500.jsonl.gz"), "rt") as lines:
        for line in lines:
            chosen = json.loads(line)["chosen"]
            reply = chosen[chosen.rfind("\n\nAssistant:") + len("\n\nAssistant:") :]
            count += 1
            assert not CRITIQUE_TEXT.search(reply), reply
    assert count == 1500
