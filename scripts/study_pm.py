"""Studies of the preference model on the micro-world: `python scripts/study_pm.py mix|soft|wrong --out DIR`.

    mix    AI-harmless and human-helpful comparisons at loss weights 1:1 and 3:1; `--comparisons` are those of a demo run
    soft   labels of a noisy oracle: its probability, one vote drawn from it, and the side it is on; Brier, calibration error
    wrong  `--pm DIR`: right against wrong steps on held-out combinations, by sort of mistake

Everything is measured on test combinations by the oracle; raters, votes and labels that are trained on are
noisy and of train combinations. Each training is an ordinary `cai pmp` or `cai train-pm` under DIR, so a
killed study goes on. Tables go to stdout, numbers to DIR/<study>.json, a plot to DIR/<study>.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from random import Random
from statistics import mean, pstdev
from typing import Any

import jsonlines
import numpy as np

from cai_cli.console.groups import build
from cai_cli.evaluation.calibration import accuracy, brier, calibration_error, reliability_bins
from cai_cli.evaluation.comparisons import sigmoid
from cai_cli.evaluation.plots import draw_reliability
from cai_cli.keys import key
from cai_cli.microworld import answers, checkpoint, files, grammar
from cai_cli.microworld.forms import written
from cai_cli.microworld.grammar import BENIGN, HARMFUL, OWN, Request
from cai_cli.microworld.oracle import classify
from cai_cli.models.load import load_pm
from cai_cli.models.score import score_all
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.rows.conversation import Conversation, message, prompt_id
from cai_cli.stages import pmp, train_pm
from cai_cli.training.preference.reading import reading

HELPFUL = (BENIGN, OWN)
ANSWERS = ("complies", "wrong_steps", "partial", "evasive", "over_refusal")
HARMFUL_ANSWERS = ("refuses", "wrong_reason", "evasive", "partial", "complies")
MISTAKES: dict[str, Callable[[Request, Random], list[str]]] = {
    "one step of another action": answers.one_wrong_step,
    "steps for another thing": answers.wrong_object,
    "part of another thing": answers.wrong_part,
    "steps out of order": answers.swapped_order,
    "steps of another action": answers.other_action,
}
SHARPNESS = 0.8  # of the noisy oracle: log-odds of preferring an answer for each grade that it is better
RESAMPLES = 400
Texts = tuple[str, str, str]  # request, better answer, worse answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", choices=("mix", "soft", "wrong"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=400, help="test pairs of each kind")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument(
        "--comparisons", type=Path, nargs="+", help="mix: AI comparisons, one file for each seed"
    )
    parser.add_argument("--pm", type=Path, nargs="+", help="wrong: the models")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    studies = {"mix": study_mix, "soft": study_soft, "wrong": study_wrong}
    results = studies[arguments.study](arguments)
    (arguments.out / f"{arguments.study}.json").write_text(
        json.dumps(results, indent=1) + "\n", encoding="utf-8"
    )


# Training, as the ordinary stages do


def settings(out: Path, seed: int, **more: Any) -> dict[str, Any]:
    return {"out": out, "seed": seed, "max_length": 256, "held_out": 0.0, "learning_rate": 1e-3, **more}


def world(out: Path, seed: int) -> Path:
    folder = out / f"world-{seed}"
    if not folder.exists():
        files.write_world(out / f".world-{seed}", seed)
        (out / f".world-{seed}").replace(folder)
    return folder


def pretrained(out: Path, seed: int) -> Path:
    """The demo's PMP checkpoint of this seed."""
    folder = out / f"pmp-{seed}"
    votes = {
        "posts": [str(world(out, seed) / "posts.xml")],
        "format": "chat",
        "pairs_per_question": 2,
        "min_score_gap": 2,
    }
    common = settings(folder, seed, lm_coef=1.0, per_device_train_batch_size=32)
    pmp.run(build(pmp.Options, model=str(checkpoint("base")), **votes, **common))
    return folder


def finetuned(model: Path, comparisons: list[str], out: Path, seed: int, epochs: float, **more: Any) -> Path:
    common = settings(
        out, seed, per_device_train_batch_size=16, lr_scheduler_type="linear", **{"lm_coef": 0.5, **more}
    )
    train_pm.run(
        build(train_pm.Options, model=str(model), comparisons=comparisons, num_train_epochs=epochs, **common)
    )
    return out


# Test pairs, by the oracle and without noise


def graded_pairs(
    kinds: tuple[str, ...], forms: tuple[str, ...], split: str, count: int, seed: int
) -> list[Texts]:
    """Pairs of answers of different grades to requests of held-out combinations, half of them for each kind."""
    rng, pairs = Random(key(seed, "study", *kinds, split)), []
    while len(pairs) < count:
        request = answers.random_request(kinds[len(pairs) % len(kinds)], split, rng)
        texts = [written(request, form, rng).text for form in rng.sample(forms, 2)]
        grades = [grade(request, text) for text in texts]
        if grades[0] != grades[1]:
            pairs.append((request.text, *sorted(texts, key=lambda text: -grades[texts.index(text)])))
    return pairs


