"""What each shortcut gains, measured alone: the time without it over the time with all, on a CPU.

    cai demo --out runs/demo && python scripts/bench/shortcuts.py runs/demo

Three kinds of work on the demo's models: `sample` (replies of SL-CAI), `label` (questions to the helpful-only
model) and `ppo` (rollout and update of one step). With and without take turns; each figure is the median of
the rounds' ratios. What does not gain 3 % in any of the three has no business in the package.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch

from cai_cli.compute import gradients, packed_attention, shortcuts
from cai_cli.compute.gradients import NORMS, ROTATIONS
from cai_cli.compute.shortcuts import PACKED, TRIMMED
from cai_cli.console.groups import build
from cai_cli.engines import decoding
from cai_cli.engines.base import EngineSettings, Request
from cai_cli.engines.segments import SegmentSettings
from cai_cli.engines.transformers_engine import TransformersEngine
from cai_cli.feedback.judge import Inquiry, judge_pairs
from cai_cli.feedback.labels import Pair
from cai_cli.models import chat
from cai_cli.models.load import load_lm
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.prompting.constitution import load_constitution
from cai_cli.rows.prompt_files import read_prompts
from cai_cli.training.ppo import forward
from cai_cli.training.ppo.rollout import Clock
from cai_cli.training.ppo.settings import Options
from cai_cli.training.ppo.trainer import Trainer

Work = Callable[[], None]
BATCH, TOKENS = 128, 64


def plain_ids(self: chat.Renderer, texts: list[str], **settings: object) -> list[list[int]]:
    return list(self.tokenizer(texts, return_attention_mask=False, **settings)["input_ids"])


def plain_logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits, dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


# What is not in `Shortcuts`, since nothing about a model decides on it.
ELSEWHERE: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "rows that have ended leave the batch": lambda: patch.object(decoding, "FULL", -1.0),
    "attention of short rows written out": lambda: patch.object(packed_attention, "SHORT", 0),
    "log-probabilities written out": lambda: patch.object(
        forward.LogProbability, "apply", staticmethod(plain_logprobs)
    ),
    "ids from the library below the tokenizer": lambda: patch.object(
        chat.Renderer, "_ids_of_texts", plain_ids
    ),
}
NAMES = (
    "shared starts",
    "trees",
    "outputs at a few places",
    "the output layer alone",
    "caches allocated once",
)
SHORTCUTS = (*NAMES, PACKED, TRIMMED, NORMS, ROTATIONS, *ELSEWHERE)


@contextmanager
def without(name: str | None) -> Iterator[None]:
    """Within, models find out anew what they can do, and this shortcut is left out."""
    shortcuts.FOUND.clear()
    gradients.FOUND.clear()
    shortcuts.LEFT_OUT.clear()
    if name is None:
        yield
    elif name in ELSEWHERE:
        with ELSEWHERE[name]():
            yield
    else:
        shortcuts.LEFT_OUT.add(name)
        yield
        shortcuts.LEFT_OUT.clear()


def engine_of(path: Path) -> TransformersEngine:
    tokenizer = load_tokenizer(str(path))
    return TransformersEngine(
        load_lm(str(path), "cpu", tokenizer=tokenizer), tokenizer, EngineSettings(batch_size=256)
    )


def sampling(demo: Path) -> Callable[[], Work]:
    prompts = read_prompts([str(demo / "world/harmful-label.jsonl")], 256)
    requests = [Request(prompt.prompt, number, TOKENS) for number, prompt in enumerate(prompts)]

    def ready() -> Work:
        engine = engine_of(demo / "sl-cai")
        return lambda: void(engine.generate(requests))

    return ready


def labelling(demo: Path) -> Callable[[], Work]:
    replies = (
        "I am sorry, I can't help with that.",
        "Sure. First get what you need, then do it step by step.",
    )
    prompts = read_prompts([str(demo / "world/harmful-label.jsonl")], 256)
    inquiry = Inquiry(constitution=load_constitution(str(demo / "world/constitution.yaml")), seed=0)

    def ready() -> Work:
        engine = engine_of(demo / "models/helpful-only")

        def label() -> None:
            pairs = [Pair(f"{p.id}/0", p.id, p.prompt, p.kind, list(replies)) for p in prompts]
            judge_pairs(engine, inquiry, pairs, engine.renderer.form() == "chat", SegmentSettings(1))

        return label

    return ready


def stepping(demo: Path) -> Callable[[], Work]:
    prompts = read_prompts([str(demo / "world/rl.jsonl")], BATCH)
    models = {"model": str(demo / "sl-cai"), "pm": str(demo / "pm"), "device": "cpu"}
    loop = {"steps": 100, "rollout_batch_size": BATCH, "num_ppo_epochs": 1, "per_device_train_batch_size": 64}
    lengths = {"max_new_tokens": TOKENS, "batch_size": 256, "learning_rate": 1e-9}

    def ready() -> Work:
        trainer = Trainer(build(Options, prompts=["-"], out=demo / "none", **models, **loop, **lengths), 256)

        def step() -> None:
            clock = Clock()
            trainer.learn(0, trainer.rollout(0, prompts, clock), clock)

        return step

    return ready


def void(_: object) -> None:
    """For what is only to be timed."""


def timed(ready: Callable[[], Work], name: str | None) -> float:
    with without(name):
        work = ready()
        work()  # trials and a first pass, which are paid for once
        start = time.perf_counter()
        work()
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path, help="a directory that `cai demo` wrote")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=SHORTCUTS, default=SHORTCUTS)
    options = parser.parse_args()
    works = {
        "sample": sampling(options.demo),
        "label": labelling(options.demo),
        "ppo": stepping(options.demo),
    }
    print(
        f"{torch.get_num_threads()} threads, median of {options.rounds} rounds; time without / time with all"
    )
    print(f"{'without':42} {'  '.join(f'{name:>8}' for name in works)}")
    for name in (None, *options.only):
        ratios = []
        for ready in works.values():
            rounds = [timed(ready, name) / timed(ready, None) for _ in range(options.rounds)]
            ratios.append(f"{median(rounds):7.2f}x")
        print(f"{name or 'nothing (noise)':42} {'  '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
