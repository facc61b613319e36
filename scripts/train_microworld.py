"""Train the micro-world's checkpoints from scratch: `python scripts/train_microworld.py --out DIR [--which
both]`.

Plain torch on two CPU cores, a few minutes a model; the same seed, steps and machine give the same weights.
The right answers of helpful-only's multiple-choice questions and its revisions are the oracle's
(cai_cli/microworld/corpus.py), on combinations of the train split and wordings that are not held out.
`scripts/check_microworld.py` measures what came out.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import deque
from pathlib import Path
from random import Random

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cai_cli.keys import key
from cai_cli.microworld import CHECKPOINTS, corpus
from cai_cli.microworld.features import FEATURES, Principle
from cai_cli.microworld.tokenizer import build_tokenizer

STEPS = {"helpful-only": 4800, "base": 3600}
WARMUP_STEPS, DECAY_SHARE = 50, 0.4
REVISIONS_FIRST = 0.28  # of helpful-only's steps
# Comparisons get harder (`corpus`, ease) by this much a step while of each feature this share of the letters that can
# be known is right, among its last ones, and easier by half of it else; they are as hard as they get from this share of
# the steps on, whatever is known by then.
HARDER, KNOWN, LAST, LEAST = 1 / 200, 0.75, 160, 60
HARD_FROM = 0.7
TWO = "two"  # of two features at once
LENGTHS = {
    "comparison": 3,
    "revision": 2,
}  # batches of about one length that a step's documents are sorted into
Batch = list[tuple[torch.Tensor, torch.Tensor, list[str]]]  # ids, weights, what each letter is about


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A small Llama with random weights. Eager attention: sdpa is the slow path at a head size of 32."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=336,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


def build_optimizers(model: LlamaForCausalLM, peak: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms.

    After 100 steps the loss was 0.48, with AdamW alone 0.76.
    """
    inner = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in inner}
    outer = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(inner, lr=peak, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=peak, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, constant, linear decay over the last part."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return peak * warm * min(1.0, (steps - step) / (DECAY_SHARE * steps))


class Lessons:
    """Which comparisons come next: as easy, from 2 to 0, as leaves the letters about each feature right, and
    more of those that are judged worst.
    """

    def __init__(self) -> None:
        self.ease = 2.0
        self.seen = {name: deque[bool](maxlen=LAST) for name in (*FEATURES, TWO)}

    def known(self, name: str) -> float:
        """Of the letters about a feature that can be known, the share that was right; 0 of too few."""
        hits, knowable = self.seen[name], corpus.speaking_share(self.ease)  # the others are coins
        if len(hits) < LEAST:
            return 0.0
        return min(1.0, max(0.0, (sum(hits) / len(hits) - (1 - knowable) / 2) / knowable))

    def draw(self, rng: Random) -> Principle:
        minimal, there = corpus.mixture(self.ease)
        shares = {name: 1.2 - self.known(name) for name in FEATURES}
        two = corpus.CONJUNCTIONS * (2 - self.known(TWO)) * (1 - minimal)
        return corpus.random_principle(rng, two, there, shares)

    def saw(self, about: list[str], right: list[bool]) -> None:
        """Take letters into account."""
        for name, hit in zip(about, right, strict=True):
            self.seen[name].append(hit)

    def move(self, progress: float) -> None:
        """Harder or easier, after this share of all steps."""
        worst = min(self.known(name) for name in FEATURES)
        easiest = max(0.0, 2 * (HARD_FROM - progress) / (HARD_FROM - REVISIONS_FIRST))
        self.ease = min(easiest, max(0.0, self.ease + (-HARDER if worst > KNOWN else HARDER / 2)))

    def __str__(self) -> str:
        return f"ease {self.ease:.2f} " + " ".join(f"{name} {self.known(name):.2f}" for name in self.seen)


def encode(document: corpus.Document, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[float]]:
    """Token ids with a bos in front, and the loss weight of each token."""
    pieces = tokenizer([text for text, _ in document], add_special_tokens=False)["input_ids"]
    ids, weights = [tokenizer.bos_token_id], [0.0]
    for piece, (_, weight) in zip(pieces, document, strict=True):
        ids += piece
        weights += [weight] * len(piece)
    return ids, weights


def make_batch(
    rng: Random, tokenizer: PreTrainedTokenizerFast, counts: dict[str, int], lessons: Lessons
) -> Batch:
    """Padded ids and weights, a few batches of rows of about one length for each sort of document."""
    batch = []
    for name, count in counts.items():
        rows = []
        for _ in range(count):
            if name == "comparison":
                asked = lessons.draw(rng)
                document = corpus.comparison_document(rng, lessons.ease, asked)
                about = [asked[0].feature if len(asked) == 1 else TWO]
            else:
                document, about = corpus.MAKERS[name](rng), []
            rows.append((*encode(document, tokenizer), about))
        rows.sort(key=lambda row: len(row[0]))
        size = -(-count // LENGTHS.get(name, 1))
        batch += [pad(rows[start : start + size], tokenizer.pad_token_id) for start in range(0, count, size)]
    return batch


def pad(
    rows: list[tuple[list[int], list[float], list[str]]], filler: int
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    longest = max(len(ids) for ids, _, _ in rows)
    ids = torch.full((len(rows), longest), filler)
    weights = torch.zeros(len(rows), longest)
    for row, (tokens, values, _) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weights[row, : len(values)] = torch.tensor(values)
    return ids, weights, [name for _, _, about in rows for name in about]


def weighted_loss(
    model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, list[bool]]:
    """Sum of weighted token losses, and which letters are right, row by row; the output layer runs at weighted
    positions only.

    Padding is on the right, so under causal attention no real token sees it and no mask is needed.
    """
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    wanted = weights[:, 1:] > 0
    logits = model.lm_head(hidden[wanted])
    targets, weighted = ids[:, 1:][wanted], weights[:, 1:][wanted]
    losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    letters = weighted == corpus.LETTER_WEIGHT
    return (losses * weighted).sum(), (logits.argmax(-1) == targets)[letters].tolist()


def train(which: str, steps: int, peak: float, seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train one checkpoint."""
    torch.manual_seed(key(seed, which) % 2**63)
    tokenizer = build_tokenizer(chat_template=which == "helpful-only")
    model = build_model(tokenizer).train()
    optimizers = build_optimizers(model, peak)
    start, tokens = time.time(), 0
    lessons = Lessons()
    for step in range(steps):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate(step, steps, peak)
        first = step < REVISIONS_FIRST * steps
        counts = corpus.batches(which, first)
        batch = make_batch(Random(key(seed, which, step)), tokenizer, counts, lessons)
        total = sum(float(weights[:, 1:].sum()) for _, weights, _ in batch)
        shown = 0.0
        for ids, weights, about in batch:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss, right = weighted_loss(model, ids, weights)
            (loss / total).backward()
            shown += float(loss.detach()) / total
            lessons.saw(about, right)
            tokens += int((ids != tokenizer.pad_token_id).sum())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if not first:
            lessons.move(step / steps)
        if step % 50 == 0 or step == steps - 1:
            seconds = time.time() - start
            told = f" {lessons}" if which == "helpful-only" else ""
            print(
                f"{which} step {step} loss {shown:.4f}{told} {tokens / seconds:.0f} tok/s {seconds:.0f} s",
                flush=True,
            )
        if not math.isfinite(shown):
            raise SystemExit(f"{which}: the loss is {shown} at step {step}; lower --learning-rate")
    return model.eval(), tokenizer


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """safetensors, configuration, generation configuration and tokenizer."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder that gets one folder for each checkpoint"
    )
    parser.add_argument("--which", choices=(*CHECKPOINTS, "both"), default="both")
    parser.add_argument("--steps", type=int, help="default: what the shipped checkpoints were trained with")
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for which in CHECKPOINTS if arguments.which == "both" else (arguments.which,):
        start = time.time()
        model, tokenizer = train(
            which, arguments.steps or STEPS[which], arguments.learning_rate, arguments.seed
        )
        save(model, tokenizer, arguments.out / which)
        count = sum(parameter.numel() for parameter in model.parameters())
        print(json.dumps({"which": which, "parameters": count, "seconds": round(time.time() - start)}))


if __name__ == "__main__":
    main()
