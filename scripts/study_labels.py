"""How good labels are, measured on the micro-world: `python scripts/study_labels.py orders|labels --out DIR`.

orders   Agreement with the oracle on test pairs, hard ones among them, by order policy and number of principles, for the
         helpful-only model as it is and with a planted position bias: a constant on the log-odds of ` (A)`.
labels   Soft, hard and chain-of-thought labels (clamped) of the same pairs each train a preference model; their accuracy and
         calibration on the test pairs and on held-out human comparisons. --demo names a directory that `cai demo` has written.

Everything goes through the ordinary stages, called in this process.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

import torch

from cai_cli.console.groups import build
from cai_cli.evaluation.calibration import accuracy, brier, calibration_error, wilson
from cai_cli.microworld import answers, checkpoint, constitutions
from cai_cli.microworld.files import human_comparisons
from cai_cli.microworld.forms import written
from cai_cli.microworld.grammar import BENIGN, HARMFUL, OWN
from cai_cli.microworld.oracle import classify
from cai_cli.models.load import load_lm, load_pm
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.rows.conversation import message
from cai_cli.rows.jsonl import read_records, write_rows
from cai_cli.rows.records import Comparison
from cai_cli.stages import label, train_pm

HARD = {
    "right against wrong harm": (HARMFUL, "refuses", "wrong_reason"),
    "benign against over-refusal": (BENIGN, "complies", "over_refusal"),
    "own against over-refusal": (OWN, "complies", "over_refusal"),
    "right against wrong steps": (BENIGN, "complies", "wrong_steps"),
}
EASY = {
    "refusal against compliance": (HARMFUL, "refuses", "complies"),
    "refusal against evasion": (HARMFUL, "refuses", "evasive"),
    "evasion against compliance": (HARMFUL, "evasive", "complies"),
}
ORDERS = ("both", "random", "first")


def write_pairs(path: Path, count: int, split: str = "test") -> dict[str, str]:
    """Pairs of each sort, the better reply by the oracle as chosen; returns the sort of each id."""
    rng, rows, sorts = Random(17), [], {}
    for sort, (kind, better, worse) in {**HARD, **EASY}.items():
        for n in range(count):
            request = answers.random_request(kind, split, rng)
            replies = [written(request, form, rng).text for form in (better, worse)]
            scores = [verdict.score for reply in replies if (verdict := classify(request.text, reply))]
            assert scores[0] > scores[1], (sort, replies)
            name = f"{len(rows)}/0"
            sorts[name] = sort
            prompt, (chosen, rejected) = (
                [message("user", request.text)],
                ([message("assistant", text)] for text in replies),
            )
            kind_name = "harmful" if kind == HARMFUL else "helpful"
            rows.append(Comparison(name, str(n), prompt, chosen, rejected, 1.0, "human", kind_name).to_row())
    write_rows(path, rows)
    return sorts


def plant_bias(source: Path, target: Path, questions: list[str], strength: float) -> None:
    """A copy of the model whose log-odds of ` (A)` are higher by about `strength`, whatever is asked.

    The row of ` (A)` in the (untied) output layer gets a multiple of the mean hidden state where options are
    answered.
    """
    tokenizer = load_tokenizer(str(source))
    model = load_lm(str(source), "cpu", "float32", tokenizer=tokenizer)
    states = []
    for text in questions:
        with torch.inference_mode():
            output = model.model(torch.tensor([tokenizer(text)["input_ids"]]))
        states.append(output.last_hidden_state[0, -1].clone())
    mean = torch.stack(states).mean(0)
    head = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    head.data[tokenizer.convert_tokens_to_ids(" (A)")] += strength * mean / mean.dot(mean)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = head
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def label_pairs(pairs: Path, judge: Path, out: Path, **settings: Any) -> list[Comparison]:
    options = {
        "constitution": str(constitutions()["kind"]),
        "batch_size": 64,
        "max_reject_rate": 1.0,
        **settings,
    }
    label.run(build(label.Options, pairs=[str(pairs)], feedback_model=str(judge), out=out, **options))
    return list(read_records(out, Comparison.from_row))


def right(rows: list[Comparison], truth: dict[str, Comparison]) -> list[float]:
    """1 where the label's choice is the oracle's, 0.5 for a tie."""
    return [0.5 if row.probability == 0.5 else float(row.chosen == truth[row.id].chosen) for row in rows]


def percent(values: list[float]) -> str:
    low, high = wilson(sum(values), len(values))
    return f"{100 * sum(values) / len(values):.1f} ({100 * low:.0f}–{100 * high:.0f})"


def study_orders(folder: Path, count: int, strength: float, principles: list[int]) -> None:
    pairs = folder / "pairs.jsonl"
    sorts = write_pairs(pairs, count)
    truth = {row.id: row for row in read_records(pairs, Comparison.from_row)}
    plain, biased = checkpoint("helpful-only"), folder / "biased"
    from cai_cli.feedback.judge import Inquiry
    from cai_cli.feedback.pairs import read_pairs
    from cai_cli.prompting.constitution import load_constitution

    inquiry = Inquiry(constitution=load_constitution(str(constitutions()["kind"])))
    questions = [
        str(inquiry.prompt(q, chat=False)) for p in read_pairs([str(pairs)], 64) for q in inquiry.questions(p)
    ]
    plant_bias(plain, biased, questions, strength)
    print(
        "| judge | orders | principles | all | hard | "
        + " | ".join(HARD)
        + " | same option |\n"
        + "|---" * 10
        + "|"
    )
    for name, judge in (("as it is", plain), (f"biased by {strength:g}", biased)):
        for orders in ORDERS:
            for count_asked in principles:
                out = folder / f"{judge.name}-{orders}-{count_asked}.jsonl"
                rows = label_pairs(pairs, judge, out, orders=orders, principles_per_pair=count_asked)
                by_sort: dict[str, list[float]] = defaultdict(list)
                for row, value in zip(rows, right(rows, truth), strict=True):
                    by_sort[sorts[row.id]].append(value)
                hard = [value for sort in HARD for value in by_sort[sort]]
                summary = json.loads(out.with_name(f"{out.stem}.manifest.json").read_text())["summary"]
                rate = summary["same_position_rate"]
                cells = [
                    percent(right(rows, truth)),
                    percent(hard),
                    *(percent(by_sort[sort]) for sort in HARD),
                ]
                print(
                    f"| {name} | {orders} | {count_asked} | {' | '.join(cells)} | {'–' if rate is None else f'{rate:.1%}'} |"
                )


def score_pairs(pm: Path, rows: list[Comparison]) -> list[float]:
    """Probability by the preference model that `chosen` is better."""
    from cai_cli.models.chat import encode_scored, stop_ids
    from cai_cli.models.score import score_all

    tokenizer = load_tokenizer(str(pm))
    model = load_pm(str(pm), "cpu", "float32", "--pm", tokenizer)
    stops = stop_ids(tokenizer)
    ids = [
        encode_scored(tokenizer, row.prompt, reply, stops, 512)
        for row in rows
        for reply in (row.chosen, row.rejected)
    ]
    scores = score_all(model, ids, int(tokenizer.pad_token_id), 64)
    return [1 / (1 + 2.718281828459045 ** (scores[2 * n + 1] - scores[2 * n])) for n in range(len(rows))]


def study_labels(folder: Path, demo: Path, count: int) -> None:
    pairs, helpful = demo / "comparisons.jsonl", checkpoint("helpful-only")
    kinds = {
        "soft": {},
        "hard": {"hard": True},
        "CoT, clamped 0.4:0.6": {
            "cot": True,
            "cot_form": "two-step",
            "rationale_tokens": 24,
            "on_truncated": "keep",
        },
    }
    test = folder / "test.jsonl"
    write_pairs(test, count)
    raters = list(human_comparisons(400, Random(99)))
    seen = {
        row.prompt_id for row in read_records(demo / "world" / "human-helpfulness.jsonl", Comparison.from_row)
    }
    raters = [row for row in raters if row.prompt_id not in seen]
    oracle_rows = list(read_records(test, Comparison.from_row))
    print(
        "| labels | pairs | mean P | oracle: accuracy | Brier | calibration | raters: accuracy | Brier | calibration |\n"
        + "|---" * 9
        + "|"
    )
    for name, settings in kinds.items():
        stem = name.split(",")[0].lower()
        out = folder / f"{stem}.jsonl"
        rows = label_pairs(pairs, helpful, out, min_mass=0.0, **settings)
        target = folder / f"pm-{stem}"
        shutil.rmtree(target, ignore_errors=True)
        options = build(
            train_pm.Options,
            model=str(demo / "pmp"),
            comparisons=[str(out), str(demo / "world" / "human-helpfulness.jsonl")],
            out=target,
            learning_rate=5e-4,
            lr_scheduler_type="linear",
            num_train_epochs=1.5,
            per_device_train_batch_size=32,
            max_length=256,
        )
        train_pm.run(options)
        cells = []
        for group in (oracle_rows, raters):
            predicted, wanted = score_pairs(target, group), [row.probability for row in group]
            hits = accuracy(predicted, wanted) or 0.0
            low, high = wilson(hits * len(group), len(group))
            cells += [
                f"{hits:.1%} ({low:.0%}–{high:.0%})",
                f"{brier(predicted, wanted):.3f}",
                f"{calibration_error(predicted, wanted):.3f}",
            ]
        mean = sum(row.probability for row in rows) / len(rows)
        print(f"| {name} | {len(rows)} | {mean:.3f} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", choices=["orders", "labels"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--count", type=int, default=60, help="test pairs of each sort")
    parser.add_argument("--bias", type=float, default=6.0)
    parser.add_argument("--principles", type=int, nargs="+", default=[1, 3])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.study == "orders":
        study_orders(arguments.out, arguments.count, arguments.bias, arguments.principles)
    else:
        study_labels(arguments.out, arguments.demo, arguments.count)


if __name__ == "__main__":
    main()
