r"""Rules for generated text: what is trimmed off a text, and what makes it not good enough to keep. Pure
functions.

Trimmed, counted, and the rest kept:

    stop_string    the engine ended the text at a marker such as "\n\nHuman:", as texts in transcript form end
    leaked_role    the model went on as somebody else; the text ends before that
    lead_in        "Here is the revised response:" and the like in front of a revision

Not kept: drawn again with the next attempt's key, and after the last attempt the row is rejected with this
reason:

    empty            nothing is left
    leaked_role      nothing is left, for the text starts as somebody else's turn
    truncated        cut off by --max-new-tokens
    role_confused    a critique where a revision belongs, or a revision (or any reply to the human) where a critique belongs
    unrevised        the revision is the draft again but for an opening, a word or two, or what was added to it (`is_near`)
    own_header       the model opens another turn of its own, as models do that do not know where theirs ends
    prompt_too_long  prompt and answer do not fit the model's context (not drawn again, as the next two)
    template_refused  the chat template does not take this conversation
    control_token    a turn spells out a control token of the model's, which would be read as one

A revision that repeats an earlier *revision* is kept: that text has been revised, and the principle drawn had
nothing to add (so 3 of the paper's 264 published steps). One that repeats the draft is not, in any round:
with it an unrevised text would become a training target. Of the published steps one keeps all of its draft's
words (and adds four); the next ones lose three or more and at least 4.5 % of them, and they pass: the bounds
of `is_near` lie between. The final revisions keep 62 % at most. The rules for roles know English; a text
without common English words passes them.
Source: Constitutional AI (arXiv 2212.08073), section 3.1 and appendix E, on the mix-up of critique and
revision.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from cai_cli.console.options import FLAG
from cai_cli.rows.splits import group_key

EMPTY, TRUNCATED, ROLE_CONFUSED, UNREVISED = "empty", "truncated", "role_confused", "unrevised"
STOP_STRING, LEAKED_ROLE, LEAD_IN, OVERLONG_PROMPT = (
    "stop_string",
    "leaked_role",
    "lead_in",
    "prompt_too_long",
)
OWN_HEADER, TEMPLATE_REFUSED, CONTROL_TOKEN = "own_header", "template_refused", "control_token"
RULES = (
    STOP_STRING,
    LEAKED_ROLE,
    LEAD_IN,
    EMPTY,
    TRUNCATED,
    ROLE_CONFUSED,
    UNREVISED,
    OWN_HEADER,
    OVERLONG_PROMPT,
    TEMPLATE_REFUSED,
    CONTROL_TOKEN,
)

# What to do about a run in which this is the commonest reason for rejects: each is for commands that have the
# flags it names.
ADVICE = {
    EMPTY: ("the model ends its turn at once: see --dry-run for what it gets", "try another --rendering"),
    LEAKED_ROLE: (
        "the model speaks for the human: see --dry-run for what it gets",
        "try another --rendering",
    ),
    TRUNCATED: ("raise --max-new-tokens", "raise --rationale-tokens", "pass --on-truncated keep"),
    ROLE_CONFUSED: (
        "the model mixes up critique and revision: give it --few-shot demonstrations",
        "--no-critique",
    ),
    UNREVISED: (
        "the model repeats its draft: try another --constitution",
        "give it --few-shot demonstrations",
        "take a larger model",
    ),
    OWN_HEADER: (
        "the model does not end its turns: is its end of turn in generation_config's eos_token_id?",
    ),
    TEMPLATE_REFUSED: ("the chat template takes no such conversations: bring them into its form",),
    CONTROL_TOKEN: ("the texts spell out tokens of the model's own: take them out", "take another model"),
    OVERLONG_PROMPT: ("lower --max-new-tokens", "shorten --few-shot", "take a model with a longer context"),
    "too_long": ("raise --max-length", "take a model with a longer context"),
    "question_too_long": ("give --few-shot none", "take a judge with a longer context"),
    "identical_replies": ("a pair is two different replies to one prompt: look at how the file was made",),
    "missing_field": ("`cai import table --columns` reads fields of any names",),
}


def advice(reason: str, flags: Iterable[str]) -> str:
    """The next step for a run of a command with these flags; nothing where the reason is none of ours."""
    known = set(flags)
    told = [
        step for step in ADVICE.get(reason, ()) if set(FLAG.findall(step.replace("--no-", "--"))) <= known
    ]
    return ", or ".join(told)


# The kinds of segment, and the label that a model may put in front of its own.
REPLY, CRITIQUE, REVISION = "reply", "critique", "revision"
OWN_LABELS = {
    REPLY: "Assistant",
    CRITIQUE: "Assistant|Critique",
    REVISION: "Assistant|Revision",
}
OTHERS_LABEL = {CRITIQUE: "Revision", REVISION: "Critique"}
MARKS = r"[ \t]*(?:#{1,6}[ \t]+|\*{1,2})?"  # of a heading or of bold type
SPEAKERS = "Human|Assistant|CritiqueRequest|Critique|RevisionRequest|Revision"
# A line that starts as somebody's turn. "User:" also heads fields of forms, so it counts after a blank line
# only.
MARKER = re.compile(
    rf"(?:^|\n){MARKS}(?:{SPEAKERS}):|(?:^|\n\s*\n){MARKS}User:|<\|?(?:im_start|start_header_id|start_of_turn|user|assistant)\|?>"
    r"|\[INST\]"
)
LEAD_IN_TEXT = re.compile(
    r"""^\s*\**(?:(?:sure|certainly|of\ course|okay|ok|absolutely|yes)\b[,!.]*(?:\s+thing[,!.]*)?\s*)?
    (?:(?:here(?:'s|’s|\ is)|below\ is|this\ is)\s+(?:the|a|an|my|your|one)?\s*(?:\w+\s+){0,3}?
       (?:revis\w+|rewrit\w+|rewritten|updated|improved|better|safer|new)\b[^\n:]{0,60}
    |i(?:'ve|’ve|\ have|\ would|'d|’d)?\s+(?:revise|rewrite|rewrote|revised|rewritten)\b[^\n:]{0,60}
    |(?:the|my|a)?\s*(?:revised|rewritten|updated|improved|new)\s+(?:response|reply|answer|version)\b[^\n:]{0,30})
    :\**\s*""",
    re.IGNORECASE | re.VERBOSE,
)
QUOTED = re.compile(r'"([^"]+)"|“([^“”]+)”')
# "the assistant manager" is somebody else
NOT_OURS = "manager|director|coach|professor|principal|editor|teacher|app|at|to"
CRITIQUE_TEXT = re.compile(
    rf"""(?:^|[.!?]\s+|\n)(?:\w+,\s+)?(?:in|overall|while|although)?\s*the\ assistant(?:'s|’s)?\b(?!\s+(?:{NOT_OURS})\b)
    |^\W*(?:the|this|that|my|your|its)\s+(?:\w+\s+)?(?:last|previous|above|original|initial|first)\s+(?:response|reply|answer)\b
    |^\W*(?:the|this|my|your)\s+(?:response|reply|answer)\s+(?:was|could|contains|does|did|may|might|fails|should|has
       |shows|gives|provides|suggests|encourages|lacks|refuses)\b
    |^\W*(?:the|your)\s+(?:response|reply)\s+is\b
    |^\W*(?:this|that|the)\s+assistant\s+(?:response|reply|answer)\b|^\W*(?:this|that)\s+(?:response|reply|answer)\b
    |^\W*this\s+(?:is|seems\s+like)\s+an?\s+(?:\w+,?\s+){{0,5}}(?:response|reply|answer)\b
    |\bthe\s+assistant(?:'s|’s)\s+(?:last\s+|previous\s+|first\s+|original\s+)?(?:response|reply|answer)\b""",
    re.IGNORECASE | re.VERBOSE,
)
# What a critique cannot well do without: a word for the text that it is about, or for how that text could be
# taken.
ABOUT_A_TEXT = re.compile(
    r"\b(?:assistant|respon\w+|answer\w*|repl(?:y|ies|ied)|sentences?|statements?|paragraph|word(?:s|ing|ed)|phras\w+|tone|"
    r"advice|advis\w+|suggest\w*|recommend\w*|impl(?:y|ies|ied)|critici\w+|critique|interpreted|seen as|language|text|message|"
    r"mention\w*|model|chatbot|explains?|gives|shows?)\b",
    re.IGNORECASE,
)
REPLY_OPENING = re.compile(
    r"^\W*(?:i(?:'m|’m| am)\s+(?:really\s+|very\s+|so\s+)?(?:sorry|afraid|unable|not\s+(?:able|going))|sorry\b"
    r"|i\s+(?:can(?:'t|’t|not|\s+not)|won(?:'t|’t)|will\s+not|refuse)|no,|sure\b|of\s+course\b|certainly\b|as\s+an\s+ai\b)",
    re.IGNORECASE,
)
OF_A_REPLY = re.compile(r"\b(?:assistant|response|reply|answer)\b", re.IGNORECASE)
# A word; a sign where a script sets no spaces between words (Thai, Lao, Burmese, Khmer, Japanese, Chinese).
WORD = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+(?:['’][^\W_]+)*"
)
# A revision is the draft again when it lost at most so many of the draft's words, or so large a share of
# them, ...
NEAR_WORDS, NEAR_SHARE = 2, 0.04
LOST_OF_FEW = 4  # ... and no more than one in so many, of a draft of a few words.
ENGLISH = re.compile(r"\b(?:the|is|are|and|of|to|you|it|that)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A text after trimming, the rules that trimmed it, and the reason not to keep it where trimming found
    one.
    """

    text: str
    trimmed: tuple[str, ...] = ()
    reason: str | None = None


def clean(text: str, kind: str = REPLY) -> Cleaned:
    """Drop the segment's own label and a revision's lead-in, then all from the first role marker on."""
    text = re.sub(rf"^\s*{MARKS}(?:{OWN_LABELS[kind]}):\**[ \t]*", "", text, count=1, flags=re.IGNORECASE)
    other = OTHERS_LABEL.get(kind)
    if other and re.match(rf"\s*{MARKS}{other}:", text):
        return Cleaned(text.strip(), (), ROLE_CONFUSED)
    trimmed = []
    if marker := MARKER.search(text):
        text = text[: marker.start()]
        trimmed.append(LEAKED_ROLE)
    text = text.strip()
    if kind == REVISION and (lead_in := LEAD_IN_TEXT.match(text)):
        text = text[lead_in.end() :].strip()
        if quoted := QUOTED.fullmatch(text):
            text = (quoted[1] or quoted[2]).strip()
        trimmed.append(LEAD_IN)
    reason = None if text else LEAKED_ROLE if LEAKED_ROLE in trimmed else EMPTY
    return Cleaned(text, tuple(trimmed), reason)


def check_critique(text: str, response: str) -> str | None:
    """ROLE_CONFUSED for a critique that is a revision, the response again, or another reply to the human."""
    if same_text(text, response) or LEAD_IN_TEXT.match(text):
        return ROLE_CONFUSED
    if not ENGLISH.search(text):
        return None
    answers_the_human = REPLY_OPENING.match(text) and not OF_A_REPLY.search(text)
    return ROLE_CONFUSED if answers_the_human or not ABOUT_A_TEXT.search(text) else None


def check_revision(text: str, draft: str, critique: str) -> str | None:
    """UNREVISED for the draft again, ROLE_CONFUSED for the critique again or for talk about the assistant's
    answer.
    """
    if is_near(text, draft):
        return UNREVISED
    return ROLE_CONFUSED if same_text(text, critique) or CRITIQUE_TEXT.search(text) else None


def same_text(one: str, other: str) -> bool:
    """Whether two texts are the same but for case, white space and punctuation."""
    return group_key(one) == group_key(other)


def is_near(text: str, draft: str) -> bool:
    """Whether a revision still is its draft: all of its words but one or two, or but 4 %, are there, whatever
    was added.

    Their order does not matter. So neither an opening taken away, nor a word put in another's place, nor a
    sentence put behind or in front makes a revision; a clause that is gone does.
    """
    words = words_of(draft)
    if not words:
        return same_text(text, draft)
    lost = (words - words_of(text)).total()
    return lost <= max(NEAR_WORDS, NEAR_SHARE * words.total()) and lost <= (words.total() + 1) // LOST_OF_FEW


def share_kept(text: str, draft: str) -> float:
    """Share of the draft's words that are in the text, 0 to 1; of a draft without words, whether it is the
    same text.
    """
    words = words_of(draft)
    if not words:
        return float(same_text(text, draft))
    return 1 - (words - words_of(text)).total() / words.total()


def words_of(text: str) -> Counter[str]:
    """How often each word stands in a text, in lower case."""
    return Counter(WORD.findall(unicodedata.normalize("NFKC", text).casefold()))
