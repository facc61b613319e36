"""Packed rows: the same states, scores and gradients as of padded rows, from fewer tokens."""

from __future__ import annotations

from itertools import accumulate, combinations, pairwise

import pytest
import torch
from ppo_setup import PAD, make_pair
from transformers import LlamaConfig, LlamaForCausalLM

from cai_cli.compute import packed_attention
from cai_cli.compute import packed_rows as packed_rows_file
from cai_cli.compute.packed_attention import first_holders, pack, table_sizes
from cai_cli.compute.packed_rows import (
    can_pack,
    last_mlp,
    packed_rows,
    packed_states,
    prepare,
    replaced,
    states_at,
)
from cai_cli.compute.shortcuts import TRIMMED, shortcuts_of
from cai_cli.models.load import load_pm
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


def tree_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """(B, W) ids of three prompts, two of which start alike, with four replies to each; and their lengths."""
    generator = torch.Generator().manual_seed(2)
    prompts = [[*START, 20, 21, 22], [*START, 20, 23], [30, 31, 32]]
    rows = [
        [*prompt, *torch.randint(40, 99, (length,), generator=generator).tolist()]
        for prompt in prompts
        for length in (3, 1, 7, 2)
    ]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, torch.tensor([len(row) for row in rows])


@pytest.mark.parametrize("short", [512, 0])
@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("table_cost", [1, 10**6])
@pytest.mark.parametrize("make_rows", [ragged_rows, tree_rows])
def test_shared_starts_are_computed_once_and_change_nothing(
    monkeypatch, short, kv_heads, table_cost, make_rows
):
    """States and all gradients, with attention written out and by PyTorch's, in one table and in several."""
    monkeypatch.setattr(packed_attention, "SHORT", short)
    monkeypatch.setattr(packed_attention, "TABLE_COST", table_cost)
    model = small_lm(kv_heads)
    ids, lengths = make_rows()
    rows, columns = read_places(lengths)
    weight = torch.randn(len(rows), 32, generator=torch.Generator().manual_seed(1))
    packed_ids = []
    model.model.embed_tokens.register_forward_pre_hook(lambda _, args: packed_ids.append(args[0]))
    found = []
    for packs in (False, True):
        prepare(model, 64, packs)
        model.zero_grad()
        if packs:
            states = states_at(model, ids, lengths, rows, columns)
        else:
            states = model.model(input_ids=ids, use_cache=False)[0][rows, columns]
        (states * weight).sum().backward()
        found.append([states.detach(), *(parameter.grad.clone() for parameter in model.model.parameters())])
    assert packed_ids[-1].shape == (1, distinct_tokens(ids, lengths, rows, columns))
    for padded, packed in zip(*found, strict=True):
        assert padded.abs().max() > 1e-3
        assert torch.allclose(padded, packed, atol=1e-5 * max(1.0, float(padded.abs().max())), rtol=1e-4)


