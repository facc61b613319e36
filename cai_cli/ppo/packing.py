"""Rows of different lengths as one row without padding: linear layers meet real tokens alone, attention each row apart.

A packed row is (1, N): the B rows' tokens end to end. Only inside attention are they laid out as (B, T) again, padded on the
right, where causal attention needs no mask. This works for every architecture that goes through transformers' attention
interface and whose attention is plain and causal; `can_pack` tries it, and the others get padded rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "cai_packed_rows"
PLAIN = {"dropout", "scaling", "sliding_window", "position_ids", "is_causal", "use_cache", "cache_position", "past_key_values"}
SHORT = 512  # Tokens up to which attention written out is the faster one on a CPU.


@dataclass(frozen=True, slots=True)
class Layout:
    """Where packed tokens lie in (B, T): `places` (N,) in the flattened table; `starts` (B,) of each row in the packed one."""

    rows: int
    width: int
    places: Tensor
    starts: Tensor


def pack(ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Layout]:
    """Right-padded ids (B, W) with lengths (B,) -> packed ids (1, N), position_ids (1, N), and their layout."""
    columns = torch.arange(ids.size(1), device=ids.device).expand_as(ids)
    real = columns < lengths.unsqueeze(-1)
    places = real.flatten().nonzero().squeeze(-1)
    layout = Layout(ids.size(0), ids.size(1), places, lengths.cumsum(0) - lengths)
    return ids[real].unsqueeze(0), columns[real].unsqueeze(0), layout


class Spread(torch.autograd.Function):
    """(N, ...) -> (count, ...): rows put at distinct `places` of a table of zeros."""

    @staticmethod
    def forward(context: Any, values: Tensor, places: Tensor, count: int) -> Tensor:
        context.save_for_backward(places)
        return values.new_zeros(count, *values.shape[1:]).index_copy_(0, places, values)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.index_select(0, context.saved_tensors[0]), None, None


class Pick(torch.autograd.Function):
    """(count, ...) -> (N, ...): the rows at distinct `places`; unlike indexing, its gradient is a copy, not a sum."""

    @staticmethod
    def forward(context: Any, values: Tensor, places: Tensor) -> Tensor:
        context.save_for_backward(places)
        context.count = values.size(0)
        return values.index_select(0, places)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        table = gradient.new_zeros(context.count, *gradient.shape[1:])
        return table.index_copy_(0, context.saved_tensors[0], gradient), None


def pick(values: Tensor, places: Tensor) -> Tensor:
    """The rows of (count, ...) at distinct places (N,)."""
    return Pick.apply(values, places)


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packed_layout: Layout | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """An attention function for transformers: query, key and value (1, H, N, D) -> (1, N, H, D)."""
    odd = [name for name, setting in settings.items() if setting is not None and name not in PLAIN]
    if odd or packed_layout is None or attention_mask is not None:
        raise TypeError(f"attention with {', '.join(odd) or 'a mask'}")
    rows, width = packed_layout.rows, packed_layout.width

    def unpacked(packed: Tensor) -> Tensor:
        table = Spread.apply(packed[0].transpose(0, 1), packed_layout.places, rows * width)
        return table.view(rows, width, *table.shape[1:]).transpose(1, 2)

    q, k, v = unpacked(query), unpacked(key), unpacked(value)
    if q.device.type == "cpu" and width <= SHORT:
        result = written_out(q, k, v, scaling)
    else:
        grouped = q.size(1) != k.size(1)
        result = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
    flat = result.transpose(1, 2).reshape(rows * width, q.size(1), -1)
    return pick(flat, packed_layout.places).unsqueeze(0), None


def written_out(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Causal attention in its defining steps: (B, H, T, D), fewer heads of key and value are shared."""
    rows, heads, width, size = query.shape
    if heads != key.size(1):
        key, value = (kept.repeat_interleave(heads // kept.size(1), dim=1) for kept in (key, value))
    q, k, v = (each.reshape(rows * heads, width, size) for each in (query, key, value))
    later = torch.full((width, width), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    weights = torch.baddbmm(later, q, k.transpose(1, 2), alpha=size**-0.5 if scaling is None else scaling)
    result = torch.bmm(torch.softmax(weights, dim=-1, dtype=torch.float32).to(v.dtype), v)
    return result.view(rows, heads, width, size)


def prepare(model: Any, longest: int, packs: bool = True) -> None:
    """Find out, once and with the model's ordinary attention, whether its rows of up to `longest` tokens can be packed."""
    model.cai_packs = packs and can_pack(model, longest)


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
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation


def is_packed(model: Any) -> bool:
    """Whether we are inside `packed_rows` of this model."""
    return bool(model.config._attn_implementation == NAME)


def packed_states(model: Any, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Layout]:
    """(N, D) last hidden states of the real tokens, their ids (N,), and the layout. Inside `packed_rows` only."""
    packed_ids, positions, layout = pack(ids, lengths)
    hidden = model.base_model(input_ids=packed_ids, position_ids=positions, use_cache=False, packed_layout=layout)[0]
    return hidden[0], packed_ids[0], layout


@torch.no_grad()
def can_pack(model: Any, longest: int) -> bool:
    """Whether packed rows of at most `longest` tokens give this model's own hidden states."""
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if window is not None and window < longest:
        return False
    lengths = torch.tensor([7, 4], device=model.device)
    ids = torch.arange(14, device=model.device).view(2, 7) % model.get_input_embeddings().num_embeddings
    padded = model.base_model(input_ids=ids, use_cache=False)[0]
    try:
        with packed_rows(model):
            states, _, _ = packed_states(model, ids, lengths)
    except TypeError:
        return False
    close = 1e-3 if states.dtype == torch.float32 else 0.05
    scale = padded.float().abs().max()
    expected = torch.cat([padded[0, :7], padded[1, :4]]).float()
    return bool((states.float() - expected).abs().max() <= close * scale)
