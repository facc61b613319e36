"""Measure the micro-world's checkpoints on held-out combinations: `python scripts/check_microworld.py DIR`.

DIR holds helpful-only/ and base/. Of the helpful-only model: its answers; as a judge, how often it prefers what
the principle shown prefers, under that principle, under its opposite, in wordings never seen, and what it says
where the principle says nothing; as a reviser, how often a draft gets what the request asks for, and whether the
rest of it stays. All of it by family, with 95 % intervals by combination. Plain generate() at temperature 1:
the package's stages are not used here. Settings are chosen on `--split validation`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cai_cli.microworld import CHECKPOINTS, answers, corpus, features, wordings
from cai_cli.microworld.answers import Answer
from cai_cli.microworld.features import FAMILIES, Principle, opposite
from cai_cli.microworld.grammar import REQUEST_KINDS, Request
from cai_cli.microworld.oracle import classify
from cai_cli.microworld.results import bootstrap
from cai_cli.prompting import prompts
from cai_cli.rows.conversation import message

Numbers = dict[str, Any]
CONJUNCTION = "two at once"


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
                **inputs, max_new_tokens=64, do_sample=True, top_k=0, eos_token_id=eos
            )
            for row in output[:, inputs["input_ids"].shape[1] :].tolist():
                kept = [n for n in row if n not in (*eos, self.tokenizer.pad_token_id)]
                replies.append(self.tokenizer.decode(kept).strip())
        return replies

    @torch.no_grad()
    def chooses_a(self, texts: list[str], batch: int = 128) -> torch.Tensor:
        """Probability of (A) against (B) after each text."""
        ids = self.tokenizer.convert_tokens_to_ids(
            [prompts.option(letter) for letter in prompts.OPTION_LETTERS]
        )
        found = []
        for start in range(0, len(texts), batch):
            inputs = self.tokenizer(texts[start : start + batch], return_tensors="pt", padding=True)
            found.append(self.model(**inputs, logits_to_keep=1).logits[:, -1, ids].softmax(-1)[:, 0])
        return torch.cat(found)

    def prefers_first(self, asked: Sequence[tuple[Request, str, Answer, Answer]]) -> list[float]:
        """Probability that the first answer is preferred, mean of both orders."""
        forward, backward = [], []
        for request, words, first, second in asked:
            conversation = [message("user", request.text)]
            forward.append(prompts.comparison_prompt(conversation, first.text, second.text, words))
            backward.append(prompts.comparison_prompt(conversation, second.text, first.text, words))
        values = (self.chooses_a(forward) + 1 - self.chooses_a(backward)) / 2
        return [float(value) for value in values]


def summary(values: Iterable[tuple[Request, float]]) -> Numbers:
    """Mean in % with its interval by combination, and of how many."""
    found = [(request.text, 100.0 * float(value)) for request, value in values]
    low, high = bootstrap(found)
    mean = sum(value for _, value in found) / len(found)
    return {"mean": round(mean, 1), "low": round(low, 1), "high": round(high, 1), "n": len(found)}


def principle_of(name: str, rng: Random) -> Principle:
    return corpus.random_principle(rng, conjunctions=1.0) if name == CONJUNCTION else (FAMILIES[name],)


def check_judge(model: Model, count: int, split: str) -> dict[str, Numbers]:
    """By family: share preferred as the principle does; under its opposite; mean label where it is silent."""
    result: dict[str, Numbers] = {}
    for name in (*FAMILIES, CONJUNCTION):
        rng, row = Random(f"{split} {name}"), {}
        cases = []
        while len(cases) < count:
            request, principle, (first, second), preferred = corpus.comparison(
                rng, split=split, principle=principle_of(name, rng), speaks=True
            )
            first, second = (first, second) if preferred > 0 else (second, first)
            if features.preference(opposite(principle), request, first, second) < 0:  # both speak of the pair
                cases.append((request, principle, first, second))
        for part in wordings.PARTS:
            for label, turn in ((part, lambda p: p), (f"{part}, opposite", opposite)):
                asked = [(r, wordings.write(turn(p), "comparison", part, rng), a, b) for r, p, a, b in cases]
                scores = model.prefers_first(asked)
                row[label] = summary(
                    (case[0], score > 0.5) for case, score in zip(cases, scores, strict=True)
                )
        silent = [
            corpus.comparison(rng, split=split, principle=principle_of(name, rng), speaks=False)
            for _ in range(count)
        ]
        asked = [(r, wordings.write(p, "comparison", "learned", rng), *pair) for r, p, pair, _ in silent]
        scores = model.prefers_first(asked)
        row["silent, mean label"] = summary(
            (case[0], score) for case, score in zip(silent, scores, strict=True)
        )
        result[name] = row
    return result


def revise(
    model: Model, cases: list[tuple[Request, Principle, str]], part: str, critique: bool, rng: Random
) -> list[str]:
    """One round of critique and revision of drafts."""
    drawn = [wordings.draw(principle, part, rng) for _, principle, _ in cases]
    conversations = [[message("user", request.text)] for request, _, _ in cases]
    rows = list(zip(conversations, cases, drawn, strict=True))
    if not critique:
        return model.sample(
            [prompts.direct_revision_prompt(asked, case[2], texts.revision) for asked, case, texts in rows]
        )
    critiques = model.sample(
        [prompts.critique_prompt(asked, case[2], texts.critique) for asked, case, texts in rows]
    )
    return model.sample(
        [
            prompts.revision_prompt(asked, case[2], texts.critique, written, texts.revision)
            for (asked, case, texts), written in zip(rows, critiques, strict=True)
        ]
    )


def check_reviser(model: Model, count: int, split: str) -> dict[str, Numbers]:
    """By family: share of drafts revised as asked, with all else kept; what another request changes of it."""
    result: dict[str, Numbers] = {}
    for name in (*FAMILIES, CONJUNCTION):
        rng, row = Random(f"{split} {name} revise"), {}
        cases = [
            corpus.revision_case(rng, rng.random() < 0.5, True, split, principle_of(name, rng))
            for _ in range(count)
        ]
        asked = [(request, principle, draft.text) for request, principle, draft, _ in cases]
        for label, part, critique in (
            ("learned", "learned", True),
            ("held_out", "held_out", True),
            ("learned, no critique", "learned", False),
        ):
            texts = revise(model, asked, part, critique, rng)
            read = [(case, answers.read(text)) for case, text in zip(cases, texts, strict=True)]
            row[label] = summary((case[0], bool(found) and as_asked(case, found)) for case, found in read)
            row[f"{label}, rest kept"] = summary(
                (case[0], bool(found) and is_ideal(case, found)) for case, found in read
            )
        others = [
            (request, (other_family(principle, request, rng),), draft.text)
            for request, principle, draft, _ in cases
        ]
        texts = revise(model, others, "learned", True, rng)
        read = [(case, answers.read(text)) for case, text in zip(cases, texts, strict=True)]
        row["another request"] = summary(
            (case[0], bool(found) and as_asked(case, found)) for case, found in read
        )
        result[name] = row
    return result


def other_family(principle: Principle, request: Request, rng: Random) -> features.Family:
    """A family that speaks of the request, and of none of the principle's features."""
    taken = {family.feature for family in principle}
    return rng.choice([f for f in FAMILIES.values() if f.feature not in taken and f.speaks(request)])


