"""Training texts of the two checkpoints: documents as lists of (text, loss weight) segments.

Only combinations of the train split and wordings that are not held out occur. Every segment that a model is to
generate is followed by its terminator at full weight: where that was left out, critiques ran on and later
revisions got worse.

The helpful-only checkpoint is the demo's judge and reviser: it learns to answer comparisons by the principle
it is shown, and to revise as the request asks, from `features.preference` and `features.ideal_revision`. A
model this small knows of principles only what it is shown. Where a principle says nothing of a pair, the letter
is a fair coin.

`ease`, from 2 to 0: whether the first option is the better one is the exclusive or of two things, what the
principle wants and which option has it, and from an even mixture nothing is learned: the judge stays at
chance. From 2 to 1, the share of principles that want something there falls from 95 to 50 %, and the second
answer is the first with the asked feature flipped; from 1 to 0, answers come to differ in anything and two
families to stand in one principle. The trainer lowers it as letters come out right.
"""

from __future__ import annotations

from random import Random
from typing import TypeVar

from cai_cli.microworld import answers, features, grammar, wordings
from cai_cli.microworld.answers import Answer
from cai_cli.microworld.features import ABSENT, FAMILIES, FEATURES, RIGHT, WRONG, Principle
from cai_cli.microworld.grammar import BENIGN, HARMFUL, OWN, Request
from cai_cli.prompting import prompts
from cai_cli.rows.conversation import ASSISTANT, HUMAN, message

Drawn = TypeVar("Drawn")
Document = list[tuple[str, float]]

EOS = "<eos>"
HUMAN_WEIGHT, CRITIQUE_WEIGHT, LETTER_WEIGHT = 0.1, 0.7, 16.0
# Of critiques and comparisons that are rendered as chats rather than in the paper's transcript form
CHAT_SHARE = 0.15
KINDS = {HARMFUL: 0.5, BENIGN: 0.25, OWN: 0.25}
COMPARED_KINDS = {HARMFUL: 0.7, BENIGN: 0.15, OWN: 0.15}
REVISED_KINDS = {HARMFUL: 0.8, BENIGN: 0.1, OWN: 0.1}
CONJUNCTIONS, SPEAKING = 0.3, 0.8
REVISED_OFTEN = {"helpful": 2.0, "harmful": 2.0}  # what takes the most words to put right
# What a random answer has of each feature: else it is absent.
THERE, NOT_RIGHT = 0.45, 0.07
EXTRAS = 0.25  # of a helpful answer: thanks in front, a question at the end
WITH_CRITIQUE, TO_CHANGE = 0.75, 0.8

# How the base model's people answer each other: mostly with what was asked for, now and then in every other
# way. They decline what would hurt somebody more often, and then say why.
BASE_HARMFUL = {RIGHT: 0.82, WRONG: 0.06, ABSENT: 0.12}
BASE_HELPFUL = {RIGHT: 0.92, WRONG: 0.06, ABSENT: 0.02}
BASE_EXTRA, BASE_EXTRA_DECLINED = 0.15, 0.4  # of each sentence around the core

HARMFUL_FACT = "To {what} would {harm}. It is better to {offer}."
FINE_FACT = "Nothing is wrong when you {what}."
PART_FACT = "The {thing} has one {part}."
FACTS = (HARMFUL_FACT, FINE_FACT, PART_FACT)


def pick(weights: dict[Drawn, float], rng: Random) -> Drawn:
    return rng.choices(list(weights), list(weights.values()))[0]


def train_request(rng: Random, kinds: dict[str, float] = KINDS, split: str = "train") -> Request:
    return answers.random_request(pick(kinds, rng), split, rng)


def chat(request: Request, reply: str) -> Document:
    """One request and its answer."""
    return [(f"{HUMAN} {request.text}", HUMAN_WEIGHT), (ASSISTANT, 0), (f" {reply}", 1), (EOS, 1)]


def helpful_answer(request: Request, rng: Random) -> Answer:
    """What the helpful-only model says: the right steps, whatever is asked, and now and then a word around them."""
    return Answer(
        steps=answers.right_steps(request),
        polite=rng.random() < EXTRAS,
        question=rng.random() < EXTRAS,
        frames=answers.random_frames(rng),
    )


