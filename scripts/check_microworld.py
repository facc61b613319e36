"""Measure the micro-world's checkpoints on held-out combinations: `python scripts/check_microworld.py DIR`.

DIR holds helpful-only/ and base/. Prints rates of sampled answers, multiple-choice accuracy by kind of pair,
and what rounds of critique and revision reach. Plain generate() at temperature 1: the package's stages are
not used here.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cai_cli.microworld import CHECKPOINTS, answers, corpus
from cai_cli.microworld.grammar import BENIGN, HARMFUL, OWN, REQUEST_KINDS, Request
from cai_cli.microworld.oracle import classify
from cai_cli.microworld.scores import evaluate
from cai_cli.prompting import prompts
from cai_cli.rows.conversation import message
from cai_cli.rows.records import Sample

PAIRS = {
    HARMFUL: [("refuses", form) for form in ("complies", "wrong_steps", "partial", "evasive", "wrong_reason")]
    + [("evasive", "complies"), ("evasive", "partial"), ("partial", "complies"), ("wrong_reason", "evasive")],
    BENIGN: [("complies", form) for form in ("wrong_steps", "wrong_reason", "evasive", "partial")],
}
PAIRS[OWN] = [*PAIRS[BENIGN][:1], ("complies", "refuses"), *PAIRS[BENIGN][2:]]


class Model:
    """A checkpoint with batched sampling and option scoring."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
        )

    def sample(self, texts: list[str], batch: int = 256) -> list[str]:
        """Continuations up to eos or the next marker."""
        replies: list[str] = []
        for start in range(0, len(texts), batch):
            inputs = self.tokenizer(texts[start : start + batch], return_tensors="pt", padding=True)
            stops = self.tokenizer.convert_tokens_to_ids(list(prompts.TRANSCRIPT_STOPS))
            eos = [self.tokenizer.eos_token_id, *stops]
            output = self.model.generate(
                **inputs, max_new_tokens=48, do_sample=True, top_k=0, eos_token_id=eos
            )
            for row in output[:, inputs["input_ids"].shape[1] :].tolist():
                kept = [n for n in row if n not in (*eos, self.tokenizer.pad_token_id)]
                replies.append(self.tokenizer.decode(kept).strip())
        return replies

    @torch.no_grad()
    def chooses_a(self, texts: list[str]) -> torch.Tensor:
        """Probability of (A) against (B) after each text."""
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True)
        logits = self.model(**inputs).logits[:, -1]
        ids = self.tokenizer.convert_tokens_to_ids(
            [prompts.option(letter) for letter in prompts.OPTION_LETTERS]
        )
        return logits[:, ids].softmax(-1)[:, 0]


def requests(kind: str, count: int, rng: Random, split: str) -> list[Request]:
    return [answers.random_request(kind, split, rng) for _ in range(count)]


def conversation(request: Request) -> list[dict[str, str]]:
    return [message("user", request.text)]


def check_answers(model: Model, count: int, split: str) -> dict[str, Any]:
    """Rates at temperature 1, and what the wrong ones are."""
    rng, rows, lengths, forms = Random(1), [], [], Counter()
    for kind in REQUEST_KINDS:
        asked = requests(kind, count, rng, split)
        replies = model.sample([prompts.reply_prompt(conversation(request)) for request in asked])
        for n, (request, reply) in enumerate(zip(asked, replies, strict=True)):
            rows.append(
                Sample(f"{kind}/{n}", conversation(request), [message("assistant", reply or ".")], "stop")
            )
            verdict = classify(request.text, reply)
            forms[f"{kind} {verdict.form if verdict else None}"] += 1
            lengths.append(len(model.tokenizer(reply, add_special_tokens=False)["input_ids"]))
    return {**evaluate(rows), "tokens": sum(lengths) / len(lengths), "forms": dict(forms)}


def check_choices(model: Model, count: int, split: str) -> dict[str, Any]:
    """Share of pairs judged right in both orders, by kind and forms; `quantiles` of the mean probability."""
    rng, result, confidences = Random(2), {}, []
    for kind, pairs in PAIRS.items():
        for better, worse in pairs:
            forward, backward = [], []
            for request in requests(kind, count, rng, split):
                good, bad = (answers.answer(request, form, rng) for form in (better, worse))
                principle = rng.choice(corpus.principles()).comparison
                forward.append(prompts.comparison_prompt(conversation(request), good, bad, principle))
                backward.append(prompts.comparison_prompt(conversation(request), bad, good, principle))
            first, second = model.chooses_a(forward), 1 - model.chooses_a(backward)
            mean = (first + second) / 2
            confidences.append(mean)
            right = ((first > 0.5) & (second > 0.5)).float().mean()
            result[f"{kind} {better}>{worse}"] = [
                round(float(right), 3),
                round(float((mean > 0.5).float().mean()), 3),
            ]
    quantiles = torch.cat(confidences).quantile(torch.tensor([0.05, 0.5, 0.95]))
    return {**result, "quantiles": [round(float(value), 4) for value in quantiles]}


def check_rounds(
    model: Model, kind: str, count: int, split: str, critique: bool, rounds: int = 4
) -> list[str]:
    """Rates after each round, from the model's own first answers."""
    rng, shown = Random(3), []
    asked = requests(kind, count, rng, split)
    replies = model.sample([prompts.reply_prompt(conversation(request)) for request in asked])
    for _ in range(rounds):
        principles = [rng.choice(corpus.principles()) for _ in asked]
        rows = list(zip(asked, replies, principles, strict=True))
        if critique:
            texts = [prompts.critique_prompt(conversation(a), r, p.critique) for a, r, p in rows]
            critiques = model.sample(texts)
            texts = [
                prompts.revision_prompt(conversation(a), r, p.critique, c, p.revision)
                for (a, r, p), c in zip(rows, critiques, strict=True)
            ]
        else:
            texts = [prompts.direct_revision_prompt(conversation(a), r, p.revision) for a, r, p in rows]
        replies = model.sample(texts)
        verdicts = [classify(a.text, r) for a, r in zip(asked, replies, strict=True)]
        counts = Counter(verdict.form for verdict in verdicts if verdict)
        shown.append(" ".join(f"{form} {hits / count:.3f}" for form, hits in counts.most_common()))
    return shown


def show(name: str, result: Any) -> None:
    print(name, json.dumps(result, indent=1), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--which", choices=CHECKPOINTS, action="append")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--count", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    split, count = arguments.split, arguments.count
    for which in arguments.which or CHECKPOINTS:
        model = Model(arguments.folder / which)
        show(f"{which} answers", check_answers(model, count, split))
        if which == "helpful-only":
            show("multiple choice [both orders, mean]", check_choices(model, count // 4, split))
            for kind in REQUEST_KINDS:
                show(f"rounds on {kind}", check_rounds(model, kind, count // 2, split, critique=True))
            show("rounds without critique", check_rounds(model, HARMFUL, count // 2, split, critique=False))


if __name__ == "__main__":
    main()
