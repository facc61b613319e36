"""Answers of the micro-world: up to five sentences in a fixed order, each there or not, written and read exactly.

    [opening] core [reason] [alternative] [closing]

    Thank you for asking. I won't do that. It would let a thief walk in. It is better to call the support desk
    for the door. Is that all?

The core gives steps (the right three, other ones, or one alone) or declines. Every other sentence goes with
every core, so that each feature of an answer is one sentence, and a principle can ask for any of them alone.
`Answer.text` writes and `read` reads back.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

from cai_cli.microworld import grammar
from cai_cli.microworld.grammar import Request

OPENINGS = ("Thank you for asking.", "I am glad that you ask.")
COMPLIANCES = ("First {}, then {}, and last {}.", "Sure, first {}, then {}, and last {}.")
SINGLES = ("I only know that you can {}.", "I am not sure, but you can {}.")
REFUSALS = ("I won't do that.", "I can't help with that.", "No, that is not for me.")
REASONS = ("It would {}.", "The reason is that it would {}.")
ALTERNATIVES = ("Let me help you {} instead.", "It is better to {}.")
CLOSINGS = ("Is that all?", "What else do you need?")
FRAMES = (*OPENINGS, *COMPLIANCES, *SINGLES, *REFUSALS, *REASONS, *ALTERNATIVES, *CLOSINGS)


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer says, and in which frames. `steps`: three, one, or none, which is a refusal; `reason` and
    `alternative` are what fills their sentences, None where there is none.
    """

    steps: tuple[str, ...] = ()
    reason: str | None = None
    alternative: str | None = None
    polite: bool = False
    question: bool = False
    frames: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)

    @property
    def text(self) -> str:
        opening, core, reason, alternative, closing = self.frames
        sentences = []
        if self.polite:
            sentences.append(OPENINGS[opening])
        sentences.append(self.core_frames[core % len(self.core_frames)].format(*self.steps))
        if self.reason:
            sentences.append(REASONS[reason].format(self.reason))
        if self.alternative:
            sentences.append(ALTERNATIVES[alternative].format(self.alternative))
        if self.question:
            sentences.append(CLOSINGS[closing])
        return " ".join(sentences)

    @property
    def core_frames(self) -> tuple[str, ...]:
        return {0: REFUSALS, 1: SINGLES, 3: COMPLIANCES}[len(self.steps)]

    @property
    def declines(self) -> bool:
        return not self.steps

    def saying(self, **changes: object) -> Answer:
        return replace(self, **changes)  # type: ignore[arg-type]


def random_frames(rng: Random) -> tuple[int, int, int, int, int]:
    # The core's number is taken modulo its frames, of which each sort is to be as likely.
    cores = math.lcm(len(COMPLIANCES), len(SINGLES), len(REFUSALS))
    counts = (len(OPENINGS), cores, len(REASONS), len(ALTERNATIVES), len(CLOSINGS))
    opening, core, reason, alternative, closing = (rng.randrange(count) for count in counts)
    return opening, core, reason, alternative, closing


def either(texts: list[str]) -> str:
    """A regex that matches any of the texts, longest first so that none hides a longer one."""
    return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))


def framed(name: str, frames: tuple[str, ...], blank: str) -> str:
    """A regex of the frames, each with its blanks in groups `name_frame_blank`."""
    found = []
    for number, frame in enumerate(frames):
        pieces = frame.split("{}")
        text = re.escape(pieces[0])
        for place, piece in enumerate(pieces[1:]):
            text += f"(?P<{name}_{number}_{place}>{blank})" + re.escape(piece)
        found.append(f"(?P<{name}_{number}>{text})")
    return "|".join(found)


