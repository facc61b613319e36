"""Labels per second against plain loops over the same questions, in one run: `python scripts/bench/label.py`.

The loops: one forward pass for each (pair, order, option), alone and in batches, with plain transformers
calls. Ours: what `cai label` does once it has its pairs (`feedback.judge.judge_pairs`): options of a question
in one pass, batches of like length, what questions share computed once. All in float32 on the micro-world's
helpful-only checkpoint, or on --model; medians over rounds, in which the three take turns. The labels of all
three are compared.
"""

from __future__ import annotations

import argparse
import time
from random import Random
from statistics import median
from typing import Any

import torch

from cai_cli.engines.base import EngineSettings
from cai_cli.engines.segments import SegmentSettings
from cai_cli.engines.transformers_engine import TransformersEngine
from cai_cli.feedback.judge import Inquiry, judge_pairs
from cai_cli.feedback.labels import Pair, softmax_first
from cai_cli.microworld import checkpoint, constitutions, corpus
from cai_cli.models.load import load_lm
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.prompting.choices import PLAIN
from cai_cli.prompting.constitution import load_constitution
from cai_cli.prompting.solved_questions import load_comparison_demonstrations
from cai_cli.rows.conversation import message


def make_pairs(count: int, seed: int) -> list[Pair]:
    """Pairs of answers of different forms to requests of all kinds, in no order."""
    rng, pairs = Random(seed), []
    while len(pairs) < count:
        request, _, pair, _ = corpus.comparison(rng)
        texts = [answer.text for answer in pair]
        pairs.append(Pair(f"{len(pairs)}/0", str(len(pairs)), [message("user", request.text)], None, texts))
    return pairs


def sequences_of(
    inquiry: Inquiry, pairs: list[Pair], tokenizer: Any
) -> list[tuple[int, bool, list[list[int]], int]]:
    """For each question: its pair, whether the first reply stands first, ids with each option, where the
    options start.
    """
    found = []
    for n, pair in enumerate(pairs):
        for question in inquiry.questions(pair):
            text = inquiry.prompt(question, chat=False)
            rows = [tokenizer(f"{text} {label}")["input_ids"] for label in inquiry.labels]
            found.append((n, question.first_as_a, rows, len(tokenizer(text)["input_ids"])))
    return found


@torch.inference_mode()
def loop(model: Any, tokenizer: Any, inquiry: Inquiry, pairs: list[Pair], batch_size: int) -> list[float]:
    """Probability that the first reply of each pair is preferred, by whole forward passes over (pair, order,
    option).
    """
    questions = sequences_of(inquiry, pairs, tokenizer)
    flat = [(row, start) for _, _, rows, start in questions for row in rows]
    scores: list[float] = []
    for begin in range(0, len(flat), batch_size):
        batch = flat[begin : begin + batch_size]
        width = max(len(row) for row, _ in batch)
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row, _ in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in batch])
        logprobs = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits, -1)
        for n, (row, start) in enumerate(batch):
            options = logprobs[n, start - 1 : len(row) - 1].gather(
                -1, torch.tensor(row[start:]).unsqueeze(-1)
            )
            scores.append(options.sum().item())
    found: list[list[float]] = [[] for _ in pairs]
    for place, (n, first_as_a, _, _) in enumerate(questions):
        a, b = scores[2 * place], scores[2 * place + 1]
        found[n].append(softmax_first(a, b) if first_as_a else softmax_first(b, a))
    return [sum(values) / len(values) for values in found]


def ours(engine: TransformersEngine, inquiry: Inquiry, pairs: list[Pair]) -> list[float]:
    fresh = [Pair(pair.id, pair.prompt_id, pair.prompt, pair.kind, pair.replies) for pair in pairs]
    judge_pairs(engine, inquiry, fresh, chat=False, thinking=SegmentSettings(1))
    if reasons := {pair.rejected.reason for pair in fresh if pair.rejected}:
        raise SystemExit(f"{', '.join(sorted(reasons))}: the model's context is {engine.context} tokens")
    return [pair.probability_first for pair in fresh]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(checkpoint("helpful-only")))
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--principles-per-pair", type=int, default=1)
    parser.add_argument("--few-shot", default="none")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.model)
    model = load_lm(arguments.model, "cpu", "float32", tokenizer=tokenizer)
    engine = TransformersEngine(model, tokenizer, EngineSettings(batch_size=arguments.batch_size))
    inquiry = Inquiry(
        constitution=load_constitution(str(constitutions()["kind"])),
        seed=arguments.seed,
        principles_per_pair=arguments.principles_per_pair,
        form=PLAIN,
        demonstrations=tuple(load_comparison_demonstrations(arguments.few_shot)),
    )
    pairs = make_pairs(arguments.pairs, arguments.seed)
    ways = {
        "one forward per (pair, order, option)": lambda: loop(model, tokenizer, inquiry, pairs, 1),
        f"the same in batches of {arguments.batch_size}": lambda: loop(
            model, tokenizer, inquiry, pairs, arguments.batch_size
        ),
        "cai label": lambda: ours(engine, inquiry, pairs),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    labels: dict[str, list[float]] = {}
    for number in range(arguments.rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            labels[name] = way()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    times = {name: median(values) for name, values in seconds.items()}
    mine = times["cai label"]
    print(f"{len(pairs)} pairs, {torch.get_num_threads()} threads, median of {arguments.rounds} rounds")
    for name, value in times.items():
        gap = max(abs(a - b) for a, b in zip(labels[name], labels["cai label"], strict=True))
        print(
            f"{name:40} {len(pairs) / value:8.1f} pairs/s   ours is {value / mine:5.2f}x   labels differ by at most {gap:.1e}"
        )


if __name__ == "__main__":
    main()
