"""Options that nothing would read are refused where they are given, and runs that can only repeat or learn
nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from conftest import Cai, mistake

from cai_cli import cli
from cai_cli.console.groups import build, changed, check_needs, flags_of, needs_of
from cai_cli.console.options import FLAG, check_draws, flag_name
from cai_cli.errors import UserError
from cai_cli.evaluation.cautions import held_out_cautions, label_cautions, rate_cautions
from cai_cli.rows.conversation import message
from cai_cli.stages import (
    chat,
    constitution_test,
    evaluate_elo,
    evaluate_hhh,
    evaluate_pm,
    evaluate_responses,
    export_ppo,
    label,
    pmp,
    ppo,
    revise,
    sample,
    sft,
    train_pm,
)

STAGES = {
    "revise": revise,
    "sample": sample,
    "sft": sft,
    "label": label,
    "pmp": pmp,
    "train-pm": train_pm,
    "ppo": ppo,
    "evaluate elo": evaluate_elo,
    "evaluate hhh": evaluate_hhh,
    "evaluate pm": evaluate_pm,
    "evaluate responses": evaluate_responses,
    "constitution test": constitution_test,
    "chat": chat,
    "export verl": export_ppo,
}


@pytest.mark.parametrize("stage", STAGES)
def test_each_need_names_options_of_the_stage(stage):
    """Defaults never complain, and what is needed is off by itself unless its default is on."""
    flags = flags_of(STAGES[stage].Options)
    for name, others in needs_of(STAGES[stage].Options).items():
        assert {name, *(other for other in others if "=" not in other)} <= flags.keys()
        values = [other.split("=") for other in others if "=" in other]
        had = [(other, value) for other, value in values if other in flags]
        assert bool(values) == bool(had)
        assert all(value in get_args(flags[other].annotation.__origin__) for other, value in had)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("sft --model lm --data x --out y --lora-alpha 16", "--lora-alpha does nothing without --lora"),
        ("sft --model lm --data x --out y --lora-dropout 0", "--lora-dropout does nothing without --lora"),
        ("ppo --model lm --pm pm --prompts x --out y --save-adapter", "--save-adapter does nothing without --lora"),
        ("ppo --model lm --pm pm --prompts x --out y --kl-horizon 9", "--kl-horizon does nothing without --target-kl"),
        ("ppo --model lm --pm pm --prompts x --out y --best-max-kl 9", "--best-max-kl does nothing without --eval-prompts"),
        ("train-pm --model lm --comparisons x --out y --held-out 0 --eval-steps 3", "--eval-steps does nothing with --held-out"),
        ("pmp --model lm --posts x --out y --held-out 0 --eval-steps 3", "--eval-steps does nothing with --held-out 0"),
        ("label --pairs x --feedback-model lm --out y.jsonl -n 3", "--num-samples does nothing without --prompts"),
        ("label --pairs x --feedback-model lm --out y.jsonl --attempts 3", "--attempts does nothing without --prompts or --cot"),
        ("label --pairs x --feedback-model lm --out y.jsonl --rationale-temperature 0", "does nothing without --cot"),
        ("evaluate hhh x --pm pm --out y.json --chat-template-kwargs {}", "--chat-template-kwargs does nothing without --model"),
        ("evaluate hhh x --model lm --out y.json --cot-samples 5", "--cot-samples does nothing without --cot"),
        ("evaluate pm --pm pm --comparisons x --if-changed restart", "--if-changed does nothing without --out"),
        ("revise --model lm --prompts x --out y.jsonl --temperature 0 --attempts 5", "does nothing with --temperature 0"),
        ("revise --model lm --prompts x --out y.jsonl --tensor-parallel-size 4", "without --engine vllm — leave"),
        ("sample --model lm --prompts x --out y.jsonl --engine vllm --patience 9", "without --engine openai — leave"),
        ("chat --model lm --gpu-memory-utilization 0.5", "without --engine vllm — leave"),
        ("label --pairs x --feedback-model lm --out y.jsonl --concurrency 3", "without --engine openai or --feedback-engine"),
        ("label --pairs x --feedback-model lm --out y.jsonl --engine vllm", "--engine does nothing without --prompts"),
        ("constitution test --feedback-model lm --pairs x --out y.json --concurrency 3", "without --feedback-engine openai —"),
        ("evaluate responses x --out y.json --tensor-parallel-size 2", "without --engine vllm or --feedback-engine vllm"),
        ("evaluate hhh x --pm pm --out y.json --engine vllm", "--engine does nothing without --model"),
        ("ppo --model lm --pm pm --prompts x --out y --gpu-memory-utilization 0.5", "without --engine vllm — leave"),
    ],
)  # fmt: skip
def test_an_option_that_nothing_reads_is_a_mistake(cai: Cai, words, told):
    mistake(cai(*words.split()), told, "leave --")


def test_an_option_that_is_read_is_none(cai: Cai, tmp_path):
    """With what it needs, each of them goes on to the next check, of the model, also where a file gives one
    of the two.
    """
    config = tmp_path / "lora.yaml"
    config.write_text("lora: true\nlora-r: 8\n")
    served = tmp_path / "served.yaml"
    served.write_text("concurrency: 8\n")
    words = f"sample --model ./lm --prompts x --out y.jsonl --config {served}"
    mistake(cai(*words.split()), "served.yaml: --concurrency does nothing without --engine openai")
    for words in (
        "sft --model ./lm --data x --out y --lora --lora-r 8 --save-adapter",
        f"sft --model ./lm --data x --out y --config {config}",
        f"sft --model ./lm --data x --out y --config {config} --lora-alpha 3",
        "sample --model ./lm --prompts x --out y.jsonl --attempts 5",
    ):
        mistake(cai(*words.split()), "--model ./lm: no such directory")


def test_only_what_was_given_counts(tmp_path):
    options = build(sft.Options, model="lm", data=["x"], out=tmp_path, lora_r=8, quantize="4bit")
    check_needs(options, ())
    check_needs(options, ("lora",))
    for name in ("lora_r", "quantize"):
        with pytest.raises(UserError, match=f"{flag_name(name)} does nothing without --lora"):
            check_needs(options, (name,))
    check_needs(changed(options, quantize=None), ("quantize",))


def test_an_engine_of_either_kind_reads_its_flags(tmp_path):
    common = {"pairs": ["x"], "feedback_model": "lm", "out": tmp_path / "y.jsonl"}
    given = ("concurrency", "tensor_parallel_size")
    check_needs(build(label.Options, **common, engine="vllm", feedback_engine="openai"), given)
    check_needs(build(label.Options, **common, engine="openai", feedback_engine="vllm"), given)
    with pytest.raises(
        UserError, match="--tensor-parallel-size does nothing without --engine vllm or --feedback"
    ):
        check_needs(build(label.Options, **common, feedback_engine="openai"), given)
    needs = needs_of(export_ppo.Options)
    assert "gpu_memory_utilization" not in needs and "kl_horizon" in needs, "there it is vLLM that samples"


def test_the_flag_pattern_takes_whole_flags():
    assert FLAG.findall("give --bf16, or --lora-r 8; not -n") == ["--bf16", "--lora-r"]
    assert cli.check_needs is check_needs


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "sft --model ./lm --data x --data x:0.5 --out y",
            "--data x:0.5: is named twice — name it once; x:2 counts it twice",
        ),
        ("train-pm --model ./lm --comparisons x --comparisons x --out y", "--comparisons x: is named twice"),
        ("ppo --model ./lm --pm ./pm --prompts x:1 --prompts x --out y", "--prompts x: is named twice"),
        (
            "ppo --model ./lm --pm ./pm --prompts x --eval-prompts x --out y",
            "--model ./lm: no such directory",
        ),
    ],
)
def test_a_file_that_is_named_twice_is_a_mistake(cai: Cai, words, told):
    """Where files are mixed by weight: it would count twice, without a word."""
    mistake(cai(*words.split()), told)


# Runs that can only repeat, or learn nothing


def test_several_texts_at_temperature_0_are_a_mistake(cai: Cai):
    for words in (
        "sample --model lm --prompts x --out y.jsonl",
        "revise --model lm --prompts x --out y.jsonl -n 2",
    ):
        mistake(
            cai(*words.split(), "--temperature", 0), "draws the same text each time", "give --num-samples 1"
        )
    words = "label --model a --prompts x --feedback-model b --out y.jsonl --temperature 0"
    assert "--num-samples 1" not in mistake(cai(*words.split()), "give a --temperature above 0")
    words = "evaluate hhh x --model lm --out y.json --cot --cot-samples 5 --rationale-temperature 0"
    mistake(cai(*words.split()), "--rationale-temperature 0", "give --cot-samples 1")
    check_draws(1, "--num-samples", 0.0)
    check_draws(2, "--num-samples", 0.1)


def put(path: Path, *rejected: str) -> Path:
    """Comparisons, the chosen reply of which is `Mix it.`"""
    rows = [
        {
            "id": str(n),
            "prompt": [message("user", f"How do I bake {n}?")],
            "chosen": [message("assistant", "Mix it.")],
            "rejected": [message("assistant", text)],
            "probability": 0.9,
            "origin": "human",
        }
        for n, text in enumerate(rejected)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_of_one_text_are_rejected_by_name(cai: Cai, llama, tmp_path):
    """A run in which the rate never comes up says so as well: a warning, in the manifest too."""
    rows = put(tmp_path / "rows.jsonl", "Mix it.", "No.", "Never.", "mix it.", "Mix it.", "Why?", "Go.")
    words = (
        "train-pm",
        "--model",
        llama,
        "--comparisons",
        rows,
        "--held-out",
        0,
        "--warmup-steps",
        9,
        "--device",
        "cpu",
    )
    done = cai(*words, "--out", tmp_path / "pm")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "pm" / "cai.json").read_text())
    assert manifest["counts"] == {"in": 7, "out": 5, "rejected": {"identical_replies": 2}}
    assert [
        json.loads(line)["id"] for line in (tmp_path / "pm" / "rejects.jsonl").read_text().splitlines()
    ] == ["0", "4"]
    assert manifest["warnings"] == [
        "--warmup-steps 9 of 1 steps: the learning rate never came to its peak; lower it, or take fewer rows a step"
    ]
    assert "never came to its peak" in done.stderr


def test_rates_that_learn_nothing_are_told():
    assert rate_cautions(0.0, 0, 10) == ["--learning-rate 0: nothing was learned"]
    assert rate_cautions(1e-5, 10, 10) != [] == rate_cautions(1e-5, 9, 10)


def test_prompts_that_are_held_out_and_trained_on_are_told():
    assert held_out_cautions(["a", "b", "c"], ["c", "a", "d"]) == [
        "2 of 3 --eval-prompts are in --prompts too: they are not held out"
    ]
    assert held_out_cautions([], ["a"]) == held_out_cautions(["b"], ["a"]) == []


def test_a_judge_that_reads_the_position_is_told_in_any_order():
    assert label_cautions(0.0, None, 0.97) == [
        "the judge gives 97% to the first option on average: it reads the position"
    ]
    assert label_cautions(0.0, None, 0.03) != [] == label_cautions(0.0, None, 0.6)
    assert len(label_cautions(0.0, 1.0, 0.97)) == 1
    assert label_cautions(0.0, 0.2, 0.97) == []


def test_settings_that_the_template_does_not_read(cai: Cai, qwen, llama, tmp_path):
    prompts = tmp_path / "p.txt"
    prompts.write_text("one\n")
    words = ("--prompts", prompts, "--dry-run", "--chat-template-kwargs", '{"enable_thinkng": false}')
    told = "--chat-template-kwargs: enable_thinkng does nothing"
    mistake(cai("sample", "--model", qwen, *words, "--out", tmp_path / "x.jsonl"), told)
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"prompt": [message("user", "a")], "completion": [message("assistant", "b")]}))
    mistake(cai("sft", "--model", qwen, "--data", data, *words[2:], "--out", tmp_path / "x"), told)
    words = ("label", "--model", qwen, *words[:3], "--feedback-model", llama, "--out", tmp_path / "x.jsonl")
    told = "--feedback-chat-template-kwargs: think does nothing"
    mistake(cai(*words, "--feedback-chat-template-kwargs", '{"think": 1}'), told)
