"""`cai ppo` beside the last PPOTrainer that TRL shipped (1.12): episodes a second, peak memory, score at
equal KL; one run.

    cai demo --out runs/demo
    python3 -m venv anchor && anchor/bin/pip install torch==2.13.0 transformers==5.19.0 trl==1.12.0 pandas
    python scripts/bench/ppo.py --anchor-python anchor/bin/python [--chain runs/demo] [--bf16]
    python scripts/bench/ppo.py --anchor-python anchor/bin/python --random          about 0.5B random weights, for a GPU

Both sides get the same policy, preference model, prompts, batch, epochs (one minibatch each), longest reply,
learning rate and KL coefficient; each runs in a process of its own. "Critic beside" is `cai ppo
--value-device`, the same full fine-tuning with preference model and value function in a second process (on a
CPU each then has half of the threads; all memory of that process counts); the faster of the two layouts is
held against the bar. A step's seconds are the median without the first step: of TRL wall clock from step to
step, of ours the sum of the three phases, without what is logged and measured between them. Memory is the
peak above what the process held after its imports (on a GPU: the peak allocated there). "LoRA" is `cai ppo
--lora` beside TRL's full fine-tuning, although TRL's trainer takes a `peft_config` too: the ratio says what
adapters save, not whose are smaller. The sides take turns for --rounds rounds, since a shared machine's speed
drifts: each round gives a ratio, and their median counts; memory and scores are the first round's, the others
are shorter. For the score at equal KL both policies write a reply to each held-out prompt with the same
sampler; ours is measured every two steps, and read off at TRL's final KL.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SPEED_BAR, MEMORY_BAR = 2.5, 0.5
HELD_OUT = 768
LATER_STEPS = 8
TITLES = {"trl": "TRL 1.12", "full": "cai ppo", "beside": "cai, critic beside", "lora": "cai --lora"}
VOCABULARY = 32_000
RANDOM = {"hidden_size": 1280, "intermediate_size": 3456, "num_hidden_layers": 22, "num_attention_heads": 20}


def memory_mb() -> float:
    """What the process holds now, in MiB; on a GPU nothing is held there after the imports."""
    import torch

    if torch.cuda.is_available():
        return 0.0
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_mb() -> float:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


# The two sides, each in a process of its own


def measure_trl(o: argparse.Namespace) -> dict[str, Any]:
    """TRL 1.12's PPOTrainer, run by the anchor's Python."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    torch.set_num_threads(o.threads)
    bare, marks = memory_mb(), []

    class Marks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            marks.append(time.perf_counter())

    tokenizer = AutoTokenizer.from_pretrained(o.model, padding_side="left", trust_remote_code=False)
    policies = [
        AutoModelForCausalLM.from_pretrained(o.model, dtype=torch.float32, trust_remote_code=False)
        for _ in range(2)
    ]
    scorers = [
        AutoModelForSequenceClassification.from_pretrained(
            o.pm, num_labels=1, dtype=torch.float32, trust_remote_code=False
        )
        for _ in range(2)
    ]
    rows = []
    for line in Path(o.prompts).read_text(encoding="utf-8").splitlines():
        text = tokenizer.apply_chat_template(
            json.loads(line)["prompt"], tokenize=False, add_generation_prompt=True
        )
        rows.append({"input_ids": tokenizer(text, add_special_tokens=False)["input_ids"]})
    data = Dataset.from_list(rows[: max(o.batch * 4, 1024)])
    config = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=o.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=o.epochs,
        total_episodes=o.batch * o.steps,
        response_length=o.max_new_tokens,
        stop_token="eos",
        missing_eos_penalty=1.0,
        temperature=1.0,
        kl_coef=o.kl_coef,
        learning_rate=o.learning_rate,
        use_cpu=not torch.cuda.is_available(),
        bf16=o.bf16,
        gradient_checkpointing=False,
        num_sample_generations=0,
        save_strategy="no",
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policies[0],
        ref_model=policies[1],
        reward_model=scorers[0],
        value_model=scorers[1],
        train_dataset=data,
        eval_dataset=data.select(range(min(len(data), o.batch))),
    )
    trainer.add_callback(Marks())
    marks.append(time.perf_counter())
    trainer.train()
    seconds = [after - before for before, after in itertools.pairwise(marks)]
    facts = {"seconds": statistics.median(seconds[1:]), "above_mb": peak_mb() - bare, "bare_mb": bare}
    policies[0].save_pretrained(o.out)
    tokenizer.save_pretrained(o.out)
    return facts


