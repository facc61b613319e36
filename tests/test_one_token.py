"""Attention of one new token: the model's own logits, for models whose attention is plain."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from test_written_out import tiny
from transformers.models.llama.modeling_llama import eager_attention_forward

from cai_cli.engines.one_token import attend, can_use, where_it_can


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_it_is_the_eager_attention_of_transformers(groups):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, n, 8, generator=generator) for heads, n in ((4, 1), (groups, 6), (groups, 6)))
    mask = torch.zeros(3, 1, 1, 6)
    mask[1, :, :, :2] = torch.finfo(torch.float32).min
    module = SimpleNamespace(num_key_value_groups=4 // groups, training=False)
    theirs, _ = eager_attention_forward(module, query, key, value, mask, 0.3)
    ours, _ = attend(module, query, key, value, mask, 0.3, dropout=0.0)
    assert ours.shape == (3, 1, 4, 8)
    assert torch.allclose(theirs, ours, atol=1e-6)


@pytest.mark.parametrize("settings", [{"softcap": 30.0}, {"s_aux": torch.zeros(4)}, {"position_bias": torch.zeros(1)}])
def test_what_it_does_not_know_is_refused(settings):
    states = torch.zeros(1, 4, 1, 8)
    with pytest.raises(TypeError, match=next(iter(settings))):
        attend(None, states, states, states, torch.zeros(1, 1, 1, 1), **settings)


@pytest.mark.parametrize(("kind", "can"), [("llama", True), ("qwen3", True), ("gpt2", True), ("gemma2", False)])
def test_models_are_tried(kind, can):
    """Gemma 2 caps its attention's scores."""
    model = tiny(kind)
    assert can_use(model) == can
    before = model.config._attn_implementation
    with where_it_can(model):
        assert (model.config._attn_implementation != before) == can
    assert model.config._attn_implementation == before


def test_another_result_is_not_taken(monkeypatch):
    model = tiny("llama")
    monkeypatch.setattr("cai_cli.engines.one_token.attend", lambda *given, **settings: (2 * attend(*given, **settings)[0], None))
    assert not can_use(model)
