"""Derivatives written out: those of transformers' own norms and rotary positions, and put in only where they
are.
"""

from __future__ import annotations

import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from cai_cli.compute.gradients import (
    ROTARY,
    RMSNorm,
    Rotary,
    find,
    is_same_norm,
    replaced,
    rms_norm,
    rotary,
    written_out,
)

LLAMA = "transformers.models.llama.modeling_llama"
SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def tiny(kind: str) -> torch.nn.Module:
    from transformers import AutoConfig

    torch.manual_seed(0)
    more = {"head_dim": 8, "num_key_value_heads": 2} if kind in ("gemma", "gemma2", "qwen3", "glm") else {}
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **SMALL, **more, pad_token_id=0)
    ).eval()


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype)


def angles(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    angle = draw(1, 3, 4, dtype=dtype)
    return angle.cos().repeat(1, 1, 2), angle.sin().repeat(1, 1, 2)


def test_derivatives_are_those_of_small_differences():
    values, weight = draw(2, 3, 8, dtype=torch.float64), draw(8, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, w: RMSNorm.apply(x, w, 0.1), (values.requires_grad_(), weight.requires_grad_())
    )
    cos, sin = (of.unsqueeze(1) for of in angles(torch.float64))
    query = draw(1, 2, 3, 8, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Rotary.apply(x, cos, sin), (query,))


@pytest.mark.parametrize("frozen", [False, True])
def test_norm_is_that_of_transformers(frozen):
    found = []
    for compute in (lambda norm, x: norm(x), lambda norm, x: rms_norm(norm, norm.forward, x)):
        norm = LlamaRMSNorm(16, eps=1e-2)
        norm.weight = torch.nn.Parameter(draw(16), requires_grad=not frozen)
        values = draw(5, 16).requires_grad_()
        result = compute(norm, values)
        (result * draw(5, 16)).sum().backward()
        found.append([result.detach(), values.grad] + ([] if frozen else [norm.weight.grad]))
        with torch.no_grad():
            assert torch.allclose(compute(norm, values), result, atol=1e-6)
    for theirs, ours in zip(*found, strict=True):
        assert torch.allclose(theirs, ours, atol=1e-5)


def test_rotary_is_that_of_transformers():
    cos, sin = angles()
    found = []
    for turn in (apply_rotary_pos_emb, lambda *given: rotary(apply_rotary_pos_emb, *given)):
        query, key = draw(1, 4, 3, 8).requires_grad_(), draw(1, 2, 3, 8).requires_grad_()
        turned = turn(query, key, cos, sin)
        sum((states * draw(*states.shape)).sum() for states in turned).backward()
        with torch.no_grad():
            again = turn(query, key, cos, sin)
        found.append([*turned, query.grad, key.grad, *again])
    for theirs, ours in zip(*found, strict=True):
        assert torch.allclose(theirs, ours, atol=1e-6)


def test_what_is_asked_otherwise_is_left_to_the_model():
    """Another dtype, or arguments that ours does not know."""
    calls = []
    cos, sin = angles()
    query = draw(1, 2, 3, 8)
    own = lambda *given, **named: calls.append((given[4:], named))  # noqa: E731
    rotary(own, query, query, cos, sin, None)
    rotary(own, query, query, cos, sin, unsqueeze_dim=2)
    rotary(own, query.bfloat16(), query.bfloat16(), cos, sin)
    rotary(own, query, query, cos[..., :4], sin[..., :4])
    assert calls == [((None,), {}), ((), {"unsqueeze_dim": 2}), ((), {}), ((), {})]
    norm = LlamaRMSNorm(16)
    assert rms_norm(norm, lambda values: "own", draw(5, 16).bfloat16()) == "own"


@pytest.mark.parametrize(
    ("kind", "norms", "files"),
    [("llama", 5, 1), ("qwen3", 9, 1), ("gemma", 0, 1), ("glm", 5, 0), ("gpt2", 0, 0)],
)
def test_parts_are_found_by_what_they_compute(kind, norms, files):
    """Gemma's norm multiplies by 1 + w; GLM turns neighbours instead of halves, and only a part of them."""
    parts = find(tiny(kind))
    assert (len(parts.norms), len(parts.rotary)) == (norms, files)


def test_a_norm_with_a_gate_is_left_alone():
    class Gated(LlamaRMSNorm):
        def forward(self, values: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(values if gate is None else values * gate)

    assert not is_same_norm(Gated(16))
    assert is_same_norm(LlamaRMSNorm(16))


def test_within_and_afterwards():
    model = tiny("llama")
    parts = find(model)
    ids = torch.arange(20).view(2, 10)
    file = sys.modules[LLAMA]
    own = getattr(file, ROTARY)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients()
    with written_out(model):
        assert all("forward" in vars(norm) for norm in parts.norms)
        assert getattr(file, ROTARY) is not own
        found = gradients()
    assert getattr(file, ROTARY) is own
    assert not any("forward" in vars(norm) for norm in parts.norms)
    for theirs, ours in zip(expected, found, strict=True):
        assert theirs.abs().max() > 1e-4
        assert torch.allclose(theirs, ours, atol=1e-6)


def test_an_attribute_that_was_there_comes_back():
    config = LlamaConfig()
    config.mine = 3
    with pytest.raises(KeyError), replaced(config, "mine", 4):
        assert config.mine == 4
        raise KeyError
    assert config.mine == 3
