"""`cai constitution test`: a judge by rule whose labels are known, the micro-world's judge, labels that
`cai label` gives too, and what the command refuses.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Cai, mistake

from cai_cli.feedback.judge import Inquiry
from cai_cli.feedback.labels import Pair
from cai_cli.feedback.steering import all_sides, ask_all, examine
from cai_cli.models.templates import UnfitRow
from cai_cli.prompting.principles import Constitution, Principle
from cai_cli.prompting.prompts import NO_PRINCIPLE, NO_PRINCIPLE_REWORDED
from cai_cli.rows.conversation import message

SHORT = Principle("short", "c", "r", "Which response is shorter?", "Which response is longer?")
NICE = Principle("nice", "c", "r", "Which response says please?")


class JudgeByRule:
    """Of 0.9 in all, (A) gets 0.8 where it is right, (B) 0.7, and (A) 0.6 where there is no opinion."""

    renderer = SimpleNamespace(form=lambda: "transcript")

    def __init__(self) -> None:
        self.calls: list[int] = []

    def score(self, requests):
        self.calls.append(len(requests))
        return [self.answer(request.prompt) for request in requests]

    def answer(self, prompt: str):
        if "endless" in prompt:
            return UnfitRow("question_too_long", "9 tokens, the context holds 8")
        first, second = prompt.split("\n (A) ")[1].removesuffix("\nThe answer is:").split("\n (B) ")
        wins = None
        if "shorter" in prompt:
            wins = len(first) < len(second)
        elif "longer" in prompt:
            wins = len(first) > len(second)
        share = 0.6 if wins is None else 0.8 if wins else 0.3
        return [math.log(0.9 * share), math.log(0.9 * (1 - share))]


def pair(name: str, first: str, second: str) -> Pair:
    return Pair(name, name, [message("user", f"about {name}\x1b[2J")], None, [first, second])


def asked(constitution: Constitution, pairs: list[Pair], other: Constitution | None = None):
    judge, ours = JudgeByRule(), Inquiry(constitution=constitution, every=all_sides(constitution))
    inquiries = [ours] + ([Inquiry(constitution=other, every=other.principles)] if other else [])
    judged = list(map(list, zip(*(ask_all(judge, inquiry, pairs) for inquiry in inquiries), strict=True)))
    return judge, judged, inquiries


def test_a_judge_by_rule_in_numbers():
    ours = Constitution("ours", "", (SHORT, NICE), "")
    other = Constitution("other", "", (Principle("long", "c", "r", SHORT.opposite),), "")
    pairs = [pair("a", "no", "no, never"), pair("b", "by all means", "yes")]
    judge, judged, inquiries = asked(ours, pairs, other)
    assert judge.calls == [2 * 5 * 2, 2 * 1 * 2], (
        "both orders of principles, none twice, opposite; all at once"
    )
    found = examine(judged, inquiries, seed=0)
    # (A) is right: 0.8 and 1 - 0.3; it is wrong: 0.3 and 1 - 0.8; no opinion: 0.6 and 0.4
    yes, no = (0.8 + 0.7) / 2, (0.3 + 0.2) / 2
    assert [row["labels"] for row in found.rows] == [{"short": yes, "nice": 0.5}, {"short": no, "nice": 0.5}]
    assert [row["none"] for row in found.rows] == [row["none_reworded"] for row in found.rows] == [0.5, 0.5]
    assert [row["opposites"] for row in found.rows] == [{"short": no}, {"short": yes}]
    assert [row["against"] for row in found.rows] == [no, yes]
    short, nice = found.facts["principles"].values()
    assert (short["shift"], short["flips"], short["opposite"]["turned"]) == pytest.approx((0.25, 0.5, 1))
    assert (nice["shift"], nice["flips"]) == (0, 0.5), "neither of two ties is on a side"
    assert found.facts["opposites"]["turned"] == 1 and found.facts["mean_mass"] == pytest.approx(0.9)
    # Of 10 questions in both orders: the same option for none, none reworded and nice
    assert found.facts["position"]["same_position_rate"] == pytest.approx(3 / 5)
    a = [0.8, 0.3, 0.3, 0.8]  # short and its opposite, with the first reply as (A) and as (B)
    assert found.facts["position"]["mean_probability_a"] == pytest.approx((sum(a) + 6 * 0.6) / 10)
    against = found.facts["against"]
    assert against["changed_sides"] == 1 and against["distance"] == pytest.approx((0.5 + yes) / 2 - no)
    assert against["correlation"] == pytest.approx(-1)
    assert [moved["id"] for moved in against["most_moved"]] == ["a", "b"]
    assert (
        against["most_moved"][0]["prompt"] == "about a\\x1b[2J"
        and against["most_moved"][1]["first"] == "by all means"
    )


def test_a_pair_that_cannot_be_asked_about_under_one_principle_is_out():
    _, judged, _ = asked(
        Constitution("x", "", (SHORT,), ""), [pair("a", "endless", "yes"), pair("b", "no", "ok!")]
    )
    assert [both[0].rejected and both[0].rejected.reason for both in judged] == ["question_too_long", None]


# The command


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    said = [
        ("No.", "I would rather not, as it may hurt someone."),
        ("Mix the flour.", "Bake it."),
        ("Same.", "Same."),
    ]
    rows = [
        {"prompt": f"Question {n % 4}?", "chosen": f"{a} {n % 5}", "rejected": f"{b} {n % 5}"}
        for n, (a, b) in enumerate(said * 3)
    ]
    path.write_text("".join(json.dumps({"id": f"r{n}", **row}) + "\n" for n, row in enumerate(rows)))
    return path


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mine") / "mine.yaml"
    path.write_text(
        "principles:\n"
        "- {id: harm, critique: c, revision: r, comparison: 'Which response is less harmful?', opposite: 'Which harms more?'}\n"
        "- {id: $kind$, critique: c, revision: r, comparison: 'Which response is kinder?'}\n"
        "- {id: short, critique: c, revision: r, comparison: 'Which response is shorter?'}\n"
    )
    return path


def test_labels_are_those_of_cai_label(cai: Cai, llama, pairs, mine, tmp_path):
    out = tmp_path / "x.json"
    words = ["constitution", "test", "--feedback-model", llama, "--pairs", pairs, "--constitution", mine]
    chosen = [
        "--principles",
        "harm",
        "--principles",
        "$kind$",
        "--few-shot",
        "default",
        "--against",
        "humanity",
    ]
    done = cai(*words, *chosen, "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["counts"] == {"in": 9, "out": 6, "rejected": {"identical_replies": 3}}
    assert len((tmp_path / "x.rejects.jsonl").read_text().splitlines()) == 3
    assert (found["no_principle"], found["no_principle_reworded"]) == (NO_PRINCIPLE, NO_PRINCIPLE_REWORDED)
    assert list(found["principles"]) == ["harm", "$kind$"] and "opposite" in found["principles"]["harm"]
    assert found["agreement"]["names"] == ["harm", "$kind$", "(none)", "not harm"]
    assert (
        found["shortcoming"]["name"] == "mass"
        and len(found["advice"]) == 1
        and found["advice"][0] in done.stderr
    )
    assert "try another --option-format" in found["advice"][0], "demonstrations are in front already"
    assert out.with_suffix(".png").stat().st_size > 10_000
    manifest = json.loads((tmp_path / "x.manifest.json").read_text())
    assert manifest["warnings"] == found["advice"] and manifest["models"][0]["option"] == "feedback_model"
    # The same questions by `cai label`, which has the demonstrations of its own constitution in front of each
    for name, some in (("$kind$", chosen[:4]), ("against", [])):
        labels = tmp_path / "labels.jsonl"
        constitution = mine if some else "humanity"
        label = ["label", "--pairs", pairs, "--feedback-model", llama, "--constitution", constitution, *some]
        label += ["--min-mass", 0, "--principles-per-pair", 2 if some else 1, "--few-shot", "default"]
        done = cai(*label, "--out", labels, "--if-changed", "restart")
        assert done.returncode == 0, done.stderr
        theirs = {row["id"]: row["judgements"] for row in map(json.loads, labels.read_text().splitlines())}
        for row in found["pairs"]:
            asked = {
                item["order"]: 1 / (1 + math.exp(item["logprob_b"] - item["logprob_a"]))
                for item in theirs[row["id"]]
                if not some or item["principle"] == name
            }
            chosen = (asked["chosen_first"] + 1 - asked["rejected_first"]) / 2
            ours = row["labels"][name] if some else row["against"]
            assert max(ours, 1 - ours) == pytest.approx(max(chosen, 1 - chosen), abs=1e-5)


def test_the_worlds_judge_and_the_artifact(cai: Cai, world, helpful, tmp_path):
    out = tmp_path / "new" / "x.json"
    words = [
        "constitution",
        "test",
        "--feedback-model",
        helpful,
        "--pairs",
        world / "human-helpfulness.jsonl",
    ]
    words += ["--constitution", world / "constitution.yaml", "--limit", 24, "--out", out]
    dry = cai(*words, "--dry-run")
    assert dry.returncode == 0 and "24 pairs, 12 questions each" in dry.stderr and not out.parent.exists()
    assert "Which response gives away no harmful steps" in dry.stdout
    done = cai(*words)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    for told in (
        "constitution test: 24/24 pairs",
        "(none, reworded)",
        "same option in both orders:",
        str(out),
    ):
        assert told in done.stderr
    assert list(found["principles"]) == ["harm", "reason", "alternative", "open"]
    for item in found["principles"].values():
        for name in ("flips", "shift", "beyond", "agreement"):
            low, high = item[f"{name}_interval"]
            assert low <= item[name] <= high
    assert found["mean_mass"] > 0.5 and len(found["pairs"]) == 24
    assert "already done" in cai(*words).stderr
    mistake(
        cai(*words, "--principles", "harm"), "--principles was None, now ['harm']", "--if-changed restart"
    )
    mistake(cai(*words, "--against", "humanity"), "--against is new")
    again = cai(*words, "--principles", "harm", "--principles", "open", "--if-changed", "restart")
    assert again.returncode == 0 and out.with_name("x.json.bak").exists(), again.stderr


def test_mistakes_are_told_before_anything_is_loaded(cai: Cai, llama, pairs, mine, tmp_path):
    words = [
        "constitution",
        "test",
        "--feedback-model",
        llama,
        "--constitution",
        mine,
        "--out",
        tmp_path / "x.json",
    ]
    given = [*words, "--pairs", pairs]
    mistake(
        cai(*given, "--principles", "hram"), "--principles hram: no principle of mine", "did you mean harm"
    )
    mistake(cai(*given, "--against", "articel"), "no constitution 'articel'", "article")
    mistake(cai(*given, "--out", tmp_path / "x.jsonl"), "results are written as .json")
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"prompt": "Q?", "chosen": "Same.", "rejected": "Same."}) + "\n")
    mistake(
        cai(*words, "--pairs", one), "one.jsonl: no pairs in it (identical_replies)", "two different replies"
    )
    critiques = tmp_path / "critiques.json"
    critiques.write_text(
        json.dumps(
            {
                "a": {
                    "prompt": ["\n\nCritiqueRequest: x\n\nCritique:"],
                    "edit_request": "\n\nRevisionRequest: y\n\nRevision:",
                }
            }
        )
    )
    mistake(cai(*given, "--constitution", critiques), "its principles have no `comparison` text")


def test_help_says_what_no_principle_is(cai: Cai):
    told = " ".join(cai("constitution", "test", "--help").stdout.split())
    assert NO_PRINCIPLE in told and NO_PRINCIPLE_REWORDED in told
