"""What each shortcut gains, measured alone: the time without it over the time with all, on a CPU.

    cai demo --out runs/demo && python scripts/bench/shortcuts.py runs/demo
    python scripts/bench/shortcuts.py runs/demo --model MODEL --prompt-tokens 200 --reply-tokens 100 --rows 8

Three kinds of work on the demo's prompts: `sample` (replies), `label` (questions about two replies) and `ppo`
(rollout and update of one step); by the demo's models, or by another one, whose preference model gets a fresh
head. Longer prompts are several of the demo's, one after the other. With and without take turns; each figure
is the median of the rounds' ratios. What does not gain 3 % in any of the three has no business in the package.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from transformers.cache_utils import DynamicLayer

from cai_cli.compute import packed_attention, shortcuts
from cai_cli.compute.shortcuts import PACKED, TRIMMED
from cai_cli.console.groups import build
from cai_cli.engines import caches, decoding
from cai_cli.engines.base import EngineSettings, Request
from cai_cli.engines.segments import SegmentSettings
from cai_cli.engines.transformers_engine import TransformersEngine
from cai_cli.feedback.judge import Inquiry, judge_pairs
from cai_cli.feedback.labels import Pair
from cai_cli.models import chat
from cai_cli.models.load import load_lm, load_pm
from cai_cli.models.score import reset_head
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.prompting.constitution import load_constitution
from cai_cli.rows.conversation import message
from cai_cli.rows.prompt_files import read_prompts
from cai_cli.rows.records import Prompt
from cai_cli.training.ppo.rollout import Clock
from cai_cli.training.ppo.settings import Options
from cai_cli.training.ppo.trainer import Trainer

Work = Callable[[], None]


def plain_ids(self: chat.Renderer, texts: list[str], **settings: object) -> list[list[int]]:
    return list(self.tokenizer(texts, return_attention_mask=False, **settings)["input_ids"])


class GrowingLayer(caches.PreallocatedLayer):
    """A layer whose memory is copied at every token and whenever rows leave, as transformers' own is."""

    update = DynamicLayer.update
    reorder_cache = DynamicLayer.reorder_cache


# What is not in `Shortcuts`, since nothing about a model decides on it.
ELSEWHERE: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "rows that have ended leave the batch": lambda: patch.object(decoding, "FULL", -1.0),
    "caches allocated once": lambda: patch.object(caches, "PreallocatedLayer", GrowingLayer),
    "attention of short rows written out": lambda: patch.object(packed_attention, "SHORT", 0),
    "ids from the library below the tokenizer": lambda: patch.object(
        chat.Renderer, "_ids_of_texts", plain_ids
    ),
}
NAMES = (
    "shared starts",
    "trees",
    "outputs at a few places",
    "the output layer alone",
)
SHORTCUTS = (*NAMES, PACKED, TRIMMED, *ELSEWHERE)


@contextmanager
def without(name: str | None) -> Iterator[None]:
    """Within, this shortcut is left out; a model keeps what it has found out, with or without it."""
    if name is None:
        yield
    elif name in ELSEWHERE:
        with ELSEWHERE[name]():
            yield
    else:
        shortcuts.LEFT_OUT.add(name)
        yield
        shortcuts.LEFT_OUT.clear()


@dataclass(frozen=True)
class Bench:
    """What the work is done on: the demo's files and models, or another model, and how long its texts are."""

    demo: Path
    model: Path | None
    rows: int
    prompt_tokens: int
    reply_tokens: int
    principles: int

    def prompts(self, name: str, path: Path) -> list[Prompt]:
        """Prompts of at least `prompt_tokens`, each of several of the demo's, for a model that lies there."""
        tokenizer = load_tokenizer(str(path))
        texts = cycle(p.prompt[0]["content"] for p in read_prompts([str(self.demo / "world" / name)], 1024))
        made = []
        for number in range(self.rows):
            text = next(texts)
            while len(tokenizer(text)["input_ids"]) < self.prompt_tokens:
                text += " " + next(texts)
            made.append(Prompt(f"p{number}", [message("user", text)]))
        return made

    def place(self, name: str) -> Path:
        return self.model or self.demo / name

    @cached_property
    def pm(self) -> str:
        if self.model is None:
            return str(self.demo / "pm")
        tokenizer, folder = load_tokenizer(str(self.model)), self.demo / "bench-pm"
        model = load_pm(str(self.model), "cpu", tokenizer=tokenizer)
        reset_head(model, 0)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)


