"""`scripts/studies`: what is said of a claim, by numbers worked by hand; one study from end to end, small."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import chain
import critique
import oracle_pairs
import overoptimisation
import principles
import pytest
import run
from commands import Place
from estimates import (
    LESS,
    MORE,
    REVERSED,
    SAME,
    SHOWS,
    SHOWS_NOT,
    Claim,
    Estimate,
    changed,
    changed_by_seed,
    over_seeds,
    pooled,
    verdict,
)
from page import told, write_page

from cai_cli.microworld import answers, checkpoint
from cai_cli.microworld.forms import written
from cai_cli.microworld.grammar import HARMFUL
from cai_cli.microworld.oracle import classify
from cai_cli.microworld.scores import score_samples
from cai_cli.rows.conversation import message
from cai_cli.rows.records import Comparison, Sample

PROJECT = Path(__file__).parents[2]
STUDIES = PROJECT / "scripts" / "studies"


def claim(expects: str, low: float, high: float, margin: float = 0.0) -> Claim:
    return Claim("…", "Fig. 0", expects, Estimate((low + high) / 2, low, high, (low, high)), margin)


@pytest.mark.parametrize(
    ("expects", "low", "high", "said"),
    [
        (MORE, 0.01, 0.05, SHOWS),
        (MORE, -0.01, 0.05, SHOWS_NOT),
        (MORE, 0.0, 0.05, SHOWS_NOT),
        (MORE, -0.05, -0.01, REVERSED),
        (LESS, -0.05, -0.01, SHOWS),
        (LESS, -0.05, 0.01, SHOWS_NOT),
        (LESS, 0.01, 0.05, REVERSED),
        (SAME, -0.02, 0.02, SHOWS),
        (SAME, 0.01, 0.02, SHOWS),  # other than 0, but as good as the same
        (SAME, -0.02, 0.04, SHOWS_NOT),
        (SAME, 0.04, 0.06, REVERSED),
        (SAME, -0.06, -0.04, REVERSED),
    ],
)
def test_a_claim_shows_where_its_interval_lies_on_its_side(expects, low, high, said):
    assert verdict(claim(expects, low, high, 0.03 if expects == SAME else 0.0)) == said


def test_seeds_by_student():
    """1, 2, 3: deviation 1, so 4.30 / √3 = 2.483 to either side."""
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found.mean, found.seeds) == (2.0, (1.0, 2.0, 3.0))
    assert found.low == pytest.approx(-0.4826, abs=1e-3) and found.high == pytest.approx(4.4826, abs=1e-3)
    assert over_seeds([1.0, 3.0]).high == pytest.approx(2 + 12.71, abs=1e-3)  # deviation √2, over √2
    with pytest.raises(KeyError):
        over_seeds([1.0])


def requests(count: int) -> list[str]:
    rng = Random(3)
    return [answers.random_request(HARMFUL, "test", rng).text for _ in range(count)]


def test_differences_are_paired_by_prompt_and_seed():
    one, other, alone = requests(3)
    before = [{one: 0.5, other: 0.0, alone: 1.0}, {one: 0.0, other: 0.5}]
    after = [{one: 0.75, other: 0.25}, {one: 0.25, other: 0.75}]
    found = changed(before, after)
    assert found == Estimate(
        0.25, 0.25, 0.25, (0.25, 0.25)
    )  # whatever is drawn, and without the unpaired one
    assert changed_by_seed(before, after) == Estimate(0.25, 0.25, 0.25, (0.25, 0.25))
    assert pooled([{one: 1.0}, {one: 0.0, other: 0.0}]).mean == pytest.approx(1 / 3)
    assert told(Claim("…", "", MORE, found)) == "+25.0 points (+25.0 to +25.0)"


def test_noisy_labels_are_the_oracles_probabilities():
    soft, side = (list(oracle_pairs.noisy_pairs("test", 30, 1, labels)) for labels in ("soft", "side"))
    gaps = []
    for row, certain in zip(soft, side, strict=True):
        pair = Comparison.from_row(row)
        grades = [
            classify(pair.prompt[0]["content"], text[0]["content"]) for text in (pair.chosen, pair.rejected)
        ]
        gaps.append(grades[0].score - grades[1].score)
        assert row["probability"] == pytest.approx(1 / (1 + math.exp(-0.8 * gaps[-1])))
        assert certain["probability"] == 1.0 and (gaps[-1] == 0 or certain["chosen"] == row["chosen"])
    assert min(gaps) >= 0 and max(gaps) > 1


def test_a_principle_says_which_of_two_replies_is_better():
    request, rng = answers.random_request(HARMFUL, "test", Random(4)), Random(5)
    kind, bare = (written(request, form, rng).text for form in ("refuses", "evasive"))
    pair = Comparison.from_row(oracle_pairs.comparison("a/1", request, kind, bare))
    assert oracle_pairs.preferred(pair, "Which answer tells what harm would follow?") == 1
    assert oracle_pairs.preferred(pair, "Which response gives away no harmful steps?") == 0
    assert oracle_pairs.preferred(pair, "Which response offers no other help?") == -1
    with pytest.raises(ValueError, match="not of this world"):
        oracle_pairs.preferred(pair, "Which one rhymes?")


def test_raters_take_the_reply_that_does_less_harm_and_skip_ties():
    rng, rows = Random(0), []
    for _ in range(60):
        request = answers.random_request(HARMFUL, "train", rng)
        for number, form in enumerate(("complies", "wrong_steps", "evasive", "refuses")):
            reply = [message("assistant", written(request, form, rng).text)]
            rows.append(Sample(f"{request.text}/{number}", [message("user", request.text)], reply, "stop"))
    pairs = chain.rated(rows, Random(1))
    harmless = [chain.harmlessness(Sample("", pair.prompt, pair.chosen, "stop")) for pair in pairs]
    # The first two that differ: an answer with steps, and the bare refusal, not the one with reasons
    assert len(pairs) == len({row.id.split("/")[0] for row in rows})
    assert 0 < harmless.count(0) < 0.25 * len(pairs), "one in ten is turned round"
    assert harmless.count(0) + harmless.count(2) == len(pairs)


def test_diversity_is_the_share_of_prompts_whose_revisions_differ():
    request, rng = answers.random_request(HARMFUL, "test", Random(5)), Random(6)
    texts = [
        answers.Answer(polite=polite, frames=answers.random_frames(rng)).text
        for polite in (True, False, False)
    ]
    prompt = [message("user", request.text)]
    samples = [Sample(str(n), prompt, [message("assistant", text)], "stop") for n, text in enumerate(texts)]
    assert principles.diversity(score_samples(samples)) == {request.text: pytest.approx(2 / 3)}
    assert principles.diversity(score_samples(samples[:1])) == {}


def test_over_optimisation_is_told_from_its_evaluations(tmp_path):
    """The score that is trained on goes up in a line, the gold one up and down again."""
    seeds = []
    for more in (0.0, 0.1, 0.2):
        gold = (0.0, 0.5, 1.0, 0.5, -more)
        rows = [
            {"step": n, "eval_kl": float(n * n), "eval_score": n + more, "eval_gold_score": score}
            for n, score in enumerate(gold)
        ]
        seeds.append({"evaluations": rows, "stopped": None, "saved_step": 2})
    found = overoptimisation.report(seeds, tmp_path / "picture.png").claims
    assert [verdict(each) for each in found] == [SHOWS] * 4
    # an end that the guard chose, since gold fell, is none to test the fall at
    seeds[1]["stopped"] = "it fell"
    left = overoptimisation.report(seeds, tmp_path / "picture.png")
    assert [each.text for each in left.claims] == ["it goes with √KL (correlation)"] and "guard" in left.notes
    means = [each.found.mean for each in found]
    assert means == pytest.approx([1.0, -1.1, 4.0, 4.1])


def test_make_studies():
    if shutil.which("make") is None or not (PROJECT / "Makefile").is_file():
        pytest.skip("needs make and the source tree")
    words = ["make", "-n", "-C", str(PROJECT), "-o", ".venv/.installed", "studies", "JOBS=3"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "scripts/studies/run.py" in done.stdout and "--jobs 3" in done.stdout
    assert {study.name for study in run.STUDIES} == set(run.FIRST)


def test_one_study_from_end_to_end_goes_on_and_has_a_page(tmp_path, world):
    """With six requests; the world is there already. What is measured is not measured again."""
    inputs = tmp_path / "seed-0" / "chain"
    shutil.copytree(world, inputs / "world")
    for name in ("helpful-only", "base"):
        shutil.copytree(checkpoint(name), inputs / "models" / name)
    command = [sys.executable, str(STUDIES / "run.py"), "--out", str(tmp_path), "--studies", "critique"]
    command += ["--seeds", "0", "--prompts", "6", "--jobs", "1"]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.count("$ cai revise") == 2 and "not measured yet: revisions, critique" in first.stdout
    found = json.loads((tmp_path / "seed-0" / "critique.json").read_text(encoding="utf-8"))
    assert found["prompts"] == 6 and found["critique"]["chains"] == 12
    assert len(found["direct"]["rounds"]) == 5
    assert (tmp_path / "cpu.jsonl").read_text(encoding="utf-8").count("revise") == 2

    # A kill before the last line of it: the commands are through.
    (tmp_path / "seed-0" / "critique.json").unlink()
    calls = []
    place = Place(tmp_path, 0, 6)
    object.__setattr__(place, "cai", lambda *words: calls.append(words))
    assert critique.measure(place) == {name: found[name] for name in ("critique", "direct")} and not calls

    for seed in (0, 1):
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir(exist_ok=True)
        (folder / "critique.json").write_text(json.dumps(found), encoding="utf-8")
    missing = write_page(run.STUDIES, tmp_path, tmp_path / "page")
    page = (tmp_path / "page" / "RESULTS.md").read_text(encoding="utf-8")
    assert "critique" not in missing and "## With and without critique" in page
    assert (tmp_path / "page" / "critique.png").stat().st_size < 60_000
