"""Matrix products by oneDNN: the model's own numbers, and a model that is as before behind them."""

from __future__ import annotations

import pytest
import torch
from tiny import make_model

from cai_cli.compute import products
from cai_cli.compute.shortcuts import shortcuts_of
from cai_cli.models.load import load_lm


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_lm(str(make_model(tmp_path_factory.mktemp("m"))), "cpu", "float32")


def test_the_numbers_are_the_models_own_and_nothing_of_it_stays_changed(model, monkeypatch):
    monkeypatch.setattr(products, "not_intel", lambda: True)
    assert not products.gains(model)  # its layers are small
    monkeypatch.setattr(products, "LARGE", 0)
    ids = torch.arange(24).view(2, 12)
    used = []
    counted = lambda layer, states: used.append(layer) or one(layer, states)  # noqa: E731
    one = products.product
    monkeypatch.setattr(products, "product", counted)
    with torch.no_grad():
        wanted = model(ids).logits
        with products.fast_products(model):
            got = model(ids).logits
    assert len(used) > 10 and torch.allclose(got, wanted, atol=1e-5)
    assert shortcuts_of(model).facts()[products.NAME] == "yes"
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_it_is_left_alone_in_other_types_and_on_intel(model, monkeypatch):
    monkeypatch.setattr(products, "not_intel", lambda: True)
    assert not products.gains(model)  # its layers are small
    monkeypatch.setattr(products, "LARGE", 0)
    assert products.gains(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert not products.gains(model)
    monkeypatch.setattr(products, "not_intel", lambda: False)
    assert not products.gains(model)