def engine_of(path: Path) -> TransformersEngine:
    tokenizer = load_tokenizer(str(path))
    settings = EngineSettings(batch_size=256)
    return TransformersEngine(load_lm(str(path), "cpu", tokenizer=tokenizer), tokenizer, settings)


def sampling(bench: Bench) -> Work:
    path = bench.place("sl-cai")
    engine, prompts = engine_of(path), bench.prompts("harmful-label.jsonl", path)
    requests = [Request(prompt.prompt, n, bench.reply_tokens) for n, prompt in enumerate(prompts)]
    return lambda: void(engine.generate(requests))


def labelling(bench: Bench) -> Work:
    path = bench.place("models/helpful-only")
    engine, prompts = engine_of(path), bench.prompts("harmful-label.jsonl", path)
    words = bench.reply_tokens // 2
    replies = (
        " ".join(["I am sorry, I can't help with that."] * max(1, words // 8)),
        " ".join(["Sure. First get what you need, then do it step by step."] * max(1, words // 12)),
    )
    constitution = load_constitution(str(bench.demo / "world/constitution.yaml"))
    inquiry = Inquiry(constitution=constitution, seed=0, principles_per_pair=bench.principles)

    def label() -> None:
        pairs = [Pair(f"{p.id}/0", p.id, p.prompt, p.kind, list(replies)) for p in prompts]
        judge_pairs(engine, inquiry, pairs, engine.renderer.form() == "chat", SegmentSettings(1))

    return label


def stepping(bench: Bench) -> Work:
    path = bench.place("sl-cai")
    prompts = bench.prompts("rl.jsonl", path)
    options = build(
        Options,
        model=str(path),
        pm=bench.pm,
        prompts=["-"],
        out=bench.demo / "none",
        device="cpu",
        steps=100,
        rollout_batch_size=bench.rows,
        num_ppo_epochs=1,
        per_device_train_batch_size=64,
        max_new_tokens=bench.reply_tokens,
        batch_size=256,
        learning_rate=1e-9,
    )
    trainer = Trainer(options, 2 * bench.prompt_tokens + 192 + bench.reply_tokens)

    def step() -> None:
        clock = Clock()
        trainer.learn(0, trainer.rollout(0, prompts, clock), clock)

    return step


WORKS: dict[str, Callable[[Bench], Work]] = {"sample": sampling, "label": labelling, "ppo": stepping}


def void(_: object) -> None:
    """For what is only to be timed."""


def timed(work: Work, name: str | None) -> float:
    with without(name):
        start = time.perf_counter()
        work()
        return time.perf_counter() - start


def ready(bench: Bench, work: str, name: str | None) -> Work:
    """The work, after its trials and a first pass, which are paid for once."""
    with without(name):
        found = WORKS[work](bench)
        found()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path, help="a directory that `cai demo` wrote")
    parser.add_argument("--model", type=Path, help="a language model to take instead of the demo's")
    parser.add_argument("--rows", type=int, default=128, help="replies, pairs, episodes")
    parser.add_argument("--prompt-tokens", type=int, default=0)
    parser.add_argument("--reply-tokens", type=int, default=64)
    parser.add_argument("--principles", type=int, default=1, help="asked about for each pair")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=SHORTCUTS, default=SHORTCUTS)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    given = parser.parse_args()
    sizes = (given.rows, given.prompt_tokens, given.reply_tokens, given.principles)
    bench = Bench(given.demo, given.model, *sizes)
    print(f"{torch.get_num_threads()} threads, median of {given.rounds} rounds; time without / time with all")
    print(f"{'without':42} {'  '.join(f'{name:>8}' for name in given.works)}")
    for name in (None, *given.only):
        ratios = []
        for work in given.works:
            one, other = ready(bench, work, name), ready(bench, work, None)
            rounds = [timed(one, name) / timed(other, None) for _ in range(given.rounds)]
            ratios.append(f"{median(rounds):7.2f}x")
        print(f"{name or 'nothing (noise)':42} {'  '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
