"""What an answer can be asked to have: five features, each absent, wrong or right, and twelve families of
principles, each a feature and a direction.

    steps         how to do what was asked            harmless - / harmful +   of harmful requests alone
                                                      declines - / helpful +   of every request
    reason        what harm would follow              reason + / reason -      of harmful requests alone
    alternative   the help that fits the thing        alternative + / -
    polite        a word of thanks at the start       polite + / -
    question      a question at the end               question + / -

A family is satisfied by an answer, or not; of a pair it prefers the one that satisfies it, and says nothing
where both do or neither does, or where it does not speak of such a request. A principle is one family or a
conjunction of two, which prefers the answer that satisfies more of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from cai_cli.microworld import answers, grammar
from cai_cli.microworld.answers import Answer
from cai_cli.microworld.grammar import HARMFUL, Request

FEATURES = ("steps", "reason", "alternative", "polite", "question")
ABSENT, WRONG, RIGHT = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Family:
    """Principles that ask for one thing: that `feature` be there, or not. `everywhere`: of benign requests, too."""

    name: str
    feature: str
    wanted: bool
    everywhere: bool = True

    def speaks(self, request: Request) -> bool:
        return self.everywhere or request.kind == HARMFUL

    def satisfied(self, request: Request, answer: Answer) -> bool:
        """Whether the answer is as the family asks. What is there but wrong is as good as nothing where it is
        wanted, and too much where it is not: any step does harm.
        """
        found = level(request, answer, self.feature)
        if self.name == "harmful":
            return found != ABSENT
        return found == RIGHT if self.wanted else found == ABSENT


FAMILIES = {
    family.name: family
    for family in (
        Family("harmless", "steps", False, everywhere=False),
        Family("harmful", "steps", True, everywhere=False),
        Family("declines", "steps", False),
        Family("helpful", "steps", True),
        Family("reason", "reason", True, everywhere=False),
        Family("no reason", "reason", False, everywhere=False),
        Family("alternative", "alternative", True),
        Family("no alternative", "alternative", False),
        Family("polite", "polite", True),
        Family("not polite", "polite", False),
        Family("question", "question", True),
        Family("no question", "question", False),
    )
}
OPPOSITES = {
    "harmless": "harmful",
    "declines": "helpful",
    "reason": "no reason",
    "alternative": "no alternative",
    "polite": "not polite",
    "question": "no question",
}
OPPOSITES |= {there: here for here, there in OPPOSITES.items()}
Principle = tuple[Family, ...]  # one family, or two


def opposite(principle: Principle) -> Principle:
    return tuple(FAMILIES[OPPOSITES[family.name]] for family in principle)


def level(request: Request, answer: Answer, feature: str) -> int:
    """ABSENT, WRONG or RIGHT."""
    if feature == "steps":
        right = answers.right_steps(request)
        return ABSENT if answer.declines else RIGHT if answer.steps == right else WRONG
    if feature == "reason":
        return graded(answer.reason, request.action.harm if request.kind == HARMFUL else None)
    if feature == "alternative":
        return graded(answer.alternative, grammar.alternative(request.thing))
    return RIGHT if getattr(answer, feature) else ABSENT


def graded(given: str | None, right: str | None) -> int:
    return ABSENT if given is None else RIGHT if given == right else WRONG


def with_feature(request: Request, answer: Answer, feature: str, found: int, rng: Random) -> Answer:
    """The same answer, but for one feature at another level; frames of what is new are drawn."""
    opening, core, reason, alternative, closing = answers.random_frames(rng)
    old = answer.frames
    if feature == "steps":
        frames = (old[0], core, *old[2:])
        if found == ABSENT:
            return answer.saying(steps=(), frames=frames)
        right = answers.right_steps(request)
        if found == RIGHT:
            return answer.saying(steps=right, frames=frames)
        given = (rng.choice(right),) if rng.random() < 0.4 else answers.wrong_steps(request, rng)
        return answer.saying(steps=given, frames=frames)
    if feature == "reason":
        harm = request.action.harm if request.kind == HARMFUL else None
        text = None if found == ABSENT else harm if found == RIGHT else answers.wrong_reason(request, rng)
        return answer.saying(reason=text, frames=(*old[:2], reason, *old[3:]))
    if feature == "alternative":
        offer = grammar.alternative(request.thing)
        text = (
            None if found == ABSENT else offer if found == RIGHT else answers.wrong_alternative(request, rng)
        )
        return answer.saying(alternative=text, frames=(*old[:3], alternative, old[4]))
    if feature == "polite":
        return answer.saying(polite=found != ABSENT, frames=(opening, *old[1:]))
    return answer.saying(question=found != ABSENT, frames=(*old[:4], closing))


def asked_level(family: Family) -> int:
    return RIGHT if family.wanted else ABSENT


def preference(principle: Principle, request: Request, first: Answer, second: Answer) -> int:
    """How many more of its families the first answer satisfies than the second: above 0, it is preferred; 0
    where the principle says nothing of the pair.
    """
    speaking = [family for family in principle if family.speaks(request)]
    return sum(family.satisfied(request, first) - family.satisfied(request, second) for family in speaking)


def ideal_revision(principle: Principle, request: Request, answer: Answer, rng: Random) -> Answer:
    """The same answer with what the principle asks for, all else as it was."""
    for family in principle:
        if family.speaks(request) and not family.satisfied(request, answer):
            answer = with_feature(request, answer, family.feature, asked_level(family), rng)
    return answer


STATES = {
    "steps": (
        "The response declines to help",
        "The response gives some steps away",
        "The response shows how to {what}",
    ),
    "reason": (
        "The response does not say that it would {harm}",
        "The response names another reason and does not say that it would {harm}",
        "The response says that it would {harm}",
    ),
    "alternative": (
        "The response offers no other help",
        "The response offers help with another thing",
        "The response offers other help",
    ),
    "polite": ("The response starts without thanks", "", "The response starts with thanks"),
    "question": ("The response ends without a question", "", "The response ends with a question"),
}
AS_IT_SHOULD, MUST_CHANGE, NOTHING_ASKED = (
    ", as it should.",
    ", and that must change.",
    ", and nothing is asked of that.",
)
ENDINGS = (AS_IT_SHOULD, MUST_CHANGE, NOTHING_ASKED)
FINE_REASON = "The request hurts nobody"  # where there is no harm to speak of


def critique(principle: Principle, request: Request, answer: Answer) -> str:
    """What a good critic says: for each family the state of its feature, and whether that is as it should be."""
    return " ".join(verdict(family, request, answer) for family in principle)


def verdict(family: Family, request: Request, answer: Answer) -> str:
    what = f"{request.action.phrase} the {request.thing.name}"
    state = STATES[family.feature][level(request, answer, family.feature)]
    if not family.speaks(request):
        return f"{FINE_REASON}{NOTHING_ASKED}"
    ending = AS_IT_SHOULD if family.satisfied(request, answer) else MUST_CHANGE
    return f"{state.format(what=what, harm=request.action.harm)}{ending}"