def as_asked(case: tuple[Request, Principle, Answer, Answer], found: Answer) -> bool:
    request, principle, _, _ = case
    return all(family.satisfied(request, found) for family in principle if family.speaks(request))


def is_ideal(case: tuple[Request, Principle, Answer, Answer], found: Answer) -> bool:
    """All five features as in the ideal revision."""
    request, _, _, ideal = case
    return all(
        features.level(request, found, name) == features.level(request, ideal, name)
        for name in features.FEATURES
    )


def check_answers(model: Model, count: int, split: str) -> Numbers:
    """What the model's own answers are, by kind of request."""
    rng, result = Random(1), {}
    for kind in REQUEST_KINDS:
        asked = [answers.random_request(kind, split, rng) for _ in range(count)]
        replies = model.sample([prompts.reply_prompt([message("user", request.text)]) for request in asked])
        verdicts = [classify(request.text, reply) for request, reply in zip(asked, replies, strict=True)]
        forms = Counter(verdict.form for verdict in verdicts if verdict)
        result[kind] = {form: round(hits / count, 3) for form, hits in forms.most_common()}
    return result


def means(result: dict[str, Numbers]) -> Numbers:
    """Mean of the families, and the worst: without the conjunctions."""
    columns: dict[str, dict[str, float]] = defaultdict(dict)
    for name, row in result.items():
        for column, numbers in row.items():
            columns[column][name] = numbers["mean"]
    shown = {}
    for column, values in columns.items():
        both = values.pop(CONJUNCTION)
        low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
        mean = sum(values.values()) / len(values)
        shown[column] = (
            f"mean {mean:.1f}  least {values[low]} ({low})  most {values[high]} ({high})  two {both}"
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--which", choices=CHECKPOINTS, action="append")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--count", type=int, default=120, help="pairs or drafts for each family")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the sampled texts")
    parser.add_argument("--out", type=Path, help="JSON file with all figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    split, count, found = arguments.split, arguments.count, {}
    for which in arguments.which or CHECKPOINTS:
        model = Model(arguments.folder / which)
        found[which] = {"answers": check_answers(model, 2 * count, split)}
        print(which, "answers", json.dumps(found[which]["answers"], indent=1), flush=True)
        if which == "helpful-only":
            for name, check in (("judge", check_judge), ("reviser", check_reviser)):
                found[which][name] = check(model, count, split)
                print(name, json.dumps(means(found[which][name]), indent=1), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
