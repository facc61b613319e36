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

from cai_cli.compute.attention_names import attending
from cai_cli.compute.packed_attention import KnownTranspose, Map, pack, packed_attention
from cai_cli.compute.shortcuts import (
    PACKED,
    TRIAL,
    TRIMMED,
    difference,
    row_states,
    shortcuts_of,
    switched_off,
    trial_rows,
)

NAME = "cai_packed_rows"


def prepare(model: Any, longest: int, packs: bool = True) -> None:
    """Find out, once and with the model's ordinary attention, whether its rows of up to `longest` tokens can
    be packed.

    And whether its last layer's MLP can leave out the tokens whose states nobody reads.
    """
    reasons = shortcuts_of(model).reasons
    if not packs:
        reasons[PACKED] = switched_off(PACKED) or "logits are not those of the output layer alone"
        return
    reasons[TRIMMED] = switched_off(TRIMMED)
    if not can_pack(model, longest) and not reasons[TRIMMED]:
        reasons[TRIMMED] = "a layer or a pass reads more of it"
        can_pack(model, longest)
    if reasons[PACKED]:
        del reasons[TRIMMED]


def states_at(
    model: Any, ids: Tensor, lengths: Tensor, rows: Tensor, columns: Tensor, masked: bool = True
) -> Tensor:
    """(M, D): last hidden states of right-padded ids (B, W) with lengths (B,) at M places (rows, columns).

    Rows are packed where `prepare` has found that the model can; else they are padded, and it gets a mask
    where `masked`.
    """
    if shortcuts_of(model).packs:
        with packed_rows(model):
            return packed_states(model, ids, lengths, rows, columns)
    hidden = row_states(model, ids, real_tokens(ids, lengths), masked)
    return pick(hidden.flatten(0, 1), rows * ids.size(1) + columns)


def real_tokens(ids: Tensor, lengths: Tensor) -> Tensor:
    """(B, W): 1 at the tokens of right-padded rows, 0 at padding."""
    return (torch.arange(ids.size(1), device=ids.device) < lengths.unsqueeze(-1)).long()


@contextmanager
def training_pass(model: Any) -> Iterator[None]:
    """Around forward and backward of a model whose gradient checkpointing may be enabled: switches it on.

    Without the rest of train mode, so that no dropout of any kind comes back; and only here, since a layer in
    this state forgets its cache and sampling would be wrong.
    """
    layers = checkpointed_layers(model)
    if not layers:
        yield
        return
    for layer in layers:
        layer.training = True
    try:
        # The backward pass makes activations again, with the attention that they were made with.
        with packed_rows(model) if shortcuts_of(model).packs else nullcontext():
            yield
    finally:
        for layer in layers:
            layer.training = False


def checkpointed_layers(model: Any) -> list[Any]:
    """The layers that recompute their activations in the backward pass while their own `training` flag is
    set.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
    ]


def packed_rows(model: Any) -> AbstractContextManager[None]:
    """Within, the model's attention takes packed rows. Around the backward pass too, where activations are
    made again.
    """
    return attending(model, NAME, packed_attention)


def packed_states(model: Any, ids: Tensor, lengths: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`states_at` inside `packed_rows`. What follows the last place that is read of a row is left out."""
    # (B,): one past the last place read of a row, or its length where none is; and the first place read, in front
    # of which rows that start alike may share tokens. What is read of a row is its own.
    ends = lengths.scatter_reduce(0, rows, columns + 1, "amax", include_self=False)
    starts = ends.scatter_reduce(0, rows, columns, "amin")
    packed_ids, positions, layout = pack(ids[:, : int(ends.max())], ends, starts)
    places = layout.tokens[rows, columns]  # (M,): where in the one packed row those places lie
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
    trims = not shortcuts_of(model).reasons.get(TRIMMED) and not getattr(
        model, "is_gradient_checkpointing", False
    )
    mlp = last_mlp(model) if trims else None
    if mlp is None:
        yield
        return
    whole = mlp.forward

    def part(hidden: Tensor) -> Tensor:  # (1, N, D): the M read tokens through the MLP, zeros for the others
        found = whole(pick(hidden.squeeze(0), places).unsqueeze(0))
        if not isinstance(found, Tensor) or found.shape[:2] != (1, len(places)):
            raise TypeError("an MLP that gives more than a state for each token")
        return put(found.squeeze(0), places, hidden.size(1)).unsqueeze(0)

    with replaced(mlp, "forward", part):
        yield


@contextmanager
def replaced(owner: Any, name: str, by: Any) -> Iterator[None]:
    """Within, `owner` has another attribute of this name, of its own; afterwards it has what it had, or its
    class's again.
    """
    before = vars(owner).get(name)
    setattr(owner, name, by)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


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
