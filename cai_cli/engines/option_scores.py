"""Log-probabilities of options after prompts; what prompts have in common is computed once.

The token sequences of all requests and options form a tree (`prefix_tree`), of which each stretch goes through the model once.
Small trees, such as a conversation with both orders of its replies, are one row, whose attention mask shows each token what
is before it in its own sequence alone. Larger ones are cut into stretches, each on top of the key-value cache of those before
it. Rows of like length share a batch. The output layer is applied where an option's token is read, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from cai_cli.engines.base import OptionRequest
from cai_cli.engines.batches import like_length, prefill_tokens
from cai_cli.engines.prefix_tree import Row, Sequence, Stretch, alone, grow, row_of, shared_length
from cai_cli.models.chat import Renderer
from cai_cli.models.score import right_pad
from cai_cli.models.templates import UnfitRow

BRANCHES = (range(20, 26), range(26, 30), range(30, 33))  # Tokens to try an architecture with.
ROW_TOKENS = 256  # Largest tree in one row: attention's work grows with the square, and much of it is masked.


@dataclass(frozen=True, slots=True)
class Reading:
    """`place`: row and column of a token; `token`: what follows it in the sequence of number `member`."""

    place: tuple[int, int]
    token: int
    member: int


@dataclass(slots=True)
class Past:
    """The cache of a batch of stretches with all that came before them, and (B, T) which of its places hold tokens."""

    cache: DynamicCache
    mask: Tensor


class OptionScorer:
    def __init__(self, model: Any, renderer: Renderer, context: int, batch_size: int, share: bool = True) -> None:
        self.model = model
        self.renderer = renderer
        self.pad = int(renderer.tokenizer.pad_token_id)
        self.context = context
        self.batch_size = batch_size
        self.most_tokens = prefill_tokens(model.device)
        self.share = share and shares_prefixes(model)
        self.row_tokens = ROW_TOKENS if self.share and takes_tree_masks(model) else 0

    @torch.inference_mode()
    def score(self, requests: list[OptionRequest]) -> list[list[float] | UnfitRow]:
        """The log-probability of each option of each request; or why it has none."""
        encoded = self.encode(requests)
        sequences = [sequence for options in encoded if not isinstance(options, UnfitRow) for sequence in options]
        scores = iter(self.score_sequences(sequences))
        return [options if isinstance(options, UnfitRow) else [next(scores) for _ in options] for options in encoded]

    def encode(self, requests: list[OptionRequest]) -> list[list[Sequence] | UnfitRow]:
        """Prompts and options encoded together. What is scored starts where any option leaves the prompt's own tokens."""
        encoded: list[list[Sequence] | UnfitRow] = []
        for rows in self.renderer.encode_all([(request.prompt, ["", *request.options]) for request in requests]):
            if isinstance(rows, UnfitRow):
                encoded.append(rows)
            elif (longest := max(map(len, rows))) > self.context:
                encoded.append(UnfitRow("question_too_long", f"{longest} tokens, the context holds {self.context}"))
            else:
                start = shared_length(rows)
                encoded.append([Sequence(row, start) for row in rows[1:]])
        return encoded

    def score_sequences(self, sequences: list[Sequence]) -> list[float]:
        totals = [0.0] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda n: sequences[n].ids)
        self.run(grow(sequences, order) if self.share else alone(sequences, order), sequences, totals)
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
        rows = [row_of(stretch, self.row_tokens) for stretch in stretches]
        width = 0 if past is None else past.mask.size(1)
        whole = [n for n, row in enumerate(rows) if not row.children]
        cut = [n for n, row in enumerate(rows) if row.children]  # apart: their cache is kept, and better not padded to long rows
        for numbers in (whole, cut):
            for places in like_length([rows[n].length for n in numbers], self.batch_size, width, self.most_tokens):
                batch = [numbers[place] for place in places]
                before = None if past is None or parents is None else select(past, [parents[n] for n in batch])
                after = self.forward([rows[n] for n in batch], sequences, totals, before)
                children = [(place, child) for place, n in enumerate(batch) for child in rows[n].children]
                if children:
                    self.run([child for _, child in children], sequences, totals, [place for place, _ in children], after)

    def forward(self, rows: list[Row], sequences: list[Sequence], totals: list[float], past: Past | None) -> Past | None:
        """One pass over a batch of rows: adds to `totals` what they tell and returns their cache, if it is needed."""
        ids, mask = right_pad([ids_of(row, sequences) for row in rows], self.pad, self.model.device)
        positions, _ = right_pad([positions_of(row) for row in rows], 0, self.model.device)
        whole = mask if past is None else torch.cat([past.mask, mask], dim=-1)
        kept = any(row.children for row in rows)
        cache = past.cache if past else DynamicCache(config=self.model.config) if kept else None
        readings = [reading for n, row in enumerate(rows) for reading in readings_of(n, row, sequences)]
        places = {place: n for n, place in enumerate(dict.fromkeys(reading.place for reading in readings))}
        with outputs_at(self.model, list(places)):
            output = self.model(
                input_ids=ids,
                attention_mask=whole if all(len(row.pieces) == 1 for row in rows) else tree_mask(rows, whole, self.model.dtype),
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=0 if places else 1,
            )
        if readings:
            taken = [places[reading.place] for reading in readings]
            logprobs = torch.log_softmax(output.logits[0].float(), dim=-1)[taken, [reading.token for reading in readings]]
            for reading, logprob in zip(readings, logprobs.tolist(), strict=True):
                totals[reading.member] += logprob
        return Past(output.past_key_values, whole) if kept else None


