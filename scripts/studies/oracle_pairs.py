"""Comparisons that the oracle makes, as the stages read them: what preference models and judges are measured on.

All are of requests of a held-out split; the better reply stands as chosen, with the probability that it is better.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from commands import Place, write_rows

from cai_cli.evaluation.comparisons import sigmoid
from cai_cli.keys import key
from cai_cli.microworld import answers, corpus, files, wordings
from cai_cli.microworld.features import preference
from cai_cli.microworld.forms import written
from cai_cli.microworld.grammar import BENIGN, HARMFUL, OWN, Request
from cai_cli.microworld.oracle import classify, parse_request
from cai_cli.rows.conversation import message, prompt_id
from cai_cli.rows.records import Comparison

SPLIT = "test"
HELPFUL = (BENIGN, OWN)
HELPFUL_FORMS = ("complies", "wrong_steps", "partial", "evasive", "over_refusal")
HARMFUL_FORMS = ("refuses", "wrong_reason", "evasive", "partial", "complies")
SHARPNESS = 0.8  # of the noisy labeller: log-odds of preferring an answer for each grade that it is better


def grade(request: Request, text: str) -> int:
    verdict = classify(request.text, text)
    return verdict.score if verdict else 0


def comparison(
    name: str, request: Request, better: str, worse: str, probability: float = 1.0
) -> dict[str, Any]:
    prompt = [message("user", request.text)]
    chosen, rejected = ([message("assistant", text)] for text in (better, worse))
    kind = "harmful" if request.kind == HARMFUL else "helpful"
    return Comparison(name, prompt_id(prompt), prompt, chosen, rejected, probability, "human", kind).to_row()


def random_pairs(split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Two replies to a harmful request, each with whatever it has: which is better, a principle says."""
    rng, made = Random(key(seed, "random pairs", split)), 0
    while made < count:
        request = answers.random_request(HARMFUL, split, rng)
        texts = [corpus.random_answer(request, rng).text for _ in range(2)]
        if texts[0] != texts[1]:
            made += 1
            yield comparison(f"random/{made}", request, *texts)


def preferred(pair: Comparison, principle: str) -> int:
    """Above 0 where a principle of this world's words prefers the chosen reply; 0 where it says nothing."""
    request, families = parse_request(pair.prompt[-1]["content"]), wordings.read(principle)
    found = [answers.read(reply[0]["content"]) for reply in (pair.chosen, pair.rejected)]
    if request is None or families is None or None in found:
        raise ValueError(f"{pair.id}: not of this world")
    return preference(families, request, *found)


def graded_pairs(kinds: tuple[str, ...], split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Pairs of two of five forms, of different grades, as many of each kind of request."""
    rng, made = Random(key(seed, "graded", *kinds, split)), 0
    while made < count:
        request = answers.random_request(kinds[made % len(kinds)], split, rng)
        forms = HARMFUL_FORMS if request.kind == HARMFUL else HELPFUL_FORMS
        texts = [written(request, form, rng).text for form in rng.sample(forms, 2)]
        grades = [grade(request, text) for text in texts]
        if grades[0] != grades[1]:
            made += 1
            better, worse = texts if grades[0] > grades[1] else reversed(texts)
            yield comparison(f"graded/{made}", request, better, worse)


def rated_pairs(split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Pairs as the world's raters see them, without their errors, half on benign requests."""
    rng = Random(key(seed, "rated", split))
    for number in range(count):
        request = answers.random_request(HELPFUL[number % 2], split, rng)
        yield comparison(f"rated/{number}", request, *files.rated_pair(request, rng))


def step_pairs(split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Right against wrong steps: what votes can teach and few comparisons hardly can."""
    rng = Random(key(seed, "right or wrong", split))
    for number in range(count):
        request = answers.random_request(HELPFUL[number % 2], split, rng)
        texts = [written(request, form, rng).text for form in ("complies", "wrong_steps")]
        yield comparison(f"steps/{number}", request, *texts)


def noisy_pairs(split: str, count: int, seed: int, labels: str) -> Iterator[dict[str, Any]]:
    """Pairs of any forms with the labels of a noisy oracle: `soft` keeps its probability, `drawn` is one vote by
    it, `side` the likelier reply for certain.
    """
    rng, votes = Random(key(seed, "noisy", split)), Random(key(seed, "votes", labels))
    for number in range(count):
        request = answers.random_request((HARMFUL, *HELPFUL)[number % 3], split, rng)
        forms = HARMFUL_FORMS if request.kind == HARMFUL else HELPFUL_FORMS
        first, second = (written(request, rng.choice(forms), rng).text for _ in range(2))
        if first == second:
            continue
        p = sigmoid(SHARPNESS * (grade(request, first) - grade(request, second)))
        ahead = votes.random() < p if labels == "drawn" or p == 0.5 else p > 0.5
        better, worse = (first, second) if ahead else (second, first)
        yield comparison(
            f"noisy/{number}", request, better, worse, max(p, 1 - p) if labels == "soft" else 1.0
        )


def agreement(place: Place, pm: Path, pairs: Path) -> dict[str, Any]:
    """What `cai evaluate pm` measures over all of the pairs."""
    words = ("evaluate", "pm", "--pm", pm, "--comparisons", pairs)
    target = place / f"eval/{pm.name}-on-{pairs.stem}.json"
    place.made(target, lambda out: place.cai(*words, "--out", out, seeded=False))
    found: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))["groups"]["all"]
    return found


def pairs_file(place: Place, name: str, rows: Iterator[dict[str, Any]]) -> Path:
    return place.made(place / f"{name}.jsonl", lambda path: write_rows(path, list(rows)))
