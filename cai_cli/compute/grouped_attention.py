"""Grouped-query attention of the next token of each row, without a copy of all keys and values for each query head
that shares them; and shared-prefix attention.

transformers' `sdpa` repeats them at every token in every layer where rows are padded, and so does torch's own
`enable_gqa` on a CPU. Here the queries that share a head stand as rows of one table before it. Four query heads, two
key heads, a row of six tokens: queries (1, 4, 1, D) are seen as (1, 2, 2, D); heads 0 and 1 are the two rows before
key head 0, heads 2 and 3 those before key head 1, keys stay (1, 2, 6, D), and the mask (1, 1, 1, 6) is that of
each row.

A start that all rows of the batch share is kept once (`shared_starts`, the layers of the cache): all queries of a head
stand before it as one table, (H, B * G, D) x (H, S, D), and one softmax goes over what they find there and in their
own rows.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cai_cli.compute.attention_names import attending
from cai_cli.compute.packed_attention import PLAIN

NAME = "cai_grouped"


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    shared_starts: list[Any] | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """An attention function for transformers: query (B, H * G, 1, D), key and value (B, H, T, D) ->
    (B, 1, H * G, D). More tokens a row are `sdpa`'s. Raises TypeError for settings that it does not know.
    """
    odd = [name for name, setting in settings.items() if setting is not None and name not in PLAIN]
    if odd:
        raise TypeError(f"attention with {', '.join(odd)}")
    start = None if shared_starts is None else shared_starts[module.layer_idx].start
    if start is not None:
        if query.size(2) != 1 or dropout:
            raise TypeError("one token a row goes on from a start that is kept once")
        return shared_prefix_attention(query, start, key, value, attention_mask, scaling), None
    if dropout or query.size(2) != 1 or query.size(1) == key.size(1):
        given = {"dropout": dropout, "scaling": scaling, **settings}
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **given
        )
        return result
    rows = query.view(len(query), key.size(1), -1, query.size(-1))
    attended = scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, scale=scaling)
    return attended.flatten(1, 2).unsqueeze(1), None


def shared_prefix_attention(
    query: Tensor,
    start: tuple[Tensor, Tensor],
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
) -> Tensor:
    """(B, 1, H * G, D): of queries (B, H * G, 1, D) to a start (1, H, S, D), twice, and to what each row has behind it
    (B, H, T, D); `mask` (B, 1, 1, S + T), added or a choice. Scores are float32, as a fused kernel has them.
    """
    batch, heads, length = len(query), key.size(1), start[0].size(2)
    scaling = query.size(-1) ** -0.5 if scaling is None else scaling
    rows = query.view(batch, heads, -1, query.size(-1)).float() * scaling
    groups = rows.size(2)
    table = rows.transpose(0, 1).flatten(1, 2)  # (H, B * G, D)
    before = (
        (table @ start[0][0].float().transpose(-1, -2)).view(heads, batch, groups, length).transpose(0, 1)
    )
    behind = rows @ key.float().transpose(-1, -2)  # (B, H, G, T)
    if mask is not None:
        own = mask[..., length:]
        behind = behind.masked_fill(~own, -torch.inf) if own.dtype == torch.bool else behind + own
    weights = torch.cat([before, behind], dim=-1).softmax(-1).to(value.dtype)
    to_start = weights[..., :length].transpose(0, 1).reshape(heads, batch * groups, length)
    found = (to_start @ start[1][0]).view(heads, batch, groups, -1).transpose(0, 1)
    return (found + weights[..., length:] @ value).flatten(1, 2).unsqueeze(1)


def grouped_queries(model: Any) -> AbstractContextManager[None]:
    """Within, the model's new tokens attend so."""
    return attending(model, NAME, grouped_attention, sdpa_mask)
