"""One order of the options against both: position bias (arXiv 2309.00267, section 2.1.1; not in the article).

Oracle pairs of seven sorts, labelled by the helpful-only model as it is, and by a copy with a planted bias: a constant on
the log-odds of ` (A)`, whatever is asked. What counts is how often the label takes the oracle's side.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chain import inputs
from commands import Place
from estimates import MORE, SAME, Claim, Means, changed, percent, pooled
from oracle_pairs import EASY, HARD, SPLIT, pairs_file, sorted_pairs
from pictures import draw_dots, figure, save
from study import Found, Report, Study

from cai_cli.rows.jsonl import read_records
from cai_cli.rows.records import Comparison

ORDERS = {"both": "both", "random": "one, drawn", "first": "one, always the same"}
JUDGES = {"plain": "as it is", "biased": "with a planted bias"}
BIAS = 6.0
COUNT = 40  # pairs of each sort
MARGIN = 0.02


def measure(place: Place) -> Found:
    pairs = pairs_file(place, "sorted-pairs", sorted_pairs(SPLIT, COUNT, place.seed))
    truth = {row.id: row for row in read_records(pairs, Comparison.from_row)}
    plain = inputs(place) / "models/helpful-only"
    judges = {
        "plain": plain,
        "biased": place.made(place / "biased/config.json", biased_copy(plain, pairs)).parent,
    }
    found: Found = {}
    for name, judge in judges.items():
        for orders in ORDERS:
            words = (
                "label",
                "--pairs",
                pairs,
                "--feedback-model",
                judge,
                "--orders",
                orders,
                "--batch-size",
                64,
            )
            words += ("--constitution", inputs(place) / "world/constitution.yaml", "--max-reject-rate", 1)
            out = place.made(
                place / f"orders/{name}-{orders}.jsonl",
                lambda out, words=words: place.cai(*words, "--out", out),
            )
            found[f"{name} {orders}"] = labelled(out, truth)
    return found


def labelled(out: Path, truth: dict[str, Comparison]) -> dict[str, Any]:
    """By request whether the label is right, of all pairs and of hard ones, and how often both orders got the
    same letter.
    """
    rows = list(read_records(out, Comparison.from_row))
    hits = {
        row.id: 0.5 if row.probability == 0.5 else float(row.chosen == truth[row.id].chosen) for row in rows
    }
    summary = json.loads(out.with_name(f"{out.stem}.manifest.json").read_text(encoding="utf-8"))["summary"]
    return {
        "right": by_request(hits, truth),
        "hard": by_request({name: hit for name, hit in hits.items() if name.split("/")[0] in HARD}, truth),
        "same letter": summary["same_position_rate"],
    }


def by_request(hits: dict[str, float], truth: dict[str, Comparison]) -> Means:
    values: dict[str, list[float]] = {}
    for name, hit in hits.items():
        values.setdefault(truth[name].prompt[-1]["content"], []).append(hit)
    return {prompt: sum(found) / len(found) for prompt, found in values.items()}


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
    def at(judge: str, orders: str, which: str = "right") -> list[Means]:
        return [seed[f"{judge} {orders}"][which] for seed in seeds]

    table = [["judge", "orders", "agrees with the oracle", "on hard pairs", "same letter in both orders"]]
    for judge, told in JUDGES.items():
        for orders, name in ORDERS.items():
            same = [seed[f"{judge} {orders}"]["same letter"] for seed in seeds]
            rate = "–" if None in same else f"{100 * sum(same) / len(same):.1f}"
            table.append(
                [
                    told,
                    name,
                    percent(pooled(at(judge, orders))),
                    percent(pooled(at(judge, orders, "hard"))),
                    rate,
                ]
            )
    claims = [
        Claim(
            f"both orders are right more often than {ORDERS[orders]}, {JUDGES[judge]}",
            "RLAIF § 2.1.1",
            MORE,
            changed(at(judge, orders), at(judge, "both")),
        )
        for judge in JUDGES
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
    axes.set_xlabel("labels on the oracle's side, %")
    save(drawn, picture)
    notes = (
        f"{len(HARD) + len(EASY)} sorts of pairs, {COUNT} of each with each seed;"
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
