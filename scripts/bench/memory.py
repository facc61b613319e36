"""The memory that `--dry-run` tells beside the memory that a run takes, of sft, train-pm and ppo on random weights.

    python scripts/bench/memory.py                       three sizes on a CPU, in full, by LoRA, and by FSDP 2
    python scripts/bench/memory.py --only 5M --ways qlora checkpointing packing value-device
    python scripts/bench/memory.py --gpu --only 0.5B     one size on a GPU

Each run is the real command line in a process of its own: peak above what the process held after its imports. On a
CPU that is resident memory, looked at every few milliseconds, with a C library that returns what is freed (as shipped
it keeps a part: --as-shipped shows it); on a GPU the peak allocated there. The bar: an estimate within 20 % of what was
measured. Rows come as they are found.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BAR = 0.2
# name -> hidden, inner, layers, heads, heads of keys and values
SHAPES = {
    "5M": (192, 512, 8, 6, 2),
    "30M": (448, 1216, 12, 7, 7),
    "135M": (576, 1536, 30, 9, 3),
    "0.5B": (1280, 3456, 22, 20, 4),
    "1.1B": (2048, 5632, 22, 32, 4),
}
ON_CPU, ON_GPU = ("5M", "30M", "135M"), ("135M", "0.5B", "1.1B")
VOCABULARY = {False: 8_000, True: 32_000}
# rows a batch and tokens a row; of ppo, tokens of prompt and reply each are a half of it
BATCH = {"5M": (16, 256), "30M": (8, 256), "135M": (4, 256), "0.5B": (8, 512), "1.1B": (4, 512)}
STEPS = 3
RUNS = [
    ("sft", "full"),
    ("train-pm", "full"),
    ("ppo", "full"),
    ("sft", "lora"),
    ("train-pm", "lora"),
    ("ppo", "lora"),
]
ON_GPU_RUNS = [("sft", "full"), ("train-pm", "full"), ("ppo", "full"), ("ppo", "lora")]
IN_PARTS = [("sft", "fsdp"), ("train-pm", "fsdp"), ("ppo", "fsdp")]  # by two processes
# what else changes the memory of a run; by --ways alone
OTHERS = {
    "qlora": {"lora": True, "quantize": "4bit"},
    "checkpointing": {"gradient_checkpointing": True},
    "packing": {"packing": True},
    "value-device": {"value_device": "cpu"},  # of the two processes the policy's is measured
}
MORE = [
    *(("sft", way) for way in ("qlora", "checkpointing", "packing")),
    *(("train-pm", way) for way in ("qlora", "checkpointing")),
    *(("ppo", way) for way in ("qlora", "checkpointing", "value-device")),
]
ACCELERATE = [
    *("-m", "accelerate.commands.launch", "--num_processes=2", "--num_machines=1", "--mixed_precision=no"),
    *("--dynamo_backend=no", "--main_process_port=0", "--use_fsdp", "--fsdp_version=2"),
    "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP",
]


def words_of(count: int, seed: int, vocabulary: int) -> str:
    from random import Random

    draw = Random(seed)
    return " ".join(f"w{draw.randrange(3, vocabulary)}" for _ in range(count))


def make(folder: Path, size: str, gpu: bool) -> None:
    """A random language model, a preference model of the same shape, and rows for each trainer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    vocabulary = VOCABULARY[gpu]
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, **{f"w{n}": n for n in range(3, vocabulary)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "chat_template": template}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    hidden, wide, layers, heads, keys = SHAPES[size]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        num_labels=1,
    )
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    torch.manual_seed(0)
    for name, kind in (("policy", LlamaForCausalLM), ("pm", LlamaForSequenceClassification)):
        with torch.device("cuda" if gpu else "cpu"):
            model = kind(config)
        model.to(torch.bfloat16 if gpu else torch.float32).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows, length = BATCH[size]

    def turns(role: str, count: int, seed: int) -> list[dict[str, str]]:
        return [{"role": role, "content": words_of(count, seed, vocabulary)}]

    def write(name: str, made: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in made))

    half = length // 2
    numbers = range(rows * STEPS)
    write("prompts.jsonl", [{"prompt": turns("user", half, n)} for n in numbers])
    write(
        "samples.jsonl",
        [
            {
                "id": f"p{n}/0",
                "prompt": turns("user", half, n),
                "completion": turns("assistant", half - 1, -n - 1),
                "finish_reason": "stop",
            }
            for n in numbers
        ],
    )
    write(
        "comparisons.jsonl",
        [
            {
                "id": f"c{n}",
                "prompt": turns("user", half, n),
                "chosen": turns("assistant", half - 1, -n - 1),
                "rejected": turns("assistant", half - 1, 1000 + n),
                "probability": 0.9,
                "origin": "human",
            }
            for n in numbers
        ],
    )