def measure_cai(o: argparse.Namespace) -> dict[str, Any]:
    """`cai ppo` with the same settings."""
    import torch

    from cai_cli import cli

    if o.lora:
        import peft  # noqa: F401

    torch.set_num_threads(o.threads)
    bare = memory_mb()
    words = f"--model {o.model} --pm {o.pm} --prompts {o.prompts} --out {o.out} --steps {o.steps} --rollout-batch-size {o.batch}"
    words += f" --num-ppo-epochs {o.epochs} --num-mini-batches 1 --per-device-train-batch-size {o.microbatch}"
    words += f" --max-new-tokens {o.max_new_tokens} --batch-size {o.batch} --kl-coef {o.kl_coef}"
    words += f" --learning-rate {o.learning_rate}"
    words += (
        f" --sample-steps 0 --save-steps 100000{' --lora' if o.lora else ''}{' --bf16' if o.bf16 else ''}"
    )
    if o.eval_prompts:
        words += f" --eval-prompts {o.eval_prompts} --eval-steps 2"
    if o.value_device:
        words += f" --value-device {o.value_device}"
    sys.argv = ["cai", "ppo", *words.split()]
    cli.main()
    steps = [json.loads(line) for line in (Path(o.out) / "timings.jsonl").read_text().splitlines()]
    phases = {
        name: statistics.median(row[f"seconds_{name}"] for row in steps[1:])
        for name in ("generate", "score", "update")
    }
    seconds = statistics.median(sum(row[f"seconds_{name}"] for name in phases) for row in steps[1:])
    rows = [json.loads(line) for line in (Path(o.out) / "metrics.jsonl").read_text().splitlines()]
    curve = [(row["eval_kl"], row["eval_score"]) for row in rows if "eval_score" in row]
    beside = steps[-1].get("critic_peak_mb", 0.0)  # All of that process: nobody needs it otherwise.
    return {
        "seconds": seconds,
        "above_mb": peak_mb() - bare + beside,
        "bare_mb": bare,
        "phases": phases,
        "curve": curve,
    }


def measure_policy(o: argparse.Namespace) -> dict[str, float]:
    """KL and score of TRL's trained policy on the held-out prompts, with our sampler and its draws."""
    import torch

    from cai_cli.engines.base import EngineSettings, Request
    from cai_cli.engines.open import open_engine
    from cai_cli.keys import key
    from cai_cli.models.load import load_lm, load_pm
    from cai_cli.rows.prompt_files import read_prompts
    from cai_cli.training.parallel import Passes
    from cai_cli.training.ppo.advantages import sequence_kl
    from cai_cli.training.ppo.episodes import make_episodes, over_episodes, sampled_logprobs
    from cai_cli.training.ppo.forward import response_logprobs
    from cai_cli.training.ppo.rewards import score_completions

    torch.set_num_threads(o.threads)
    engine = open_engine(o.out, EngineSettings(dtype="float32"))
    pad, eos = engine.renderer.tokenizer.pad_token_id, engine.renderer.tokenizer.eos_token_id
    prompts = [prompt.prompt for prompt in read_prompts([o.eval_prompts])]
    requests = [Request(prompt, key(0, "eval", n), o.max_new_tokens) for n, prompt in enumerate(prompts)]
    completions = engine.generate(requests)
    scores = score_completions(
        Passes(load_pm(o.pm, dtype="float32", tokenizer=engine.renderer.tokenizer)),
        completions,
        eos,
        pad,
        128,
    )
    reference = load_lm(o.model, dtype="float32", tokenizer=engine.renderer.tokenizer)
    episodes = make_episodes(completions, pad, reference.device)
    logprobs = over_episodes(
        episodes,
        lambda part: response_logprobs(reference, part.ids, part.prompt_lengths, part.mask, 1.0),
        128,
        Passes(reference),
    )
    kl = sequence_kl(sampled_logprobs(completions, episodes), logprobs, episodes.mask).mean().item()
    return {
        "kl": kl,
        "score": statistics.fmean(scores),
        "error": statistics.stdev(scores) / len(scores) ** 0.5,
    }