def random_answer(request: Request, rng: Random) -> Answer:
    """Each feature there, wrong or absent, on its own."""
    answer = Answer(frames=answers.random_frames(rng))
    for feature in FEATURES:
        wrong = 0.2 if feature == "steps" else NOT_RIGHT
        found = pick({RIGHT: THERE, WRONG: wrong, ABSENT: 1 - THERE - wrong}, rng)
        answer = features.with_feature(request, answer, feature, found, rng)
    return answer


def helpful_chat(rng: Random) -> Document:
    request = train_request(rng)
    return chat(request, helpful_answer(request, rng).text)


def random_principle(
    rng: Random,
    conjunctions: float = CONJUNCTIONS,
    there: float = 0.5,
    shares: dict[str, float] | None = None,
) -> Principle:
    """One family, or two that do not speak of the same feature; `there`: the share that wants something there;
    `shares`: of features or families that are not asked about as often as the others.
    """
    wanted = rng.random() < there
    families = [family for family in FAMILIES.values() if family.wanted == wanted]
    shares = shares or {}
    weights = [shares.get(family.name, shares.get(family.feature, 1.0)) for family in families]
    first = rng.choices(families, weights)[0]
    if rng.random() >= conjunctions:
        return (first,)
    return first, rng.choice([family for family in FAMILIES.values() if family.feature != first.feature])


def flipped(request: Request, answer: Answer, feature: str, rng: Random) -> Answer:
    """The answer with a feature right where it was not, and absent where it was."""
    found = features.level(request, answer, feature)
    return features.with_feature(request, answer, feature, ABSENT if found == RIGHT else RIGHT, rng)


def second_answer(
    request: Request, first: Answer, principle: Principle, minimal: float, rng: Random
) -> Answer:
    """Another answer to compare with: the first but for what is asked, or for one to three features, or one of
    its own.
    """
    if rng.random() < minimal:
        second = flipped(request, first, principle[0].feature, rng)
        return flipped(request, second, rng.choice(FEATURES), rng) if rng.random() < 0.4 else second
    if rng.random() < 0.5:
        return random_answer(request, rng)
    second = first
    for feature in rng.sample(FEATURES, rng.randint(1, 3)):
        second = flipped(request, second, feature, rng)
    return second


def comparison(
    rng: Random,
    ease: float = 0.0,
    split: str = "train",
    principle: Principle | None = None,
    speaks: bool | None = None,
) -> tuple[Request, Principle, list[Answer], int]:
    """Request, principle, two answers, and by how much the principle prefers the first. `speaks` and
    `principle` are drawn where they are not given.
    """
    minimal, there = mixture(ease)
    if speaks is None:
        speaks = rng.random() < speaking_share(ease)
    drawn = principle
    while True:
        request = train_request(rng, COMPARED_KINDS, split)
        principle = drawn or random_principle(rng, CONJUNCTIONS * (1 - minimal), there)
        for _ in range(8):
            first = random_answer(request, rng)
            second = second_answer(request, first, principle, minimal, rng)
            preferred = features.preference(principle, request, first, second)
            if first.text != second.text and (preferred != 0) == speaks:
                return request, principle, [first, second], preferred


def mixture(ease: float) -> tuple[float, float]:
    """Shares at this ease: of pairs that differ in what is asked alone, and of principles that want something there."""
    return min(1.0, ease), 0.5 + 0.45 * max(0.0, ease - 1)


def speaking_share(ease: float) -> float:
    """The share of comparisons of which the principle says something."""
    return SPEAKING + (0.95 - SPEAKING) * min(1.0, ease)


def comparison_document(rng: Random, ease: float = 0.0, asked: Principle | None = None) -> Document:
    """A multiple-choice question with its answer."""
    request, principle, (first, second), preferred = comparison(rng, ease, principle=asked)
    first_wins = preferred > 0 if preferred else rng.random() < 0.5
    if rng.random() < 0.5:
        first, second, first_wins = second, first, not first_wins
    words = wordings.write(principle, "comparison", wordings.LEARNED, rng)
    shown = [message("user", request.text)], first.text, second.text, words
    if rng.random() < CHAT_SHARE:
        head = f"{HUMAN} {prompts.comparison_question(*shown)}{ASSISTANT} {prompts.ANSWER_CUE}"
    else:
        head = prompts.comparison_prompt(*shown)
    return [(head, 0), (prompts.option("A" if first_wins else "B"), LETTER_WEIGHT), (EOS, 1)]


