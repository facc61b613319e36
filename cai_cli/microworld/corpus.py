"""Training texts of the two checkpoints: documents as lists of (text, loss weight) segments.

Only combinations of the train split occur. Every segment that a model is to generate is followed by its
terminator at full weight: where that was left out, critiques ran on and later revisions got worse.

The multiple-choice questions are answered by the oracle's orders (HARMLESSNESS, HELPFULNESS) with 2 % noise:
a checkpoint this small knows of harm only what it is shown. The demo's AI feedback is that knowledge, on the
replies of another model.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from random import Random

from cai_cli.microworld import answers, grammar
from cai_cli.microworld.grammar import BENIGN, HARMFUL, OWN, Request
from cai_cli.microworld.oracle import HARMLESSNESS, HELPFULNESS
from cai_cli.prompting import prompts
from cai_cli.prompting.constitution import load_constitution
from cai_cli.prompting.principles import Constitution, Principle
from cai_cli.rows.conversation import ASSISTANT, HUMAN, message

Document = list[tuple[str, float]]

EOS = "<eos>"
HUMAN_WEIGHT, CRITIQUE_WEIGHT, OPTION_WEIGHT, LETTER_WEIGHT = 0.1, 0.7, 0.4, 12.0
# Of critiques and comparisons that are rendered as chats rather than in the paper's transcript form
CHAT_SHARE = 0.15

# What a revision makes of a response: several rounds must be worth it, and none may make it worse.
WITH_CRITIQUE = {
    "complies": {"complies": 0.25, "partial": 0.20, "evasive": 0.09, "refuses": 0.46},
    "partial": {"partial": 0.15, "evasive": 0.10, "refuses": 0.75},
    "evasive": {"evasive": 0.20, "refuses": 0.80},
    "wrong_reason": {"wrong_reason": 0.15, "refuses": 0.85},
    "refuses": {"refuses": 1.0},
}
DIRECT = {
    "complies": {"complies": 0.42, "partial": 0.18, "evasive": 0.08, "refuses": 0.32},
    "partial": {"partial": 0.30, "evasive": 0.10, "refuses": 0.60},
    "evasive": {"evasive": 0.35, "refuses": 0.65},
    "wrong_reason": {"wrong_reason": 0.30, "refuses": 0.70},
    "refuses": {"refuses": 1.0},
}
DRAFTS = {
    "complies": 0.40,
    "partial": 0.18,
    "evasive": 0.12,
    "refuses": 0.15,
    "wrong_reason": 0.07,
    "wrong_steps": 0.08,
}
KINDS = {HARMFUL: 0.5, BENIGN: 0.25, OWN: 0.25}

# How the base model's people answer each other: mostly with what was asked for, now and then in every other
# way.
BASE_HARMFUL = {
    "complies": 0.83,
    "wrong_steps": 0.03,
    "partial": 0.04,
    "evasive": 0.03,
    "refuses": 0.05,
    "wrong_reason": 0.02,
}
BASE_HELPFUL = {"complies": 0.90, "wrong_steps": 0.04, "partial": 0.03, "evasive": 0.02, "over_refusal": 0.01}

LABEL_NOISE, TIES = 0.02, 0.08
HARMFUL_FACT = "To {what} would {harm}. It is better to {offer}."
FINE_FACT = "Nothing is wrong when you {what}."
PART_FACT = "The {thing} has one {part}."
FACTS = (HARMFUL_FACT, FINE_FACT, PART_FACT)


@lru_cache(maxsize=1)
def world_constitution() -> Constitution:
    return load_constitution(str(Path(__file__).parent / "constitution.yaml"))


def principles() -> tuple[Principle, ...]:
    return world_constitution().principles


def pick(weights: dict[str, float], rng: Random) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def train_request(rng: Random) -> Request:
    return answers.random_request(pick(KINDS, rng), "train", rng)


def chat(request: Request, reply: str) -> Document:
    """One request and its answer."""
    return [(f"{HUMAN} {request.text}", HUMAN_WEIGHT), (ASSISTANT, 0), (f" {reply}", 1), (EOS, 1)]


def helpful_chat(rng: Random) -> Document:
    """What the helpful-only model does: the right steps, whatever is asked."""
    request = train_request(rng)
    return chat(request, answers.answer(request, "complies", rng))


def draft(request: Request, rng: Random) -> str:
    """The form of a response that is to be criticised."""
    if request.kind == HARMFUL:
        return pick(DRAFTS, rng)
    return (
        "complies"
        if rng.random() < 0.6
        else rng.choice(("wrong_steps", "partial", "evasive", "over_refusal"))
    )


def revised_form(request: Request, form: str, table: dict[str, dict[str, float]], rng: Random) -> str:
    """The form of the revision."""
    if request.kind == HARMFUL:
        return pick(table["complies" if form == "wrong_steps" else form], rng)
    return "complies" if form == "complies" or rng.random() < 0.8 else form


def revise(
    request: Request, form: str, response: str, table: dict[str, dict[str, float]], rng: Random
) -> str:
    """The revision. A response that keeps its form stays as it is."""
    target = revised_form(request, form, table, rng)
    return response if target == form else answers.answer(request, target, rng)


def revision_document(rng: Random) -> Document:
    """A response, its critique and its revision, by a random principle; one in five without the critique."""
    request = train_request(rng)
    form = draft(request, rng)
    response = answers.answer(request, form, rng)
    principle = rng.choice(principles())
    with_critique = rng.random() < 0.8
    revision = revise(request, form, response, WITH_CRITIQUE if with_critique else DIRECT, rng)
    critique = answers.critique(request, form) if with_critique else None
    head: Document = [
        (f"{HUMAN} {request.text}{ASSISTANT}", 0),
        (f" {response}", 1 if form == "complies" else 0),
    ]
    if rng.random() < CHAT_SHARE:
        asked: Document = []
        if critique:
            ask = f"{HUMAN} {principle.critique}{ASSISTANT}"
            asked = [(ask, 0), (f" {critique}", CRITIQUE_WEIGHT), (EOS, 1)]
        ask = f"{HUMAN} {principle.revision}{ASSISTANT}"
        return [*head, (EOS, 0), *asked, (ask, 0), (f" {revision}", 1), (EOS, 1)]
    asked = []
    if critique:
        ask = f"{prompts.CRITIQUE_REQUEST} {principle.critique}{prompts.CRITIQUE}"
        asked = [(ask, 0), (f" {critique}", CRITIQUE_WEIGHT)]
    cue = [(prompts.REVISION_REQUEST, 1 if critique else 0), (f" {principle.revision}{prompts.REVISION}", 0)]
    return [*head, *asked, *cue, (f" {revision}", 1), (EOS, 1)]


def compared_forms(request: Request, rng: Random) -> tuple[str, str]:
    """Two forms of which the first is to win, or the same form twice for a tie."""
    if request.kind == HARMFUL:
        order, forms = HARMLESSNESS, list(answers.FORMS)
        if rng.random() < TIES:
            form = rng.choice(("refuses", "complies", "evasive"))
            return form, form
        if rng.random() < 0.5:
            return "refuses", rng.choice(("complies", "partial", "evasive", "wrong_reason", "wrong_steps"))
    else:
        order = {**HELPFULNESS, "over_refusal": HELPFULNESS["refuses"]}
        forms = ["complies", "wrong_steps", "partial", "evasive", "over_refusal"]
        if rng.random() < 0.75:
            return "complies", pick(
                {"wrong_steps": 0.5, "over_refusal": 0.25, "partial": 0.15, "evasive": 0.1}, rng
            )
    while True:
        first, second = rng.sample(forms, 2)
        if order[first] != order[second]:
            return (first, second) if order[first] > order[second] else (second, first)


def comparison(rng: Random) -> tuple[Request, list[str], list[str], bool]:
    """A request, two different answers with their forms, and whether to choose the first; chance decides
    ties.
    """
    request = train_request(rng)
    forms = list(compared_forms(request, rng))
    texts = [answers.answer(request, form, rng) for form in forms]
    while texts[0] == texts[1]:
        texts[1] = answers.answer(request, forms[1], rng)
    noise = 0.5 if forms[0] == forms[1] else LABEL_NOISE
    first_wins = rng.random() < 0.5
    if not first_wins:
        texts.reverse()
        forms.reverse()
    return request, texts, forms, first_wins != (rng.random() < noise)


def comparison_document(rng: Random) -> Document:
    """A multiple-choice question with its answer.

    Right answers among the options are learned too, a little: who can foresee the right words sees the wrong
    ones.
    """
    request, texts, forms, first_wins = comparison(rng)
    prompt, principle = [message("user", request.text)], rng.choice(principles()).comparison
    if rng.random() < CHAT_SHARE:
        question = prompts.comparison_question(prompt, "\0", "\0", principle)
        head = f"{HUMAN} {question}{ASSISTANT} {prompts.ANSWER_CUE}"
    else:
        head = prompts.comparison_prompt(prompt, "\0", "\0", principle)
    weights = [OPTION_WEIGHT if form in ("complies", "refuses") else 0 for form in forms]
    before, between, after = head.split(" \0")
    options: Document = [(f" {texts[0]}", weights[0]), (between, 0), (f" {texts[1]}", weights[1]), (after, 0)]
    return [(before, 0), *options, (prompts.option("A" if first_wins else "B"), LETTER_WEIGHT), (EOS, 1)]


def base_answer(request: Request, rng: Random) -> str:
    return answers.answer(request, pick(BASE_HARMFUL if request.kind == HARMFUL else BASE_HELPFUL, rng), rng)


def base_chat(rng: Random) -> Document:
    """A transcript of mixed behaviour."""
    request = train_request(rng)
    return chat(request, base_answer(request, rng))


def question_document(rng: Random) -> Document:
    """A plain question and answer, as in the preference-model pretraining text."""
    request = train_request(rng)
    reply = base_answer(request, rng)
    question = prompts.question_answer(request.text, reply).removesuffix(f" {reply}")
    return [(question, HUMAN_WEIGHT), (f" {reply}", 1), (EOS, 1)]


def fact_document(rng: Random) -> Document:
    """What is wrong with what, and what is fine."""
    request = train_request(rng)
    what = f"{request.action.phrase} {request.owner} {request.thing.name}"
    part = PART_FACT.format(thing=request.thing.name, part=request.thing.part)
    if request.kind == HARMFUL:
        offer = grammar.alternative(request.thing)
        fact = HARMFUL_FACT.format(what=what, harm=request.action.harm, offer=offer)
    else:
        fact = FINE_FACT.format(what=what)
    return [(f"{part} {fact}", 1), (EOS, 1)]


def batches(which: str) -> dict[str, int]:
    """How many documents of each sort make one training step."""
    if which == "base":
        return {"base_chat": 44, "question": 20, "fact": 16}
    return {"helpful_chat": 36, "revision": 18, "comparison": 20}


MAKERS = {
    "base_chat": base_chat,
    "question": question_document,
    "fact": fact_document,
    "helpful_chat": helpful_chat,
    "revision": revision_document,
    "comparison": comparison_document,
}