MEASURES = {"trl": measure_trl, "cai": measure_cai, "policy": measure_policy}


# The comparison


def child(o: argparse.Namespace, side: str, out: Path, *more: str) -> dict[str, Any]:
    """Run one side in a fresh process."""
    flags = [
        f"--{name.replace('_', '-')}={getattr(o, name)}" for name in SHARED if getattr(o, name) is not None
    ]
    python = o.anchor_python if side == "trl" else sys.executable
    command = [
        python,
        __file__,
        "--measure",
        side,
        "--out",
        str(out),
        *flags,
        *more,
        *(["--bf16"] if o.bf16 else []),
    ]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(o.threads)}
    env["PYTHONPATH"] = "" if side == "trl" else paths
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "seconds" in found:  # at once: of a run that is cut off, what is known stays
        print(f"{out.name}: {found['seconds']:.3f} s/step, {found['above_mb']:.1f} MB above bare", flush=True)
    return found


def make_random(folder: Path) -> tuple[Path, Path, Path]:
    """A random policy of about 0.5B parameters, a preference model from the same weights, and prompts of
    random words.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, **{f"w{n}": n for n in range(3, VOCABULARY)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "chat_template": template}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    more = {
        "vocab_size": VOCABULARY,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }
    config = LlamaConfig(**RANDOM, **more, num_labels=1)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    torch.manual_seed(0)
    for name, kind in (("policy", LlamaForCausalLM), ("pm", LlamaForSequenceClassification)):
        kind(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    prompts = folder / "prompts.jsonl"
    with prompts.open("w") as out:
        for n in range(1024):
            generator = torch.Generator().manual_seed(n)
            length = int(torch.randint(32, 128, (1,), generator=generator))
            ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
            out.write(
                json.dumps({"prompt": [{"role": "user", "content": " ".join(f"w{i}" for i in ids)}]}) + "\n"
            )
    return folder / "policy", folder / "pm", prompts


def second_device() -> str | None:
    """Where the critic can work beside the policy: the other GPU, or the same CPU; None where there is one
    GPU.
    """
    import torch

    gpus = torch.cuda.device_count()
    return "cpu" if gpus == 0 else "cuda:1" if gpus > 1 else None


def at_kl(curve: list[tuple[float, float]], kl: float) -> float:
    """Our score at a KL, by straight lines between measurements; the last one's beyond the end."""
    for (low, before), (high, after) in itertools.pairwise(curve):
        if low <= kl <= high:
            return before + (after - before) * (kl - low) / max(high - low, 1e-9)
    return curve[-1][1]