def revision_case(
    rng: Random, own_draft: bool, change: bool, split: str = "train", principle: Principle | None = None
) -> tuple[Request, Principle, Answer, Answer]:
    """Request, principle, draft and ideal revision: one that is another answer, or the draft, as `change` says."""
    drawn = principle
    while True:
        request = train_request(rng, REVISED_KINDS, split)
        principle = drawn or random_principle(rng, shares=REVISED_OFTEN)
        for attempt in range(8):  # of what helpful answers always have, none can be changed
            own = own_draft and (drawn is None or attempt < 4)
            draft = helpful_answer(request, rng) if own else random_answer(request, rng)
            revision = features.ideal_revision(principle, request, draft, rng)
            if (revision != draft) == change:
                return request, principle, draft, revision


def revision_document(rng: Random) -> Document:
    """A response, its critique and its revision; one in four without the critique."""
    own_draft = rng.random() < 0.5
    request, principle, draft, revision = revision_case(rng, own_draft, rng.random() < TO_CHANGE)
    texts = wordings.draw(principle, wordings.LEARNED, rng)
    critique = features.critique(principle, request, draft) if rng.random() < WITH_CRITIQUE else None
    head: Document = [
        (f"{HUMAN} {request.text}{ASSISTANT}", 0),
        (f" {draft.text}", 1 if own_draft else 0),
    ]
    if rng.random() < CHAT_SHARE:
        asked: Document = []
        if critique:
            ask = f"{HUMAN} {texts.critique}{ASSISTANT}"
            asked = [(ask, 0), (f" {critique}", CRITIQUE_WEIGHT), (EOS, 1)]
        ask = f"{HUMAN} {texts.revision}{ASSISTANT}"
        return [*head, (EOS, 0), *asked, (ask, 0), (f" {revision.text}", 1), (EOS, 1)]
    asked = []
    if critique:
        ask = f"{prompts.CRITIQUE_REQUEST} {texts.critique}{prompts.CRITIQUE}"
        # The next marker ends the critique, as eos does in a chat.
        asked = [(ask, 0), (f" {critique}", CRITIQUE_WEIGHT), (prompts.REVISION_REQUEST, 1)]
    else:
        asked = [(prompts.REVISION_REQUEST, 0)]
    return [*head, *asked, (f" {texts.revision}{prompts.REVISION}", 0), (f" {revision.text}", 1), (EOS, 1)]


def base_answer(request: Request, rng: Random) -> Answer:
    """An answer among people: mostly the right steps, and every sentence of the world now and then."""
    harmful = request.kind == HARMFUL
    answer = Answer(frames=answers.random_frames(rng))
    core = pick(BASE_HARMFUL if harmful else BASE_HELPFUL, rng)
    answer = features.with_feature(request, answer, "steps", core, rng)
    extra = BASE_EXTRA_DECLINED if answer.declines else BASE_EXTRA
    for feature in FEATURES[1:]:
        right = RIGHT if feature != "reason" or harmful else ABSENT
        found = pick({right: extra, WRONG: 0.02, ABSENT: 0.98 - extra}, rng)
        answer = features.with_feature(request, answer, feature, found, rng)
    return answer


def base_chat(rng: Random) -> Document:
    """A transcript of mixed behaviour."""
    request = train_request(rng)
    return chat(request, base_answer(request, rng).text)


def question_document(rng: Random) -> Document:
    """A plain question and answer, as in the preference-model pretraining text."""
    request = train_request(rng)
    reply = base_answer(request, rng).text
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


def batches(which: str, revisions_first: bool = False) -> dict[str, int]:
    """How many documents of each sort make one training step. What principles mean is learned from revisions,
    where every word teaches it; judging, where one letter does, comes fast after that and hardly before.
    """
    if which == "base":
        return {"base_chat": 44, "question": 20, "fact": 16}
    if revisions_first:
        return {"helpful_chat": 10, "revision": 34, "comparison": 8}
    return {"helpful_chat": 12, "revision": 16, "comparison": 32}


MAKERS = {
    "base_chat": base_chat,
    "question": question_document,
    "fact": fact_document,
    "helpful_chat": helpful_chat,
    "revision": revision_document,
    "comparison": comparison_document,
}
