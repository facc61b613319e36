"""What an architecture is tried with before a shortcut is used: rows together, shared starts, trees, logits
at a few places.

Each is found out once for a model, with random tokens: the numbers must be those of each row alone in one
pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from cai_cli.compute.batches import left_pad
from cai_cli.compute.grouped_attention import grouped_queries
from cai_cli.compute.prefix_tree import OptionTokens, Stretch, row_of
from cai_cli.compute.shortcuts import TRIAL, at_rest, difference, says_cannot, shortcuts_of, trial_rows
from cai_cli.compute.tree_rows import ROW_TOKENS, ids_of, outputs_at, positions_of, tree_mask
from cai_cli.engines.base import Request
from cai_cli.engines.decoding import KeyedDecoding
from cai_cli.engines.prefill import prefill
from cai_cli.errors import RunError, first_line

NEW_TOKENS = (2, 6, 4)  # That rows end at different steps: those that have ended leave the batch.


def even_length(model: Any) -> int:
    """Up to how many tokens rows of other lengths may be continued in one batch, padded on the left; 0 where
    not at all.
    """
    found = shortcuts_of(model)
    instead = "only prompts of one length share a pass"

    def reason() -> str:
        return difference(model, lambda: continued(model, [found.trial, found.trial - 15, 6]))

    return found.even if found.allows("left padding", reason, instead) else 0


def takes_batches(model: Any) -> bool:
    """Whether rows of one length may be continued in one batch, with our cache; tells a user where not even
    one row may.
    """

    def reason() -> str:
        found = difference(model, lambda: continued(model, [12, 12, 12]))
        if found:
            check_alone(model)
        return found

    return shortcuts_of(model).allows("a pass over several rows", reason, "rows go through one by one")


def check_alone(model: Any) -> None:
    """Raise RunError where not even one row can be continued."""
    with at_rest(model):
        try:
            continued(model, [12], room=False)
        except Exception as error:
            if not says_cannot(error):
                raise
            told = f"{type(model).__name__} cannot be sampled from: {first_line(error)}"
            raise RunError(told, "take another architecture") from None


def shares_prefixes(model: Any) -> bool:
    """Whether prompts can go on from a cache that holds their common start and padding after it.

    Each layer's cache must be one of keys and values of all tokens: sliding windows count padding as tokens,
    and recurrent states cannot be taken up again midway. And positions must come from `position_ids` or the
    mask, not from the place in the cache.
    """

    def reason() -> str:
        kinds = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers} - {
            DynamicLayer.__name__
        }
        if kinds:
            return f"a cache of {', '.join(sorted(kinds))}"
        branched = difference(model, lambda: branches(model, 1))
        return branched or difference(
            model, lambda: continued(model, [TRIAL, TRIAL - 15, TRIAL - 9], shared=16)
        )

    return shortcuts_of(model).allows("shared starts", reason)


def takes_tree_masks(model: Any) -> bool:
    """Whether a token behind another branch of its tree gets the output that it has in its own sequence."""
    return shortcuts_of(model).allows("trees", lambda: difference(model, lambda: branches(model, 2)))


def other_attention(model: Any) -> str:
    """Why `grouped_queries` has nothing to stand in for; empty where it has."""
    attention = model.config._attn_implementation
    return "" if attention == "sdpa" else f"attention is {attention}"


def groups_queries(model: Any) -> bool:
    """Whether new tokens attend without copies of keys for each query head (see `grouped_attention`)."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if getattr(config, "num_key_value_heads", None) in (None, heads):
        return False  # each query head has keys of its own

    def reason() -> str:
        if other := other_attention(model):
            return other
        longest = shortcuts_of(model).trial
        lengths = [longest, longest - 15, 6] if even_length(model) else [12, 12, 12]
        with grouped_queries(model):
            return difference(model, lambda: continued(model, lengths))

    return shortcuts_of(model).allows("grouped-query attention", reason)


def keeps_starts(model: Any) -> bool:
    """Whether a start that all rows share can be kept once for all of them, inside `grouped_queries`."""

    def reason() -> str:
        if other := other_attention(model):
            return other
        if not shares_prefixes(model):
            return "no shared starts"
        lengths = [TRIAL, TRIAL - 15, TRIAL - 9]
        with grouped_queries(model):
            return difference(model, lambda: continued(model, lengths, shared=16, once=True))

    return shortcuts_of(model).allows("shared-prefix attention", reason)


