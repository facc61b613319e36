"""The files that a run on the micro-world starts from: prompts by split, a posts dump, human comparisons,
a constitution.

Everything is a function of the seed. Train files hold train combinations only and no prompt is in two of
them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any
from xml.sax.saxutils import quoteattr

import jsonlines

from cai_cli.keys import key
from cai_cli.microworld import answers, constitutions, corpus, grammar
from cai_cli.microworld.forms import written
from cai_cli.microworld.grammar import BENIGN, HARMFUL, OWN, Request
from cai_cli.microworld.oracle import classify
from cai_cli.rows.conversation import message, prompt_id
from cai_cli.rows.records import Comparison, Prompt

SOURCE = "microworld"

# How many train prompts of each kind of request a file holds.
TRAIN_FILES = {
    "harmful-sft.jsonl": {HARMFUL: 900},
    "helpful-sft.jsonl": {BENIGN: 600, OWN: 400},
    "harmful-label.jsonl": {HARMFUL: 1100},
    "rl.jsonl": {HARMFUL: 1000, BENIGN: 500, OWN: 500},
}
HELD_OUT_FILES = {"validation.jsonl": "validation", "test.jsonl": "test"}
HELD_OUT_PER_KIND = 256
QUESTIONS = {BENIGN: 2100, OWN: 2100}
HUMAN_COMPARISONS = 4000
RATER_NOISE = 0.1

# What human raters compare: over-refusals and bare sorries are common, so that a preference model learns to
# mind them.
RATED_FORMS = {"complies": 0.42, "wrong_steps": 0.36, "over_refusal": 0.12, "evasive": 0.06, "partial": 0.04}
# Some pairs are an answer and a broken copy of it: a preference model that never meets broken text lets a
# policy drift there.
GARBLED_SHARE = 0.3
GARBLED_FORMS = {"complies": 0.4, "over_refusal": 0.5, "evasive": 0.1}


# Stack Exchange answers: mean votes by form, before noise.
POST_VOTES = {"complies": 6.0, "partial": 2.0, "wrong_steps": 0.5}
VOTE_NOISE = 2.5
ACCEPTED_RIGHT = 0.9


def write_world(folder: Path, seed: int, constitution: Path | None = None) -> None:
    """Write all input files of the demo into `folder`, which is made if needed; the constitution is a copy,
    `kind` if none is named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for name, counts in TRAIN_FILES.items():
        rng = Random(key(seed, "microworld", name))
        rows = [
            row for kind, count in counts.items() for row in spread_prompts(kind, "train", count, rng, taken)
        ]
        rng.shuffle(rows)
        write_rows(folder / name, [as_prompt(request).to_row() for request in rows])
    for name, split in HELD_OUT_FILES.items():
        rng = Random(key(seed, "microworld", name))
        counts = dict.fromkeys(grammar.REQUEST_KINDS, HELD_OUT_PER_KIND)
        rows = [
            row for kind, count in counts.items() for row in spread_prompts(kind, split, count, rng, taken)
        ]
        write_rows(folder / name, [as_prompt(request).to_row() for request in rows])
    rng = Random(key(seed, "microworld", "human"))
    write_rows(
        folder / "human-helpfulness.jsonl",
        [row.to_row() for row in human_comparisons(HUMAN_COMPARISONS, rng)],
    )
    write_posts(folder / "posts.xml", Random(key(seed, "microworld", "posts")))
    shutil.copyfile(constitution or constitutions()["kind"], folder / "constitution.yaml")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with jsonlines.open(path, "w") as writer:
        writer.write_all(rows)


def as_prompt(request: Request) -> Prompt:
    prompt = [message("user", request.text)]
    return Prompt(prompt_id(prompt), prompt, "harmful" if request.kind == HARMFUL else "helpful", SOURCE)


def spread_prompts(kind: str, split: str, count: int, rng: Random, taken: set[str]) -> list[Request]:
    """`count` different requests, spread evenly over the split's combinations; their texts are added to
    `taken`.
    """
    pairs = [pair for pair in grammar.combinations(split) if grammar.owners_for(kind, pair[0])]
    rng.shuffle(pairs)
    rows: list[Request] = []
    while len(rows) < count:
        request = answers.complete_request(*pairs[len(rows) % len(pairs)], kind, rng)
        if request.text not in taken:
            taken.add(request.text)
            rows.append(request)
    return rows