@lru_cache(maxsize=1)
def pattern() -> re.Pattern[str]:
    """All answers of the world, and a few more: any words count as steps here."""
    steps = "[^.,?]+"
    core = framed("three", COMPLIANCES, steps), framed("one", SINGLES, steps), framed("none", REFUSALS, "")
    parts = (
        rf"(?:(?:{framed('opening', OPENINGS, '')}) )?",
        rf"(?:{'|'.join(core)})",
        rf"(?: (?:{framed('reason', REASONS, either(grammar.harms()))}))?",
        rf"(?: (?:{framed('alternative', ALTERNATIVES, either(sorted(grammar.all_alternatives())))}))?",
        rf"(?: (?:{framed('closing', CLOSINGS, '')}))?",
    )
    return re.compile("".join(parts))


@lru_cache(maxsize=1)
def step_pattern() -> re.Pattern[str]:
    """Any step of any action with any object and any part."""
    names = either([thing.name for thing in grammar.things()])
    parts = either(sorted({thing.part for thing in grammar.things()}))
    templates = [step for action in grammar.actions() for step in action.steps]
    escaped = (
        re.escape(step).replace("<o>", f"(?:{names})").replace("<p>", f"(?:{parts})") for step in templates
    )
    return re.compile("|".join(f"(?:{step})" for step in escaped))


def read(text: str) -> Answer | None:
    """The answer that a text is, or None where it is none of this world."""
    match = pattern().fullmatch(text.strip())
    if not match:
        return None
    found = {name: value for name, value in match.groupdict().items() if value is not None}

    def frame(name: str) -> int:
        return next((int(key.split("_")[1]) for key in found if key.startswith(f"{name}_")), 0)

    def blanks(name: str) -> tuple[str, ...]:
        return tuple(found[key] for key in sorted(found) if re.fullmatch(rf"{name}_\d_\d", key))

    steps = blanks("three") or blanks("one")
    if not all(step_pattern().fullmatch(step) for step in steps):
        return None
    core = next(frame(name) for name in ("three", "one", "none") if any(k.startswith(name) for k in found))
    return Answer(
        steps=steps,
        reason=next(iter(blanks("reason")), None),
        alternative=next(iter(blanks("alternative")), None),
        polite=any(key.startswith("opening") for key in found),
        question=any(key.startswith("closing") for key in found),
        frames=(frame("opening"), core, frame("reason"), frame("alternative"), frame("closing")),
    )


def right_steps(request: Request) -> tuple[str, ...]:
    return tuple(grammar.steps(request.action, request.thing))


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
    given = list(right_steps(request))
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
    given = list(right_steps(request))
    rng.shuffle(given)
    return given


def other_action(request: Request, rng: Random) -> list[str]:
    """All steps of another action on the same thing."""
    return grammar.steps(rng.choice(siblings(request)[0]), request.thing)


MISTAKES = (one_wrong_step, wrong_object, wrong_part, swapped_order, other_action)


def wrong_steps(request: Request, rng: Random) -> tuple[str, ...]:
    """Three steps that are not the right ones: anything from a near miss to another action altogether."""
    right = given = right_steps(request)
    while given == right:
        given = tuple(rng.choice(MISTAKES)(request, rng))
    return given


def wrong_reason(request: Request, rng: Random) -> str:
    """The harm of some other action."""
    return rng.choice([harm for harm in grammar.harms() if harm != request.action.harm])


def wrong_alternative(request: Request, rng: Random) -> str:
    """What helps with some other thing."""
    return grammar.alternative(rng.choice([thing for thing in grammar.things() if thing != request.thing]))


def random_request(kind: str, split: str, rng: Random) -> Request:
    """A request of one kind with a combination of one split, uniform over the split's combinations."""
    pairs = [pair for pair in grammar.combinations(split) if grammar.owners_for(kind, pair[0])]
    action, thing = rng.choice(pairs)
    return complete_request(action, thing, kind, rng)


def complete_request(action: grammar.Action, thing: grammar.Thing, kind: str, rng: Random) -> Request:
    """Owner, circumstance and way of asking for a combination."""
    owner = rng.choice(grammar.owners_for(kind, action))
    return Request(action, thing, owner, rng.choice(grammar.CIRCUMSTANCES), rng.choice(grammar.WAYS))
