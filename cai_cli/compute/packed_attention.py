"""Attention of packed rows: rows of different lengths lie end to end, and meet as padded tables inside
attention alone.

A packed row is (1, N): the tokens of B rows, where what several rows start with is there once.
`packed_attention` is a function for transformers' attention interface; its tables (R, H, W, D), of rows of
like length, are padded on the right, where causal attention needs no mask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

PLAIN = {
    "dropout",
    "scaling",
    "sliding_window",
    "position_ids",
    "is_causal",
    "use_cache",
    "cache_position",
    "past_key_values",
}
Map = Callable[[Tensor], Tensor]
SHORT = 512  # Tokens up to which attention written out is the faster one on a CPU.
# What another table costs on a CPU, in scores of a head: measured; between 4,000 and 16,000 alike.
TABLE_COST = 8000


@dataclass(slots=True)
class Layout:
    """Where the N packed tokens of B rows lie in tables of R rows and W columns, whose S slots are counted
    through.

    `tokens` (B, W): the packed token at each place of the rows; anything at padding. `shapes`: (R, W) of each
    table. `slots` (S,): the packed token that each slot reads; anything at padding. `homes` (N,): the one
    slot that answers for a token. `copies` (C,): the other slots that read one.

    Two rows of six tokens, of which the first two may be computed once:

        ids      7 8 5       packed ids  7 8 5 9         tokens  0 1 2      one table of 2 x 3, six slots:
                 7 8 9       positions   0 1 2 2                 0 1 3      slots   0 1 2 0 1 3
                                                                            homes   0 1 2 5      copies  3 4

        to_slots             a b c d       ->  a b c a b d          each slot gets its token
        from_homes           u v w x y z   ->  u v w z              each token what its home holds
        to_homes             a b c d       ->  a b c 0 0 d          the transpose of from_homes
        from_slots_summed    u v w x y z   ->  u+x v+y w z          the transpose of to_slots
    """

    tokens: Tensor
    shapes: list[tuple[int, int]]
    slots: Tensor
    homes: Tensor
    copies: Tensor
    by_heads: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    masks: dict[int, Tensor] = field(default_factory=dict)

    def indices(self, heads: int) -> tuple[Tensor, ...]:
        """The same for each head: what slots read, homes, copies, and the tokens of the copies.

        Tokens are (N, H) flattened, tables (R, H, W) flattened and end to end.
        """
        if heads not in self.by_heads:
            head = torch.arange(heads, device=self.slots.device)
            tokens = self.slots.unsqueeze(-1) * heads + head
            cells = torch.arange(tokens.numel(), device=head.device)
            tables = zip(tokens.split(self.sizes()), cells.split(self.sizes(heads)), self.shapes, strict=True)
            reads, places = [], []
            for read, place, (rows, width) in tables:
                reads.append(read.view(rows, width, heads).transpose(1, 2).flatten())
                places.append(place.view(rows, heads, width).transpose(1, 2).flatten(0, 1))
            place = torch.cat(places)
            copied = tokens[self.copies].flatten()
            self.by_heads[heads] = (
                torch.cat(reads),
                place[self.homes].flatten(),
                place[self.copies].flatten(),
                copied,
            )
        return self.by_heads[heads]

    def sizes(self, heads: int = 1) -> list[int]:
        return [rows * heads * width for rows, width in self.shapes]

    def later(self, table: Tensor) -> Tensor:
        """(W, W): -inf where a key comes after the query, else 0, for a table (R, W, D)."""
        width = table.size(1)
        if width not in self.masks:
            self.masks[width] = torch.full(
                (width, width), -torch.inf, dtype=table.dtype, device=table.device
            ).triu_(1)
        return self.masks[width]

    def tables(self, cells: Tensor) -> list[Tensor]:
        """Cells of all tables (S * H, D) -> each as (R, H, W, D)."""
        heads = len(cells) // len(self.slots)
        pieces = zip(cells.split(self.sizes(heads)), self.shapes, strict=True)
        return [piece.view(rows, heads, width, cells.size(-1)) for piece, (rows, width) in pieces]

    def to_slots(self, packed: Tensor) -> Tensor:
        """(N, H, D) -> (S * H, D): to every slot its token; to padding, any."""
        return packed.reshape(-1, packed.size(-1)).index_select(0, self.indices(packed.size(1))[0])

    def from_slots_summed(self, cells: Tensor) -> Tensor:
        """(S * H, D) -> (N, H, D): the transpose of `to_slots`, with zeros at padding. Sums what copies of a
        token hold.
        """
        packed = self.from_homes(cells)
        _, _, copies, tokens = self.indices(packed.size(1))
        if len(copies):
            flat, copied = packed.view(-1, packed.size(-1)), cells.index_select(0, copies)
            flat.scatter_add_(0, tokens.unsqueeze(-1).expand_as(copied), copied)
        return packed

    def from_homes(self, cells: Tensor) -> Tensor:
        """(S * H, D) -> (N, H, D): what the home of each token holds."""
        heads = len(cells) // len(self.slots)
        return cells.index_select(0, self.indices(heads)[1]).view(len(self.homes), heads, -1)

    def to_homes(self, packed: Tensor) -> Tensor:
        """(N, H, D) -> (S * H, D): the transpose of `from_homes`. To each home its token, zeros elsewhere."""
        _, heads, size = packed.shape
        cells = packed.new_zeros(len(self.slots) * heads, size)
        return cells.index_copy_(0, self.indices(heads)[1], packed.reshape(-1, size))


class KnownTranspose(torch.autograd.Function):
    """A linear map `there`, whose transpose `back` is known: autograd's own would scatter sums where copies
    do.
    """

    @staticmethod
    def forward(context: Any, values: Tensor, there: Map, back: Map) -> Tensor:
        context.back = back
        return there(values)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return context.back(gradient), None, None


class ShortAttention(torch.autograd.Function):
    """Causal attention of packed queries, keys and values (N, H, D) -> (N, H, D), in its defining steps.

    Its derivative is written out too: for short rows on a CPU the passes over memory count, and autograd
    makes more of them.
    """

    @staticmethod
    def forward(
        context: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float
    ) -> Tensor:
        read = [layout.to_slots(packed) for packed in (query, key, value)]
        attended = torch.empty_like(read[2])
        kept = []
        for q, k, v, out in batches(layout, *read, attended):
            scores = torch.baddbmm(layout.later(q), q, k.transpose(1, 2), alpha=scaling)
            weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
            torch.bmm(weights.to(v.dtype), v, out=out)
            kept.append(weights)
        context.save_for_backward(*read, *kept)
        context.layout, context.scaling = layout, scaling
        return layout.from_homes(attended)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, *kept = context.saved_tensors
        layout, scaling = context.layout, context.scaling
        found = [torch.empty_like(cells) for cells in (query, key, value)]
        tables = batches(layout, query, key, value, layout.to_homes(gradient), *found)
        for weights, (q, k, v, given, for_query, for_key, for_value) in zip(kept, tables, strict=True):
            torch.bmm(weights.to(v.dtype).transpose(1, 2), given, out=for_value)
            for_weights = torch.bmm(given, v.transpose(1, 2)).float()
            # Of softmax, in one pass: weights * (for_weights - sum(weights * for_weights)).
            for_scores = torch._softmax_backward_data(for_weights, weights, -1, torch.float32).to(q.dtype)
            torch.baddbmm(q, for_scores, k, beta=0, alpha=scaling, out=for_query)
            torch.baddbmm(k, for_scores.transpose(1, 2), q, beta=0, alpha=scaling, out=for_key)
        return *(layout.from_slots_summed(cells) for cells in found), None, None


def batches(layout: Layout, *cells: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """For each table, its part of each of the cells as (R * H, W, D)."""
    return zip(*([table.flatten(0, 1) for table in layout.tables(some)] for some in cells), strict=True)


def pack(ids: Tensor, lengths: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Layout]:
    """Right-padded ids (B, W) with lengths (B,) -> packed ids (1, N), position_ids (1, N), and their layout.

    `starts` (B,): how many leading tokens of each row may be computed once for all rows that start with them.
    """
    count, width = ids.shape
    columns = torch.arange(width, device=ids.device).expand_as(ids)
    real = columns < lengths.unsqueeze(-1)
    holders = first_holders(ids, torch.minimum(starts, lengths))
    own = real & (holders == torch.arange(count, device=ids.device).unsqueeze(-1))
    numbers = (own.flatten().cumsum(0) - 1).clamp(min=0).view_as(own)
    tokens = numbers.gather(0, holders)
    # On a GPU padding is the cheaper one.
    sizes = table_sizes(lengths.tolist()) if ids.device.type == "cpu" else [count]
    shapes, slots, kept = [], [], []
    for rows in lengths.argsort(stable=True).split(sizes):
        longest = int(lengths[rows[-1]])
        shapes.append((len(rows), longest))
        slots.append(tokens[rows, :longest].flatten())
        kept.append(torch.stack([own[rows, :longest], real[rows, :longest]]).flatten(1))
    read = torch.cat(slots)
    held, holds = torch.cat(kept, dim=1)
    at_home, copies = held.nonzero().squeeze(-1), (holds & ~held).nonzero().squeeze(-1)
    homes = torch.empty_like(at_home).index_copy_(0, read[at_home], at_home)
    layout = Layout(tokens, shapes, read, homes, copies)
    return ids[own].unsqueeze(0), columns[own].unsqueeze(0), layout


def table_sizes(lengths: list[int]) -> list[int]:
    """How many rows each table takes, by rising length, so that padded scores and what tables cost are least
    in sum.
    """
    counts = sorted(Counter(lengths).items())
    before = [0, *accumulate(count for _, count in counts)]  # rows that are shorter
    least, begins = [0], [0]
    for end, (width, _) in enumerate(counts, 1):
        costs = [
            least[begin] + (before[end] - before[begin]) * width * width + TABLE_COST for begin in range(end)
        ]
        least.append(min(costs))
        begins.append(costs.index(least[-1]))
    sizes: list[int] = []
    end = len(counts)
    while end:
        sizes.append(before[end] - before[begins[end]])
        end = begins[end]
    return sizes[::-1]


def first_holders(ids: Tensor, starts: Tensor) -> Tensor:
    """(B, W): the row that holds the token of each place, for all rows which start alike up to there;
    `starts` as for `pack`.

        ids  7 8 5      starts  2      holders  0 0 0
             7 8 9              2               0 0 1      the second row has only its 9 for itself

    1. Rows are put in lexicographic order: those which start alike then lie next to each other.
    2. `first`: at each column the first row of the run that agrees up to here.
    3. The holder is the first row, in the old order, of those of the run that may share this column; else each row its own.
    """
    count, width = ids.shape
    numbers = torch.arange(count, device=ids.device).unsqueeze(-1)
    order = torch.unique(ids, dim=0, return_inverse=True)[1].argsort(stable=True)  # lexicographic
    rows, may_share = ids[order], torch.arange(width, device=ids.device) < starts[order].unsqueeze(-1)
    # From the row before, here or further left
    differs = (rows[1:] != rows[:-1]).long().cumsum(-1).clamp(max=1)
    # Of the rows that are alike up to here
    first = (torch.cat([differs.new_ones(1, width), differs]) * numbers).cummax(0).values
    holders = torch.full_like(ids, count).scatter_reduce(
        0, first, torch.where(may_share, numbers, count), "amin"
    )
    holders = torch.where(may_share, holders.gather(0, first), numbers)
    return torch.empty_like(ids).index_copy_(0, order, order[holders])


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
    # [0] would pad its gradient with zeros
    q, k, v = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
    if q.device.type == "cpu" and packed_layout.shapes[-1][1] <= SHORT:
        k, v = (
            states.repeat_interleave(q.size(1) // states.size(1), dim=1) if grouped else states
            for states in (k, v)
        )
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else v.dtype
        scaling = q.size(-1) ** -0.5 if scaling is None else scaling
        result = ShortAttention.apply(q.to(dtype), k.to(dtype), v.to(dtype), packed_layout, scaling)
    else:
        layout = packed_layout
        tables = zip(
            *(
                layout.tables(KnownTranspose.apply(states, layout.to_slots, layout.from_slots_summed))
                for states in (q, k, v)
            ),
            strict=True,
        )
        attended = [
            scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped).flatten(
                0, 2
            )
            for q, k, v in tables
        ]
        result = KnownTranspose.apply(torch.cat(attended), layout.from_homes, layout.to_homes)
    return result.unsqueeze(0), None
