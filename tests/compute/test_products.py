"""Matrix products by oneDNN: the model's own numbers and gradients, and a model that is as before behind them."""

from __future__ import annotations

import pytest
import torch
from tiny import make_model
from torch import nn

from cai_cli.compute import products
from cai_cli.compute.shortcuts import shortcuts_of
from cai_cli.models.load import load_lm


@pytest.fixture
def everywhere(monkeypatch):
    """On any CPU, however small the product; the layers that were computed so."""
    used = []
    one = products.one_dnn
    monkeypatch.setattr(products, "not_intel", lambda: True)
    monkeypatch.setattr(products, "LARGE_PRODUCT", 0)
    monkeypatch.setattr(products, "one_dnn", lambda *given: used.append(given[1]) or one(*given))
    return used


@pytest.fixture
def model(tmp_path):
    return load_lm(str(make_model(tmp_path / "m")), "cpu", "float32")


def test_the_numbers_are_the_models_own_and_nothing_of_it_stays_changed(model, everywhere):
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        wanted = model(ids).logits
        with products.fast_products(model):
            got = model(ids).logits
            with products.fast_products(model):  # inside it already
                assert torch.equal(model(ids).logits, got)
    assert len(everywhere) > 10 and torch.allclose(got, wanted, atol=1e-5)
    assert shortcuts_of(model).facts()[products.NAME] == "yes"
    assert not [module for module in model.modules() if "forward" in vars(module)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_layers(model, everywhere, checkpointing):
    ids = torch.arange(36).view(3, 12)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    model(ids, labels=ids).loss.backward()
    wanted = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    with products.fast_products(model):
        model(ids, labels=ids).loss.backward()
    assert len(everywhere) > 30
    for name, weight in model.named_parameters():
        assert torch.allclose(weight.grad, wanted[name], atol=1e-6), name


def test_a_layer_with_a_bias_and_one_without_gradients(everywhere):
    torch.manual_seed(0)
    layer, states = nn.Linear(6, 4), torch.randn(2, 3, 6, requires_grad=True)
    shown = torch.randn(2, 3, 4)
    (layer(states) * shown).sum().backward()
    wanted = [tensor.grad.clone() for tensor in (states, layer.weight, layer.bias)]
    states.grad = layer.weight.grad = layer.bias.grad = None
    (products.product(layer, states) * shown).sum().backward()
    for tensor, gradient in zip((states, layer.weight, layer.bias), wanted, strict=True):
        assert torch.allclose(tensor.grad, gradient, atol=1e-6)
    layer.requires_grad_(False)
    states.grad = None
    (products.product(layer, states) * shown).sum().backward()
    assert torch.allclose(states.grad, wanted[0], atol=1e-6) and len(everywhere) == 5


def test_it_is_left_alone_in_other_types_for_little_and_on_intel(model, everywhere, monkeypatch):
    ids = torch.arange(24).view(2, 12)
    assert products.gains(model)
    with torch.no_grad(), products.fast_products(model):
        everywhere.clear()
        with torch.autocast("cpu", torch.bfloat16):
            assert model(ids).logits.dtype == torch.bfloat16
        monkeypatch.setattr(products, "LARGE_PRODUCT", 1 << 40)
        model(ids)
    assert not everywhere
    monkeypatch.setattr(products, "not_intel", lambda: False)
    assert not products.gains(model)
