"""One order of the options against both: position bias (arXiv 2309.00267, section 2.1.1; not in the article).

Pairs of replies to harmful requests, labelled by the helpful-only model as it is, and by a copy with a planted bias: a
constant on the log-odds of ` (A)`, whatever is asked. What counts is how often the label is on the side that the
principle drawn for the pair prefers; pairs of which it says nothing are left out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from chain import inputs
from commands import Place
from estimates import MORE, SAME, Claim, Means, changed, percent, pooled
from oracle_pairs import SPLIT, pairs_file, preferred, random_pairs
from pictures import draw_dots, figure, save
from study import Found, Report, Study

from cai_cli.prompting.constitution import load_constitution
from cai_cli.rows.jsonl import read_records
from cai_cli.rows.records import Comparison

ORDERS = {"both": "both", "random": "one, drawn", "first": "one, always the same"}
JUDGES = {"plain": "as it is", "biased": "with a planted bias"}
BIAS = 6.0
COUNT = 400  # pairs of each seed
MARGIN = 0.02


def measure(place: Place) -> Found:
    pairs = pairs_file(place, "random-pairs", random_pairs(SPLIT, COUNT, place.seed))
    constitution = inputs(place) / "world/constitution.yaml"
    principles = {each.id: each.comparison for each in load_constitution(str(constitution)).principles}
    plain = inputs(place) / "models/helpful-only"
    judges = {
        "plain": plain,
        "biased": place.made(place / "biased/config.json", biased_copy(plain, pairs)).parent,
    }
    found: Found = {}
    for name, judge in judges.items():
        for orders in ORDERS:
            words = ["label", "--pairs", pairs, "--feedback-model", judge, "--orders", orders]
            words += ["--constitution", constitution, "--max-reject-rate", 1, "--batch-size", 64]
            out = place.made(
                place / f"orders/{name}-{orders}.jsonl",
                lambda out, words=words: place.cai(*words, "--out", out),
            )
            found[f"{name} {orders}"] = labelled(out, principles)
    return found


def labelled(out: Path, principles: dict[str, str]) -> dict[str, Any]:
    """By request whether the label is right, and how often both orders got the same letter."""
    values: dict[str, list[float]] = {}
    for row in read_records(out, Comparison.from_row):
        if side := preferred(row, principles[row.judgements[0].principle]):
            hit = 0.5 if row.probability == 0.5 else float(side > 0)
            values.setdefault(row.prompt[-1]["content"], []).append(hit)
    summary = json.loads(out.with_name(f"{out.stem}.manifest.json").read_text(encoding="utf-8"))["summary"]
    right = {prompt: fmean(hits) for prompt, hits in values.items()}
    return {"right": right, "same letter": summary["same_position_rate"]}


def biased_copy(source: Path, pairs: Path) -> Any:
    """Makes a copy of the model whose log-odds of ` (A)` are higher by about BIAS: the row of ` (A)` in the (untied)
    output layer gets a multiple of the mean hidden state where options are answered.
    """

    def make(config: Path) -> None:
        import torch

        from cai_cli.feedback.judge import Inquiry
        from cai_cli.feedback.pairs import read_pairs
        from cai_cli.microworld import constitutions
        from cai_cli.models.load import load_lm
        from cai_cli.models.tokenizers import load_tokenizer
        from cai_cli.prompting.constitution import load_constitution

        inquiry = Inquiry(constitution=load_constitution(str(constitutions()["kind"])))
        asked = [q for pair in read_pairs([str(pairs)], 64) for q in inquiry.questions(pair)]
        tokenizer = load_tokenizer(str(source))
        model = load_lm(str(source), "cpu", "float32", tokenizer=tokenizer)
        with torch.inference_mode():
            texts = [str(inquiry.prompt(question, chat=False)) for question in asked]
            outputs = [model.model(torch.tensor([tokenizer(text)["input_ids"]])) for text in texts]
        mean = torch.stack([output.last_hidden_state[0, -1] for output in outputs]).mean(0).clone()
        head = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        head.data[tokenizer.convert_tokens_to_ids(" (A)")] += BIAS * mean / mean.dot(mean)
        model.config.tie_word_embeddings = False
        model.lm_head.weight = head
        whole = config.parent.with_name(".biased.tmp")
        tokenizer.save_pretrained(whole)
        model.save_pretrained(whole)
        shutil.rmtree(config.parent)  # empty, or half of a copy
        whole.replace(config.parent)

    return make


def report(seeds: Sequence[Found], picture: Path) -> Report:
    def at(judge: str, orders: str) -> list[Means]:
        return [seed[f"{judge} {orders}"]["right"] for seed in seeds]

    table = [["judge", "orders", "on the principle's side", "same letter in both orders"]]
    for judge, told in JUDGES.items():
        for orders, name in ORDERS.items():
            same = [seed[f"{judge} {orders}"]["same letter"] for seed in seeds]
            rate = "–" if None in same else f"{100 * fmean(same):.1f}"
            table.append([told, name, percent(pooled(at(judge, orders))), rate])
    claims = [
        Claim(
            f"both orders are right more often than {ORDERS[orders]}, {JUDGES[judge]}",
            "RLAIF § 2.1.1",
            MORE,
            changed(at(judge, orders), at(judge, "both")),
        )
        for judge in ("biased", "plain")
        for orders in ("random", "first")
    ]
    claims.append(
        Claim(
            f"with both orders the bias costs nothing (within {100 * MARGIN:.0f} points)",
            "RLAIF § 2.1.1",
            SAME,
            changed(at("plain", "both"), at("biased", "both")),
            MARGIN,
        )
    )
    drawn, axes = figure(1, 6, 2.8)
    rows = [(f"{JUDGES[j]}: {ORDERS[o]}", pooled(at(j, o))) for j in JUDGES for o in ORDERS]
    draw_dots(axes, rows)
    axes.set_xlabel("labels on the principle's side, %")
    save(drawn, picture)
    asked = fmean(len(seed["plain both"]["right"]) for seed in seeds)
    notes = (
        f"{COUNT} pairs with each seed, of which the principle drawn says something for {asked:.0f} requests;"
        f" the planted bias is {BIAS:g} on the log-odds of ` (A)`."
    )
    return Report(table, claims, notes)


STUDY = Study(
    "orders",
    "One order of the options, or both",
    "What does a judge's liking for a letter cost, and do both orders mend it?",
    measure,
    report,
)
