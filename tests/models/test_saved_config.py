"""What is saved is the base's configuration but for what training means to change, and the loss is what it is
said to be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import edit_json, make_family, write_comparisons, write_samples
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from cai_cli.console.groups import build
from cai_cli.engines.base import EngineSettings, Request
from cai_cli.engines.transformers_engine import TransformersEngine
from cai_cli.models.load import load_lm
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.rows.conversation import message
from cai_cli.stages import ppo, sft, train_pm
from cai_cli.training.preference.reading import reading

MIXTURES = ["qwen3_moe", "mixtral", "jamba", "qwen3_next", "gpt_oss", "granitemoehybrid"]
PROMPT = [message("user", "How do I bake 3?")]


def finetune(model: Path, out: Path, data: Path, **settings: Any) -> Path:
    sft.run(build(sft.Options, model=str(model), data=[str(data)], out=out, device="cpu", **settings))
    return out


def values(folder: Path, name: str = "config.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def differing(one: Path, other: Path) -> set[str]:
    """Names of the config's fields that are not the same in both."""
    a, b = values(one), values(other)
    return {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_of_experts_keeps_its_config_and_learns_its_completions_alone(family, tmp_path):
    """One step at a rate of 0 logs the loss of the untrained model, which is computed here by hand."""
    base = make_family(tmp_path / "base", family)
    out = finetune(
        base, tmp_path / "out", write_samples(tmp_path / "s.jsonl", 8, "Mix {n}."), learning_rate=0.0
    )
    assert differing(base, out) == set()
    model, tokenizer = load_lm(str(base), "cpu"), load_tokenizer(str(base))
    encode, losses = reading(tokenizer, "chat", 512), []
    for n in range(8):
        prompt = [message("user", f"How do I bake {n}?")]
        ids = torch.tensor([encode(prompt, [message("assistant", f"Mix {n}.")])])
        start = len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"])
        logits = model(input_ids=ids).logits[0, start - 1 : -1].float()
        losses.append(cross_entropy(logits, ids[0, start:], reduction="none"))
    assert values(out, "cai.json")["train_loss"] == pytest.approx(torch.cat(losses).mean().item(), abs=2e-4)
    engine = TransformersEngine(load_lm(str(out), "cpu"), load_tokenizer(str(out)))
    assert engine.generate([Request(PROMPT, 1, 4)])[0].token_ids


def test_preference_models_and_policies_keep_their_configs(tmp_path):
    base = make_family(tmp_path / "base", "qwen3_moe")
    data = write_comparisons(tmp_path / "c.jsonl")
    settings = {"device": "cpu", "gradient_checkpointing": True}
    train_pm.run(
        build(train_pm.Options, model=str(base), comparisons=[str(data)], out=tmp_path / "pm", **settings)
    )
    assert differing(base, tmp_path / "pm") == {"architectures", "id2label", "label2id"}
    small = {"steps": 1, "rollout_batch_size": 4, "max_new_tokens": 4}
    run = {
        "prompts": [str(write_samples(tmp_path / "p.jsonl", 4))],
        "out": tmp_path / "rl",
        **settings,
        **small,
    }
    ppo.run(build(ppo.Options, model=str(base), pm=str(tmp_path / "pm"), attn_implementation="eager", **run))
    assert differing(base, tmp_path / "rl") == set()


def test_adapters_and_checkpointing_leave_no_trace_in_the_config(tmp_path):
    base = make_family(tmp_path / "base", "llama", output_hidden_states=False, use_cache=True)
    data = write_samples(tmp_path / "s.jsonl", 8)
    for name, settings in {"lora": {"lora": True}, "full": {"gradient_checkpointing": True}}.items():
        assert differing(base, finetune(base, tmp_path / name, data, **settings)) == set()


def test_generation_settings_of_the_base_stay_after_sft_and_ppo(tmp_path):
    base = make_family(tmp_path / "base", "llama")
    edit_json(base / "generation_config.json", do_sample=True, temperature=0.7, top_p=0.8)
    finetune(base, tmp_path / "sl", write_samples(tmp_path / "s.jsonl", 8))
    train_pm.run(
        build(
            train_pm.Options,
            model=str(base),
            comparisons=[str(write_comparisons(tmp_path / "c.jsonl"))],
            out=tmp_path / "pm",
            device="cpu",
        )
    )
    ppo.run(
        build(ppo.Options,
            model=str(tmp_path / "sl"), pm=str(tmp_path / "pm"), prompts=[str(tmp_path / "s.jsonl")], out=tmp_path / "rl",
            device="cpu", steps=1, rollout_batch_size=4, max_new_tokens=4,
        )
    )  # fmt: skip
    for folder in ("sl", "rl"):
        found = values(tmp_path / folder, "generation_config.json")
        assert (found["do_sample"], found["temperature"], found["top_p"]) == (True, 0.7, 0.8)


@pytest.mark.parametrize("declared", [None, [0]], ids=["one-eos", "list-of-eos"])
def test_generate_ends_where_sample_ends(declared, tmp_path):
    """The base ends texts by <|endoftext|>, its ChatML turns by <|im_end|>; what it was taught to stop at is
    saved for all.
    """
    base = make_family(tmp_path / "base", "llama", eos="<|endoftext|>", pad="<|im_start|>")
    if declared:
        edit_json(base / "config.json", eos_token_id=declared)
        edit_json(base / "generation_config.json", eos_token_id=declared)
    out = finetune(
        base,
        tmp_path / "sl",
        write_samples(tmp_path / "s.jsonl", 24),
        learning_rate=1e-2,
        num_train_epochs=8,
        logging_steps=1,
    )
    train_pm.run(
        build(
            train_pm.Options,
            model=str(base),
            comparisons=[str(write_comparisons(tmp_path / "c.jsonl"))],
            out=tmp_path / "pm",
            device="cpu",
        )
    )
    ppo.run(
        build(ppo.Options,
            model=str(out), pm=str(tmp_path / "pm"), prompts=[str(tmp_path / "s.jsonl")], out=tmp_path / "rl",
            device="cpu", steps=1, rollout_batch_size=4, max_new_tokens=4, learning_rate=1e-5,
        )
    )  # fmt: skip
    for folder in (out, tmp_path / "rl"):
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
        assert set(model.generation_config.eos_token_id) == {0, 2}
        assert tokenizer.eos_token_id == 0 and model.config.eos_token_id == (declared or 0)
        assert (
            tokenizer.pad_token_id == model.config.pad_token_id == model.generation_config.pad_token_id == 1
        )
        ids = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_tensors="pt")[
            "input_ids"
        ]
        generated = model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.size(1) :].tolist()
        engine = TransformersEngine(
            load_lm(str(folder), "cpu"), load_tokenizer(str(folder)), EngineSettings(temperature=0)
        )
        sampled = engine.generate([Request(PROMPT, 1, 40)])[0]
        assert generated == sampled.token_ids and generated[-1] == 2
        assert sampled.text == "Mix flour."
