"""A tiny policy and preference model, and PPO on them: the real options and trainer."""

from __future__ import annotations

from pathlib import Path
from random import Random

from tiny import make_model

from cai_cli.console.groups import build
from cai_cli.engines.base import STOP, Completion
from cai_cli.models.load import load_pm
from cai_cli.models.score import reset_head
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.training.ppo.settings import Options

EOS, PAD = 2, 0
THINGS = ("bread", "a kite", "some soup", "a shelf", "a song", "a garden", "tea")


def make_pair(folder: Path) -> tuple[Path, Path]:
    """Folders of a random language model and of a preference model of the same vocabulary."""
    model = make_model(folder / "lm")
    make_pm(model, folder / "pm")
    return model, folder / "pm"


def make_pm(model: Path, folder: Path, seed: int = 0) -> Path:
    pm = load_pm(str(model), "cpu")
    reset_head(pm, seed)
    pm.save_pretrained(folder)
    load_tokenizer(str(model)).save_pretrained(folder)
    return folder


def write_prompts(file: Path, count: int = 12) -> Path:
    kinds = ("harmful", "helpful")
    lines = [
        f'{{"prompt": "How do I make {THINGS[n % 7]}? {n}", "kind": "{kinds[n % 2]}"}}\n'
        for n in range(count)
    ]
    file.write_text("".join(lines))
    return file


def options_for(model: Path, pm: Path, prompts: Path, out: Path, **changes) -> Options:
    """Small and quick: 2 steps of 8 episodes of at most 6 tokens."""
    settings = {
        "model": str(model),
        "pm": str(pm),
        "prompts": [str(prompts)],
        "out": out,
        "device": "cpu",
        "steps": 2,
        "rollout_batch_size": 8,
        "max_new_tokens": 6,
        "learning_rate": 1e-3,
    }
    return build(Options, **{**settings, **changes})


def random_completions(count: int, seed: int = 0) -> list[Completion]:
    rng = Random(seed)
    rows = []
    for _ in range(count):
        prompt = [rng.randrange(3, 300) for _ in range(rng.randint(1, 30))]
        reply = [rng.randrange(3, 300) for _ in range(rng.randint(1, 12))]
        rows.append(Completion("", STOP, prompt, reply, [rng.gauss(-3, 1) for _ in reply]))
    return rows
