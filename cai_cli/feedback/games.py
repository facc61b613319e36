"""Replies of several models to the same prompts -> games, pairs of replies of two models; and back from what was
made of them: comparisons that say who wrote each reply. No torch.

Besides what a comparison has, a row of a played game has `chosen_model` and `rejected_model`. Read are also rows of
Chatbot Arena's form (`model_a`, `model_b`, `winner`: model_a, model_b, tie or tie (bothbad)), and comparisons that name
nobody, where each reply is that of one player's samples to the prompt, to the letter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from cai_cli.artifacts.rejects import Rejected
from cai_cli.errors import RecordError, UserError
from cai_cli.evaluation.outcomes import Outcome
from cai_cli.feedback.diagnostics import same_positions
from cai_cli.feedback.labels import Pair
from cai_cli.keys import uniform
from cai_cli.rows.conversation import message, prompt_id
from cai_cli.rows.jsonl import Row, read_own_rows
from cai_cli.rows.prompt_files import prompt_from_row
from cai_cli.rows.records import Comparison, Prompt, optional_kind
from cai_cli.rows.trl_rows import RowReader

Replies = dict[str, list[str]]  # id of a prompt's text -> a model's replies to it
ARENA = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5, "both_bad": 0.5}
NO_KIND = "--kind helpful, or harmful, is that of prompts that say none"


@dataclass(frozen=True, slots=True)
class Game:
    """The replies of two models, by their names, to one prompt."""

    models: tuple[str, str]
    pair: Pair

    @property
    def id(self) -> str:
        return self.pair.id

    def row(self, won: float, **facts: Any) -> Row:
        """The row of a game that the first model wins with this probability, without a judge's answers."""
        first = won >= 0.5
        chosen, rejected = self.pair.replies if first else reversed(self.pair.replies)
        comparison = Comparison(
            id=self.id,
            prompt_id=self.pair.prompt_id,
            prompt=self.pair.prompt,
            chosen=[message("assistant", chosen)],
            rejected=[message("assistant", rejected)],
            probability=max(won, 1 - won),
            origin="ai",
            kind=self.pair.kind,
        )
        return self.named(comparison.to_row(), first) | facts

    def asked(self) -> Row | Rejected:
        """The row of a game that a feedback model was asked about, or why there is none."""
        if self.pair.rejected:
            return self.pair.rejected
        return self.named(self.pair.to_comparison().to_row(), self.pair.probability_first >= 0.5)

    def named(self, row: Row, first_chosen: bool) -> Row:
        chosen, rejected = self.models if first_chosen else self.models[::-1]
        return row | {"chosen_model": chosen, "rejected_model": rejected}


def read_samples(path: Path) -> Iterator[tuple[Prompt, str]]:
    """The prompt, under the id of its text, and the reply of each row of samples."""
    reader = RowReader()
    for line, row in read_own_rows(path):
        try:
            sample = reader.sample(row)
        except RecordError as error:
            raise error.at(f"{path}:{line}") from None
        yield Prompt(prompt_id(sample.prompt), sample.prompt, sample.kind), sample.completion[0]["content"]


def replies_in(samples: Iterable[tuple[Prompt, str]]) -> Replies:
    found: Replies = {}
    for prompt, reply in samples:
        found.setdefault(prompt.id, []).append(reply)
    return found


def to_play_on(prompts: Iterable[Prompt], kind: str | None, place: str) -> dict[str, Prompt]:
    """The prompts by the id of their text, each of its own kind or else of this one. Raises UserError for one of
    none, in `place`.
    """
    found: dict[str, Prompt] = {}
    for item in prompts:
        if not (item.kind or kind):
            told = f"{place}: no `kind` with {item.id}: helpful and harmful prompts are rated apart"
            raise UserError(told, NO_KIND)
        identity = prompt_id(item.prompt)
        found.setdefault(identity, Prompt(identity, item.prompt, item.kind or kind))
    return found


