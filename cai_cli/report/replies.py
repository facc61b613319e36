"""Samples: what each file of replies is like, and replies of several models to the same prompts, side by side.

Prompts are drawn by key: those of each file with the smallest keys are looked for in all files, and those that most
files answer are shown. So two passes over each file suffice, and what is held are replies to a few prompts.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePath

from cai_cli.errors import RecordError
from cai_cli.evaluation.cautions import cut_off_cautions
from cai_cli.evaluation.refusals import is_refusal
from cai_cli.keys import key
from cai_cli.report.blocks import Group, Section, Table
from cai_cli.report.chains import turns
from cai_cli.report.find import Found, RowFile
from cai_cli.report.reading import Reading
from cai_cli.report.svg import meter
from cai_cli.report.text import Told, counted, named, number, percent, told
from cai_cli.rows.conversation import prompt_id
from cai_cli.rows.jsonl import read_rows
from cai_cli.rows.records import Sample
from cai_cli.rows.row_kinds import CONVERSATIONS, SAMPLES
from cai_cli.rows.trl_rows import RowReader

MOST_FILES, MOST_ROWS = 12, 200_000
DRAWN = 48  # prompts of each file that the others are asked for
MOST_SIDES = 6
LONGEST_KEPT = 8000  # characters of a reply that is held


@dataclass(slots=True)
class Replies:
    """What a file of replies is like. `drawn`: (-key, prompt's id) of the prompts with the smallest keys, a heap."""

    file: RowFile
    name: str
    count: int = 0
    cut_off: int = 0
    refusals: int = 0
    characters: int = 0
    drawn: list[tuple[int, str]] = field(default_factory=list)
    prompts: set[str] = field(default_factory=set)

    def add(self, sample: Sample, seed: int) -> None:
        text = sample.completion[0]["content"]
        self.count += 1
        self.cut_off += sample.finish_reason == "length"
        self.refusals += is_refusal(text)
        self.characters += len(text)
        name = prompt_id(sample.prompt)
        if name in self.prompts:
            return
        item = (-key(seed, "report", name), name)
        if len(self.drawn) < DRAWN:
            heapq.heappush(self.drawn, item)
            self.prompts.add(name)
        elif item > self.drawn[0]:
            self.prompts.discard(heapq.heapreplace(self.drawn, item)[1])
            self.prompts.add(name)


@dataclass(frozen=True, slots=True)
class Side:
    """A reply of one model; `note`: what is known of it."""

    name: str
    text: Told
    note: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    kind: str
    prompt: list[tuple[str, Told]]
    sides: list[Side]


@dataclass(frozen=True, slots=True)
class ReplyPage:
    group: Group
    cards: list[Card]


def section(found: Found, reading: Reading) -> Section | None:
    files = [
        file
        for file in found.of_kind(SAMPLES, CONVERSATIONS)
        if not file.stage.startswith("evaluate") and not is_on_the_way(file, found)
    ]
    files.sort(key=lambda file: str((file.manifest or {}).get("started") or "~"))  # in the order of the chain
    all_replies = reading.each(files[:MOST_FILES], lambda file: look_at(file, reading))
    all_replies = [replies for replies in all_replies if replies.count]
    if not all_replies:
        return None
    group = Group("")
    group.tables.append(overview(all_replies))
    cards = side_by_side(all_replies, reading.examples, reading.seed) if reading.examples else []
    lead = "What the models say, each to the same prompts." if cards else "Files of replies."
    pages, left_out = [ReplyPage(group, cards)], len(files[MOST_FILES:])
    return Section("replies", "Replies side by side", lead, pages, "replies", left_out)


def is_on_the_way(file: RowFile, found: Found) -> bool:
    """Whether it is what PPO keeps of its rollouts."""
    return any(model.path == file.path.parent for model in found.of_stage("ppo"))


def look_at(file: RowFile, reading: Reading) -> Replies:
    replies = Replies(file, model_name(file))
    for sample in samples_of(file):
        replies.add(sample, reading.seed)
    reading.warn(file.name, cut_off_cautions(replies.cut_off, replies.count))
    return replies


def samples_of(file: RowFile) -> Iterator[Sample]:
    reader = RowReader()
    for line, row in islice(read_rows(file.path, file.unfinished), MOST_ROWS):
        try:
            yield reader.sample(row)
        except RecordError as error:
            raise error.at(f"{file.path}:{line}") from None


def model_name(file: RowFile) -> str:
    """The model's that wrote the file, or the file's own."""
    models = [item for item in (file.manifest or {}).get("models", ()) if item["option"] == "model"]
    return named(PurePath(models[0]["path"]).name if models else file.name.partition(".")[0], 40)


def overview(all_replies: list[Replies]) -> Table:
    rows = []
    for replies in all_replies:
        first = " (the first)" if replies.count == MOST_ROWS else ""
        rows.append(
            [
                named(replies.file.name),
                replies.name,
                f"{replies.count:,}{first}",
                number(replies.characters / replies.count, 0),
                meter(replies.refusals / replies.count),
                percent(replies.refusals / replies.count),
                percent(replies.cut_off / replies.count),
            ]
        )
    columns = ["file", "model", "replies", "mean characters", "opens with a refusal", "", "cut off"]
    return Table("Files of replies", columns, rows)


def side_by_side(all_replies: list[Replies], examples: int, seed: int) -> list[Card]:
    """Replies to the prompts that most files answer. A file alone is shown alone."""
    wanted = {name for replies in all_replies for _, name in replies.drawn}
    sides: dict[str, dict[int, Sample]] = defaultdict(dict)
    for place, replies in enumerate(all_replies):
        for sample in samples_of(replies.file):
            name = prompt_id(sample.prompt)
            if name in wanted and place not in sides[name]:
                sample.completion[0]["content"] = sample.completion[0]["content"][:LONGEST_KEPT]
                sides[name][place] = sample
    most = max((len(found) for found in sides.values()), default=0)
    shared = [name for name, found in sides.items() if len(found) == most]
    return [card(sides[name], all_replies) for name in spread(shared, sides, examples, seed)]


def spread(names: list[str], sides: dict[str, dict[int, Sample]], count: int, seed: int) -> list[str]:
    """So many of the prompts, kind by kind in turn, by key."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names, key=lambda name: key(seed, "report", name)):
        kinds[next(iter(sides[name].values())).kind or ""].append(name)
    queues = [kinds[kind] for kind in sorted(kinds)]
    turned = [
        queue[place]
        for place in range(max(map(len, queues), default=0))
        for queue in queues
        if place < len(queue)
    ]
    return turned[:count]


def card(found: dict[int, Sample], all_replies: list[Replies]) -> Card:
    sample = next(iter(found.values()))
    repeated = len({all_replies[place].name for place in found}) < len(found)
    sides = []
    for place in sorted(found)[:MOST_SIDES]:
        replies, reply = all_replies[place], found[place]
        notes = ["refuses"] if is_refusal(reply.completion[0]["content"]) else []
        notes += ["cut off"] if reply.finish_reason == "length" else []
        name = f"{replies.name} ({named(replies.file.name, 30)})" if repeated else replies.name
        sides.append(Side(name, told(reply.completion[0]["content"]), ", ".join(notes)))
    if len(found) > MOST_SIDES:
        sides.append(Side("…", told(counted(len(found) - MOST_SIDES, "more reply", "more replies"))))
    return Card(sample.kind or "", turns(sample.prompt), sides)