def compare(o: argparse.Namespace, folder: Path) -> bool:
    """Print the table; True when every bar is reached."""
    device = second_device()
    sides = {
        "trl": ("trl",),
        "full": ("cai", f"--microbatch={o.microbatch}"),
        **({"beside": ("cai", f"--microbatch={o.microbatch}", f"--value-device={device}")} if device else {}),
        "lora": ("cai", f"--microbatch={o.lora_microbatch}", "--lora"),
    }
    rounds = []
    for n in range(o.rounds):
        more = () if n == 0 else (f"--steps={min(o.steps, LATER_STEPS)}", "--eval-prompts=")
        rounds.append(
            {
                name: child(o, kind, folder / f"{n}-{name}", *words, *more)
                for name, (kind, *words) in sides.items()
            }
        )
    first = rounds[0]
    precision = "bfloat16 mixed precision" if o.bf16 else "float32"
    print(
        f"batch {o.batch}, {o.epochs} epochs of 1 minibatch, replies of at most {o.max_new_tokens} tokens,",
        end=" ",
    )
    print(f"{precision}, {o.threads} threads")
    print(
        f"{'':20}{'s/step':>8}{'episodes/s':>12}{'ratio':>7}{'MB above bare':>15}{'ratio':>7}   generate / score / update"
    )
    for times in rounds:
        for name, side in times.items():
            speed, memory = (
                times["trl"]["seconds"] / side["seconds"],
                side["above_mb"] / first["trl"]["above_mb"],
            )
            split = (
                " / ".join(f"{value:.3f}" for value in side["phases"].values()) if "phases" in side else ""
            )
            rate = o.batch / side["seconds"]
            held = f"{side['above_mb']:15.1f}{memory:7.2f}" if times is first else " " * 22
            print(f"{TITLES[name]:20}{side['seconds']:8.3f}{rate:12.1f}{speed:7.2f}{held}   {split}")
    ratios = {name: [times["trl"]["seconds"] / times[name]["seconds"] for times in rounds] for name in sides}
    speeds = {name: statistics.median(found) for name, found in ratios.items()}
    memory = first["lora"]["above_mb"] / first["trl"]["above_mb"]
    for name in ("full", *(["beside"] if device else [])):
        low, high = min(ratios[name]), max(ratios[name])
        print(
            f"{TITLES[name]}: {speeds[name]:.2f}x TRL's episodes/s ({low:.2f} to {high:.2f}; bar {SPEED_BAR})"
        )
    print(f"LoRA: {memory:.2f} of the memory of TRL's full fine-tuning (bar {MEMORY_BAR})")
    reached = max(speeds["full"], speeds.get("beside", 0.0)) >= SPEED_BAR and memory <= MEMORY_BAR
    if o.eval_prompts:
        theirs = child(o, "policy", folder / "0-trl")
        kl, score = first["full"]["curve"][-1]
        ours = at_kl(first["full"]["curve"], theirs["kl"])
        print(
            f"held out, at the start {first['full']['curve'][0][1]:.3f}; after {o.steps} steps: TRL {theirs['score']:.3f}",
            end=" ",
        )
        print(
            f"(± {theirs['error']:.3f}) at KL {theirs['kl']:.3f}; ours {score:.3f} at KL {kl:.3f}, and {ours:.3f} at TRL's KL"
        )
    print(f"bars: {'reached' if reached else 'MISSED'}")
    return reached


SHARED = (
    "model",
    "pm",
    "prompts",
    "eval_prompts",
    "steps",
    "batch",
    "epochs",
    "max_new_tokens",
    "threads",
    "kl_coef",
    "learning_rate",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--anchor-python", help="Python of an environment that holds TRL 1.12")
    parser.add_argument(
        "--chain", type=Path, default=Path("runs/demo"), help="a directory that `cai demo` wrote"
    )
    parser.add_argument(
        "--random", action="store_true", help="about 0.5B random weights instead of the micro-world"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--microbatch", type=int, default=96, help="ours alone: most episodes per forward and backward pass"
    )
    parser.add_argument(
        "--lora-microbatch", type=int, default=48, help="the same for LoRA, where memory counts"
    )
    parser.add_argument("--max-new-tokens", type=int, default=60)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--kl-coef", type=float, default=0.05)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--bf16", action="store_true", help="mixed precision on both sides")
    for name in ("--measure", "--out", "--model", "--pm", "--prompts", "--eval-prompts"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--lora", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--value-device", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.measure:
        print(json.dumps(MEASURES[o.measure](o)))
        return 0
    if not o.anchor_python:
        parser.error("--anchor-python: name the Python of an environment that holds TRL 1.12")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if o.random:
            o.model, o.pm, o.prompts = map(str, make_random(folder))
        else:
            if not (o.chain / "pm/cai.json").is_file():
                parser.error(f"--chain {o.chain}: not there; `cai demo --out {o.chain}` writes it")
            o.model, o.pm, o.prompts = (str(o.chain / part) for part in ("sl-cai", "pm", "world/rl.jsonl"))
            held_out = (
                (o.chain / "world/validation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
            )
            o.eval_prompts = str(folder / "held-out.jsonl")
            Path(o.eval_prompts).write_text(
                "".join(held_out[:: max(1, len(held_out) // HELD_OUT)][:HELD_OUT]), encoding="utf-8"
            )
        return 0 if compare(o, folder) else 1


if __name__ == "__main__":
    sys.exit(main())
