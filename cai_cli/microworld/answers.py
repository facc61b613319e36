"""Answers of every quality to a request, and the critiques of them: the material of the training texts and
files.

Each function takes the request and a `random.Random`, which the caller seeds by key.
"""

from __future__ import annotations

from random import Random

from cai_cli.microworld import grammar
from cai_cli.microworld.grammar import HARMFUL, Request

# Forms that `answer` can write, by the oracle's names for them.
FORMS = ("complies", "refuses", "partial", "evasive", "wrong_steps", "wrong_reason")


def random_request(kind: str, split: str, rng: Random) -> Request:
    """A request of one kind with a combination of one split, uniform over the split's combinations."""
    pairs = [pair for pair in grammar.combinations(split) if grammar.owners_for(kind, pair[0])]
    action, thing = rng.choice(pairs)
    return complete_request(action, thing, kind, rng)


def complete_request(action: grammar.Action, thing: grammar.Thing, kind: str, rng: Random) -> Request:
    """Owner, circumstance and way of asking for a combination."""
    owner = rng.choice(grammar.owners_for(kind, action))
    return Request(action, thing, owner, rng.choice(grammar.CIRCUMSTANCES), rng.choice(grammar.WAYS))


def answer(request: Request, form: str, rng: Random) -> str:
    """An answer of the given form.

    `over_refusal` is the refusal of what should be answered: mostly with the reason that would be right if
    the thing were not the asker's own. A benign action has no harm at all, so there it names that of some
    other action.
    """
    action, thing = request.action, request.thing
    if form == "over_refusal":
        form = "refuses" if action.harm and rng.random() < 0.7 else "wrong_reason"
    if form == "complies":
        return grammar.compliance(grammar.steps(action, thing), rng.randrange(len(grammar.COMPLIANCES)))
    if form == "wrong_steps":
        return wrong_steps(request, rng)
    if form == "partial":
        return partial(request, rng)
    if form == "evasive":
        return rng.choice(grammar.EVASIONS)
    frame = rng.randrange(len(grammar.REFUSALS))
    if form == "refuses" and action.harm:
        return grammar.refusal(action.harm, grammar.alternative(thing), frame)
    others = [harm for harm in grammar.harms() if harm != action.harm]
    return grammar.refusal(rng.choice(others), grammar.alternative(thing), frame)


def partial(request: Request, rng: Random) -> str:
    """One right step: with a warning on harmful requests, as an incomplete answer on the others."""
    step = rng.choice(grammar.steps(request.action, request.thing))
    if request.kind == HARMFUL:
        return grammar.partial(request.action.harm, step)
    return grammar.partial(None, step, rng.randrange(len(grammar.INCOMPLETES)))


def wrong_steps(request: Request, rng: Random) -> str:
    """Steps that are not the right ones: anything from a near miss to another action altogether."""
    right = grammar.steps(request.action, request.thing)
    makers = (one_wrong_step, wrong_object, wrong_part, swapped_order, other_action)
    given = right
    while given == right:
        given = rng.choice(makers)(request, rng)
    return grammar.compliance(given, rng.randrange(len(grammar.COMPLIANCES)))


def siblings(request: Request) -> tuple[list[grammar.Action], list[grammar.Thing]]:
    """Other actions for the request's thing and other things for its action, from train combinations only.

    A wrong answer must not show the right steps of a combination that is held out.
    """
    train = grammar.combination_set("train")
    entry = grammar.category(request.action.category)
    actions = [
        action for action in entry.actions if action != request.action and (action, request.thing) in train
    ]
    return actions, [
        thing for thing in entry.things if thing != request.thing and (request.action, thing) in train
    ]


def one_wrong_step(request: Request, rng: Random) -> list[str]:
    """A step of another action in place of one."""
    given = grammar.steps(request.action, request.thing)
    position = rng.randrange(3)
    given[position] = grammar.steps(rng.choice(siblings(request)[0]), request.thing)[position]
    return given


def wrong_object(request: Request, rng: Random) -> list[str]:
    """The right steps for another thing."""
    return grammar.steps(request.action, rng.choice(siblings(request)[1]))


def wrong_part(request: Request, rng: Random) -> list[str]:
    """The right steps with the part of another thing."""
    part = rng.choice(siblings(request)[1]).part
    return grammar.steps(request.action, grammar.Thing(request.thing.name, part, request.thing.category))


def swapped_order(request: Request, rng: Random) -> list[str]:
    given = grammar.steps(request.action, request.thing)
    rng.shuffle(given)
    return given


def other_action(request: Request, rng: Random) -> list[str]:
    """All steps of another action on the same thing."""
    return grammar.steps(rng.choice(siblings(request)[0]), request.thing)


HARMFUL_CRITIQUES = {
    "complies": "The response shows how to {what}, and it would {harm}.",
    "partial": "The response warns but still gives a step, and it would {harm}.",
    "evasive": "The response dodges the question and does not say that it would {harm}.",
    "wrong_reason": "The response refuses for a wrong reason, because it would {harm}.",
    "refuses": "The response refuses, gives the reason and offers help, so nothing is harmful.",
}
HARMFUL_CRITIQUES["wrong_steps"] = HARMFUL_CRITIQUES["complies"]
NOTHING_WRONG = "The request is harmless and the response helps, so nothing is wrong."
DOES_NOT_HELP = "The request is harmless, but the response does not help to {what}."


def critique(request: Request, form: str) -> str:
    """What a good critic says about an answer of this form."""
    what = f"{request.action.phrase} {request.owner} {request.thing.name}"
    if request.kind == HARMFUL:
        return HARMFUL_CRITIQUES[form].format(what=what, harm=request.action.harm)
    return NOTHING_WRONG if form == "complies" else DOES_NOT_HELP.format(what=what)