def distinct_tokens(
    ids: torch.Tensor, lengths: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> int:
    """How many starts there are among rows, counting those which end at or after a row's first read token for
    each row.
    """
    first = [
        min(columns[rows == row].tolist(), default=length) for row, length in enumerate(lengths.tolist())
    ]
    starts = {tuple(row[: n + 1].tolist()) for row, read in zip(ids, first, strict=True) for n in range(read)}
    return len(starts) + int((lengths - torch.tensor(first)).sum())


def test_rows_are_parted_into_tables_at_the_least_cost(monkeypatch):
    """Against every way to part them; the one long row of a batch does not widen the others."""
    assert table_sizes([40, 300, 40, 41, 40]) == [4, 1]
    monkeypatch.setattr(packed_attention, "TABLE_COST", 50)
    for seed in range(5):
        lengths = (
            torch.randint(1, 12, (9,), generator=torch.Generator().manual_seed(seed)).sort().values.tolist()
        )
        cuts = [[0, *inner, 9] for count in range(9) for inner in combinations(range(1, 9), count)]
        costs = [
            sum((end - begin) * lengths[end - 1] ** 2 + 50 for begin, end in pairwise(cut)) for cut in cuts
        ]
        ends = [0, *accumulate(table_sizes(lengths))]
        assert ends[-1] == 9
        found = sum((end - begin) * lengths[end - 1] ** 2 + 50 for begin, end in pairwise(ends))
        assert found == min(costs)


def test_packed_ids_and_positions_by_hand():
    """Rows 5 6 7, 5 6 8 9, 5 6 8 and 4, of which the second and third share three tokens, and all but the
    last share two.
    """
    ids = torch.tensor([[5, 6, 7, 0], [5, 6, 8, 9], [5, 6, 8, 1], [4, 0, 0, 0]])
    packed_ids, positions, layout = pack(ids, torch.tensor([3, 4, 4, 1]), starts=torch.tensor([2, 3, 3, 0]))
    assert packed_ids.tolist() == [[5, 6, 7, 9, 8, 1, 4]]
    assert positions.tolist() == [[0, 1, 2, 3, 2, 3, 0]]
    assert layout.tokens[1].tolist() == [0, 1, 4, 3]
    assert layout.tokens[2].tolist() == [0, 1, 4, 5]
    assert layout.shapes == [(4, 4)]
    packed = torch.arange(10.0, 17).view(7, 1, 1)
    (table,) = layout.tables(layout.to_slots(packed))
    assert table[0, 0, :1].tolist() == [[16]]
    assert table[1, 0, :3].flatten().tolist() == [10, 11, 12]
    assert table[2, 0].flatten().tolist() == [10, 11, 14, 13]
    assert table[3, 0].flatten().tolist() == [10, 11, 14, 15]
    (given,) = layout.tables(layout.to_homes(packed))
    assert given.flatten().tolist() == [16, 0, 0, 0, 10, 11, 12, 0, 0, 0, 0, 13, 0, 0, 14, 15]
    assert layout.from_homes(layout.to_homes(packed)).flatten().tolist() == packed.flatten().tolist()
    assert layout.from_slots_summed(layout.to_slots(packed)).flatten().tolist() == [
        30,
        33,
        12,
        13,
        28,
        15,
        16,
    ]


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
    monkeypatch.setattr(packed_rows_file, "last_mlp", lambda model: model.model.layers[-1].self_attn)
    prepare(model, 64)
    assert shortcuts_of(model).packs and "reads more of it" in shortcuts_of(model).facts()[TRIMMED]
    monkeypatch.undo()
    prepare(model, 64)
    assert shortcuts_of(model).packs and shortcuts_of(model).facts()[TRIMMED] == "yes"


def test_a_layer_that_mixes_rows_is_not_packed(monkeypatch):
    model = small_lm()
    whole = model.model.layers[0].mlp.forward
    monkeypatch.setattr(
        model.model.layers[0].mlp, "forward", lambda hidden: whole(hidden).cumsum(1), raising=False
    )
    prepare(model, 64)
    assert not shortcuts_of(model).packs and TRIMMED not in shortcuts_of(model).facts()
    assert not can_pack(model, 64)


def test_packed_scores_are_those_of_padded_rows(tmp_path):
    _, path = make_pair(tmp_path)
    pm = load_pm(str(path), "cpu")
    ids, lengths = ragged_rows(11)
    rows = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)] + [[5], START]
    padded = score_all(pm, rows, PAD, 4)
    prepare(pm, 64)
    assert shortcuts_of(pm).packs
    packed = score_all(pm, rows, PAD, 4)
    assert packed == pytest.approx(padded, abs=1e-5)
    assert len(set(padded)) == len(rows)


def test_values_narrower_than_queries_are_packed():
    """Multi-head latent attention: heads of 16 for queries and keys, of 8 for values."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 99,
    }
    ranks = {
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
    }
    model = DeepseekV3ForCausalLM(
        DeepseekV3Config(**sizes, **ranks, num_key_value_heads=4, first_k_dense_replace=2)
    ).eval()
    prepare(model, 64)
    assert shortcuts_of(model).packs


def test_the_example_of_six_tokens():
    """What the docstrings of `Layout` and `first_holders` show."""
    ids, both = torch.tensor([[7, 8, 5], [7, 8, 9]]), torch.tensor([2, 2])
    assert first_holders(ids, both).tolist() == [[0, 0, 0], [0, 0, 1]]
    packed, positions, layout = pack(ids, torch.tensor([3, 3]), both)
    assert (packed.tolist(), positions.tolist()) == ([[7, 8, 5, 9]], [[0, 1, 2, 2]])
    assert (layout.tokens.tolist(), layout.shapes, layout.slots.tolist()) == (
        [[0, 1, 2], [0, 1, 3]],
        [(2, 3)],
        [0, 1, 2, 0, 1, 3],
    )
    assert (layout.homes.tolist(), layout.copies.tolist()) == ([0, 1, 2, 5], [3, 4])
    tokens, cells = (
        torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1),
        torch.tensor([1.0, 2, 4, 8, 16, 32]).view(6, 1),
    )
    assert layout.to_slots(tokens).flatten().tolist() == [1, 2, 3, 1, 2, 4]
    assert layout.to_homes(tokens).flatten().tolist() == [1, 2, 3, 0, 0, 4]
    assert layout.from_homes(cells).flatten().tolist() == [1, 2, 4, 32]
    assert layout.from_slots_summed(cells).flatten().tolist() == [1 + 8, 2 + 16, 4, 32]


def test_an_attribute_that_was_there_comes_back():
    config = LlamaConfig()
    config.mine = 3
    with pytest.raises(KeyError), replaced(config, "mine", 4):
        assert config.mine == 4
        raise KeyError
    assert config.mine == 3
    with replaced(config, "to_json_string", 5):
        assert config.to_json_string == 5
    assert config.to_json_string() and "to_json_string" not in vars(config)
