"""`cai evaluate hhh`: the paper's multiple-choice files through small random models, sums done again by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import mistake
from multiple_choice_rows import PRINCIPLE, hhh_rows, put
from tiny import make_model

from cai_cli.evaluation.multiple_choice import Item, bin_error, item_prompt, measure, option_bins, read_items
from cai_cli.evaluation.solved_items import Examples, hhh_question
from cai_cli.prompting.choices import PAPER_COT, PLAIN

ETHICAL, TYPES = (
    "constitutional-ai/HarmfulVsEthical.jsonl",
    "constitutional-ai/HarmfulnessClassification.jsonl",
)


@pytest.fixture(scope="module")
def hhh(tmp_path_factory) -> Path:
    return put(tmp_path_factory.mktemp("hhh") / "hhh.jsonl", hhh_rows())


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A random base model: no chat template, so that prompts go in as published."""
    return make_model(tmp_path_factory.mktemp("models") / "base", "llama", chat_template=None, seed=5)


@pytest.fixture(scope="module")
def pm(tmp_path_factory) -> Path:
    """A random preference model."""
    from transformers import AutoModelForSequenceClassification

    folder = make_model(tmp_path_factory.mktemp("models") / "pm", "llama")
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).save_pretrained(folder)
    return folder


def results(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_published_files_by_a_random_model(cai, data, base, tmp_path):
    out = tmp_path / "out.json"
    words = ("evaluate", "hhh", data(ETHICAL), data(TYPES), "--model", base)
    done = cai(*words, "--out", out)
    assert done.returncode == 0, done.stderr
    found = results(out)
    ethical, types = (found["files"][Path(name).name] for name in (ETHICAL, TYPES))
    assert (ethical["items"], ethical["correct_options"]) == (254, {"(A)": 127, "(B)": 127})
    letters = dict(zip("ABCDEFGHI", (31, 33, 21, 45, 32, 47, 30, 27, 21), strict=True))
    assert (types["items"], types["correct_options"]) == (
        287,
        {f"({name})": count for name, count in letters.items()},
    )
    for facts, chance in ((ethical, 1 / 2), (types, 1 / 9)):
        assert facts["scored"] == facts["items"] and facts["chance"] == pytest.approx(chance)
        low, high = facts["interval"]
        assert low - 0.05 < chance < high + 0.05 and low < facts["accuracy"] < high, "a random model guesses"
    assert out.with_suffix(".png").stat().st_size > 10_000 and "multiple choice" in done.stderr
    assert results(tmp_path / "out.manifest.json")["counts"] == {"in": 541, "out": 541, "rejected": {}}
    assert "already done" in cai(*words, "--out", out).stderr
    assert cai(*words, "--seed", "1", "--out", out).returncode == 2


def test_files_of_one_name_are_told_apart(cai, base, tmp_path):
    for folder, count in (("one", 6), ("two", 8)):
        (tmp_path / folder).mkdir()
        put(tmp_path / folder / "hhh.jsonl", hhh_rows(count))
    words = ("evaluate", "hhh", "one/hhh.jsonl", "two/hhh.jsonl", "--model", base, "--out", "out.json")
    done = cai(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = results(tmp_path / "out.json")
    assert {name: item["items"] for name, item in found["files"].items()} == {
        "one/hhh.jsonl": 6,
        "two/hhh.jsonl": 8,
    }
    table = done.stderr.partition("multiple choice")[2]
    assert all(name in table for name in ("one/hhh", "two/hhh", "all")), done.stderr


def test_probabilities_are_those_of_plain_calls(cai, hhh, base, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out.json"
    assert cai("evaluate", "hhh", hhh, "--model", base, "--out", out, "--batch-size", "5").returncode == 0
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    right = 0.0
    for row, item in zip(hhh_rows(), results(out)["items"], strict=True):
        start, logprobs = len(tokenizer(row["prompt"])["input_ids"]), {}
        for option in (" (A)", " (B)"):
            ids = tokenizer(row["prompt"] + option)["input_ids"]
            with torch.no_grad():
                table = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
            logprobs[option.strip()] = sum(table[t - 1, ids[t]].item() for t in range(start, len(ids)))
        total = sum(map(math.exp, logprobs.values()))
        expected = {option: math.exp(value) / total for option, value in logprobs.items()}
        assert item["probabilities"] == pytest.approx(expected, abs=1e-5) and item["mass"] == pytest.approx(
            total, abs=1e-5
        )
        right += expected[row["corrects"][0].strip()] > 0.5
    assert results(out)["all"]["accuracy"] == pytest.approx(right / 24)


@pytest.mark.parametrize(
    "words",
    [
        ("--few-shot", "3"),
        ("--few-shot", "default"),
        ("--cot", "--rationale-tokens", "6", "--cot-samples", "2"),
        ("--cot", "--cot-form", "two-step", "--few-shot", "default", "--rationale-tokens", "6"),
    ],
    ids=" ".join,
)
def test_few_shot_and_reasoning(cai, hhh, base, llama, tmp_path, words):
    for model in (base, llama):  # as text and through a chat template
        out = tmp_path / f"{model.name}.json"
        done = cai("evaluate", "hhh", hhh, "--model", model, *words, "--limit", "6", "--out", out)
        assert done.returncode == 0, done.stderr
        found = results(out)
        assert (
            found["all"]["scored"] + sum(found["all"]["skipped"].values()) == 6 and found["all"]["scored"] > 0
        )
        samples = 2 if "--cot-samples" in words else 1
        for item in found["items"]:
            if "skipped" not in item:
                assert sum(item["probabilities"].values()) == pytest.approx(1)
                assert len(item.get("rationales", [])) == (samples if "--cot" in words else 0)


def test_preference_models_score_both_transcripts(cai, hhh, pm, tmp_path):
    """Through the chat template and closed by EOS, as in training."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out = tmp_path / "out.json"
    done = cai("evaluate", "hhh", hhh, "--pm", pm, "--out", out)
    assert done.returncode == 0, done.stderr
    tokenizer, model = (
        AutoTokenizer.from_pretrained(pm),
        AutoModelForSequenceClassification.from_pretrained(pm),
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    for row, item in zip(hhh_rows(), results(out)["items"], strict=True):
        scores = []
        for name in ("text_correct", "text_incorrect"):
            turns = row[name].split("\n\n")[1:]
            names = {"Human": "user", "Assistant": "assistant"}
            talk = [{"role": names[turn.split(": ")[0]], "content": turn.split(": ", 1)[1]} for turn in turns]
            text = tokenizer.apply_chat_template(talk, tokenize=False).removesuffix("\n")
            assert text.endswith(tokenizer.eos_token)
            with torch.no_grad():
                scores.append(model(torch.tensor([tokenizer(text)["input_ids"]])).logits.item())
        expected = 1 / (1 + math.exp(scores[1] - scores[0]))
        assert item["probabilities"]["text_correct"] == pytest.approx(expected, abs=1e-5)
    assert results(out)["all"]["chance"] == 0.5


# Mistakes


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"prompt": ""}, "field `prompt`"),
        ({"corrects": []}, "field `corrects`: expected a non-empty list"),
        ({"corrects": " (A)"}, "field `corrects`"),
        ({"incorrects": [" (B)", 3]}, "field `incorrects[1]`"),
        (
            {"corrects": [" (B)"], "incorrects": [" (B)"]},
            "field `incorrects`: the option ' (B)' is there twice",
        ),
        ({"text_correct": "no transcript"}, "field `text_correct`"),
        ({"text_incorrect": "\n\nHuman: other\n\nAssistant: a"}, "field `text_incorrect`: its conversation"),
        (
            {"text_incorrect": "\n\nHuman: other"},
            "field `text_incorrect`: expected a transcript that ends in a reply",
        ),
    ],
)
def test_bad_rows_name_line_and_field(tmp_path, change, problem):
    path = put(tmp_path / "bad.jsonl", [hhh_rows(1)[0], {**hhh_rows(1)[0], **change}])
    with pytest.raises(Exception, match=r"bad\.jsonl:2: ") as caught:
        list(read_items(path))
    assert problem in str(caught.value)


def test_mistakes_are_one_line(cai, data, hhh, base, pm, tmp_path):
    out = ("--out", tmp_path / "out.json")
    rows = [
        {name: value for name, value in row.items() if not name.startswith("text")} for row in hhh_rows(2)
    ]
    short = put(tmp_path / "short.jsonl", rows)
    done = cai("evaluate", "hhh", short, "--pm", pm, *out)
    assert done.returncode == 2 and "short.jsonl:1: field `text_correct`: missing" in done.stderr
    mistake(cai("evaluate", "hhh", hhh, *out), "give either --model or --pm")
    mistake(cai("evaluate", "hhh", hhh, "--pm", base, *out), "is a language model without a score head")
    mistake(cai("evaluate", "hhh", hhh, "--pm", pm, "--cot", *out), "--pm reads scores")
    mistake(
        cai("evaluate", "hhh", hhh, "--model", base, "--cot", "--few-shot", "2", *out), "shows no reasoning"
    )
    mistake(
        cai("evaluate", "hhh", hhh, "--model", base, "--out", tmp_path / "x.txt"),
        "results are written as .json",
    )
    mistake(
        cai("evaluate", "hhh", data(TYPES), "--model", base, "--few-shot", "default", *out),
        "show two options, (A) and (B)",
    )
    assert not (tmp_path / "out.json").exists()


# Prompts and sums


def test_prompts_are_the_published_ones(hhh):
    items = list(read_items(hhh))
    for item, row in zip(items, hhh_rows(), strict=True):
        assert item_prompt(item, PLAIN, [], chat=False) == row["prompt"]
    prompt = [{"role": "user", "content": "How do I boil an egg? (case 0)"}]
    asked = hhh_question(prompt, ["Go away.", "Seven minutes in boiling water."])
    assert asked == items[0].question, "shipped examples look like the items"
    turns = item_prompt(items[0], PLAIN, [], chat=True)
    assert [turn["role"] for turn in turns] == ["user", "assistant"] and turns[1][
        "content"
    ] == "The answer is:"
    assert PRINCIPLE in turns[0]["content"] and "The answer is" not in turns[0]["content"]
    text = item_prompt(items[0], PAPER_COT, [], chat=False)
    assert text.count("\n\nHuman:") == text.count("\n\nAssistant:") == 1 and "\n\nH: How do I" in text
    again = item_prompt(items[0], PAPER_COT, [], chat=False, rationale="Because.")
    assert again == f"{text} Because.\n\nHuman:\nSo the answer is:"


def test_an_item_is_not_its_own_example(hhh):
    groups = {str(hhh): list(read_items(hhh))}
    examples = Examples("3", PLAIN, 0, groups)
    for item in groups[str(hhh)]:
        solved = examples.before(item, chat=False)
        assert len(solved) == 3 and item.question not in [example.question for example in solved]
        text = item_prompt(item, PLAIN, solved, chat=False)
        assert text.endswith(item.prompt) and text.count("The answer is: (") == 3


def made(probabilities: list[float], correct: int) -> Item:
    options = tuple(f" ({'ABCDEFGHI'[n]})" for n in range(len(probabilities)))
    return Item(Path("x"), 1, "p", options, frozenset([correct]), probabilities=probabilities, mass=0.5)


def test_sums_by_hand():
    items = [made([0.9, 0.1], 0), made([0.7, 0.3], 1), made([0.5, 0.5], 1), made([0.15, 0.85], 1)]
    facts = measure(items)
    assert facts["accuracy"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    # Top answers: 0.9 right, 0.7 wrong, 0.5 half right, 0.85 right; each in a bin of its own.
    assert facts["calibration_error"] == pytest.approx((0.1 + 0.7 + 0.0 + 0.15) / 4)
    assert facts["mean_probability_right"] == pytest.approx((0.9 + 0.3 + 0.5 + 0.85) / 4)
    assert facts["predicted_options"] == {"(A)": 3, "(B)": 1} and facts["correct_options"] == {
        "(A)": 1,
        "(B)": 3,
    }
    assert facts["mean_mass"] == 0.5 and facts["chance"] == 0.5
    assert sum(cell.count for cell in option_bins(items)) == 8
    nine = [made([1 / 9] * 9, n) for n in range(9)]
    assert measure(nine)["accuracy"] == pytest.approx(1 / 9) and bin_error(
        option_bins(nine)
    ) == pytest.approx(0)
    skipped = made([], 0)
    skipped.skipped = "too_long"
    assert (
        measure([*items, skipped])["skipped"] == {"too_long": 1} and measure([*items, skipped])["scored"] == 4
    )
    assert measure([skipped]) == {"items": 1, "scored": 0, "skipped": {"too_long": 1}}
