"""Packed rows: the same states, scores and gradients as of padded rows, from fewer tokens."""

from __future__ import annotations

import pytest
import torch
from ppo_setup import PAD, make_pair
from transformers import LlamaConfig, LlamaForCausalLM

from cai_cli.models import packed_attention, packing
from cai_cli.models.load import load_pm
from cai_cli.models.packed_attention import pack
from cai_cli.models.packing import can_pack, last_mlp, packed_rows, packed_states, prepare, where_it_can
from cai_cli.models.score import score_all

START = [5, 6, 7, 8, 9]


def small_lm(kv_heads: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=99, num_key_value_heads=kv_heads, **sizes)
    return LlamaForCausalLM(config).eval()


def ragged_rows(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, W) ids of rows with the same first five tokens, and their lengths."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(len(START) + 1, 20, (count,), generator=generator)
    ids = torch.randint(10, 99, (count, int(lengths.max())), generator=generator)
    ids[:, : len(START)] = torch.tensor(START)
    ids[0, 5], ids[1, 5] = 10, 11
    return ids, lengths


def read_places(lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The last two tokens of each row where they come after the shared start."""
    rows = torch.arange(len(lengths)).repeat_interleave(2)
    columns = torch.stack([lengths - 2, lengths - 1], dim=-1).flatten()
    kept = columns >= len(START)
    return rows[kept], columns[kept]


@pytest.mark.parametrize("short", [512, 0])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_a_shared_start_is_computed_once_and_changes_nothing(monkeypatch, short, kv_heads):
    """States and all gradients, with attention written out and by PyTorch's."""
    monkeypatch.setattr(packed_attention, "SHORT", short)
    model = small_lm(kv_heads)
    ids, lengths = ragged_rows()
    rows, columns = read_places(lengths)
    weight = torch.randn(len(rows), 32, generator=torch.Generator().manual_seed(1))
    packed_ids = []
    model.model.embed_tokens.register_forward_pre_hook(lambda _, args: packed_ids.append(args[0]))
    found = []
    for packs in (False, True):
        prepare(model, 64, packs)
        model.zero_grad()
        with where_it_can(model):
            if packs:
                states = packed_states(model, ids, lengths, rows, columns)
            else:
                states = model.model(input_ids=ids, use_cache=False)[0][rows, columns]
            (states * weight).sum().backward()
        found.append([states.detach(), *(parameter.grad.clone() for parameter in model.model.parameters())])
    assert packed_ids[-1].shape == (1, int((lengths - len(START)).sum()) + len(START))
    assert packed_ids[-1][0, : len(START)].tolist() == START
    for padded, packed in zip(*found, strict=True):
        assert padded.abs().max() > 1e-3
        assert torch.allclose(padded, packed, atol=1e-5, rtol=1e-4)


def test_packed_ids_and_positions_by_hand():
    ids = torch.tensor([[5, 6, 7, 0], [5, 6, 8, 9]])
    packed_ids, positions, layout = pack(ids, torch.tensor([3, 4]), shared=2)
    assert packed_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert positions.tolist() == [[0, 1, 2, 2, 3]]
    assert layout.places.tolist() == [2, 6, 7]
    assert layout.gaps.tolist() == [3]
    assert (layout.starts[torch.tensor([0, 1, 1])] + torch.tensor([2, 2, 3])).tolist() == [2, 3, 4]
    packed = torch.arange(5.0).view(5, 1, 1)
    table = layout.spread(packed, every=True)
    assert table.flatten().tolist() == [0, 1, 2, 0, 0, 1, 3, 4]
    assert layout.spread(packed, every=False).flatten().tolist() == [0, 1, 2, 0, 0, 0, 3, 4]
    assert layout.collect(table, every=False).flatten().tolist() == [0, 1, 2, 3, 4]
    assert layout.collect(table, every=True).flatten().tolist() == [0, 2, 2, 3, 4]


def seen_by_mlps(model) -> list[int]:
    """Tokens in front of each layer's MLP, filled in as passes are made."""
    seen: list[int] = []
    for layer in model.model.layers:
        layer.mlp.gate_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].size(1)))
    return seen


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_last_mlp_computes_what_is_read(checkpointing):
    """All tokens where the layer will be called again in the backward pass."""
    model = small_lm()
    prepare(model, 64)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    seen = seen_by_mlps(model)
    ids, lengths = ragged_rows()
    rows, columns = read_places(lengths)
    with packed_rows(model):
        packed_states(model, ids, lengths, rows, columns)
    whole = int((lengths - len(START)).sum()) + len(START)
    assert seen == [whole, whole if checkpointing else len(rows)]
    assert "forward" not in vars(last_mlp(model))
    last_mlp(model).forward = hooked = last_mlp(model).forward
    with packed_rows(model):
        packed_states(model, ids, lengths, rows, columns)
    assert vars(last_mlp(model))["forward"] is hooked


def test_a_last_mlp_of_another_kind_is_left_whole(monkeypatch):
    """Its call fits no MLP: rows are packed all the same."""
    model = small_lm()
    monkeypatch.setattr(packing, "last_mlp", lambda model: model.model.layers[-1].self_attn)
    prepare(model, 64)
    assert (model.cai_packs, model.cai_trims) == (True, False)
    monkeypatch.undo()
    prepare(model, 64)
    assert (model.cai_packs, model.cai_trims) == (True, True)


def test_a_layer_that_mixes_rows_is_not_packed(monkeypatch):
    model = small_lm()
    whole = model.model.layers[0].mlp.forward
    monkeypatch.setattr(model.model.layers[0].mlp, "forward", lambda hidden: whole(hidden).cumsum(1), raising=False)
    prepare(model, 64)
    assert not model.cai_packs
    assert not can_pack(model, 64)


def test_packed_scores_are_those_of_padded_rows(tmp_path):
    _, path = make_pair(tmp_path)
    pm = load_pm(str(path), "cpu")
    ids, lengths = ragged_rows(11)
    rows = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)] + [[5], START]
    padded = score_all(pm, rows, PAD, 4)
    prepare(pm, 64)
    assert pm.cai_packs
    with where_it_can(pm):
        packed = score_all(pm, rows, PAD, 4)
    assert packed == pytest.approx(padded, abs=1e-5)
    assert len(set(padded)) == len(rows)