def shares_prefixes(model: Any) -> bool:
    """Whether prompts can go on from a cache that holds their common start and padding after it; found out once.

    Each layer's cache must be one of keys and values of all tokens: sliding windows count padding as tokens, and recurrent
    states cannot be taken up again midway. And positions must come from `position_ids` or the mask, not from the place in the
    cache.
    """
    if not hasattr(model, "cai_shares_prefixes"):
        plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
        model.cai_shares_prefixes = plain and branches_match(model, 1)
    return bool(model.cai_shares_prefixes)


def takes_tree_masks(model: Any) -> bool:
    """Whether a token behind another branch of its tree gets the output that it has in its own sequence; found out once."""
    if not hasattr(model, "cai_takes_tree_masks"):
        model.cai_takes_tree_masks = branches_match(model, 2)
    return bool(model.cai_takes_tree_masks)


@torch.inference_mode()
def branches_match(model: Any, count: int) -> bool:
    """Six tokens that one branch or two follow: as a row behind a cache of two tokens and padding, and as whole sequences."""
    stem, *branches = ([n % model.get_input_embeddings().num_embeddings for n in ids] for ids in BRANCHES)
    sequences = [Sequence([*stem, *branch, 0], 0) for branch in branches[:count]]
    ends = [Stretch(len(stem), sequence.fed, [n], [n]) for n, sequence in enumerate(sequences)]
    row = row_of(Stretch(2, len(stem), list(range(count)), [], ends), ROW_TOKENS)

    def logits(tokens: list[int], **more: Any) -> Any:
        return model(input_ids=torch.tensor([tokens], device=model.device), **more).logits[0].float()

    cache = DynamicCache(config=model.config)
    whole = torch.tensor([[1, 1, 0] + [1] * row.length], device=model.device)
    mask = whole if count == 1 else tree_mask([row], whole, model.dtype)
    positions = torch.tensor([[0, 1, 1, *positions_of(row)]], device=model.device)
    try:
        logits([*stem[:2], 0], attention_mask=whole[:, :3], position_ids=positions[:, :3], past_key_values=cache, use_cache=True)
        got = logits(
            ids_of(row, sequences), attention_mask=mask, position_ids=positions[:, 3:], past_key_values=cache, use_cache=True
        )
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # an architecture that reads masks its own way
        return False
    whole_rows = [logits(sequence.ids[:-1], use_cache=False) for sequence in sequences]
    wanted = torch.cat([whole_rows[0][2:], *(states[len(stem) :] for states in whole_rows[1:])])
    exact = model.dtype == torch.float32 and not torch.is_autocast_enabled(model.device.type)
    close = 1e-3 if exact else 0.05
    return bool((got - wanted).abs().max() <= close * wanted.abs().max())


def ids_of(row: Row, sequences: list[Sequence]) -> list[int]:
    stretches = [piece.stretch for piece in row.pieces]
    return [token for stretch in stretches for token in sequences[stretch.members[0]].ids[stretch.begin : stretch.end]]


def positions_of(row: Row) -> list[int]:
    """The place of each token in its own sequence."""
    return [place for piece in row.pieces for place in range(piece.stretch.begin, piece.stretch.end)]


def tree_mask(rows: list[Row], whole: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, T, W+T), to be added to attention's logits: a token sees its own sequence up to itself.

    `whole` (B, W+T): which places of the W in the cache and of the rows hold tokens.
    """
    width = max(row.length for row in rows)
    sees = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(rows), 1, 1)
    table = sees.numpy()
    for n, row in enumerate(rows):
        for piece in row.pieces:  # hidden from what comes after all that follows on it
            table[n, piece.stop :, piece.start : piece.start + piece.stretch.length] = False
    before = whole[:, None, : whole.size(1) - width].bool().expand(-1, width, -1)
    seen = torch.cat([before, sees.to(whole.device)], dim=-1).unsqueeze(1)
    return torch.zeros(seen.shape, dtype=dtype, device=whole.device).masked_fill_(~seen, torch.finfo(dtype).min)


def readings_of(n: int, row: Row, sequences: list[Sequence]) -> Iterator[Reading]:
    """Whose log-probability is read where in the n-th row of a batch."""
    for piece in row.pieces:
        stretch = piece.stretch
        for member in stretch.members:
            sequence = sequences[member]
            for place in range(max(stretch.begin, sequence.start - 1), stretch.end):
                yield Reading((n, piece.start + place - stretch.begin), sequence.ids[place + 1], member)


@contextmanager
def outputs_at(model: Any, places: list[tuple[int, int]]) -> Iterator[None]:
    """Within, the model's output layer gets the hidden states of these (row, column) alone, and logits are (1, N, V).

    What an architecture does to logits after that layer (scaling, capping) stays as it is.
    """
    if not places:
        yield
        return
    rows, columns = torch.tensor(places, device=model.device).unbind(-1)
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: (given[0][rows, columns].unsqueeze(0),))
    try:
        yield
    finally:
        hook.remove()


def select(past: Past, rows: list[int]) -> Past:
    """The cache of these rows, as a copy: others may go on from it too."""
    index = torch.tensor(rows, device=past.mask.device)
    layers: list[Any] = past.cache.layers  # all of them DynamicLayer, see `shares_prefixes`
    cache = DynamicCache([(layer.keys[index], layer.values[index]) for layer in layers])
    return Past(cache, past.mask[index])
