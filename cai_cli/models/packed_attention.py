"""Attention of packed rows: rows of different lengths lie end to end, and meet as padded tables inside attention alone.

A packed row is (1, N): what all rows start with, once, and then the rest of each of the B rows. `packed_attention` is a function
for transformers' attention interface; its tables (B, H, W, D) are padded on the right, where causal attention needs no mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

PLAIN = {"dropout", "scaling", "sliding_window", "position_ids", "is_causal", "use_cache", "cache_position", "past_key_values"}
Map = Callable[[Tensor], Tensor]
SHORT = 512  # Tokens up to which attention written out is the faster one on a CPU.


@dataclass(slots=True)
class Layout:
    """Where packed tokens lie in tables of B rows and W columns.

    The first `shared` packed tokens are the first columns of every row; the other N - shared ones are at `places` of the
    flattened (B, W), padding at `gaps`. Row r's column c, not a shared one, is the packed token starts[r] + c.
    """

    rows: int
    width: int
    shared: int
    places: Tensor
    starts: Tensor
    gaps: Tensor
    by_heads: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def slots(self, heads: int) -> tuple[Tensor, Tensor]:
        """Where each head of the tokens that are not shared lies in the flattened (B, H, W), in their order; and of the gaps."""
        if heads not in self.by_heads:

            def of(places: Tensor) -> Tensor:
                row, column = places // self.width, places % self.width
                head = torch.arange(heads, device=places.device)
                return ((row.unsqueeze(-1) * heads + head) * self.width + column.unsqueeze(-1)).flatten()

            self.by_heads[heads] = of(self.places), of(self.gaps)
        return self.by_heads[heads]

    def spread(self, packed: Tensor, every: bool) -> Tensor:
        """(N, H, D) -> (B, H, W, D), zeros at padding; shared tokens in `every` row, or in the first alone."""
        _, heads, size = packed.shape
        slots, gaps = self.slots(heads)
        table = packed.new_empty(self.rows * heads * self.width, size)
        table.index_copy_(0, slots, packed[self.shared :].reshape(-1, size)).index_fill_(0, gaps, 0)
        table = table.view(self.rows, heads, self.width, size)
        start = packed[: self.shared].transpose(0, 1)
        table[0, :, : self.shared] = start
        table[1:, :, : self.shared] = start if every else 0
        return table

    def collect(self, table: Tensor, every: bool) -> Tensor:
        """(B, H, W, D) -> (N, H, D); shared tokens summed over `every` row, or those of the first alone."""
        _, heads, _, size = table.shape
        packed = table.new_empty(self.shared + len(self.places), heads, size)
        torch.index_select(table.reshape(-1, size), 0, self.slots(heads)[0], out=packed[self.shared :].view(-1, size))
        start = table[:, :, : self.shared].sum(0) if every else table[0, :, : self.shared]
        packed[: self.shared] = start.transpose(0, 1)
        return packed


class Linear(torch.autograd.Function):
    """A linear map `there`, whose transpose `back` is known: autograd's own would scatter sums where copies do."""

    @staticmethod
    def forward(context: Any, values: Tensor, there: Map, back: Map) -> Tensor:
        context.back = back
        return there(values)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return context.back(gradient), None, None


class ShortAttention(torch.autograd.Function):
    """Causal attention of packed queries, keys and values (N, H, D) -> (N, H, D), in its defining steps.

    Its derivative is written out too: for short rows on a CPU the passes over memory count, and autograd makes more of them.
    """

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float) -> Tensor:
        q, k, v = (layout.spread(packed, every=True).flatten(0, 1) for packed in (query, key, value))
        later = torch.full((layout.width, layout.width), -torch.inf, dtype=q.dtype, device=q.device).triu_(1)
        scores = torch.baddbmm(later, q, k.transpose(1, 2), alpha=scaling)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
        context.save_for_backward(q, k, v, weights)
        context.layout, context.scaling = layout, scaling
        return layout.collect(torch.bmm(weights.to(v.dtype), v).unflatten(0, (layout.rows, -1)), every=False)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, weights = context.saved_tensors
        layout, scaling = context.layout, context.scaling
        given = layout.spread(gradient, every=False).flatten(0, 1)
        for_value = torch.bmm(weights.to(v.dtype).transpose(1, 2), given)
        for_weights = torch.bmm(given, v.transpose(1, 2)).float()
        # Of softmax, in one pass: weights * (for_weights - sum(weights * for_weights)).
        for_scores = torch._softmax_backward_data(for_weights, weights, -1, torch.float32).to(q.dtype)
        for_query = torch.baddbmm(q, for_scores, k, beta=0, alpha=scaling)
        for_key = torch.baddbmm(k, for_scores.transpose(1, 2), q, beta=0, alpha=scaling)
        tables = (for_query, for_key, for_value)
        return *(layout.collect(table.unflatten(0, (layout.rows, -1)), every=True) for table in tables), None, None


def pack(ids: Tensor, lengths: Tensor, shared: int = 0) -> tuple[Tensor, Tensor, Layout]:
    """Right-padded ids (B, W) with lengths (B,) -> packed ids (1, N), position_ids (1, N), and their layout.

    `shared`: how many leading columns are the same in all rows, and to be computed once.
    """
    columns = torch.arange(ids.size(1), device=ids.device).expand_as(ids)
    real = columns < lengths.unsqueeze(-1)
    rest = real & (columns >= shared)
    places, gaps = (which.flatten().nonzero().squeeze(-1) for which in (rest, ~real))
    starts = (lengths - shared).cumsum(0) - (lengths - shared)
    layout = Layout(ids.size(0), ids.size(1), shared, places, starts, gaps)
    packed_ids, positions = (torch.cat([of[0, :shared], of[rest]]).unsqueeze(0) for of in (ids, columns))
    return packed_ids, positions, layout


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
    grouped = query.size(1) != key.size(1)
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    if q.device.type == "cpu" and packed_layout.width <= SHORT:
        k, v = (states.repeat_interleave(q.size(1) // states.size(1), dim=1) if grouped else states for states in (k, v))
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else v.dtype
        scaling = q.size(-1) ** -0.5 if scaling is None else scaling
        result = ShortAttention.apply(q.to(dtype), k.to(dtype), v.to(dtype), packed_layout, scaling)
    else:
        spread, collect = packed_layout.spread, packed_layout.collect
        read = (partial(spread, every=True), partial(collect, every=True))
        given = (partial(collect, every=False), partial(spread, every=False))  # a shared token's rows all give the same
        q, k, v = (Linear.apply(states, *read) for states in (q, k, v))
        attended = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        result = Linear.apply(attended, *given)
    return result.unsqueeze(0), None