def settings_of(stage: str, way: str, folder: Path, size: str, gpu: bool, bf16: bool) -> dict[str, Any]:
    """The options of the run, by the names of their fields."""
    rows, length = BATCH[size]
    common: dict[str, Any] = {
        "model": str(folder / "policy"),
        "out": str(folder / f"{stage}-{way}"),
        "device": "auto" if gpu else "cpu",
        "per_device_train_batch_size": rows,
        "save_steps": 100_000,
        **({"lora": True} if way == "lora" else OTHERS.get(way, {})),
        **({"bf16": True} if bf16 else {}),
    }
    if stage == "sft":
        packs = {"max_length": length} if way == "packing" else {}
        return common | packs | {"data": [str(folder / "samples.jsonl")]}
    if stage == "train-pm":
        rows //= 2  # a pair is two rows
        common["per_device_train_batch_size"] = rows
        return common | {"comparisons": [str(folder / "comparisons.jsonl")], "held_out": 0.0}
    return common | {
        "pm": str(folder / "pm"),
        "prompts": [str(folder / "prompts.jsonl")],
        "steps": 2,
        "rollout_batch_size": 2 * rows,
        "num_ppo_epochs": 1,
        "max_new_tokens": length // 2,
        "sample_steps": 0,
    }


def command_of(stage: str, settings: dict[str, Any]) -> list[str]:
    words = [stage]
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        for each in value if isinstance(value, list) else [value]:
            words += [flag] if each is True else [flag, str(each)]
    return words


