"""SL-CAI is not its own judge, in whatever form it is stored; the preflight says what would help."""

from __future__ import annotations

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import mistake
from tiny import make_model

from cai_cli.console.groups import build
from cai_cli.engines.segments import SegmentSettings
from cai_cli.errors import RunError, UserError
from cai_cli.feedback.judge import judge_pairs
from cai_cli.feedback.labels import Pair
from cai_cli.feedback.self_judge import check_author, check_two_models
from cai_cli.feedback.settings import Options
from cai_cli.models.compare import same_weights
from cai_cli.models.load import load_lm
from cai_cli.rows.conversation import message
from cai_cli.stages.label import check_preflight, inquiry_of


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_copies_in_other_types_and_shards_are_the_same_model(llama, qwen, tmp_path, dtype):
    model = load_lm(str(llama), "cpu")
    model.to(dtype).save_pretrained(tmp_path / "half", max_shard_size="20KB")
    shutil.copyfile(llama / "tokenizer.json", tmp_path / "half" / "tokenizer.json")
    assert len(list((tmp_path / "half").glob("*.safetensors"))) > 1
    copy, first, other = (load_lm(str(path), "cpu") for path in (tmp_path / "half", llama, qwen))
    assert same_weights(first, copy) and not same_weights(first, other)
    with pytest.raises(UserError, match="the same weights as --model, stored in another way"):
        check_two_models(first, copy, "half")
    check_two_models(first, other, "qwen")


def test_an_adapter_beside_its_base_is_the_merged_model_and_not_the_base(llama, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = load_lm(str(llama), "cpu")
    base.name_or_path = str(llama)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(llama)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    adapter, merged, first = (
        load_lm(str(path), "cpu") for path in (tmp_path / "adapter", tmp_path / "merged", llama)
    )
    assert same_weights(adapter, merged) and not same_weights(first, merged)


def test_a_little_training_makes_another_model(llama):
    first, second = load_lm(str(llama), "cpu"), load_lm(str(llama), "cpu")
    with torch.no_grad():
        second.model.layers[0].mlp.up_proj.weight.mul_(1.001)
    assert not same_weights(first, second)


def test_the_author_of_pairs_does_not_judge_them(cai, llama, qwen, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(3)))
    samples = tmp_path / "samples.jsonl"
    words = ("--prompts", prompts, "--max-new-tokens", "4", "--on-truncated", "keep", "--out", samples)
    assert cai("sample", "--model", llama, *words).returncode == 0
    copy = shutil.copytree(llama, tmp_path / "copy")
    with pytest.raises(UserError, match=r"holds the weights of the model that wrote .*samples\.jsonl"):
        check_author(None, [str(samples)], str(copy))
    check_author(None, [str(samples)], str(qwen))


def test_the_preflight_stops_before_anything_is_written_and_says_what_to_try(cai, tmp_path):
    """A random judge: nearly all of the probability is elsewhere, in any format."""
    judge = make_model(tmp_path / "judge", "llama", seed=7)
    rows = [
        {
            "id": str(n),
            "prompt": [{"role": "user", "content": f"q {n}"}],
            "chosen": [{"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "assistant", "content": "no"}],
            "probability": 1,
            "origin": "human",
        }
        for n in range(40)
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    done = cai("label", "--pairs", pairs, "--feedback-model", judge, "--min-mass", "0.5", "--out", out)
    assert (
        done.returncode == 1
        and "over the first 32 pairs only" in done.stderr
        and "--min-mass 0" in done.stderr
    )
    assert "no option format does better" in done.stderr
    assert not out.exists() and not out.with_name("out.jsonl.partial").exists()
    assert (
        cai("label", "--pairs", pairs, "--feedback-model", judge, "--min-mass", "0", "--out", out).returncode
        == 0
    )
    for words, problem in (
        (("--option-format", "AA"), "--option-format 'AA'"),
        (("--clamp", "0.3:0.6"), "--clamp 0.3:0.6"),
        (("--hard", "--clamp", "0.4:0.6"), "--hard makes labels"),
    ):
        mistake(
            cai("label", "--pairs", pairs, "--feedback-model", judge, *words, "--out", tmp_path / "x.jsonl"),
            problem,
        )


class FormatJudge:
    """Answers with an option only where options are marked as `likes`."""

    def __init__(self, likes: str) -> None:
        self.likes = likes
        self.renderer = SimpleNamespace(form=lambda: "transcript")

    def score(self, requests):
        return [[math.log(0.4 if request.options[0] == self.likes else 0.01)] * 2 for request in requests]


@pytest.mark.parametrize("likes", [" A.", " Z"])
def test_the_preflight_names_the_option_format_that_does_better(tmp_path, likes):
    options = build(Options, feedback_model="judge", pairs=["pairs.jsonl"], out=tmp_path / "out.jsonl")
    judge, inquiry = FormatJudge(likes), inquiry_of(options)
    pairs = [
        Pair(f"{n}/0", str(n), [message("user", f"question {n}")], replies=["yes", "no"]) for n in range(3)
    ]
    judge_pairs(judge, inquiry, pairs, False, SegmentSettings(1))
    with pytest.raises(RunError, match="over the first 3 pairs only") as caught:
        check_preflight(judge, options, inquiry, pairs)
    advice = "--option-format 'A.' puts 0.8 on them" if likes == " A." else "no option format does better"
    assert advice in str(caught.value.hint)