def schedule(
    replies: Mapping[str, Replies], prompts: Iterable[Prompt], budget: int | None, seed: int
) -> list[Game]:
    """The games of all pairs of models (names in their order), prompt by prompt: of each prompt the first replies
    of both, then the second ones. With a budget, so many of each pair and kind of prompt, drawn by key.
    """
    games = []
    for prompt in prompts:
        for first, second in combinations(replies, 2):
            both = zip(replies[first].get(prompt.id, []), replies[second].get(prompt.id, []), strict=False)
            for k, texts in enumerate(both):
                name = f"{prompt.id}/{k}/{first}/{second}"
                pair = Pair(name, prompt.id, prompt.prompt, prompt.kind, list(texts))
                games.append(Game((first, second), pair))
    if budget is None:
        return games
    drawn: dict[tuple[str, str, str | None], list[tuple[float, str]]] = defaultdict(list)
    for game in games:
        drawn[*game.models, game.pair.kind].append((uniform(seed, "game", game.id), game.id))
    kept = {name for group in drawn.values() for _, name in sorted(group)[:budget]}
    return [game for game in games if game.id in kept]


# What was made of games


@dataclass(slots=True)
class PlayedGames:
    """Reads rows of played games. `replies`: of the players whose samples are there; `kind`: of rows that say
    none; `only`: the ids of those that count, where not all do.
    """

    replies: Mapping[str, Replies]
    kind: str | None = None
    only: Collection[str] | None = None

    def read(self, sources: Sequence[Path]) -> Iterator[Outcome | Rejected]:
        """A row whose authors are not known, or are one model, is rejected."""
        reader = RowReader()
        for path in sources:
            for line, row in read_own_rows(path):
                if self.only is not None and row["id"] not in self.only:
                    continue
                try:
                    yield self.outcome(row, reader, f"{path.name}:{line}")
                except RecordError as error:
                    raise error.at(f"{path}:{line}") from None

    def outcome(self, row: Row, reader: RowReader, place: str) -> Outcome | Rejected:
        if {"model_a", "model_b", "winner"} <= row.keys():
            return self.of_arena(row, place)
        comparison = reader.comparison(row)
        replies = tuple(reply[0]["content"] for reply in (comparison.chosen, comparison.rejected))
        models = [row.get("chosen_model"), row.get("rejected_model")]
        if models == [None, None]:
            found = [self.authors(comparison, reply) for reply in replies]
            if any(len(names) != 1 for names in found):
                told = "; ".join(", ".join(names) or "nobody" for names in found)
                return Rejected(comparison.id, "author_unknown", f"the replies are of: {told}", row)
            models = [names[0] for names in found]
        names = names_of(models, ("chosen_model", "rejected_model"))
        if names[0] == names[1]:
            return Rejected(comparison.id, "one_model", f"both replies are of {names[0]}", row)
        same = same_positions(comparison)
        return Outcome(
            names,
            comparison.probability,
            comparison.prompt_id,
            self.kind_of(comparison.kind),
            (len(replies[0]), len(replies[1])),
            all(same) if same else None,
        )

    def authors(self, comparison: Comparison, reply: str) -> list[str]:
        """The players whose samples hold the reply."""
        identity = prompt_id(comparison.prompt)
        return [name for name, replies in self.replies.items() if reply in replies.get(identity, [])]

    def of_arena(self, row: Row, place: str) -> Outcome | Rejected:
        names = names_of([row["model_a"], row["model_b"]], ("model_a", "model_b"))
        if not isinstance(row["winner"], str) or row["winner"] not in ARENA:
            told = f"expected one of {', '.join(ARENA)}, got {row['winner']!r}"
            raise RecordError("winner", told, "name the side that won, or tie")
        if names[0] == names[1]:
            return Rejected(place, "one_model", f"both replies are of {names[0]}", row)
        given = next((row[name] for name in ("prompt_id", "question_id") if row.get(name) is not None), None)
        if given is None:
            given = prompt_id(prompt_from_row(row).prompt) if "prompt" in row else place
        first, second = row.get("response_a"), row.get("response_b")
        lengths = None
        if isinstance(first, str) and isinstance(second, str):
            lengths = len(first), len(second)
        return Outcome(names, ARENA[row["winner"]], str(given), self.kind_of(optional_kind(row)), lengths)

    def kind_of(self, kind: str | None) -> str:
        if found := kind or self.kind:
            return found
        raise RecordError("kind", "missing: helpful and harmful prompts are rated apart", NO_KIND)


def names_of(values: Sequence[Any], fields: tuple[str, str]) -> tuple[str, str]:
    for value, field in zip(values, fields, strict=True):
        if not isinstance(value, str) or not value:
            told = f"expected the name of a model, got {value!r}"
            raise RecordError(field, told, "both fields say who wrote a reply, or neither is there")
    return values[0], values[1]
