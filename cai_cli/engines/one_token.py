"""Attention of one new token to what is in the cache, on a CPU: three calls for a layer where transformers' ways make a dozen.

Within `one_token_attention` a model's attention is computed so, where `can_use` saw that this gives the model's own logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

from cai_cli.models.packing import attention_of

NAME = "cai_one_token"
PLAIN = {"dropout", "is_causal", "position_ids", "sliding_window", "use_cache"}


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """query (B, H, 1, D), key and value (B, K, L, D) where K divides H, an additive mask (B, 1, 1, L) -> (B, 1, H, D)."""
    odd = [name for name, setting in settings.items() if setting is not None and name not in PLAIN]
    if odd or attention_mask is None or query.size(2) != 1:
        raise TypeError(f"attention with {', '.join(odd) or 'other rows'}")
    rows, heads, _, size = query.shape
    groups = key.size(1)
    q, k, v = query.reshape(rows * groups, -1, size), key.flatten(0, 1), value.flatten(0, 1)
    mask = attention_mask.expand(rows, groups, 1, -1).reshape(rows * groups, 1, -1)
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=size**-0.5 if scaling is None else scaling)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype)
    return torch.bmm(weights, v).view(rows, 1, heads, -1), None


@contextmanager
def one_token_attention(model: Any) -> Iterator[None]:
    """Within, the model's attention takes one token of each row."""
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    with attention_of(model, NAME):
        yield


@torch.inference_mode()
def can_use(model: Any) -> bool:
    """Whether the next token's logits after rows of different lengths are those of the model's own attention."""
    ids = torch.arange(8, device=model.device).view(2, 4) % model.get_input_embeddings().num_embeddings
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]], device=model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    found = []
    for attention in (nullcontext(), one_token_attention(model)):
        cache = DynamicCache(config=model.config)
        model(input_ids=ids[:, :3], attention_mask=mask[:, :3], position_ids=positions[:, :3], past_key_values=cache)
        try:
            with attention:
                last = {"attention_mask": mask, "position_ids": positions[:, 3:], "past_key_values": cache}
                found.append(model(input_ids=ids[:, 3:], **last).logits.float())
        except TypeError:
            return False
    theirs, ours = found
    close = 1e-3 if model.dtype == torch.float32 else 0.05
    return bool((theirs - ours).abs().max() <= close * theirs.abs().max())


def where_it_can(model: Any) -> AbstractContextManager[None]:
    """`one_token_attention` on a CPU for a model that can use it, which is found out once; nothing for others."""
    if not hasattr(model, "cai_one_token"):
        model.cai_one_token = model.device.type == "cpu" and can_use(model)
    return one_token_attention(model) if model.cai_one_token else nullcontext()
