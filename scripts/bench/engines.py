"""Tokens per second of the engines on one model, side by side in one run: `python scripts/bench/engines.py --model DIR`.

    python scripts/bench/engines.py --model SmolLM2-135M-Instruct --prompts 64 --new-tokens 128 --rounds 2
    python scripts/bench/engines.py --random --dtype bfloat16 --prompts 256 --batch-size 256      0.5B random weights, for a GPU

Ways: transformers' own `generate`, one prompt at a time and in padded batches; our transformers engine; vLLM called
directly with the same ids; our vLLM engine. Work: chat prompts, and the critique requests of a few-shot `cai revise`
(the default demonstrations in front, the transcript's stop strings, half as many tokens). And pairs per second of
option scores (two options, both orders): ours, and ours through vLLM. All sample at temperature 1 in --dtype from the
same prompts; each way runs a few prompts unmeasured first; ways take turns, and each figure is the median of the
rounds; vLLM's cache of prefixes is emptied before each. vLLM's rows need vLLM (see CONTRIBUTING) and are left out
with a word where it is missing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from ppo import make_random

from cai_cli.artifacts.chunks import chunks
from cai_cli.engines.base import EngineSettings, OptionRequest, Request
from cai_cli.engines.open import open_engine
from cai_cli.keys import key
from cai_cli.prompting.constitution import load_constitution
from cai_cli.prompting.few_shot import DEFAULT, few_shot_prefix, load_critique_demonstrations
from cai_cli.prompting.prompts import TRANSCRIPT_STOPS, critique_prompt
from cai_cli.rows.conversation import message

TOPICS = ("bread", "bees", "old clocks", "a garden in winter", "the moon", "knots", "small boats", "tea")
ASKS = (
    "Tell me about {}.",
    "How would you explain {} to a child?",
    "Write a short story about {}.",
    "What goes wrong with {}?",
)
Way = Callable[[list[Request]], int]


def requests_of(count: int, length: int) -> list[Request]:
    texts = [ask.format(topic) for ask in ASKS for topic in TOPICS]
    return [
        Request([message("user", f"{texts[n % len(texts)]} ({n})")], key("bench", n), length)
        for n in range(count)
    ]


def critiques_of(count: int, length: int) -> list[Request]:
    """What a few-shot `cai revise` asks in its first round, by rows that differ behind the demonstrations."""
    constitution = load_constitution("article", ("critique", "revision"))
    few_shot = few_shot_prefix(load_critique_demonstrations(DEFAULT))
    found = []
    for n, request in enumerate(requests_of(count, length)):
        response = f"It is best to look at {TOPICS[n % len(TOPICS)]} slowly, and often. " * 2
        drawn = constitution.draw(0, "principle", str(n), 1)
        asked = critique_prompt(request.prompt, response, drawn.critique, few_shot)  # type: ignore[arg-type]
        found.append(Request(asked, request.key, length, TRANSCRIPT_STOPS))
    return found


def questions_of(count: int) -> list[OptionRequest]:
    found = []
    for n in range(count):
        replies = [
            f"It is best to look at {topic} slowly, and often. " * 3
            for topic in (TOPICS[n % 8], TOPICS[(n + 3) % 8])
        ]
        for first, second in (replies, replies[::-1]):
            asked = f"Consider: {ASKS[n % 4].format(TOPICS[n % 8])} ({n})\nWhich reply is kinder?"
            text = f"{asked}\n (A) {first}\n (B) {second}\nThe answer is:"
            found.append(OptionRequest(text, (" (A)", " (B)")))
    return found


def by_generate(engine: Any, batch: int) -> Way:
    """transformers' own loop over batches of prompts, sampled, with our stop ids; no stop strings, which it looks
    for in the text of each row and token.
    """

    def run(requests: list[Request]) -> int:
        prompts, _ = engine.reader.encode(requests)
        pad, stops, drawn = engine.tokenizer.pad_token_id, engine.reader.stop_ids, 0
        for rows in chunks(list(prompts.values()), batch):
            width = max(map(len, rows))
            ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=engine.model.device)
            mask = torch.tensor(
                [[0] * (width - len(row)) + [1] * len(row) for row in rows], device=engine.model.device
            )
            settings = {
                "max_new_tokens": requests[0].max_new_tokens,
                "do_sample": True,
                "top_k": 0,
                "eos_token_id": stops,
            }
            with torch.inference_mode():
                found = engine.model.generate(
                    input_ids=ids, attention_mask=mask, pad_token_id=pad, **settings
                )
            for row in found[:, width:].tolist():
                ended = next((n + 1 for n, token in enumerate(row) if token in stops), len(row))
                drawn += ended
        return drawn

    return run


def by_engine(engine: Any) -> Way:
    return lambda requests: sum(completion.drawn for completion in engine.generate(requests))


def by_vllm(engine: Any) -> Way:
    """vLLM with the same ids and parameters, and nothing made of what it gives."""

    def run(requests: list[Request]) -> int:
        prompts, _ = engine.reader.encode(requests)
        inputs = [{"prompt_token_ids": ids} for ids in prompts.values()]
        parameters = [engine._sampling(request) for request in requests]
        outputs = engine.llm.generate(inputs, parameters, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return run


def pairs(judge: Any, questions: list[OptionRequest]) -> int:
    """How many pairs were asked about, each in both orders."""
    return len(judge.score(questions)) // 2


def rate(work: Callable[[], int]) -> float:
    begun = time.monotonic()
    done = work()
    return done / (time.monotonic() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--model", type=Path)
    chosen.add_argument("--random", action="store_true", help="about 0.5B random weights, as of ppo.py")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--slow", type=int, default=8, help="prompts of the slowest ways")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        if given.random:
            given.model, _, _ = make_random(Path(folder))
        measure(given)


def measure(given: argparse.Namespace) -> None:
    common = {"dtype": given.dtype, "device": given.device, "batch_size": given.batch_size}
    served: Any = None
    if find_spec("vllm"):  # first, since it takes its share of the memory at once
        settings = EngineSettings(engine="vllm", gpu_memory_utilization=0.45, **common)
        served = open_engine(str(given.model), settings)
    else:
        print("vLLM is not installed: its rows are left out")
    ours = open_engine(str(given.model), EngineSettings(**common))
    loads = {
        "chat": requests_of(given.prompts, given.new_tokens),
        "few-shot": critiques_of(given.prompts, given.new_tokens // 2),
    }
    questions = questions_of(given.pairs)
    ways: dict[str, Way] = {"generate": by_generate(ours, given.batch_size), "ours": by_engine(ours)}
    if served:
        ways |= {"vLLM": by_vllm(served), "ours through vLLM": by_engine(served)}
    works = {f"{load}: {way}": partial(ways[way], loads[load]) for load in loads for way in ways}
    works["few-shot: generate"] = partial(ways["generate"], loads["few-shot"][: given.slow])
    works["chat: generate, one by one"] = partial(by_generate(ours, 1), loads["chat"][: given.slow])
    judges = {"ours": ours} | ({"ours through vLLM": served} if served else {})
    scores = {f"pairs: {way}": partial(pairs, judge, questions) for way, judge in judges.items()}
    for way in ways.values():
        for load in loads.values():
            way([replace(request, max_new_tokens=8) for request in load[:2]])
    for judge in judges.values():
        pairs(judge, questions[:2])
    found: dict[str, list[float]] = {}
    for _ in range(given.rounds):
        for name, work in {**works, **scores}.items():
            if served:
                served.llm.reset_prefix_cache()
            found.setdefault(name, []).append(rate(work))
            print(f"{name}: {found[name][-1]:.2f}", flush=True)
    print(
        f"\n{given.model}, {given.dtype}, {torch.get_num_threads()} threads, {given.prompts} prompts x {given.new_tokens} tokens"
    )
    for name, rates in found.items():
        print(f"| {name} | {median(rates):.1f} {'pairs' if name in scores else 'tokens'}/s |")


if __name__ == "__main__":
    main()
