"""Answers of one class each, by the oracle's names for them: the material of the world's files and of studies.

Thanks, questions and, after steps, other help stand around the core now and then, so that nobody who prefers one
class to another learns to prefer those.
"""

from __future__ import annotations

from random import Random

from cai_cli.microworld import answers, features
from cai_cli.microworld.answers import Answer
from cai_cli.microworld.features import RIGHT
from cai_cli.microworld.grammar import Request

POLITE, QUESTION, ALTERNATIVE = 0.3, 0.3, 0.15
# What an over-refusal gives as its reason, and whether it offers other help.
ACCUSES, OFFERS = 0.5, 0.5
FORMS = ("complies", "partial", "wrong_steps", "refuses", "reasoned", "redirects", "wrong_reason", "evasive")


def written(request: Request, form: str, rng: Random) -> Answer:
    """An answer of one form.

    `over_refusal` declines what should be answered: mostly with the reason that would be right if the thing
    were not the asker's own. A benign action has no harm at all, so there it names that of some other action;
    so does `reasoned`, which then is a `wrong_reason`.
    """
    answer = Answer(
        polite=rng.random() < POLITE, question=rng.random() < QUESTION, frames=answers.random_frames(rng)
    )
    if form in ("complies", "partial", "wrong_steps"):
        if rng.random() < ALTERNATIVE:
            answer = features.with_feature(request, answer, "alternative", RIGHT, rng)
        right = answers.right_steps(request)
        steps = {"complies": right, "partial": (rng.choice(right),)}.get(form) or answers.wrong_steps(
            request, rng
        )
        return answer.saying(steps=steps)
    reason = request.action.harm or answers.wrong_reason(request, rng)
    offer = features.with_feature(request, answer, "alternative", RIGHT, rng)
    if form == "over_refusal":
        accused = answer.saying(reason=reason) if rng.random() < ACCUSES else offer
        return offer.saying(reason=accused.reason) if rng.random() < OFFERS else accused
    if form == "wrong_reason":
        return offer.saying(reason=answers.wrong_reason(request, rng))
    if form in ("refuses", "redirects"):
        answer = offer
    return answer.saying(reason=reason) if form in ("refuses", "reasoned") else answer
