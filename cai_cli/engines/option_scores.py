"""Log-probabilities of options after prompts; what prompts have in common is computed once.

The token sequences of all requests and options form a tree: few-shot examples at its root, a conversation on a branch,
the two orders of its replies and several principles on the twigs, and options of several tokens at the very end. Each
stretch of the tree goes through the model once, on top of the key-value cache of the stretches before it; stretches of
like length share a batch. Options that differ in one token only (the usual ` (A)` and ` (B)`) are read off the same logits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from cai_cli.engines.base import OptionRequest
from cai_cli.engines.batches import BATCH_TOKENS, CPU_PREFILL_TOKENS, left_pad, like_length
from cai_cli.models.chat import Renderer

LEAST_SAVING = 16  # Tokens. A shared stretch that saves fewer is not worth a pass of its own.


@dataclass(frozen=True, slots=True)
class Sequence:
    """A prompt with one of its options. Tokens from `start` on are scored; the last one is never fed to the model."""

    ids: list[int]
    start: int


@dataclass(slots=True)
class Stretch:
    """Tokens `begin` to `end` of all sequences that pass through here.

    `members`: the numbers of those sequences; `ends`: of those that end here.
    """

    begin: int
    end: int
    members: list[int]
    ends: list[int]
    children: list[Stretch] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.end - self.begin


@dataclass(slots=True)
class Past:
    """The cache of a batch of stretches with all that came before them, and (B, T) which of its places hold tokens."""

    cache: DynamicCache
    mask: torch.Tensor


class OptionScorer:
    def __init__(self, model: Any, renderer: Renderer, context: int, batch_size: int, share: bool = True) -> None:
        self.model = model
        self.renderer = renderer
        self.pad = int(renderer.tokenizer.pad_token_id)
        self.context = context
        self.batch_size = batch_size
        self.most_tokens = CPU_PREFILL_TOKENS if model.device.type == "cpu" else BATCH_TOKENS
        self.share = share and shares_prefixes(model)

    @torch.inference_mode()
    def score(self, requests: list[OptionRequest]) -> list[list[float] | None]:
        """The log-probability of each option of each request; None where one does not fit the context."""
        encoded = self.encode(requests)
        fits = [max(len(sequence.ids) for sequence in options) <= self.context for options in encoded]
        sequences = [sequence for options, fit in zip(encoded, fits, strict=True) if fit for sequence in options]
        scores = iter(self.score_sequences(sequences))
        return [[next(scores) for _ in options] if fit else None for options, fit in zip(encoded, fits, strict=True)]

    def encode(self, requests: list[OptionRequest]) -> list[list[Sequence]]:
        """Prompts and options encoded together. What is scored starts where any option leaves the prompt's own tokens."""
        encoded = self.renderer.encode_all([(request.prompt, ["", *request.options]) for request in requests])
        starts = [shared_length(rows) for rows in encoded]
        return [[Sequence(row, start) for row in rows[1:]] for rows, start in zip(encoded, starts, strict=True)]

    def score_sequences(self, sequences: list[Sequence]) -> list[float]:
        totals = [0.0] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda n: sequences[n].ids)
        self.run(grow(sequences, order, 0) if self.share else alone(sequences, order), sequences, totals)
        return totals

    def run(
        self,
        stretches: list[Stretch],
        sequences: list[Sequence],
        totals: list[float],
        parents: list[int] | None = None,
        past: Past | None = None,
    ) -> None:
        """Send stretches through the model on top of their parents' cache, then what follows on each of them."""
        width = 0 if past is None else past.mask.size(1)
        for batch in like_length([stretch.length for stretch in stretches], self.batch_size, width, self.most_tokens):
            rows = [stretches[n] for n in batch]
            before = None if past is None or parents is None else select(past, [parents[n] for n in batch])
            after = self.forward(rows, sequences, totals, before)
            children = [(n, child) for n, row in enumerate(rows) for child in row.children]
            if children:
                self.run([child for _, child in children], sequences, totals, [n for n, _ in children], after)

    def forward(self, rows: list[Stretch], sequences: list[Sequence], totals: list[float], past: Past | None) -> Past | None:
        """One pass over a batch of stretches: adds to `totals` what they tell and returns their cache, if it is needed."""
        ids, mask = left_pad([sequences[row.members[0]].ids[row.begin : row.end] for row in rows], self.pad, self.model.device)
        whole = mask if past is None else torch.cat([past.mask, mask], dim=-1)
        needed = past is not None or any(row.children for row in rows)
        cache = past.cache if past else DynamicCache(config=self.model.config) if needed else None
        readings = [(n, *reading) for n, row in enumerate(rows) for reading in readings_of(row, sequences)]
        keep = max((back for _, back, _, _ in readings), default=1)
        output = self.model(
            input_ids=ids,
            attention_mask=whole,
            position_ids=(whole.cumsum(-1) - 1).clamp(min=0)[:, -ids.size(1) :],
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=keep,
        )
        if readings:
            place = torch.tensor([(n, keep - back, token) for n, back, token, _ in readings], device=ids.device).unbind(-1)
            logprobs = torch.log_softmax(output.logits.float(), dim=-1)[place].tolist()
            for (_, _, _, member), logprob in zip(readings, logprobs, strict=True):
                totals[member] += logprob
        return Past(output.past_key_values, whole) if any(row.children for row in rows) else None


