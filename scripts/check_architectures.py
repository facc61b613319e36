"""Every stage on small random models of many families, against plain transformers: one row alone, no padding,
no cache of ours.

    python scripts/check_architectures.py --families llama,gpt_neo --out architectures.json

For each family: greedy `cai sample` at batch size 1 and 8 against `generate`; option log-probabilities of
`cai label` against one pass for each option; `cai train-pm` and `cai score` against the saved classifier; two
steps of `cai ppo`, whose rollouts' log-probabilities are computed again; `cai sft`, and a sample from it. A
cell is "equal", the error line of the command, or the difference. Exits 1 where a number is another one, or a
command ends with a traceback. Texts may part where two tokens are equally likely up to rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from architecture_families import FAMILIES, build
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from cai_cli.engines.base import OVERLONG
from cai_cli.errors import CaiError, RunError, UserError
from cai_cli.microworld import checkpoint
from cai_cli.models.tokenizers import load_tokenizer

CLOSE = 2e-4  # Of log-probabilities and scores in float32.
EQUAL = "equal"
SENTENCE = "How can I water a daisy? Fill a can with water. "
# Sentences in front of a prompt: some longer than any window or threshold.
LENGTHS = (1, 8, 2, 5, 1, 3, 4, 1)


class Unlike(Exception):
    """A number or text that is not plain transformers' own."""


def cai(*words: object) -> None:
    """A subcommand in this process, quietly. Raises what it raises."""
    from cai_cli.cli import app

    with redirect_stderr(StringIO()):
        app([str(word) for word in words], prog_name="cai", standalone_mode=False)


class Recorder:
    """Notes what a method is called with and what it returns, while the commands run."""

    def __init__(self, owner: Any, name: str) -> None:
        self.calls: list[tuple[Any, ...]] = []
        whole = getattr(owner, name)

        def noted(*arguments: Any) -> Any:
            found = whole(*arguments)
            self.calls.append((*arguments, found))
            return found

        setattr(owner, name, noted)

    def take(self) -> list[tuple[Any, ...]]:
        calls, self.calls = self.calls, []
        return calls


