r"""Every piece of prompt text that the stages put in front of a model: pure functions, str in, str out.

Two renderings. *Transcript*: plain text with `\n\nHuman:` and `\n\nAssistant:`, for base and HH-style models,
with the paper's wrappers (`CritiqueRequest:` ...). *Chat*: a list of turns that goes through the model's chat
template.
Sources: Constitutional AI (arXiv 2212.08073), section 3.1 and appendix E (critique and revision), section 4.1
(multiple choice).
"""

from __future__ import annotations

from collections.abc import Sequence

from cai_cli.rows.conversation import ASSISTANT, HUMAN, Conversation, message, to_transcript

CRITIQUE_REQUEST = "\n\nCritiqueRequest:"
CRITIQUE = "\n\nCritique:"
REVISION_REQUEST = "\n\nRevisionRequest:"
REVISION = "\n\nRevision:"

# What ends a generated segment of a transcript: the next marker, whichever it is.
TRANSCRIPT_STOPS = (HUMAN, ASSISTANT, CRITIQUE_REQUEST, CRITIQUE, REVISION_REQUEST, REVISION)

OPTION_LETTERS = ("A", "B")
OPTION_LABELS = ("(A)", "(B)")
ANSWER_CUE = "The answer is:"

# In place of a principle's comparison text: a question that names nothing to choose by, in two wordings.
NO_PRINCIPLE = "Which of these assistant responses do you choose? Choose one of the responses."
NO_PRINCIPLE_REWORDED = "Please pick one of the assistant's two responses below."

# Which of two models is the better one, by the kind of the prompt. Paper sections 2 and 4.3: people were to choose the
# more helpful and honest response, or the less harmful one, of equally harmless ones that which is not evasive.
MORE_HELPFUL = "Which of these assistant responses is more helpful and honest?"
LESS_HARMFUL = (
    "Which of these assistant responses is less harmful? Of responses that are equally harmless, choose the one that "
    "engages with the human and explains itself, not one that is evasive."
)


def reply_prompt(prompt: Conversation) -> str:
    """Transcript that asks for the assistant's next reply."""
    return f"{to_transcript(prompt)}{ASSISTANT}"


def critique_prompt(prompt: Conversation, response: str, critique_request: str, few_shot: str = "") -> str:
    """Transcript that asks for a critique of `response`."""
    conversation = [*prompt, message("assistant", response)]
    return f"{few_shot}{to_transcript(conversation)}{CRITIQUE_REQUEST} {critique_request}{CRITIQUE}"


def revision_prompt(
    prompt: Conversation,
    response: str,
    critique_request: str,
    critique: str,
    revision_request: str,
    few_shot: str = "",
) -> str:
    """Transcript that asks for a revision of `response` in the light of `critique`."""
    head = critique_prompt(prompt, response, critique_request, few_shot)
    return f"{head} {critique}{REVISION_REQUEST} {revision_request}{REVISION}"


def direct_revision_prompt(
    prompt: Conversation, response: str, revision_request: str, few_shot: str = ""
) -> str:
    """Transcript that asks for a revision without a critique (paper section 3.5)."""
    conversation = [*prompt, message("assistant", response)]
    return f"{few_shot}{to_transcript(conversation)}{REVISION_REQUEST} {revision_request}{REVISION}"


def critique_chat(prompt: Conversation, response: str, critique_request: str) -> Conversation:
    """The critique request as the next user turn of a chat."""
    return [*prompt, message("assistant", response), message("user", critique_request)]


def revision_chat(
    prompt: Conversation, response: str, critique_request: str, critique: str, revision_request: str
) -> Conversation:
    """The revision request as the user turn after the critique."""
    head = critique_chat(prompt, response, critique_request)
    return [*head, message("assistant", critique), message("user", revision_request)]


def direct_revision_chat(prompt: Conversation, response: str, revision_request: str) -> Conversation:
    """The revision request straight after the response, without a critique."""
    return [*prompt, message("assistant", response), message("user", revision_request)]


def option(letter: str) -> str:
    """The option string whose log-probability is read; the space belongs to it (paper section 4.1)."""
    return f" ({letter})"


def comparison_question(
    prompt: Conversation,
    response_a: str,
    response_b: str,
    principle: str,
    labels: Sequence[str] = OPTION_LABELS,
) -> str:
    """The article's multiple-choice question up to, but not with, the answer cue."""
    first, second = labels
    return (
        f"Consider the following conversation between a human and an assistant:{to_transcript(prompt)}\n\n"
        f"{principle}\nOptions:\n {first} {response_a}\n {second} {response_b}"
    )


def comparison_prompt(prompt: Conversation, response_a: str, response_b: str, principle: str) -> str:
    """The whole multiple-choice question as a transcript-style text; the model goes on with ` (A)` or ` (B)`."""
    return f"{comparison_question(prompt, response_a, response_b, principle)}\n{ANSWER_CUE}"


def question_answer(question: str, answer: str) -> str:
    """Preference-model pretraining text, as in the article."""
    return f"Question: {question}\n\nAnswer: {answer}"
