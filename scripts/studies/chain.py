"""What several studies of one seed start from: the demo's chain, and what the article has beside it.

    chain/           `cai demo --inputs-only`, then the demo's own commands: sl-cai, comparisons, pmp, pm, rl-cai
    base-chat/       the base model with a chat template, where RLHF starts
    human-harm.jsonl comparisons of the base model's replies to harmful requests by simulated raters
    pm-helpful, pm-human   preference models of human comparisons: of helpfulness alone, and of both (the article's HH)

The raters take the reply that does less harm; they say nothing where both do as much, and one in ten of their
choices is turned round. Whether a refusal says why they do not mind: that is what a constitution adds.
"""

from __future__ import annotations

import shlex
import shutil
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

from commands import Place, rows_of, write_rows

from cai_cli.keys import key
from cai_cli.microworld.files import RATER_NOISE
from cai_cli.microworld.grammar import HARMFUL
from cai_cli.microworld.oracle import Verdict, classify, request_kind
from cai_cli.microworld.results import prompt_means
from cai_cli.microworld.scores import RATES, last_user_text, score_samples
from cai_cli.rows.jsonl import read_records
from cai_cli.rows.records import Comparison, Sample
from cai_cli.stages.demo import EVALUATE, SAMPLE, STEPS, TRAIN

FINISHED = {"sft": "sl-cai", "label": "comparisons.jsonl", "pmp": "pmp", "train-pm": "pm", "ppo": "rl-cai"}
FINISHED |= {"revise": "revisions.jsonl", "sample": "samples.jsonl"}
NEEDS = {
    "sft": ("revise", "sample"),
    "label": ("sft",),
    "train-pm": ("pmp", "label"),
    "ppo": ("sft", "train-pm"),
}
BASE_REPLIES = 6  # to each harmful request; of two that differ in harm, raters compare the first pair
HUMAN_HARM_WEIGHT = 5  # of the loss, as the demo's AI comparisons
PM = shlex.split("--lm-coef 0.5 --learning-rate 1e-3 --lr-scheduler-type linear " + TRAIN)
# The demo's PPO but for its steps
PPO = shlex.split(
    next(step for step in STEPS if step.startswith("ppo ")).split("rl.jsonl ")[1].split(" --out")[0]
)
PPO_STEPS = int(PPO[PPO.index("--steps") + 1])
Means = dict[str, float]  # prompt -> mean over its replies


def inputs(place: Place) -> Path:
    """The chain's folder, with the world's files and the two shipped models in it."""
    folder = place / "chain"
    with place.held(folder):
        if not (folder / "models/base/tokenizer.json").is_file():
            place.cai("demo", "--inputs-only", "--out", folder)
    return folder


def stage(place: Place, name: str) -> Path:
    """What the demo's stage of this name writes, with all that it needs."""
    for other in NEEDS.get(name, ()):
        stage(place, other)
    folder = inputs(place)
    step = next(step for step in STEPS if step.split()[0] == name)
    return place.made(folder / FINISHED[name], lambda _: place.cai(*step.format(out=folder).split()))


def test_prompts(place: Place, *kinds: str) -> Path:
    """The first test prompts of each of the kinds."""
    target = place / f"test-{'-'.join(kinds)}-{place.prompts}.jsonl"

    def write(path: Path) -> None:
        rows = rows_of(inputs(place) / "world/test.jsonl")
        kept = []
        for kind in kinds:
            of_kind = [row for row in rows if request_kind(last_user_text(row["prompt"])) == kind]
            kept += of_kind[: place.prompts]
        write_rows(path, kept)

    return place.made(target, write)


def ppo(place: Place, policy: Path, pm: Path, name: str, steps: int, *more: object) -> Path:
    """A policy after `steps` steps of the demo's PPO, to the end of their own learning-rate schedule."""
    words = [*PPO]
    words[words.index("--steps") + 1] = str(steps)
    prompts = inputs(place) / "world/rl.jsonl"
    command = ("ppo", "--model", policy, "--pm", pm, "--prompts", prompts, *words, *more)
    return place.made(place / name, lambda out: place.cai(*command, "--out", out))


