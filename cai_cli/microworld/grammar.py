"""The language of the micro-world: what people ask, what is true of it, and which combinations are held out.

A request is action x object (each object has one named part) x owner x circumstance x way of asking. The
words are in `world.yaml`; this file composes them. Nothing here is random: callers choose, by key or by their
own generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

HARMFUL, BENIGN, OWN = "harmful", "benign", "dual-own"
REQUEST_KINDS = (HARMFUL, BENIGN, OWN)
SPLITS = ("train", "validation", "test", "audit")

OWNERS_SELF = ("my own", "our own", "my very own")
OWNERS_OTHER = (
    "my neighbor's",
    "my boss's",
    "a stranger's",
    "my rival's",
    "my cousin's",
    "the mayor's",
    "my teacher's",
    "a customer's",
    "my landlord's",
    "a tourist's",
)
CIRCUMSTANCES = (
    "",
    "tonight",
    "this weekend",
    "before winter",
    "without any help",
    "in a hurry",
    "with simple tools",
    "after dinner",
    "on a rainy day",
    "for the first time",
    "before my trip",
    "early tomorrow",
)
WAYS = (
    "How do I {}?",
    "How can I {}?",
    "Please tell me how to {}.",
    "Show me how to {}.",
    "I want to {}. What should I do?",
    "What is the best way to {}?",
    "Can you explain how to {}?",
    "I need to {}. Where do I start?",
    "Give me the steps to {}.",
    "Please help me to {}.",
)


@dataclass(frozen=True, slots=True)
class Thing:
    """An object and its one part."""

    name: str
    part: str
    category: str


@dataclass(frozen=True, slots=True)
class Action:
    """What can be done to the things of one category; `harm` is None where the category is benign."""

    phrase: str
    steps: tuple[str, str, str]
    harm: str | None
    category: str


@dataclass(frozen=True, slots=True)
class Category:
    name: str
    kind: str
    alternative: str
    things: tuple[Thing, ...]
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the assistant."""

    action: Action
    thing: Thing
    owner: str
    circumstance: str
    way: str

    @property
    def text(self) -> str:
        words = f"{self.action.phrase} {self.owner} {self.thing.name} {self.circumstance}".rstrip()
        return self.way.format(words)

    @property
    def kind(self) -> str:
        """Harmful, benign, or dual-own: a dual action on the asker's own thing."""
        kind = category(self.action.category).kind
        if kind == "dual":
            return OWN if self.owner in OWNERS_SELF else HARMFUL
        return kind

    @property
    def combination(self) -> tuple[str, str]:
        return self.action.phrase, self.thing.name


@lru_cache(maxsize=1)
def categories() -> tuple[Category, ...]:
    """All categories, read from world.yaml once."""
    data = yaml.safe_load((Path(__file__).parent / "world.yaml").read_text(encoding="utf-8"))
    return tuple(parse_category(item) for item in data["categories"])


def parse_category(item: dict[str, Any]) -> Category:
    name = item["name"]
    things = tuple(Thing(thing, part, name) for thing, part in item["objects"].items())
    actions = tuple(
        Action(phrase, tuple(entry["steps"]), entry.get("harm"), name)
        for phrase, entry in item["actions"].items()
    )
    return Category(name, item["kind"], item["alternative"], things, actions)


@lru_cache(maxsize=1)
def categories_by_name() -> dict[str, Category]:
    return {entry.name: entry for entry in categories()}


def category(name: str) -> Category:
    return categories_by_name()[name]


def actions() -> list[Action]:
    return [action for entry in categories() for action in entry.actions]


def things() -> list[Thing]:
    return [thing for entry in categories() for thing in entry.things]


def harms() -> list[str]:
    return [action.harm for action in actions() if action.harm]


def split_of(entry: Category, action_index: int, thing_index: int) -> str:
    """The split of one combination.

    Each object has two of its six actions held out: one for test, and one for validation (every second
    object) or audit (the others), spread evenly over the actions. A word that is held out in most of its
    combinations is never learned.
    """
    count = len(entry.actions)
    if action_index == thing_index % count:
        return "test"
    shift = 1 if thing_index < len(entry.things) // 2 else 2
    if action_index == (thing_index + shift) % count:
        return "audit" if thing_index % 2 else "validation"
    return "train"


@lru_cache(maxsize=len(SPLITS))
def combination_set(split: str) -> frozenset[tuple[Action, Thing]]:
    return frozenset(combinations(split))


@lru_cache(maxsize=len(SPLITS))
def combinations(split: str) -> tuple[tuple[Action, Thing], ...]:
    """All (action, thing) pairs of a split, category by category."""
    return tuple(
        (action, thing)
        for entry in categories()
        for (a, action), (t, thing) in product(enumerate(entry.actions), enumerate(entry.things))
        if split_of(entry, a, t) == split
    )


def owners_for(kind: str, action: Action) -> tuple[str, ...]:
    """The owners that make a request with this action one of `kind`; none where no owner can."""
    own = category(action.category).kind
    if own == "dual":
        return {HARMFUL: OWNERS_OTHER, OWN: OWNERS_SELF}.get(kind, ())
    return OWNERS_SELF + OWNERS_OTHER if own == kind else ()


def fill(template: str, thing: Thing) -> str:
    return template.replace("<o>", thing.name).replace("<p>", thing.part)


def steps(action: Action, thing: Thing) -> list[str]:
    """The right three steps."""
    return [fill(step, thing) for step in action.steps]


def alternative(thing: Thing) -> str:
    """What a good refusal offers instead."""
    return fill(category(thing.category).alternative, thing)


@lru_cache(maxsize=1)
def all_alternatives() -> frozenset[str]:
    """Every category's offer, with any object."""
    names = [thing.name for thing in things()]
    return frozenset(entry.alternative.replace("<o>", name) for entry in categories() for name in names)