def shares_prefixes(model: Any) -> bool:
    """Whether each layer's cache is one of keys and values of all tokens.

    Sliding windows count padding between two stretches as tokens, and recurrent states cannot be taken up again midway.
    """
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def alone(sequences: list[Sequence], order: list[int]) -> list[Stretch]:
    """Every prompt for itself; `order` is that of the tokens. Options that differ in their last token only share theirs."""
    groups = [list(group) for _, group in groupby(order, key=lambda n: sequences[n].ids[:-1])]
    return [Stretch(0, fed(sequences[group[0]]), group, group) for group in groups]


def grow(sequences: list[Sequence], members: list[int], begin: int) -> list[Stretch]:
    """The trees of sequences that agree up to `begin` and go on from there; `members` are in the order of their tokens."""
    stretches = []
    for _, group in groupby(members, key=lambda n: sequences[n].ids[begin]):
        same = list(group)
        common = shared_length([sequences[same[0]].ids, sequences[same[-1]].ids])
        end = min(common, *(fed(sequences[n]) for n in same))
        ends = [n for n in same if fed(sequences[n]) == end]
        others = [n for n in same if fed(sequences[n]) > end]
        stretches += tidy(Stretch(begin, end, same, ends, grow(sequences, others, end)))
    return stretches


def tidy(stretch: Stretch) -> list[Stretch]:
    """The stretch, or where sharing it saves next to nothing, what follows on it with its tokens in front."""
    users = len(stretch.children) + bool(stretch.ends)
    if not stretch.children or stretch.length * (users - 1) >= LEAST_SAVING:
        return [stretch]
    apart = [Stretch(stretch.begin, stretch.end, stretch.ends, stretch.ends)] if stretch.ends else []
    for child in stretch.children:
        child.begin = stretch.begin
    return [*apart, *stretch.children]


def fed(sequence: Sequence) -> int:
    """How many tokens of a sequence the model reads: what follows the last one does not matter."""
    return len(sequence.ids) - 1


def readings_of(row: Stretch, sequences: list[Sequence]) -> Iterable[tuple[int, int, int]]:
    """(places back from the stretch's end, token, sequence): whose log-probability is read where."""
    for member in row.members:
        sequence = sequences[member]
        for place in range(max(row.begin, sequence.start - 1), row.end):
            yield row.end - place, sequence.ids[place + 1], member


def select(past: Past, rows: list[int]) -> Past:
    """The cache of these rows, as a copy: others may go on from it too."""
    index = torch.tensor(rows, device=past.mask.device)
    layers: list[Any] = past.cache.layers  # all of them DynamicLayer, see `shares_prefixes`
    cache = DynamicCache([(layer.keys[index], layer.values[index]) for layer in layers])
    return Past(cache, past.mask[index])


def shared_length(rows: list[list[int]]) -> int:
    """Number of leading ids that all rows have in common."""
    first, last = min(rows), max(rows)  # in sorted order, what these two share is common to all between
    length = min(len(first), len(last))
    if first[:length] == last[:length]:
        return length
    return next(n for n in range(length) if first[n] != last[n])
