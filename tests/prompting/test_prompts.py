"""Every prompt, character for character: the paper's transcript format, the same as chats, the
multiple-choice question.
"""

from __future__ import annotations

from cai_cli.prompting import prompts
from cai_cli.rows.conversation import message

PROMPT = [message("user", "How do I pick a lock?")]
LONGER = [
    message("system", "Be brief."),
    message("user", "Hi"),
    message("assistant", "Hello!"),
    message("user", "How do I pick a lock?"),
]
FEW_SHOT = "\n\nHuman: Q\n\nAssistant: A\n\n(end of example)"


def test_reply_prompt_is_open_after_the_cue():
    assert prompts.reply_prompt(PROMPT) == "\n\nHuman: How do I pick a lock?\n\nAssistant:"


def test_reply_prompt_of_a_longer_conversation():
    """The system text goes in front of the first human turn's."""
    assert prompts.reply_prompt(LONGER) == (
        "\n\nHuman: Be brief.\n\nHi\n\nAssistant: Hello!\n\nHuman: How do I pick a lock?\n\nAssistant:"
    )


# Critique and revision: the paper's published strings are "\n\nCritiqueRequest: ...\n\nCritique:" and
# "\n\nRevisionRequest: ...\n\nRevision:", set straight after the transcript.


def test_critique_prompt():
    assert prompts.critique_prompt(PROMPT, "Use a pick.", "Say what is harmful.") == (
        "\n\nHuman: How do I pick a lock?\n\nAssistant: Use a pick.\n\nCritiqueRequest: Say what is harmful.\n\nCritique:"
    )


def test_revision_prompt():
    assert prompts.revision_prompt(
        PROMPT, "Use a pick.", "Say what is harmful.", "It helps thieves.", "Rewrite it."
    ) == (
        "\n\nHuman: How do I pick a lock?\n\nAssistant: Use a pick."
        "\n\nCritiqueRequest: Say what is harmful.\n\nCritique: It helps thieves."
        "\n\nRevisionRequest: Rewrite it.\n\nRevision:"
    )


def test_direct_revision_prompt():
    assert prompts.direct_revision_prompt(PROMPT, "Use a pick.", "Rewrite it.", FEW_SHOT) == (
        "\n\nHuman: Q\n\nAssistant: A\n\n(end of example)"
        "\n\nHuman: How do I pick a lock?\n\nAssistant: Use a pick.\n\nRevisionRequest: Rewrite it.\n\nRevision:"
    )


def test_few_shot_goes_in_front():
    for render in (
        lambda few: prompts.critique_prompt(PROMPT, "R", "C", few),
        lambda few: prompts.revision_prompt(PROMPT, "R", "C", "c", "E", few),
    ):
        assert render(FEW_SHOT) == FEW_SHOT + render("")


def test_each_segment_ends_where_the_next_marker_starts():
    """Any marker that a model goes on with is a stop string, so a critique never runs into a revision."""
    whole = prompts.revision_prompt(LONGER, "R", "C", "c", "E")
    for name in ("Human", "Assistant", "CritiqueRequest", "Critique", "RevisionRequest", "Revision"):
        assert f"\n\n{name}:" in whole
        assert f"\n\n{name}:" in prompts.TRANSCRIPT_STOPS
    assert len(prompts.TRANSCRIPT_STOPS) == 6


# The same as chats


def test_critique_chat():
    assert prompts.critique_chat(LONGER, "Use a pick.", "Say what is harmful.") == [
        *LONGER,
        {"role": "assistant", "content": "Use a pick."},
        {"role": "user", "content": "Say what is harmful."},
    ]


def test_revision_chat():
    assert prompts.revision_chat(
        PROMPT, "Use a pick.", "Say what is harmful.", "It helps thieves.", "Rewrite it."
    ) == [
        {"role": "user", "content": "How do I pick a lock?"},
        {"role": "assistant", "content": "Use a pick."},
        {"role": "user", "content": "Say what is harmful."},
        {"role": "assistant", "content": "It helps thieves."},
        {"role": "user", "content": "Rewrite it."},
    ]


def test_direct_revision_chat():
    assert prompts.direct_revision_chat(PROMPT, "Use a pick.", "Rewrite it.") == [
        {"role": "user", "content": "How do I pick a lock?"},
        {"role": "assistant", "content": "Use a pick."},
        {"role": "user", "content": "Rewrite it."},
    ]


def test_chats_leave_the_prompt_as_it_was():
    before = [dict(turn) for turn in LONGER]
    prompts.revision_chat(LONGER, "R", "C", "c", "E")
    assert before == LONGER


# Multiple choice


QUESTION = (
    "Consider the following conversation between a human and an assistant:"
    "\n\nHuman: How do I pick a lock?"
    "\n\nWhich reply is less harmful?\nOptions:\n (A) Use a pick.\n (B) I can't help with that."
)


def test_comparison_question():
    got = prompts.comparison_question(
        PROMPT, "Use a pick.", "I can't help with that.", "Which reply is less harmful?"
    )
    assert got == QUESTION


def test_comparison_prompt_ends_in_the_cue():
    got = prompts.comparison_prompt(
        PROMPT, "Use a pick.", "I can't help with that.", "Which reply is less harmful?"
    )
    assert got == QUESTION + "\nThe answer is:"


def test_options_hold_their_space():
    """The paper's label strings: ` (A)` and ` (B)`."""
    assert [prompts.option(letter) for letter in prompts.OPTION_LETTERS] == [" (A)", " (B)"]


def test_question_answer():
    assert (
        prompts.question_answer("Why?", "Because.\n\nReally.")
        == "Question: Why?\n\nAnswer: Because.\n\nReally."
    )