def picks_outputs(model: Any) -> bool:
    """Whether the output layer can be given the states of a few places alone."""

    def attempt() -> tuple[Tensor, Tensor]:
        ids = torch.tensor(trial_rows(model, [9, 9]), device=model.device)
        with outputs_at(model, [(0, 3), (1, 0), (1, 8)]):
            got = model(input_ids=ids, use_cache=False).logits[0]
        return got, model(input_ids=ids, use_cache=False).logits[[0, 1, 1], [3, 0, 8]]

    return shortcuts_of(model).allows("outputs at a few places", lambda: difference(model, attempt))


def continued(
    model: Any, lengths: list[int], shared: int = 0, room: bool = True, once: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens that are drawn after rows of these lengths, in one batch; and as of
    each row alone.
    """
    least = shortcuts_of(model).even - max(NEW_TOKENS)
    rows = trial_rows(model, [max(1, min(length, least)) for length in lengths], shared)
    requests = [Request("", n, new) for n, new in zip(range(len(rows)), NEW_TOKENS, strict=False)]
    # Looked at after each token, so that rows leave within the few that are drawn
    decoding = KeyedDecoding(requests, None, [], 1.0, model.device, room, every=1)
    if shared:
        inputs = prefill(model, rows, 0, decoding.longest, once)
    else:
        inputs = dict(zip(("input_ids", "attention_mask"), left_pad(rows, 0, model.device), strict=True))
    model.generate(**inputs, max_new_tokens=decoding.longest, do_sample=False, custom_generate=decoding)
    wanted = []
    for row, tokens in zip(rows, decoding.tokens, strict=True):
        logits = model(input_ids=torch.tensor([row + tokens], device=model.device), use_cache=False).logits[0]
        places = torch.arange(len(row) - 1, len(row) + len(tokens) - 1, device=model.device)
        wanted.append(
            torch.log_softmax(logits[places].float(), dim=-1)[torch.arange(len(tokens)), torch.tensor(tokens)]
        )
    return torch.tensor([logprob for found in decoding.logprobs for logprob in found]), torch.cat(
        wanted
    ).cpu()


def branches(model: Any, count: int) -> tuple[Tensor, Tensor]:
    """Logits of a stem that one branch or two follow: as a row behind a cache of some tokens and padding, and
    as sequences.
    """
    [tokens] = trial_rows(model, [TRIAL])
    cached, padding = 6, 3
    stem, *ends = tokens[:18], tokens[18:32], tokens[32:]
    sequences = [OptionTokens([*stem, *end, 0], 0) for end in ends[:count]]
    pieces = [Stretch(len(stem), sequence.fed, [n], [n]) for n, sequence in enumerate(sequences)]
    row = row_of(Stretch(cached, len(stem), list(range(count)), [], pieces), ROW_TOKENS)

    def logits(tokens: list[int], **more: Any) -> Tensor:
        found: Tensor = model(input_ids=torch.tensor([tokens], device=model.device), **more).logits[0].float()
        return found

    cache = DynamicCache(config=model.config)
    whole = torch.tensor([[1] * cached + [0] * padding + [1] * row.length], device=model.device)
    mask = whole if count == 1 else tree_mask([row], whole, model.dtype)
    positions = torch.tensor(
        [[*range(cached), *[cached - 1] * padding, *positions_of(row)]], device=model.device
    )
    width = cached + padding
    begun = {
        "attention_mask": whole[:, :width],
        "position_ids": positions[:, :width],
        "past_key_values": cache,
    }
    logits([*stem[:cached], *[0] * padding], **begun, use_cache=True)
    goes_on = {"attention_mask": mask, "position_ids": positions[:, width:], "past_key_values": cache}
    got = logits(ids_of(row, sequences), **goes_on, use_cache=True)
    alone = [logits(sequence.ids[:-1], use_cache=False) for sequence in sequences]
    return got, torch.cat([alone[0][cached:], *(states[len(stem) :] for states in alone[1:])])
