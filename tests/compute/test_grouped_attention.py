"""Attention of new tokens without copies of keys: the numbers of attention written out head by head."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cai_cli.compute.grouped_attention import grouped_attention

BATCH, HEADS, GROUPS, LENGTH, SIZE, START = 3, 2, 3, 5, 8, 4


def by_hand(query, keys, values, mask):
    """One head and one row at a time, each with keys (T, D) that `keys(row, head)` gives."""
    out = torch.zeros(BATCH, 1, HEADS * GROUPS, SIZE)
    for row in range(BATCH):
        for head in range(HEADS * GROUPS):
            scores = keys(row, head // GROUPS) @ query[row, head, 0] * SIZE**-0.5
            scores = scores.masked_fill(~mask[row], -torch.inf)
            out[row, 0, head] = scores.softmax(0) @ values(row, head // GROUPS)
    return out


@pytest.fixture
def states():
    torch.manual_seed(0)
    query = torch.randn(BATCH, HEADS * GROUPS, 1, SIZE)
    return query, torch.randn(BATCH, HEADS, LENGTH, SIZE), torch.randn(BATCH, HEADS, LENGTH, SIZE)


@pytest.fixture
def mask():
    """Rows that are padded in front of what is their own."""
    real = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    real[1, :2] = real[2, :4] = False
    return real


def shown(mask, kind):
    wide = mask[:, None, None]
    return {"bool": wide, "added": torch.where(wide, 0.0, torch.finfo(torch.float32).min)}[kind]


@pytest.mark.parametrize("kind", ["bool", "added", "none"])
def test_queries_that_share_a_head(states, mask, kind):
    query, key, value = states
    if kind == "none":
        mask = torch.ones_like(mask)
    module = SimpleNamespace(num_key_value_groups=GROUPS, layer_idx=0)
    got, _ = grouped_attention(module, query, key, value, None if kind == "none" else shown(mask, kind))
    wanted = by_hand(query, lambda row, head: key[row, head], lambda row, head: value[row, head], mask)
    assert torch.allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["bool", "added", "none"])
def test_a_start_kept_once(states, mask, kind):
    query, key, value = states
    start = torch.randn(1, HEADS, START, SIZE), torch.randn(1, HEADS, START, SIZE)
    if kind == "none":
        mask = torch.ones_like(mask)
    whole = torch.cat([mask.new_ones(BATCH, START), mask], dim=-1)
    module = SimpleNamespace(num_key_value_groups=GROUPS, layer_idx=1)
    layers = [SimpleNamespace(start=None), SimpleNamespace(start=start)]
    given = None if kind == "none" else shown(whole, kind)
    got, _ = grouped_attention(module, query, key, value, given, shared_starts=layers)
    wanted = by_hand(
        query,
        lambda row, head: torch.cat([start[0][0, head], key[row, head]]),
        lambda row, head: torch.cat([start[1][0, head], value[row, head]]),
        whole,
    )
    assert torch.allclose(got, wanted, atol=1e-6)


def test_scores_are_float32_where_the_model_is_not(states, mask):
    """As a fused kernel has them: weights of large scores would be off by some per cent."""
    query, key, value = (tensor.to(torch.bfloat16) for tensor in states)
    query = query * 8
    start = key[:1], value[:1]
    whole = torch.cat([mask.new_ones(BATCH, LENGTH), mask], dim=-1)
    module = SimpleNamespace(num_key_value_groups=GROUPS, layer_idx=0)
    layers = [SimpleNamespace(start=start)]
    got, _ = grouped_attention(module, query, key, value, shown(whole, "bool"), shared_starts=layers)
    wanted = by_hand(
        query.float(),
        lambda row, head: torch.cat([start[0][0, head], key[row, head]]).float(),
        lambda row, head: torch.cat([start[1][0, head], value[row, head]]).float(),
        whole,
    )
    assert torch.allclose(got.float(), wanted, atol=0.02)


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_not_known_is_refused(states, shared):
    """So that a trial says no, instead of a bias or a choice of blocks that is passed over."""
    query, key, value = states
    module = SimpleNamespace(num_key_value_groups=GROUPS, layer_idx=0)
    layers = [SimpleNamespace(start=(key[:1], value[:1]))] if shared else None
    with pytest.raises(TypeError, match="position_bias"):
        grouped_attention(module, query, key, value, None, shared_starts=layers, position_bias=torch.zeros(1))