def human_comparisons(count: int, rng: Random) -> Iterator[Comparison]:
    """Comparisons of answers to benign and dual-own requests by raters who are right nine times in ten."""
    requests = [*spread_prompts(BENIGN, "train", count // 2, rng, set())]
    requests += spread_prompts(OWN, "train", count - count // 2, rng, set())
    rng.shuffle(requests)
    for request in requests:
        better, worse = rated_pair(request, rng)
        if rng.random() < RATER_NOISE:
            better, worse = worse, better
        prompt = [message("user", request.text)]
        identity = prompt_id(prompt)
        chosen, rejected = [message("assistant", better)], [message("assistant", worse)]
        yield Comparison(
            f"{identity}/human",
            identity,
            prompt,
            chosen,
            rejected,
            1.0,
            "human",
            "helpful",
            "microworld-raters",
        )


def rated_pair(request: Request, rng: Random) -> tuple[str, str]:
    """Two answers of different helpfulness, the more helpful one first."""
    while True:
        if rng.random() < GARBLED_SHARE:
            text = written(request, draw(GARBLED_FORMS, rng), rng).text
            pair = [text, garble(text, rng)]
        else:
            pair = [written(request, draw(RATED_FORMS, rng), rng).text for _ in range(2)]
        scores = [helpfulness(request, text) for text in pair]
        if scores[0] != scores[1]:
            return (pair[0], pair[1]) if scores[0] > scores[1] else (pair[1], pair[0])


def draw(weights: dict[str, float], rng: Random) -> str:
    return corpus.pick(weights, rng)


def garble(text: str, rng: Random) -> str:
    """A broken copy of the text: a word lost (often the first), said twice or out of place, or the end
    missing.
    """
    words = text.split()
    place = rng.randrange(len(words))
    kind = rng.choice(("first", "lost", "twice", "swapped", "cut"))
    if kind == "first":
        del words[0]
    elif kind == "lost":
        del words[place]
    elif kind == "twice":
        words.insert(place, words[place])
    elif kind == "swapped":
        other = rng.randrange(len(words))
        words[place], words[other] = words[other], words[place]
    else:
        words = words[: max(1, place)]
    return " ".join(words)


def helpfulness(request: Request, text: str) -> int:
    verdict = classify(request.text, text)
    if verdict is None:
        raise ValueError(f"not a request of this world: {request.text!r}")
    return verdict.helpfulness


def write_posts(path: Path, rng: Random) -> None:
    """A Stack Exchange dump of questions that deserve an answer, each with three to five answers and their
    votes.
    """
    number = iter(range(1, 1_000_000))
    with path.open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<posts>\n')
        asked = [
            row
            for kind, count in QUESTIONS.items()
            for row in spread_prompts(kind, "train", count, rng, set())
        ]
        rng.shuffle(asked)
        for request in asked:
            for attributes in thread(request, lambda: next(number), rng):
                fields = " ".join(f"{name}={quoteattr(str(value))}" for name, value in attributes.items())
                file.write(f"  <row {fields} />\n")
        file.write("</posts>\n")


def thread(request: Request, new_id: Callable[[], int], rng: Random) -> list[dict[str, Any]]:
    """The rows of one question: the question and then its answers."""
    question = new_id()
    forms = [
        "complies",
        *rng.choices(["wrong_steps", "partial", "complies"], [0.6, 0.25, 0.15], k=rng.randint(2, 4)),
    ]
    rng.shuffle(forms)
    texts = list(dict.fromkeys(written(request, form, rng).text for form in forms))
    replies, right = [], []
    for text in texts:
        verdict = classify(request.text, text)
        form = verdict.form if verdict else "wrong_steps"
        row = post(new_id(), 2, text, round(rng.gauss(POST_VOTES[form], VOTE_NOISE)), rng)
        replies.append(
            {"Id": row.pop("Id"), "PostTypeId": row.pop("PostTypeId"), "ParentId": question, **row}
        )
        if form == "complies":
            right.append(row_id(replies[-1]))
    ids = [row_id(row) for row in replies]
    head = post(question, 1, request.text, max(0, round(rng.gauss(4, 3))), rng)
    accepted = rng.choice(right if rng.random() < ACCEPTED_RIGHT else ids)
    head = {"Id": head.pop("Id"), "PostTypeId": head.pop("PostTypeId"), "AcceptedAnswerId": accepted, **head}
    head |= {
        "Title": f"{request.action.phrase} the {request.thing.name}",
        "Tags": f"<{request.action.category}>",
        "AnswerCount": len(replies),
    }
    return [head, *replies]


def row_id(row: dict[str, Any]) -> int:
    return int(row["Id"])


def post(identity: int, kind: int, text: str, score: int, rng: Random) -> dict[str, Any]:
    """The attributes that questions and answers share."""
    day = f"2020-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    date = f"{day}T{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:00.000"
    return {
        "Id": identity,
        "PostTypeId": kind,
        "CreationDate": date,
        "Score": score,
        "Body": f"<p>{text}</p>\n",
        "OwnerUserId": rng.randint(1, 200),
        "LastActivityDate": date,
        "CommentCount": 0,
        "ContentLicense": "CC BY-SA 4.0",
    }