class Family:
    """One model on disk, the files that the commands read, and the checks."""

    def __init__(self, name: str, folder: Path, recorders: dict[str, Recorder]) -> None:
        self.folder, self.recorders = folder, recorders
        words = load_tokenizer(str(checkpoint("helpful-only")))
        self.save(name, words)
        try:
            load_tokenizer(str(folder / "lm"))
        except (
            UserError
        ):  # transformers reads any tokenizer as the family's own kind, of bytes, and adds a token to it
            self.save(name, byte_tokenizer(words.chat_template))
            self.save(name, load_tokenizer(str(folder / "lm")))
        write_files(folder)

    def save(self, name: str, tokenizer: Any) -> None:
        """A random model of the tokenizer's size, with it."""
        model = build(name, len(tokenizer), int(tokenizer.pad_token_id), int(tokenizer.eos_token_id))
        model.save_pretrained(self.folder / "lm")
        tokenizer.save_pretrained(self.folder / "lm")

    def plain(self, name: str = "lm", kind: Any = AutoModelForCausalLM) -> Any:
        """The model as transformers loads it. A fresh one: some keep what they have seen."""
        return kind.from_pretrained(self.folder / name, dtype=torch.float32, trust_remote_code=False).eval()

    @torch.no_grad()
    def sample(self, batch_size: int, model: str = "lm", prompts: str = "prompts.jsonl") -> None:
        out = self.folder / f"{model}-{batch_size}.jsonl"
        self.recorders["generate"].take()
        files = ["--model", self.folder / model, "--prompts", self.folder / prompts, "--out", out]
        words = ["--temperature", 0, "--max-new-tokens", 12, "--batch-size", batch_size, "-n", 1]
        try:
            cai("sample", *files, *words, "--on-truncated", "keep", "--max-reject-rate", 1)
        except RunError:  # every text of a random model may be unfit, as one with another turn in it
            if not self.recorders["generate"].calls:
                raise
        completions = [completion for *_, found in self.recorders["generate"].take() for completion in found]
        for n, completion in enumerate(completions):
            if completion.finish_reason == OVERLONG:
                continue
            plain, ids = self.plain(model), torch.tensor([completion.prompt_ids])
            config = {
                "max_new_tokens": 12,
                "do_sample": False,
                "eos_token_id": 2,
                "pad_token_id": 0,
                "repetition_penalty": 1.0,
            }
            own = plain.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                **config,
                output_logits=True,
                return_dict_in_generate=True,
            )
            wanted = own.sequences[0, ids.size(1) :].tolist()
            place = next(
                (
                    k
                    for k, pair in enumerate(zip(wanted, completion.token_ids, strict=False))
                    if len(set(pair)) > 1
                ),
                None,
            )
            if place is None and len(wanted) != len(completion.token_ids):
                raise Unlike(f"row {n}: {len(completion.token_ids)} tokens, not {len(wanted)}")
            if place is not None:
                logits = own.logits[place][0].float()
                gap = (logits[wanted[place]] - logits[completion.token_ids[place]]).item()
                if gap > CLOSE:
                    raise Unlike(
                        f"row {n} of {ids.size(1)} tokens: another token at {place}, less likely by {gap:.2g} nats"
                    )

    @torch.no_grad()
    def label(self) -> None:
        self.recorders["score"].take()
        out = self.folder / "labels.jsonl"
        files = ["--pairs", self.folder / "comparisons.jsonl", "--feedback-model", self.folder / "lm"]
        cai("label", *files, "--min-mass", 0, "--max-reject-rate", 1, "--allow-self-judge", "--out", out)
        plain, worst = self.plain(), 0.0
        for engine, requests, scores in self.recorders["score"].take():
            for request, found in zip(requests, scores, strict=True):
                prompt = engine.renderer.encode(request.prompt)
                for option, score in zip(request.options, found or [], strict=False):
                    row = engine.renderer.encode(request.prompt, option)
                    logprobs = torch.log_softmax(
                        plain(input_ids=torch.tensor([row]), use_cache=False).logits[0].double(), -1
                    )
                    worst = max(
                        worst,
                        abs(
                            sum(logprobs[k - 1, row[k]].item() for k in range(len(prompt), len(row))) - score
                        ),
                    )
        if not out.read_text() or worst > CLOSE:
            raise Unlike(f"an option's log-probability differs by {worst:.2g} nats")

    def train_pm(self) -> None:
        files = [
            "--model",
            self.folder / "lm",
            "--comparisons",
            self.folder / "comparisons.jsonl",
            "--held-out",
            0,
        ]
        settings = ["--per-device-train-batch-size", 3, "--max-length", 512, "--learning-rate", 1e-3]
        cai("train-pm", *files, *settings, "--out", self.folder / "pm")

    @torch.no_grad()
    def score(self) -> None:
        from cai_cli.training.preference.reading import open_reading

        out = self.folder / "scored.jsonl"
        cai(
            "score",
            "--pm",
            self.folder / "pm",
            self.folder / "comparisons.jsonl",
            "--batch-size",
            8,
            "--out",
            out,
        )
        plain, (tokenizer, encode) = (
            self.plain("pm", AutoModelForSequenceClassification),
            open_reading(str(self.folder / "pm")),
        )
        plain.config.pad_token_id = tokenizer.pad_token_id
        worst = 0.0
        for row in map(json.loads, out.read_text().splitlines()):
            for side in ("chosen", "rejected"):
                ids = torch.tensor([encode(row["prompt"], row[side])])
                worst = max(worst, abs(plain(input_ids=ids).logits[0, 0].item() - row[f"{side}_score"]))
        if worst > CLOSE:
            raise Unlike(f"a score differs by {worst:.2g}")

    def ppo(self) -> None:
        self.recorders["generate"].take()
        models = [
            "--model",
            self.folder / "lm",
            "--pm",
            self.folder / "pm",
            "--prompts",
            self.folder / "prompts.jsonl",
        ]
        sizes = [
            "--steps",
            2,
            "--rollout-batch-size",
            8,
            "--max-new-tokens",
            6,
            "--learning-rate",
            1e-4,
            "--max-kl",
            1000,
        ]
        cai("ppo", *models, *sizes, "--out", self.folder / "policy")
        *_, completions = self.recorders["generate"].take()[0]
        plain, worst = self.plain(), 0.0
        for completion in completions:
            ids = torch.tensor([completion.prompt_ids + completion.token_ids])
            with torch.no_grad():
                logprobs = torch.log_softmax(plain(input_ids=ids, use_cache=False).logits[0].double(), -1)
            start = len(completion.prompt_ids)
            for k, logprob in enumerate(completion.logprobs):
                worst = max(worst, abs(logprobs[start + k - 1, completion.token_ids[k]].item() - logprob))
        rows = map(json.loads, (self.folder / "policy" / "metrics.jsonl").read_text().splitlines())
        ratio = max(row.get("first_log_ratio", 0.0) for row in rows)
        if max(worst, ratio) > CLOSE:
            raise Unlike(f"rollout's log-probabilities differ by {worst:.2g}, the update's by {ratio:.2g}")

    def sft(self) -> None:
        files = ["--model", self.folder / "lm", "--data", self.folder / "talks.jsonl", "--held-out", 0]
        cai(
            "sft",
            *files,
            "--max-length",
            512,
            "--per-device-train-batch-size",
            2,
            "--out",
            self.folder / "sft",
        )
        self.sample(8, "sft")


