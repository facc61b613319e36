"""Tiny models and rows for each trainer, and the commands that train on them: started, killed, told to stop,
finished.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import forks
import jsonlines
from catching import catch
from forks import Command
from tiny import make_model

from cai_cli.rows.conversation import message

THINGS = ("bread", "a kite", "some soup", "a shelf", "a song", "a garden", "tea")


def make_world(folder: Path) -> Path:
    """A tiny language model and preference model, and some rows for each trainer."""
    from cai_cli.models.load import load_pm
    from cai_cli.models.score import reset_head
    from cai_cli.models.tokenizers import load_tokenizer

    model = make_model(folder / "lm")
    pm = load_pm(str(model), "cpu")
    reset_head(pm, 0)
    pm.save_pretrained(folder / "pm")
    load_tokenizer(str(model)).save_pretrained(folder / "pm")
    prompts, samples, comparisons = [], [], []
    for n in range(320):
        prompt = [
            message("user", f"How do I make {THINGS[n % len(THINGS)]}, {'please, ' * (n % 5)}number {n}?")
        ]
        good, bad = (
            [message("assistant", "First, mix it. " * (1 + n % 3))],
            [message("assistant", "No. " * (1 + n % 4))],
        )
        prompts.append({"id": f"p{n}", "prompt": prompt})
        samples.append({"id": f"p{n}/0", "prompt": prompt, "completion": good, "finish_reason": "stop"})
        row = {"id": f"p{n}/c", "prompt_id": f"p{n}", "prompt": prompt, "chosen": good, "rejected": bad}
        comparisons.append({**row, "probability": 0.5 + n % 50 / 100, "origin": "human", "source": "made-up"})
    files = {"prompts": prompts, "few": prompts[:16], "samples": samples, "comparisons": comparisons}
    for name, rows in files.items():
        with jsonlines.open(folder / f"{name}.jsonl", "w") as writer:
            writer.write_all(rows)
    return folder


COMMANDS = {
    "pmp": "pmp --model lm --posts posts.xml --max-pairs 320 --num-train-epochs 2 --lm-coef 0.5"
    " --save-steps 20 --logging-steps 5 --lr-scheduler-type cosine --learning-rate 1e-3",
    "train-pm": "train-pm --model lm --comparisons comparisons.jsonl --num-train-epochs 4"
    " --save-steps 10 --logging-steps 10 --lr-scheduler-type cosine --learning-rate 1e-3",
    "sft": "sft --model lm --data samples.jsonl --num-train-epochs 3 --save-steps 10 --logging-steps 10"
    " --lr-scheduler-type linear --learning-rate 1e-3 --gradient-accumulation-steps 2",
    "sft-packed": "sft --model lm --data samples.jsonl --num-train-epochs 3 --save-steps 5 --logging-steps 5"
    " --learning-rate 1e-3 --packing --max-length 192 --per-device-train-batch-size 2 --held-out 0.1",
    "sft-lora": "sft --model lm --data samples.jsonl --num-train-epochs 2 --save-steps 10 --logging-steps 10 --learning-rate 1e-3"
    " --lora --lora-r 4 --lora-dropout 0.1 --save-adapter --lr-scheduler-type cosine",
    "sft-qlora": "sft --model lm --data samples.jsonl --num-train-epochs 2 --save-steps 10 --logging-steps 10 --save-adapter"
    " --learning-rate 1e-3 --lora --lora-r 4 --lora-dropout 0.1 --quantize 4bit",
    "ppo": "ppo --model lm --pm pm --prompts prompts.jsonl --eval-prompts few.jsonl --eval-steps 20 --steps 24 --save-steps 3"
    " --rollout-batch-size 16 --max-new-tokens 12 --learning-rate 1e-3 --target-kl 1",
    "ppo-critic-beside": "ppo --model lm --pm pm --prompts prompts.jsonl --steps 24 --save-steps 3 --rollout-batch-size 16"
    " --max-new-tokens 12 --learning-rate 1e-3 --value-device cpu",
}
CHECKPOINTS = {
    "pmp": "step-*",
    "train-pm": "step-*",
    "sft": "checkpoint-*",
    "sft-packed": "checkpoint-*",
    "sft-lora": "checkpoint-*",
    "sft-qlora": "checkpoint-*",
    "ppo": "step-*",
    "ppo-critic-beside": "step-*",
}


def start(stage: str, out: str, world: Path, *flags: str) -> Command:
    """`flags` win over those of COMMANDS."""
    return forks.start([*COMMANDS[stage].split(), *flags, "--out", out], world)


def finish(stage: str, out: str, world: Path, *flags: str) -> str:
    """Run to the end; stdout, which is for data, stays empty. Returns what was said."""
    process = start(stage, out, world, *flags)
    printed, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert printed == ""
    return said


def kill_when(stage: str, out: str, world: Path, seen: Callable[[], bool], *flags: str) -> None:
    """Start the stage and kill it as soon as something is seen of it."""
    process, _ = catch(lambda: start(stage, out, world, *flags), world / out, seen)
    assert process.returncode == -signal.SIGKILL
    assert not (world / out / "cai.json").exists()


def metrics(folder: Path) -> list[dict]:
    """Every line, but for how long it took."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith("seconds_")}
        for line in lines
    ]
