"""A batch of prompts, all but the last token of each, put into the cache that decoding goes on from; what they start
with alike goes through the model once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from cai_cli.compute.batches import BATCH_TOKENS, left_pad, like_length, prefill_tokens, right_pad
from cai_cli.compute.packed_rows import fill_packed, packed_rows
from cai_cli.compute.prefix_tree import LEAST_SAVING, shared_length
from cai_cli.compute.shortcuts import shortcuts_of
from cai_cli.engines.caches import make_room


def prefill(
    model: Any,
    prompts: list[list[int]],
    pad: int,
    new_tokens: int,
    once: bool = False,
    most_tokens: int = BATCH_TOKENS,
) -> dict[str, Any]:
    """What `generate` takes for a batch of prompts whose tokens but the last have been through the model, in
    passes of like length.

    For models that `shares_prefixes` allows. Where rows are packed, what any prompts of a pass start with
    alike goes through the model once. Else what all prompts start with does, and stands in the cache in front
    of the padding, since keys and values do not depend on where in it they lie; `once`: one time for all rows, for
    models that `keeps_starts` allows. `most_tokens`: of a pass.
    """
    packs = shortcuts_of(model).packs and not once
    shared = 0 if packs else shared_start(prompts)
    # A row of the cache: [what all share | padding | its rest but for the last token | room for new tokens]
    ids, mask = left_pad([prompt[shared:] for prompt in prompts], pad, model.device)
    start = torch.tensor([prompts[0][:shared]], dtype=ids.dtype, device=model.device)
    before = 0 if once else shared  # of it in the memory of each row
    end = before + ids.size(1) - 1  # the last token of each prompt is fed by `generate`, for the first draw
    cache = make_room(DynamicCache(config=model.config), end + 1 + new_tokens)
    common: Any = DynamicCache(config=model.config)
    if shared:
        model(input_ids=start, past_key_values=common, use_cache=True, logits_to_keep=1)
        for layer, part in zip(cache.layers, common.layers, strict=True):
            if once:
                layer.start = part.keys, part.values
            else:
                layer.write(slice(None), 0, part.keys, part.values, len(prompts))
    rests = [prompt[shared:-1] for prompt in prompts]
    filled = [n for n, rest in enumerate(rests) if rest]
    lengths = [len(rests[n]) for n in filled]
    most_tokens = min(most_tokens, prefill_tokens(model.device))
    for places in like_length(lengths, len(prompts), shared, most_tokens):
        rows = [filled[place] for place in places]
        some = [rests[n] for n in rows]
        passed = packed_pass_over(model, some, pad) if packs else pass_over(model, some, pad, common, shared)
        for layer, (keys, values) in zip(cache.layers, passed, strict=True):
            # Flush right, as left padding wants it
            layer.write(rows, end - keys.size(-2), keys, values, len(prompts))
    for layer in cache.layers:
        layer.show(end)
    return {
        "input_ids": torch.cat([start.expand(len(prompts), -1), ids], dim=-1),
        "attention_mask": torch.cat([mask.new_ones(len(prompts), shared), mask], dim=-1),
        "past_key_values": cache,
    }


def shared_start(prompts: list[list[int]]) -> int:
    """How many tokens all prompts start with alike, short of any last one; 0 where sharing saves next to
    nothing.
    """
    shared = min(shared_length(prompts), min(map(len, prompts)) - 1)
    return shared if shared * (len(prompts) - 1) >= LEAST_SAVING else 0


def packed_pass_over(model: Any, rows: list[list[int]], pad: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each layer, keys and values (B, H, T, D) of rows that end at the same place; in front of a row,
    those of any token.
    """
    ids, mask = right_pad(rows, pad, model.device)
    known: Any = DynamicCache(config=model.config)
    with packed_rows(model):
        tokens = fill_packed(model, ids, mask.sum(-1), known)
    columns = torch.arange(ids.size(1), device=model.device) - (ids.size(1) - mask.sum(-1)).unsqueeze(-1)
    places = tokens.gather(1, columns.clamp(min=0)).flatten()
    for part in known.layers:
        keys, values = (
            states.squeeze(0).index_select(1, places).unflatten(1, ids.shape).transpose(0, 1)
            for states in (part.keys, part.values)
        )
        yield keys, values


def pass_over(
    model: Any, rows: list[list[int]], pad: int, common: Any, shared: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same of rows (left-padded) that stand behind the `shared` tokens in `common`."""
    ids, mask = left_pad(rows, pad, model.device)
    whole = torch.cat([mask.new_ones(len(rows), shared), mask], dim=-1)
    past: Any = DynamicCache(config=model.config)
    if shared:
        past = DynamicCache(
            [
                tuple(s.expand(len(rows), -1, -1, -1) for s in (part.keys, part.values))
                for part in common.layers
            ]
        )
    position_ids = (whole.cumsum(-1) - 1).clamp(min=0)[:, shared:]
    model(
        input_ids=ids,
        attention_mask=whole,
        position_ids=position_ids,
        past_key_values=past,
        use_cache=True,
        logits_to_keep=1,
    )
    for part in past.layers:
        yield part.keys[:, :, shared:], part.values[:, :, shared:]