def train_pm(place: Place, name: str, *comparisons: object) -> Path:
    """A preference model from the demo's PMP checkpoint, with the demo's settings."""
    start = stage(place, "pmp")
    sources = [word for source in comparisons for word in ("--comparisons", source)]
    return place.made(
        place / name, lambda out: place.cai("train-pm", "--model", start, *sources, *PM, "--out", out)
    )


def measured(place: Place, name: str, model: Path, kinds: tuple[str, ...]) -> dict[str, Means]:
    """Of each rate the mean by test prompt, by the oracle; two replies to a prompt."""
    prompts = test_prompts(place, *kinds)
    words = EVALUATE.format(out="OUT", model="MODEL", name="NAME").split()
    words[words.index("-n") + 1] = "2"
    told = {
        "OUT/MODEL": model,
        "OUT/world/test.jsonl": prompts,
        "OUT/eval/NAME.jsonl": place / f"eval/{name}.jsonl",
    }
    file = place.made(
        place / f"eval/{name}.jsonl", lambda _: place.cai(*(told.get(word, word) for word in words))
    )
    return oracle_means(read_records(file, Sample.from_row))


def oracle_means(rows: Any) -> dict[str, Means]:
    scored = score_samples(rows)
    return {name: means for name in RATES if (means := prompt_means(scored, name))}


def chat_base(place: Place) -> Path:
    """The base model with the transcript template that `cai sft` would install, so that PPO can start from it."""

    def write(tokenizer_file: Path) -> None:
        from cai_cli.models.templates import install_template
        from cai_cli.models.tokenizers import load_tokenizer

        source, target = inputs(place) / "models/base", tokenizer_file.parent
        whole = target.with_name(f".{target.name}.tmp")
        shutil.copytree(source, whole, dirs_exist_ok=True)
        tokenizer = load_tokenizer(str(source))
        install_template(tokenizer, None)
        tokenizer.save_pretrained(whole)
        target.rmdir()
        whole.replace(target)

    return place.made(place / "base-chat/tokenizer.json", write).parent


# Human comparisons


def human_helpful(place: Place) -> Path:
    return inputs(place) / "world/human-helpfulness.jsonl"


def human_harm(place: Place) -> Path:
    """The raters' comparisons of the base model's replies to the requests that the demo labels."""

    def write(target: Path) -> None:
        replies = place / "base-replies.jsonl"
        prompts = inputs(place) / "world/harmful-label.jsonl"
        base = inputs(place) / "models/base"
        words = ("--model", base, "--prompts", prompts, "-n", BASE_REPLIES, "--max-reject-rate", 1)
        place.cai("sample", *words, *SAMPLE.split(), "--out", replies)
        rng = Random(key(place.seed, "harmlessness raters"))
        write_rows(target, [row.to_row() for row in rated(read_records(replies, Sample.from_row), rng)])

    return place.made(place / "human-harm.jsonl", write)


def rated(samples: Any, rng: Random) -> list[Comparison]:
    """Of each prompt the first two replies that differ in harm, compared by a rater."""
    by_prompt: dict[str, list[Sample]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.id.split("/")[0], []).append(sample)
    rows = []
    for name, replies in by_prompt.items():
        for pair in combinations(replies, 2):
            grades = [harmlessness(sample) for sample in pair]
            if grades[0] == grades[1]:
                continue
            better, worse = pair if grades[0] > grades[1] else (pair[1], pair[0])
            if rng.random() < RATER_NOISE:
                better, worse = worse, better
            sides = (better.prompt, better.completion, worse.completion)
            rows.append(Comparison(f"{name}/human", name, *sides, 1.0, "human", "harmful", "harm-raters"))
            break
    return rows


def harmlessness(sample: Sample) -> int:
    """2: gives nothing away; 1: one step; 0: steps, or broken text."""
    verdict = classify(last_user_text(sample.prompt), sample.completion[0]["content"])
    return grade(verdict) if verdict else 0


def grade(verdict: Verdict) -> int:
    return 2 if verdict.harmless else int(verdict.form == "partial")


def pm_helpful(place: Place) -> Path:
    return train_pm(place, "pm-helpful", human_helpful(place))


def pm_human(place: Place) -> Path:
    return train_pm(place, "pm-human", f"{human_harm(place)}:{HUMAN_HARM_WEIGHT}", human_helpful(place))


HARMFUL_ONLY = (HARMFUL,)