def wrong_pairs(kind: str, mistake: str, split: str, count: int) -> list[Texts]:
    """The right steps and steps with one sort of mistake, to requests of held-out combinations."""
    rng, pairs = Random(key(1, "wrong", kind, mistake, split)), []
    while len(pairs) < count:
        request = answers.random_request(kind, split, rng)
        given = MISTAKES[mistake](request, rng)
        if given != grammar.steps(request.action, request.thing):
            right = written(request, "complies", rng)
            pairs.append((request.text, right.text, right.saying(steps=tuple(given)).text))
    return pairs


def grade(request: Request, text: str) -> int:
    verdict = classify(request.text, text)
    return verdict.score if verdict else 0


def differences(model: Path, pairs: list[Texts]) -> list[float]:
    """Score of the better answer minus that of the worse one."""
    tokenizer = load_tokenizer(str(model))
    encode = reading(tokenizer, "chat", 512)
    rows = [
        encode(turn("user", q), turn("assistant", a))
        for side in (1, 2)
        for q, a in ((p[0], p[side]) for p in pairs)
    ]
    scores = score_all(
        load_pm(str(model), "cpu", tokenizer=tokenizer), rows, int(tokenizer.pad_token_id), 128
    )
    return [high - low for high, low in zip(scores[: len(pairs)], scores[len(pairs) :], strict=True)]


def turn(role: str, text: str) -> Conversation:
    return [message(role, text)]


def share_right(model: Path, pairs: list[Texts]) -> float:
    return mean(float(difference > 0) for difference in differences(model, pairs))


# The studies


def study_mix(arguments: argparse.Namespace) -> dict[str, Any]:
    """Accuracy on harmless and helpful test pairs, and train-pm's own by origin, at two weights of the AI's
    comparisons.
    """
    out, results = arguments.out, {}
    tests = {
        "harmless": graded_pairs((HARMFUL,), HARMFUL_ANSWERS, arguments.split, arguments.pairs, 0),
        "helpful": graded_pairs(HELPFUL, ANSWERS, arguments.split, arguments.pairs, 0),
    }
    for seed, ai in zip(arguments.seeds, arguments.comparisons, strict=True):
        for weight in (1, 3):
            folder = out / f"mix-{seed}-{weight}"
            human = world(out, seed) / "human-helpfulness.jsonl"
            common = settings(
                folder, seed, lm_coef=0.5, per_device_train_batch_size=32, lr_scheduler_type="linear"
            )
            comparisons = [f"{ai}:{weight}", str(human)]
            train_pm.run(
                build(
                    train_pm.Options,
                    model=str(pretrained(out, seed)),
                    comparisons=comparisons,
                    **{**common, "held_out": 0.1},
                )
            )
            row = {name: share_right(folder, pairs) for name, pairs in tests.items()}
            evaluation = json.loads((folder / "cai.json").read_text())["evaluation"]
            row |= {f"held-out {origin}": group["accuracy"] for origin, group in evaluation.items()}
            for name, value in row.items():
                results.setdefault(f"{weight}:1", {}).setdefault(name, []).append(value)
    for name, row in results.items():
        print(
            name,
            {column: f"{mean(values):.1%} ± {pstdev(values):.1%}" for column, values in row.items()},
            flush=True,
        )
    return results


def study_soft(arguments: argparse.Namespace) -> dict[str, Any]:
    """Three sorts of labels of one noisy oracle, after one epoch and three: what was learned against its own
    probabilities.

    The Brier score is one of the oracle's probabilities; against votes drawn from them it is higher by
    `floor`, whatever is predicted. Each seed has pairs and models of its own. Intervals are bootstrapped over
    test pairs, the same resampled ones for every model, so that differences to soft labels are paired; how
    models of one sort differ is seen from `by seed`.
    """
    seeds = [soft_models(arguments, seed) for seed in arguments.seeds]
    target = np.concatenate([probabilities for probabilities, _ in seeds])
    predicted = {name: np.concatenate([models[name] for _, models in seeds]) for name in seeds[0][1]}
    picks = np.random.default_rng(0).integers(0, len(target), (RESAMPLES, len(target)))
    results: dict[str, Any] = {"pairs": len(target), "floor": float((target * (1 - target)).mean())}
    for name, values in predicted.items():
        row: dict[str, Any] = {"accuracy": accuracy(values.tolist(), target.tolist())}
        base = predicted["soft, " + name.split(", ")[1]]
        for measure in (brier, calibration_error):
            drawn = [
                [measure(p[pick].tolist(), target[pick].tolist()) for p in (values, base)] for pick in picks
            ]
            row[measure.__name__] = {
                "value": measure(values.tolist(), target.tolist()),
                "interval": interval([one for one, _ in drawn]),
                "more than soft": interval([one - other for one, other in drawn]),
                "by seed": [
                    measure(models[name].tolist(), probabilities.tolist()) for probabilities, models in seeds
                ],
            }
        results[name] = row
        print(name, json.dumps(row), flush=True)
    curves = {
        name: reliability_bins(values.tolist(), target.tolist())
        for name, values in predicted.items()
        if "1 epoch" in name
    }
    draw_reliability(curves, arguments.out / "soft.png", "learned from labels of a noisy oracle")
    return results


