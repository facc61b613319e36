"""Attention of the next token of each row, where several query heads share the keys of one head: without a copy of
all keys and values for each of them.

transformers' `sdpa` repeats them at every token in every layer where rows are padded, and so does torch's own
`enable_gqa` on a CPU. Here the queries that share a head stand as rows of one table before it. Four query heads, two
key heads, a row of six tokens: queries (1, 4, 1, D) are seen as (1, 2, 2, D); heads 0 and 1 are the two rows before
key head 0, heads 2 and 3 those before key head 1, keys stay (1, 2, 6, D), and the mask (1, 1, 1, 6) is that of
each row.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

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
    **settings: Any,
) -> tuple[Tensor, None]:
    """An attention function for transformers: query (B, H * G, 1, D), key and value (B, H, T, D) ->
    (B, 1, H * G, D). What it has no answer for is `sdpa`'s.
    """
    odd = [name for name, setting in settings.items() if setting is not None and name not in PLAIN]
    if odd or dropout or query.size(2) != 1 or query.size(1) == key.size(1):
        given = {"dropout": dropout, "scaling": scaling, **settings}
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **given
        )
        return result
    rows = query.view(len(query), key.size(1), -1, query.size(-1))
    attended = scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, scale=scaling)
    return attended.flatten(1, 2).unsqueeze(1), None


def grouped_queries(model: Any) -> AbstractContextManager[None]:
    """Within, the model's new tokens attend so."""
    return attending(model, NAME, grouped_attention, sdpa_mask)
