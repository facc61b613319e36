"""Log-probabilities of options after prompts; what prompts have in common is computed once.

The token sequences of all requests and options form a tree (`prefix_tree`), of which each stretch goes
through the model once. Small trees, such as a conversation with both orders of its replies, are one row,
whose attention mask shows each token what is before it in its own sequence alone. Larger ones are cut into
stretches, each on top of the key-value cache of those before it. Rows of like length share a batch. The
output layer is applied where an option's token is read, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from cai_cli.compute.batches import BATCH_TOKENS, like_length, prefill_tokens, right_pad
from cai_cli.compute.prefix_tree import OptionTokens, Stretch, TreeRow, alone, grow, row_of
from cai_cli.compute.shortcuts import right_padding, shortcuts_of
from cai_cli.compute.tree_rows import ROW_TOKENS, ids_of, outputs_at, positions_of, tree_mask
from cai_cli.engines.base import OptionRequest
from cai_cli.engines.option_tokens import encode_options
from cai_cli.engines.trials import picks_outputs, shares_prefixes, takes_tree_masks
from cai_cli.models.chat import Renderer
from cai_cli.models.templates import UnfitRow


@dataclass(frozen=True, slots=True)
class Reading:
    """`place`: row and column of a token; `token`: what follows it in the sequence of number `member`."""

    place: tuple[int, int]
    token: int
    member: int


@dataclass(slots=True)
class Past:
    """The cache of a batch of stretches with all that came before them, and (B, T) which of its places hold
    tokens.
    """

    cache: DynamicCache
    mask: Tensor


class OptionScorer:
    def __init__(
        self,
        model: Any,
        renderer: Renderer,
        context: int,
        batch_size: int,
        share: bool = True,
        most_tokens: int = BATCH_TOKENS,
    ) -> None:
        self.model = model
        self.renderer = renderer
        self.pad = int(renderer.tokenizer.pad_token_id)
        self.context = context
        self.batch_size = batch_size
        self.most_tokens = min(prefill_tokens(model.device), most_tokens)
        self.under_way = (1, 1)  # rows of the pass, and tokens of each with what lies in front
        self.even = shortcuts_of(model).even if right_padding(model, masked=True) else 0
        self.share = share and self.even > 0 and shares_prefixes(model)
        self.row_tokens = ROW_TOKENS if self.share and takes_tree_masks(model) else 0
        self.picks = picks_outputs(model)

    @torch.inference_mode()
    def score(self, requests: list[OptionRequest]) -> list[list[float] | UnfitRow]:
        """The log-probability of each option of each request; or why it has none."""
        encoded = encode_options(self.renderer, self.context, requests)
        sequences = [
            sequence for options in encoded if not isinstance(options, UnfitRow) for sequence in options
        ]
        scores = iter(self.score_sequences(sequences))
        return [
            options if isinstance(options, UnfitRow) else [next(scores) for _ in options]
            for options in encoded
        ]

    def score_sequences(self, sequences: list[OptionTokens]) -> list[float]:
        totals = [0.0] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda n: sequences[n].ids)
        sharing = [n for n in order if self.share and len(sequences[n].ids) <= self.even]
        if sharing:
            self.run(grow(sequences, sharing), sequences, totals)
        if len(sharing) < len(order):
            self.run(alone(sequences, [n for n in order if n not in set(sharing)]), sequences, totals)
        return totals

    def run(
        self,
        stretches: list[Stretch],
        sequences: list[OptionTokens],
        totals: list[float],
        parents: list[int] | None = None,
        past: Past | None = None,
    ) -> None:
        """Send stretches through the model on top of their parents' cache, then what follows on each of them.

        The options 5 and 6 7 after the prompt 1 2 3 4, where sharing pays:

            tree        1 2 3 4 (both; the first one ends here, since its 5 is never fed) -> 6 (the second one)
            one row     ids 1 2 3 4 6   positions 0 1 2 3 4   each token sees what is left of it
            readings    at the 4: the 5 of the first, the 6 of the second;  at the 6: the 7 of the second

        1. Rows: a stretch with all that follows on it, or alone where that is too long for one row.
        2. Rows of like length share a pass, each on top of a copy of its parent's cache.
        3. What follows on the stretches that were cut goes on from the cache of this pass.
        """
        rows = [row_of(stretch, self.row_tokens) for stretch in stretches]
        width = 0 if past is None else past.mask.size(1)
        whole = [n for n, row in enumerate(rows) if not row.children]
        # Apart: their cache is kept, and better not padded to long rows
        cut = [n for n, row in enumerate(rows) if row.children]
        for numbers in (whole, cut):
            for places in like_length(
                [rows[n].length for n in numbers], self.batch_size, width, self.most_tokens, self.even
            ):
                batch = [numbers[place] for place in places]
                self.under_way = len(batch), width + max(rows[n].length for n in batch)
                before = (
                    None if past is None or parents is None else select(past, [parents[n] for n in batch])
                )
                after = self.forward([rows[n] for n in batch], sequences, totals, before)
                children = [(place, child) for place, n in enumerate(batch) for child in rows[n].children]
                if children:
                    self.run(
                        [child for _, child in children],
                        sequences,
                        totals,
                        [place for place, _ in children],
                        after,
                    )

    def forward(
        self, rows: list[TreeRow], sequences: list[OptionTokens], totals: list[float], past: Past | None
    ) -> Past | None:
        """One pass over a batch of rows: adds to `totals` what they tell and returns their cache, if it is
        needed.
        """
        ids, mask = right_pad([ids_of(row, sequences) for row in rows], self.pad, self.model.device)
        positions, _ = right_pad([positions_of(row) for row in rows], 0, self.model.device)
        whole = mask if past is None else torch.cat([past.mask, mask], dim=-1)
        kept = any(row.children for row in rows)
        cache = past.cache if past else DynamicCache(config=self.model.config) if kept else None
        readings = [reading for n, row in enumerate(rows) for reading in readings_of(n, row, sequences)]
        places = {place: n for n, place in enumerate(dict.fromkeys(reading.place for reading in readings))}
        with outputs_at(self.model, list(places) if self.picks else []):
            output = self.model(
                input_ids=ids,
                attention_mask=whole
                if all(len(row.pieces) == 1 for row in rows)
                else tree_mask(rows, whole, self.model.dtype),
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=0 if places else 1,
            )
        if readings:
            # logits: one row for each place that is read, whether the model was asked for those alone or for all;
            # several options may be read at one place.
            taken = [places[reading.place] for reading in readings]
            logits = output.logits[0] if self.picks else output.logits[tuple(torch.tensor(list(places)).T)]
            logprobs = torch.log_softmax(logits.float(), dim=-1)[
                taken, [reading.token for reading in readings]
            ]
            for reading, logprob in zip(readings, logprobs.tolist(), strict=True):
                totals[reading.member] += logprob
        return Past(output.past_key_values, whole) if kept else None


def readings_of(n: int, row: TreeRow, sequences: list[OptionTokens]) -> Iterator[Reading]:
    """Whose log-probability is read where in the n-th row of a batch."""
    for piece in row.pieces:
        stretch = piece.stretch
        for member in stretch.members:
            sequence = sequences[member]
            for place in range(max(stretch.begin, sequence.start - 1), stretch.end):
                yield Reading((n, piece.start + place - stretch.begin), sequence.ids[place + 1], member)


def select(past: Past, rows: list[int]) -> Past:
    """The cache of these rows, as a copy: others may go on from it too."""
    index = torch.tensor(rows, device=past.mask.device)  # a row once for each child that goes on from it
    layers: list[Any] = past.cache.layers  # all of them DynamicLayer, see `trials.shares_prefixes`
    cache = DynamicCache([(layer.keys[index], layer.values[index]) for layer in layers])
    return Past(cache, past.mask[index])