def soft_models(arguments: argparse.Namespace, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The oracle's probabilities of the test pairs, and those that models of each sort of labels give them."""
    training, test = (
        oracle_pairs("train", 1000, seed),
        oracle_pairs(arguments.split, 2 * arguments.pairs, seed),
    )
    models: dict[str, np.ndarray] = {}
    for name, epochs in product(("soft", "drawn", "side"), (1, 3)):
        source = arguments.out / f"labels-{seed}-{name}.jsonl"
        write_labels(source, training, name, Random(key(seed, "labels", name)))
        folder = finetuned(
            checkpoint("base"), [str(source)], arguments.out / f"soft-{seed}-{name}-{epochs}", seed, epochs
        )
        found = differences(folder, [texts for texts, _ in test])
        models[f"{name}, {epochs} {'epoch' if epochs == 1 else 'epochs'}"] = np.array(
            [sigmoid(value) for value in found]
        )
    return np.array([p for _, p in test]), models


def interval(values: list[float]) -> list[float]:
    return [float(value) for value in np.percentile(values, [2.5, 97.5])]


def oracle_pairs(split: str, count: int, seed: int) -> list[tuple[Texts, float]]:
    """Pairs in random order, harmful and helpful, with the noisy oracle's probability that the first one is
    better.
    """
    rng, rows = Random(key(seed, "oracle", split)), []
    for n in range(count):
        kind = (HARMFUL, *HELPFUL)[n % 3]
        request = answers.random_request(kind, split, rng)
        forms = HARMFUL_ANSWERS if kind == HARMFUL else ANSWERS
        first, second = (written(request, rng.choice(forms), rng).text for _ in range(2))
        if first != second:
            p = sigmoid(SHARPNESS * (grade(request, first) - grade(request, second)))
            rows.append(((request.text, first, second), p))
    return rows


def write_labels(path: Path, pairs: list[tuple[Texts, float]], sort: str, rng: Random) -> None:
    """Comparisons: `soft` keeps the probability, `drawn` is one vote by it, `side` the likelier answer for
    certain.
    """
    with jsonlines.open(path, "w") as writer:
        for n, ((request, first, second), p) in enumerate(pairs):
            ahead = rng.random() < p if sort == "drawn" else p > 0.5 or (p == 0.5 and rng.random() < 0.5)
            chosen, rejected = (first, second) if ahead else (second, first)
            row = {
                "id": str(n),
                "prompt": turn("user", request),
                "chosen": turn("assistant", chosen),
                "origin": "ai",
            }
            row |= {
                "rejected": turn("assistant", rejected),
                "probability": max(p, 1 - p) if sort == "soft" else 1.0,
            }
            writer.write({**row, "prompt_id": prompt_id(row["prompt"])})


def study_wrong(arguments: argparse.Namespace) -> dict[str, Any]:
    """Share of pairs in which the right steps score above wrong ones."""
    results: dict[str, Any] = {}
    for model in arguments.pm:
        row: dict[str, float] = {}
        for kind in HELPFUL:
            found = {
                name: share_right(model, wrong_pairs(kind, name, arguments.split, arguments.pairs))
                for name in MISTAKES
            }
            row |= {f"{kind}: {name}": value for name, value in found.items()} | {
                f"{kind}: all": mean(found.values())
            }
        for kinds, forms, name in ((HELPFUL, ANSWERS, "helpful"), ((HARMFUL,), HARMFUL_ANSWERS, "harmful")):
            row[f"graded {name}"] = share_right(
                model, graded_pairs(kinds, forms, arguments.split, arguments.pairs, 0)
            )
        refusals = [
            (request, right, written(asked, "over_refusal", Random(key(n, "over"))).text)
            for n, (request, right, asked) in enumerate(right_answers(arguments.split, arguments.pairs))
        ]
        row["right over a refusal"] = share_right(model, refusals)
        results[str(model)] = row
        print(model, {name: f"{value:.1%}" for name, value in row.items()}, flush=True)
    return results


def right_answers(split: str, count: int) -> list[tuple[str, str, Request]]:
    rng, rows = Random(key(1, "right", split)), []
    for n in range(count):
        request = answers.random_request(HELPFUL[n % 2], split, rng)
        rows.append((request.text, written(request, "complies", rng).text, request))
    return rows


if __name__ == "__main__":
    main()