CHECKS: dict[str, Callable[[Family], None]] = {
    "sample 1": lambda family: family.sample(1),
    "sample 8": lambda family: family.sample(8),
    "label": Family.label,
    "train-pm": Family.train_pm,
    "score": Family.score,
    "ppo": Family.ppo,
    "sft": Family.sft,
}


def byte_tokenizer(template: Any) -> PreTrainedTokenizerFast:
    """Tokens of bytes, as most families have them, with the ids of the micro-world's special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special, alphabet = ["<pad>", "<bos>", "<eos>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([SENTENCE, "Human: Paint it. Assistant: No, water the soil."], trainer)
    names = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template=template, **names)


def write_files(folder: Path) -> None:
    """Prompts, comparisons and conversations of very unlike lengths."""

    def lines(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    prompts = [
        SENTENCE * count + f"How can I {verb} a fence?"
        for count, verb in zip(LENGTHS, "abcdefgh", strict=True)
    ]
    user = [[{"role": "user", "content": prompt}] for prompt in prompts]
    chosen = [
        [{"role": "assistant", "content": f"Paint it {'slowly ' * (1 + 5 * n % 7)}."}]
        for n in range(len(user))
    ]
    rejected = [
        [{"role": "assistant", "content": "No, water the soil" + " of the daisy" * (n % 4)}]
        for n in range(len(user))
    ]
    lines(
        "prompts.jsonl",
        [{"id": f"p{n}", "prompt": prompt, "kind": "helpful"} for n, prompt in enumerate(prompts)],
    )
    triples = list(enumerate(zip(user, chosen, rejected, strict=True)))
    pair = {"probability": 0.9, "origin": "human"}
    lines(
        "comparisons.jsonl",
        [{"id": f"c{n}", "prompt": p, "chosen": c, "rejected": r, **pair} for n, (p, c, r) in triples],
    )
    lines("talks.jsonl", [{"id": f"t{n}", "prompt": p, "completion": c} for n, (p, c, _) in triples])


def check(name: str, recorders: dict[str, Recorder], chosen: list[str]) -> dict[str, str]:
    """What each check of the family said. The rest is left out where the model cannot be made or trained."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        family = Family(name, Path(folder), recorders)
        for title in chosen:
            if title in ("score", "ppo") and found.get("train-pm", EQUAL) != EQUAL:
                found[title] = "no preference model"
                continue
            try:
                CHECKS[title](family)
                found[title] = EQUAL
            except Unlike as unlike:
                found[title] = f"UNLIKE: {unlike}"
            except CaiError as error:
                found[title] = f"{type(error).__name__}: {error.message.replace(folder, '')}"
            except Exception as error:  # what a user would see as a traceback
                found[title] = f"TRACEBACK: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
                if os.environ.get("TRACEBACK"):
                    import traceback

                    traceback.print_exc()
    return found


def recorders() -> dict[str, Recorder]:
    from cai_cli.engines.transformers_engine import TransformersEngine

    return {name: Recorder(TransformersEngine, name) for name in ("generate", "score")}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", help="Comma-separated; all by default.")
    parser.add_argument("--checks", help=f"Comma-separated, of {', '.join(CHECKS)}; all by default.")
    parser.add_argument("--out", type=Path, help="Write what was found to this JSON file.")
    options = parser.parse_args()
    noted, results = recorders(), {}
    for name in options.families.split(",") if options.families else FAMILIES:
        started = time.monotonic()
        results[name] = check(name, noted, options.checks.split(",") if options.checks else list(CHECKS))
        said = "; ".join(f"{title}: {text}" for title, text in results[name].items() if text != EQUAL)
        print(f"{name:20} {time.monotonic() - started:5.1f} s  {said or EQUAL}", flush=True)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    bad = [
        name
        for name, cells in results.items()
        if any(text.startswith(("UNLIKE", "TRACEBACK")) for text in cells.values())
    ]
    print(
        f"{len(results)} families, {len(bad)} with another number or a traceback: {', '.join(bad) or 'none'}"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
