"""Tokens that the tokenizer alone knows: what they start from, and that none of them is ever written for that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import byte_level_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

from cai_cli.models.load import load_lm, load_pm
from cai_cli.models.tokenizers import load_tokenizer


def make(folder: Path, kind: str) -> Path:
    """A model whose logits are all far below 0, as GPT-2's are, and a tokenizer without a pad token."""
    torch.manual_seed(0)
    tokenizer = byte_level_tokenizer(None)
    tokenizer.eos_token, tokenizer.pad_token = "<|endoftext|>", None
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "tie_word_embeddings": kind == "tied",
    }
    if kind == "bias":
        model = PhiForCausalLM(PhiConfig(**sizes))
        with torch.no_grad():
            model.lm_head.bias -= 40
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes))
        with torch.no_grad():
            model.model.embed_tokens.weight += 1
            model.model.norm.weight.fill_(-2)
            if kind == "untied":
                model.lm_head.weight.copy_(torch.randn_like(model.lm_head.weight) * 0.02 + 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["tied", "untied", "bias"])
@pytest.mark.parametrize("more", [[], ["<|user|>", "<|assistant|>"]])
def test_no_added_token_has_more_than_an_equal_share(tmp_path: Path, kind: str, more: list[str]) -> None:
    folder = make(tmp_path / "lm", kind)
    tokenizer = load_tokenizer(str(folder))
    known = len(tokenizer) - 1
    tokenizer.add_special_tokens({"additional_special_tokens": more})
    model = load_lm(str(folder), "cpu", tokenizer=tokenizer)
    assert tokenizer.pad_token == "<pad>" and tokenizer.pad_token_id >= known
    ids = torch.tensor([tokenizer.encode("How do I bake bread?")])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    assert logits[:, :known].max() < -20  # far below that of a row of noise
    assert logits.shape[1] == known + 1 + len(more)
    assert (logits.softmax(-1)[:, known:] <= 1.0001 / known).all()


def test_added_tokens_start_alike_in_every_run(tmp_path: Path) -> None:
    """Whatever was drawn before."""
    folder = str(make(tmp_path / "lm", "untied"))
    for load in (load_lm, load_pm):
        rows = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            rows.append(
                load(folder, "cpu", tokenizer=load_tokenizer(folder)).get_input_embeddings().weight[-1]
            )
        assert torch.equal(*rows) and rows[0].abs().sum() > 0
