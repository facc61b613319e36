"""What somebody new types wrongly: each line ends in one error line that names the fix, before anything is
written.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Cai, run_cai
from ppo_setup import make_pm
from tiny import make_model

from cai_cli.rows.conversation import message

SAMPLE = "sample --model lm --prompts prompts.jsonl --out x.jsonl"
SFT = "sft --model lm --data samples.jsonl --out x"
LABEL = "label --model lm --prompts prompts.jsonl --feedback-model base --out x.jsonl"
TRAIN_PM = "train-pm --model lm --comparisons comparisons.jsonl --out x"
PPO = "ppo --model lm --pm pm --prompts prompts.jsonl --out x"
SPLIT = "split prompts.jsonl --out x"

# What is typed, and the words of the fix.
MISTAKES = [
    # Commands
    ("train --model lm", "`cai sft`, `cai train-pm` or `cai ppo` does that"),
    ("dpo --model lm", "TRL's DPOTrainer reads the file of `cai label`"),
    ("rlhf", "`cai ppo` does that"),
    ("generate --model lm", "`cai sample` does that"),
    ("reward-model --model lm", "`cai train-pm` does that"),
    ("Sample --model lm", "write `cai sample`"),
    ("revize --model lm", "Did you mean 'revise'?"),
    ("evaluate model lm", "it takes pm, elo, hhh, labels, responses"),
    ("--model lm sample", "flags come behind the command"),
    ("demo runs/demo", "--out runs/demo"),
    # Flags of other tools
    (f"{SFT} --lr 1e-5", "here it is `--learning-rate`"),
    (f"{SFT} --epochs 3", "here it is `--num-train-epochs`"),
    (f"{PPO} --epochs 3", "here it is `--steps`"),
    (f"{SFT} --batch-size 4", "here it is `--per-device-train-batch-size`"),
    (f"{SAMPLE} --per-device-train-batch-size 4", "here it is `--batch-size`"),
    (f"{SFT} --num_train_epochs 3", "write `--num-train-epochs`"),
    (f"{SAMPLE} --max-length 64", "here it is `--max-new-tokens`"),
    ("sft --model-name-or-path lm --data samples.jsonl --out x", "here it is `--model`"),
    ("sft --model lm --data samples.jsonl --output-dir x", "here it is `--out`"),
    ("sft --model lm --data samples.jsonl -o x", "here it is `--out`"),
    ("sft -model lm --data samples.jsonl --out x", "write `--model`"),
    ("train-pm --model lm --data comparisons.jsonl --out x", "here it is `--comparisons`"),
    (f"{SFT} --load-in-4bit", "here it is `--lora --quantize 4bit`"),
    (f"{SFT} --resume-from-checkpoint x", "the same command again carries on"),
    (f"{SAMPLE} --top-p 0.9", "texts are sampled at --temperature alone"),
    (f"{SAMPLE} --constitution article", "`cai demo`, `cai revise`, `cai label` have it"),
    ("label --model lm --prompts prompts.jsonl --judge base --out x.jsonl", "here it is `--feedback-model`"),
    ("sft --model lm --data samples.jsonl prompts.jsonl --out x", "--data samples.jsonl --data prompts.jsonl"),
    ("sample --prompts prompts.jsonl --out x.jsonl", "for example `cai sample --model helpful-only/"),
    # Values
    (f"{SFT} --learning-rate fast", "'--learning-rate': Input should be a valid number"),
    (f"{SFT} --num-train-epochs 0", "give another number above 0"),
    (f"{SFT} --lora-r 8", "add --lora"),
    (f"{SFT} --dtype float16", "train in float32, with --bf16"),
    (f"{SAMPLE} --temperature 0", "give --num-samples 1"),
    (f"{SAMPLE} --shard 2/2", "the first of eight is 0/8"),
    (f"{SAMPLE} --device gpu", "auto, cpu, cuda, cuda:1 or mps"),
    (f"{SAMPLE} --device mps", "use --device cpu"),
    (f"{LABEL} --cot-form two-step", "add --cot"),
    (f"{PPO} --num-mini-batches 3", "change one of them"),
    (f"{SPLIT} --parts 0.9,0.1", "NAME=PROPORTION"),
    (f"{SPLIT} --parts train=90%,test=10%", "write numbers: 0.9"),
    # Files of another kind, or none
    ("sample --model lm --prompts prompt.jsonl --out x.jsonl", "check the path"),
    ("sample --model lm --prompts array.json --out x.jsonl", "`cai import table array.json --to prompts`"),
    ("sample --model lm --prompts table.csv --out x.jsonl", "`cai import table` reads CSV"),
    ("sample --model lm --prompts splits --out x.jsonl", "name a file in it: rl.jsonl, sft.jsonl"),
    ("sample --model lm --prompts prompts.jsonl:0.5 --out x.jsonl", "name prompts.jsonl alone"),
    ("sample --model lm --prompts prompts.jsonl --out x.txt", "name a .jsonl file"),
    ("sft --model lm --data prompts.jsonl --out x", "`cai sample` and `cai revise` make replies"),
    ("sft --model lm --data comparisons.jsonl --out x", "`cai train-pm`"),
    ("sft --model lm --data empty.jsonl --out x", "its stage may have rejected everything"),
    ("label --pairs prompts.jsonl --feedback-model base --out x.jsonl", "`cai sample` and `cai revise` make replies"),
    ("train-pm --model lm --comparisons samples.jsonl --out x", "`cai label --pairs`"),
    ("train-pm --model lm --comparisons twice.jsonl --out x", "a pair is two different replies"),
    ("import csv table.csv --out x.jsonl", "`cai import table table.csv --columns prompt=COLUMN`"),
    ("import table table.csv --out x.jsonl", "the file has question, answer"),
    ("pmp --posts prompts.jsonl --model lm --out x", "`cai sample` and `cai revise`"),
    ("revise --model lm --prompts prompts.jsonl --constitution claude --out x.jsonl", "article, humanity, thorough"),
    ("revise --model lm --prompts prompts.jsonl --constitution rules.txt --out x.jsonl", "`cai constitution show article`"),
    # Models in the wrong place, stages in the wrong order
    ("sft --model lm --data revisions.jsonl --out x", "a stage's output exists once the stage has finished"),
    ("sft --model pm --data samples.jsonl --out x", "name a causal language model"),
    ("sft --model half --data samples.jsonl --out x", "run the same command again"),
    ("sft --model lm/model.safetensors --data samples.jsonl --out x", "a model is a directory with config.json"),
    ("sft --model models --data samples.jsonl --out x", "name a model below it, such as lm"),
    ("sft --model bare --data samples.jsonl --out x", "copy tokenizer.json"),
    ("sample --model gpt2 --prompts prompts.jsonl --out x.jsonl", "org/name of a model on the Hub"),
    ("ppo --model lm --pm lm --prompts prompts.jsonl --out x", "train it with `cai train-pm`"),
    ("label --model lm --prompts prompts.jsonl --feedback-model lm --out x.jsonl", "--allow-self-judge"),
    # What is there already, shards
    ("sft --model lm --data samples.jsonl --out lm", "choose another --out"),
    ("sample --model lm --prompts prompts.jsonl --out part.0.jsonl", "pass --if-changed restart"),
    ("sample --model lm --prompts prompts.jsonl -n 1 --max-new-tokens 4 --on-truncated keep --shard 1/2 --out part.0.jsonl",
     "give each shard its own --out"),
    ("merge part.0.jsonl --out x.jsonl", "name all the shards of the run"),
    ("merge part.0.jsonl part.0.jsonl --out x.jsonl", "name each shard once"),
    ("merge samples.jsonl part.0.jsonl --out x.jsonl", "only what a stage wrote with --shard can be merged"),
    # Configurations
    (f"{SFT} --config nix.yaml", "--config takes a YAML file"),
    (f"{SFT} --config bad.yaml", "bad.yaml:2: not valid YAML"),
    (f"{SFT} --config key.yaml", "here it is `--learning-rate`"),
    (f"{SFT} --config unread.yaml", "unread.yaml: --save-adapter does nothing without --lora"),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with models and files of every kind, as somebody has who has begun."""
    folder = tmp_path_factory.mktemp("newcomer")
    make_model(folder / "lm")
    make_model(folder / "base", seed=3)
    make_pm(folder / "lm", folder / "pm")
    shutil.copytree(folder / "lm", folder / "models" / "lm")
    shutil.copytree(folder / "lm", folder / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    shutil.copytree(folder / "lm", folder / "half")
    (folder / "half" / "cai.partial.json").write_text("{}")
    asked = [[message("user", f"How do I bake {n}?")] for n in range(6)]
    reply, other = [message("assistant", "Mix it.")], [message("assistant", "No.")]
    pair = {"probability": 0.9, "origin": "human", "chosen": reply}
    files = {
        "prompts.jsonl": [{"prompt": turns} for turns in asked],
        "samples.jsonl": [
            {"id": f"{n}/0", "prompt": turns, "completion": reply} for n, turns in enumerate(asked)
        ],
        "comparisons.jsonl": [
            {"id": f"{n}", "prompt": turns, "rejected": other, **pair} for n, turns in enumerate(asked)
        ],
        "twice.jsonl": [
            {"id": f"{n}", "prompt": turns, "rejected": reply, **pair} for n, turns in enumerate(asked)
        ],
        "empty.jsonl": [],
    }
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = {
        "array.json": '[{"prompt": "a"}, {"prompt": "b"}]',
        "table.csv": "question,answer\nhow,so\n",
        "rules.txt": "Be good.\n",
        "bad.yaml": "learning-rate: [1\n",
        "key.yaml": "lr: 1\n",
        "unread.yaml": "save-adapter: true\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    words = (
        "--max-new-tokens",
        4,
        "--on-truncated",
        "keep",
        "-n",
        1,
        "--shard",
        "0/2",
        "--out",
        "part.0.jsonl",
    )
    for done in (
        run_cai("sample", "--model", "lm", "--prompts", "prompts.jsonl", *words, cwd=folder),
        run_cai("split", "prompts.jsonl", "--parts", "sft=0.5,rl=0.5", "--out", "splits", cwd=folder),
    ):
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("typed", "fix"), MISTAKES, ids=[typed for typed, _ in MISTAKES])
def test_one_line_names_the_fix(cai: Cai, place: Path, typed: str, fix: str) -> None:
    before = sorted(place.rglob("*"))
    done = cai(*typed.split(), cwd=place)
    assert done.returncode in (1, 2) and done.stdout == "", done
    line, *more = done.stderr.splitlines()
    assert line.startswith("error: ") and not more, done.stderr
    assert fix in line
    assert sorted(place.rglob("*")) == before