def estimate(stage: str, settings: dict[str, Any], size: str, launch: Any) -> tuple[float, int]:
    """Bytes by the formulas, and the model's weights."""
    from cai_cli.console.groups import build
    from cai_cli.stages import ppo, sft, train_pm
    from cai_cli.training.memory.forecast import of_pairwise, of_ppo, of_sft
    from cai_cli.training.memory.shape import shape_of

    rows, length = BATCH[size]
    given = settings | {"out": Path(settings["out"])}
    count = rows * STEPS
    policy = shape_of(settings["model"], "SEQ_CLS" if stage == "train-pm" else "CAUSAL_LM")
    if stage == "sft":
        found = of_sft(build(sft.Options, **given), policy, [length] * count, launch)
    elif stage == "train-pm":
        found = of_pairwise(build(train_pm.Options, **given).fit, policy, [(length, length)] * count, launch)
    else:
        value = shape_of(settings["pm"], "SEQ_CLS", "--pm")
        found, _ = of_ppo(build(ppo.Options, **given), policy, value, [length // 2] * count, launch)
    return found.total, policy.weights


# One run, in a process of its own


class Watch(threading.Thread):
    """The most memory that this process has had of its own since the watch began."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bare = self.peak = held()

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, held())
            time.sleep(0.003)


def held() -> int:
    """Bytes of this process in memory; frozen weights stay mapped from their file, which counts too."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def give_back_at_once() -> None:
    """Let the C library return what tensors free, in place of keeping some of it for the next pass."""
    import ctypes

    from cai_cli.models import load
    from cai_cli.models.devices import M_MMAP_THRESHOLD

    load.keep_freed_memory = lambda: ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)  # type: ignore[assignment]


def import_all() -> None:
    """What the commands import, before they are measured."""
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch._dynamo  # noqa: F401

    import cai_cli.cli
    import cai_cli.training.memory.forecast
    import cai_cli.training.ppo.run
    import cai_cli.training.preference.run
    import cai_cli.training.sft.run  # noqa: F401


def measure(o: argparse.Namespace) -> None:
    if o.way == "fsdp":
        fsdp_on_a_cpu()
    import_all()
    import torch

    from cai_cli import cli
    from cai_cli.processes.ranks import leave_group
    from cai_cli.training.memory.forecast import Launch

    if o.waits:
        sys.stdin.readline()
    settings = settings_of(o.stage, o.way, o.folder, o.size, o.gpu, o.bf16)
    sys.argv = ["cai", *command_of(o.stage, settings)]
    watch = Watch()
    if not o.gpu:
        torch.set_num_threads(1)
        if not o.as_shipped:
            give_back_at_once()
        watch.start()
    cli.main()
    leave_group()
    peak = torch.cuda.max_memory_allocated() if o.gpu else watch.peak - watch.bare
    if os.environ.get("RANK", "0") != "0":
        return
    launch = Launch(processes=int(os.environ.get("WORLD_SIZE", "1")), sharded=o.way == "fsdp", gpu=o.gpu)
    told, weights = estimate(o.stage, settings, o.size, launch)
    row = {"weights": weights, "estimate": told, "measured": peak}
    if o.gpu:
        row["reserved"] = torch.cuda.max_memory_reserved()
    o.result.write_text(json.dumps(row))


def fsdp_on_a_cpu() -> None:
    """Tell accelerate, which takes FSDP to GPUs only, that the processes on this CPU are such."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    start = PartialState.__init__

    def start_on_a_cpu(self: Any, *args: Any, **settings: Any) -> None:
        first = not self.initialized
        start(self, *args, **settings)
        if first and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = start_on_a_cpu  # type: ignore[method-assign]


# All runs


def begin(o: argparse.Namespace, folder: Path, size: str, stage: str, way: str) -> subprocess.Popen[str]:
    """Start a run's process, which imports and then waits to be told to go on."""
    command = [sys.executable, *(ACCELERATE if way == "fsdp" else []), __file__, f"--measure={stage}"]
    command += [
        f"--way={way}",
        f"--size={size}",
        f"--folder={folder}",
        f"--result={folder}/{stage}-{way}.json",
    ]
    command += ["--gpu"] if o.gpu else []
    command += ["--bf16"] if o.bf16 else []
    command += ["--as-shipped"] if o.as_shipped else []
    command += ["--waits"] if way != "fsdp" else []
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    if not o.gpu:
        environment["OMP_NUM_THREADS"] = "1"
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def go_on(process: subprocess.Popen[str], seconds: float) -> str:
    """Let it run to its end; what it said where it failed, else nothing."""
    try:
        said, _ = process.communicate("\n", timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return f"no end after {seconds:.0f} s"
    return " ".join(said.splitlines()[-3:])[-300:] or "failed" if process.returncode else ""


def compare(o: argparse.Namespace, folder: Path, size: str) -> bool:
    """All runs of a size; whether each reached the bar."""
    runs = ON_GPU_RUNS if o.gpu else [*RUNS, *IN_PARTS]
    runs = [*runs, *(MORE if o.ways else [])]
    runs = [run for run in runs if run[0] in (o.stages or run) and run[1] in (o.ways or run)]
    maker = begin(o, folder, size, "make", "full")
    # On a GPU machine there are cores enough for all of them to import at once.
    waiting = [begin(o, folder, size, *run) for run in runs] if o.gpu else []
    problem = go_on(maker, o.seconds)
    if problem:
        raise SystemExit(f"no model: {problem}")
    reached = True
    for n, (stage, way) in enumerate(runs):
        started = time.monotonic()
        process = waiting[n] if waiting else begin(o, folder, size, stage, way)
        problem = go_on(process, o.seconds)
        result = folder / f"{stage}-{way}.json"
        name = f"{stage:10}{size:>6} {way:13}"
        if problem or not result.exists():
            print(f"{name}{problem or 'no result'}", flush=True)
            reached = False
            continue
        row = json.loads(result.read_text())
        ratio = row["estimate"] / row["measured"]
        reached &= abs(ratio - 1) <= BAR
        more = f"   reserved {row['reserved'] / 2**20:9.1f}" if "reserved" in row else ""
        print(
            f"{name}{row['weights'] / 1e6:9.1f}M{row['estimate'] / 2**20:11.1f}{row['measured'] / 2**20:11.1f}"
            f"{ratio:7.2f}{time.monotonic() - started:8.1f} s{more}",
            flush=True,
        )
    return reached


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gpu", action="store_true", help="measure on the GPU; else on the CPU, though there be one"
    )
    parser.add_argument("--only", help=f"one size: {', '.join(SHAPES)}")
    parser.add_argument("--stages", nargs="*", help="these trainers alone")
    parser.add_argument("--ways", nargs="*", help=f"of full, lora, fsdp, {', '.join(OTHERS)} these alone")
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument(
        "--as-shipped", action="store_true", help="on a CPU, with what the C library keeps of freed memory"
    )
    parser.add_argument("--seconds", type=float, default=600, help="most of one run")
    for name in ("--measure", "--way", "--size"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    for name in ("--folder", "--result"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--waits", action="store_true", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.measure:
        o.stage = o.measure
        if o.stage == "make":
            make(o.folder, o.size, o.gpu)
        else:
            measure(o)
        return 0
    print(f"{'':17}{'way':13}{'weights':>10}{'estimate MB':>12}{'measured':>10}{'ratio':>7}", flush=True)
    reached = True
    for size in [o.only] if o.only else (ON_GPU if o.gpu else ON_CPU):
        with tempfile.TemporaryDirectory() as folder:
            reached &= compare(o, Path(folder), size)
    print(f"bar (within {BAR:.0%}): {'reached' if reached else 'MISSED'}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
