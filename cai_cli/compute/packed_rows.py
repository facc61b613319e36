"""Rows of different lengths as one row without padding: linear layers meet real tokens alone, attention each
row apart.

What several rows start with is computed once, and the last layer's MLP only where a state is read. This works
for every architecture that goes through transformers' attention interface and whose attention is plain and
causal; `prepare` tries it, and the others get padded rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from cai_cli.compute.gradients import replaced, written_out
from cai_cli.compute.packed_attention import KnownTranspose, Map, pack, packed_attention
from cai_cli.compute.shortcuts import TRIAL, difference, shortcuts_of, switched_off, trial_rows

NAME = "cai_packed_rows"
PACKED, TRIMMED = "packed rows", "the last MLP where it is read alone"  # as shortcuts


def prepare(model: Any, longest: int, packs: bool = True) -> None:
    """Find out, once and with the model's ordinary attention, whether its rows of up to `longest` tokens can
    be packed.

    And whether its last layer's MLP can leave out the tokens whose states nobody reads.
    """
    found = shortcuts_of(model)
    found.trims = not switched_off(TRIMMED)
    if not packs:
        found.packs = False
        found.reasons[PACKED] = switched_off(PACKED) or "logits are not those of the output layer alone"
        return
    found.packs = can_pack(model, longest)
    if not found.packs and found.trims:
        found.trims = False
        found.packs = can_pack(model, longest)
    if found.packs:
        trims = "" if found.trims else "a layer or a pass reads more of it"
        found.reasons[TRIMMED] = switched_off(TRIMMED) or trims


def where_it_can(model: Any) -> AbstractContextManager[None]:
    """`packed_rows` for a model that was found able to; nothing for others."""
    return packed_rows(model) if shortcuts_of(model).packs else nullcontext()


@contextmanager
def packed_rows(model: Any) -> Iterator[None]:
    """Within, the model's attention takes packed rows. Around the backward pass too, where activations are
    made again.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
    held: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in held if hasattr(config, "_attn_implementation")}.values()
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = NAME
    try:
        with written_out(model):
            yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation


def is_packed(model: Any) -> bool:
    """Whether we are inside `packed_rows` of this model."""
    return bool(model.config._attn_implementation == NAME)


def packed_states(model: Any, ids: Tensor, lengths: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(M, D): last hidden states of right-padded ids (B, W) at M places (rows, columns). Inside `packed_rows`
    only.
    """
    starts = lengths.scatter_reduce(0, rows, columns, "amin")  # What is read of a row is its own.
    width = int(lengths.max())
    packed_ids, positions, layout = pack(ids[:, :width], lengths, starts)
    places = layout.tokens[rows, columns]
    with last_mlp_at(model, places):
        hidden = model.base_model(
            input_ids=packed_ids, position_ids=positions, use_cache=False, packed_layout=layout
        )[0]
    return pick(hidden.squeeze(0), places)


def fill_packed(model: Any, ids: Tensor, lengths: Tensor, cache: Any) -> Tensor:
    """Put keys and values of right-padded ids (B, W) into an empty cache, as one row of N distinct tokens.

    Returns which of them each of the (B, W) is; anything at padding. Inside `packed_rows` only.
    """
    packed_ids, positions, layout = pack(ids, lengths, starts=lengths)
    with last_mlp_at(model, ids.new_empty(0)):
        model.base_model(
            input_ids=packed_ids,
            position_ids=positions,
            use_cache=True,
            past_key_values=cache,
            packed_layout=layout,
        )
    return layout.tokens


@contextmanager
def last_mlp_at(model: Any, places: Tensor) -> Iterator[None]:
    """Within, the last layer's MLP computes only the tokens at `places`: no later layer reads the others.

    Not with gradient checkpointing, which calls the layer once more in the backward pass.
    """
    trims = shortcuts_of(model).trims and not getattr(model, "is_gradient_checkpointing", False)
    mlp = last_mlp(model) if trims else None
    if mlp is None:
        yield
        return
    whole = mlp.forward

    def part(hidden: Tensor) -> Tensor:
        found = whole(pick(hidden.squeeze(0), places).unsqueeze(0))
        if not isinstance(found, Tensor) or found.shape[:2] != (1, len(places)):
            raise TypeError("an MLP that gives more than a state for each token")
        return put(found.squeeze(0), places, hidden.size(1)).unsqueeze(0)

    with replaced(mlp, "forward", part):
        yield


def last_mlp(model: Any) -> Any | None:
    """The last layer's module `mlp`; None in architectures without one."""
    count = model.config.get_text_config().num_hidden_layers
    stacks = [
        module
        for module in model.base_model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    return getattr(stacks[0][-1], "mlp", None) if len(stacks) == 1 else None


def can_pack(model: Any, longest: int) -> bool:
    """Whether packed rows of at most `longest` tokens give this model's own hidden states."""
    found = shortcuts_of(model)
    if off := switched_off(PACKED):
        found.reasons[PACKED] = off
        return False
    if longest > found.sees_all:
        words = [
            found.reasons[name]
            for name in ("shared starts", "longer rows together")
            if found.reasons.get(name)
        ]
        found.reasons[PACKED] = f"rows of up to {longest} tokens and {', '.join(words)}"
        return False
    found.reasons[PACKED] = difference(model, lambda: states_both_ways(model, min(TRIAL, longest)))
    return not found.reasons[PACKED]


def states_both_ways(model: Any, length: int) -> tuple[Tensor, Tensor]:
    """States (M, D) at some places of two rows that start alike, packed and each alone."""
    lengths = torch.tensor([length, max(1, length - 2)], device=model.device)
    ids = torch.tensor(trial_rows(model, [length, length], shared=length // 3), device=model.device)
    reads = [
        (0, length // 2),
        (0, max(0, length - 2)),
        (0, length - 1),
        (1, length // 3),
        (1, max(0, length - 3)),
    ]
    rows, columns = torch.tensor(list(dict.fromkeys(reads)), device=model.device).unbind(-1)
    with packed_rows(model):
        packed = packed_states(model, ids, lengths, rows, columns)
    return packed, model.base_model(input_ids=ids, use_cache=False)[0][rows, columns]


def pick(values: Tensor, places: Tensor) -> Tensor:
    """The rows of (count, D) at distinct places (N,)."""
    return KnownTranspose.apply(values, taking(places), putting(places, len(values)))


def put(values: Tensor, places: Tensor, count: int) -> Tensor:
    """(N, D) -> (count, D): the rows at distinct places, zeros elsewhere."""
    return KnownTranspose.apply(values, putting(places, count), taking(places))


def taking(places: Tensor) -> Map:
    return lambda values: values.index_select(0, places)


def putting(places: Tensor, count: int) -> Map:
    return lambda values: values.new_zeros(count, *values.shape[1:]).index_copy_(0, places, values)
