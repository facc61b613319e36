"""Rows of different lengths as one row without padding: linear layers meet real tokens alone, attention each row apart.

What several rows start with is computed once, and the last layer's MLP only where a state is read. This works for every
architecture that goes through transformers' attention interface and whose attention is plain and causal; `prepare` tries it, and
the others get padded rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from cai_cli.models.packed_attention import Linear, Map, pack, packed_attention
from cai_cli.models.written_out import replaced, written_out

NAME = "cai_packed_rows"


def prepare(model: Any, longest: int, packs: bool = True) -> None:
    """Find out, once and with the model's ordinary attention, whether its rows of up to `longest` tokens can be packed.

    And whether its last layer's MLP can leave out the tokens whose states nobody reads.
    """
    model.cai_trims = True
    model.cai_packs = packs and can_pack(model, longest)
    if packs and not model.cai_packs:
        model.cai_trims = False
        model.cai_packs = can_pack(model, longest)


def where_it_can(model: Any) -> AbstractContextManager[None]:
    """`packed_rows` for a model that was found able to; nothing for others."""
    return packed_rows(model) if getattr(model, "cai_packs", False) else nullcontext()


@contextmanager
def packed_rows(model: Any) -> Iterator[None]:
    """Within, the model's attention takes packed rows. Around the backward pass too, where activations are made again."""
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
    """(M, D): last hidden states of right-padded ids (B, W) at M places (rows, columns). Inside `packed_rows` only."""
    starts = lengths.scatter_reduce(0, rows, columns, "amin")  # What is read of a row is its own.
    width = int(lengths.max())
    packed_ids, positions, layout = pack(ids[:, :width], lengths, starts)
    places = layout.tokens[rows, columns]
    with last_mlp_at(model, places):
        hidden = model.base_model(input_ids=packed_ids, position_ids=positions, use_cache=False, packed_layout=layout)[0]
    return pick(hidden.squeeze(0), places)


def fill_packed(model: Any, ids: Tensor, lengths: Tensor, cache: Any) -> Tensor:
    """Put keys and values of right-padded ids (B, W) into an empty cache, as one row of N distinct tokens.

    Returns which of them each of the (B, W) is; anything at padding. Inside `packed_rows` only.
    """
    packed_ids, positions, layout = pack(ids, lengths, starts=lengths)
    with last_mlp_at(model, ids.new_empty(0)):
        model.base_model(
            input_ids=packed_ids, position_ids=positions, use_cache=True, past_key_values=cache, packed_layout=layout
        )
    return layout.tokens


@contextmanager
def last_mlp_at(model: Any, places: Tensor) -> Iterator[None]:
    """Within, the last layer's MLP computes only the tokens at `places`: no later layer reads the others.

    Not with gradient checkpointing, which calls the layer once more in the backward pass.
    """
    trims = getattr(model, "cai_trims", False) and not getattr(model, "is_gradient_checkpointing", False)
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
    stacks = [module for module in model.base_model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == count]
    return getattr(stacks[0][-1], "mlp", None) if len(stacks) == 1 else None


@torch.no_grad()
def can_pack(model: Any, longest: int) -> bool:
    """Whether packed rows of at most `longest` tokens give this model's own hidden states."""
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if window is not None and window < longest:
        return False
    lengths = torch.tensor([7, 5], device=model.device)
    ids = torch.arange(14, device=model.device).view(2, 7)
    ids[1, :2] = ids[0, :2]  # a start that both rows share
    ids %= model.get_input_embeddings().num_embeddings
    rows, columns = torch.tensor([[0, 0, 0, 1, 1], [3, 5, 6, 2, 4]], device=model.device)
    expected = model.base_model(input_ids=ids, use_cache=False)[0][rows, columns].float()
    try:
        with packed_rows(model):
            states = packed_states(model, ids, lengths, rows, columns)
    except (TypeError, ValueError, RuntimeError):  # an architecture that takes or makes something else on the way
        return False
    close = 1e-3 if states.dtype == torch.float32 else 0.05
    return bool((states.float() - expected).abs().max() <= close * expected.abs().max())


def pick(values: Tensor, places: Tensor) -> Tensor:
    """The rows of (count, D) at distinct places (N,)."""
    return Linear.apply(values, taking(places), putting(places, len(values)))


def put(values: Tensor, places: Tensor, count: int) -> Tensor:
    """(N, D) -> (count, D): the rows at distinct places, zeros elsewhere."""
    return Linear.apply(values, putting(places, count), taking(places))


def taking(places: Tensor) -> Map:
    return lambda values: values.index_select(0, places)


def putting(places: Tensor, count: int) -> Map:
    return lambda values: values.new_zeros(count, *values.shape[1:]).index_copy_(0, places, values)
