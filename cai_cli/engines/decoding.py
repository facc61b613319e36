"""The decoding loop of a batch: keyed draws, rows that have ended leave the batch, the cache is allocated
once.

transformers' own loop computes every row until the last one has ended and copies all keys and values at every
token. This one takes its place through `generate(custom_generate=...)`, so that preparing positions, masks
and caches for each architecture stays with transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from cai_cli.compute.batches import left_pad, like_length, prefill_tokens, right_pad
from cai_cli.compute.packed_rows import fill_packed, packed_rows
from cai_cli.compute.prefix_tree import LEAST_SAVING, shared_length
from cai_cli.compute.shortcuts import shortcuts_of
from cai_cli.engines.base import Request
from cai_cli.engines.sampling import inverse_cdf, uniforms

FULL = 15 / 16  # Ended rows are dropped once fewer than this share of a batch goes on.
# After how many tokens what was drawn is looked at. A GPU would wait for each look; rows that have ended meanwhile
# draw on in vain.
LOOK_EVERY = {"cpu": 1}
ELSEWHERE = 8


class PreallocatedLayer(DynamicLayer):
    """Keys and values (B, H, T, D) of a layer in memory for `room` tokens: new ones are written, and the
    others stay.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.memory: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        begin = self.get_seq_length()
        self.write(slice(None), begin, key_states, value_states, len(key_states))
        self.show(begin + key_states.size(-2))
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def write(self, rows: Any, begin: int, keys: Tensor, values: Tensor, count: int) -> None:
        """Keys and values of some of the `count` rows, from the token `begin` on; what nobody writes is zero."""
        if not self.memory:
            self.lazy_initialization(keys, values)
            shapes = ((count, states.size(1), self.room, states.size(3)) for states in (keys, values))
            self.memory = [keys.new_zeros(shape) for shape in shapes]
        for memory, states in zip(self.memory, (keys, values), strict=True):
            memory[rows, :, begin : begin + states.size(-2)] = states

    def show(self, end: int) -> None:
        """From here on this layer holds the tokens before `end`."""
        if self.memory:
            self.keys, self.values = (memory[:, :, :end] for memory in self.memory)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows of the batch, each once. Only those are copied that change their place."""
        count, end = len(beam_idx), self.get_seq_length()
        # Rows from behind fill the gaps of those that ended (`kept_places`): none is read after it was written.
        moved = (beam_idx != torch.arange(count, device=beam_idx.device)).nonzero().squeeze(-1)
        for memory in self.memory:
            memory[moved, :, :end] = memory[beam_idx[moved], :, :end]
        self.memory = [memory[:count] for memory in self.memory]
        self.show(end)


def allocates_once(model: Any) -> bool:
    """Whether caches of ours are used: nothing is computed differently, so there is nothing to try."""
    return shortcuts_of(model).allows("caches allocated once", lambda: "")


def make_room(cache: Any, room: int) -> Any:
    """Give the layers of a fresh cache that keep all tokens memory for `room` of them; others stay as they
    are.
    """
    if isinstance(cache, DynamicCache):
        cache.layers = [
            PreallocatedLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers
        ]
    return cache


def prefill(model: Any, prompts: list[list[int]], pad: int, new_tokens: int) -> dict[str, Any]:
    """What `generate` takes for a batch of prompts whose tokens but the last have been through the model, in
    passes of like length.

    For models that `shares_prefixes` allows. Where rows are packed, what any prompts of a pass start with
    alike goes through the model once. Else what all prompts start with does, and stands in the cache in front
    of the padding, since keys and values do not depend on where in it they lie.
    """
    packs = shortcuts_of(model).packs
    shared = 0 if packs else shared_start(prompts)
    # A row of the cache: [what all share | padding | its rest but for the last token | room for new tokens]
    ids, mask = left_pad([prompt[shared:] for prompt in prompts], pad, model.device)
    start = torch.tensor([prompts[0][:shared]], dtype=ids.dtype, device=model.device)
    end = shared + ids.size(1) - 1  # the last token of each prompt is fed by `generate`, for the first draw
    cache = make_room(DynamicCache(config=model.config), end + 1 + new_tokens)
    common: Any = DynamicCache(config=model.config)
    if shared:
        model(input_ids=start, past_key_values=common, use_cache=True, logits_to_keep=1)
        for layer, part in zip(cache.layers, common.layers, strict=True):
            layer.write(slice(None), 0, part.keys, part.values, len(prompts))
    rests = [prompt[shared:-1] for prompt in prompts]
    filled = [n for n, rest in enumerate(rests) if rest]
    lengths = [len(rests[n]) for n in filled]
    for places in like_length(lengths, len(prompts), shared, prefill_tokens(model.device)):
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


class KeyedDecoding:
    """Continues each prompt of a batch until a stop token, a stop string or its length limit.

    Called by `generate` with the prompts' ids (B, T) and what it prepared. `tokens`, `logprobs`: what was
    drawn for each row, the stop token included, and its log-probabilities under the sampling temperature.
    `room`: whether a fresh cache gets our layers. `told(count)` hears of rows as they end.
    """

    def __init__(
        self,
        requests: list[Request],
        tokenizer: Any,
        stop_ids: list[int],
        temperature: float,
        device: Any,
        room: bool = True,
        told: Callable[[int], None] | None = None,
    ) -> None:
        self.requests = requests
        self.tokenizer = tokenizer
        self.stop_ids = set(stop_ids)
        self.temperature = temperature
        self.room = room
        self.told = told or (lambda ended: None)
        self.longest = max(request.max_new_tokens for request in requests)
        self.uniforms = uniforms([request.key for request in requests], self.longest, device)
        # A stop string of n characters spans at most n tokens plus one that starts before it.
        self.window = max((len(stop) for request in requests for stop in request.stop), default=0) + 1
        self.last = {stop[-1] for request in requests for stop in request.stop}
        self.endings: dict[int, bool] = {}
        self.tokens: list[list[int]] = [[] for _ in requests]
        self.logprobs: list[list[float]] = [[] for _ in requests]

    def __call__(self, model: Any, input_ids: Tensor, **inputs: Any) -> Tensor:
        for name in (
            "logits_processor",
            "stopping_criteria",
            "generation_config",
            "synced_gpus",
            "streamer",
            "assistant_model",
        ):
            inputs.pop(name, None)  # of the loop that this one replaces
        past = inputs.get("past_key_values")
        computed = 0 if past is None else past.get_seq_length()
        if self.room and not computed:
            make_room(past, input_ids.size(1) + self.longest)
        rows, going = (
            torch.arange(len(self.requests), device=input_ids.device),
            list(range(len(self.requests))),
        )
        cached = 1 if inputs.get("use_cache", True) else None
        length: int | None = input_ids.size(1) - computed
        ids, first = input_ids, True
        every, drawn = LOOK_EVERY.get(input_ids.device.type, ELSEWHERE), []
        for step in range(self.longest):
            prepared = model.prepare_inputs_for_generation(
                ids, next_sequence_length=length, is_first_iteration=first, **inputs
            )
            output = model(**prepared, return_dict=True)
            inputs = model._update_model_kwargs_for_generation(output, inputs)
            token, logprob = inverse_cdf(
                output.logits[:, -1].float(), self.uniforms[rows, step], self.temperature
            )
            drawn.append((token, logprob))
            looked = len(drawn) == every or step == self.longest - 1
            if looked:
                going, drawn = self.look(rows.tolist(), going, drawn), []
            if not going:
                break
            # An architecture may have begun another cache; one of its own kind may hold what `reorder_cache`
            # leaves alone.
            past = inputs.get("past_key_values")
            # Without attention layers it has no length
            cache = inputs.get("cache_params") if past is None else past
            if looked and type(cache) is DynamicCache and len(going) <= FULL * len(rows):
                kept = torch.tensor(kept_places(going), device=rows.device)
                cache.reorder_cache(kept)  # type: ignore[arg-type]
                rows, ids, token, going = rows[kept], ids[kept], token[kept], list(range(len(going)))
                inputs = {name: self.select(value, kept) for name, value in inputs.items()}
            ids, length, first = torch.cat([ids, token.unsqueeze(-1)], dim=-1), cached, False
        return input_ids

    def look(self, rows: list[int], going: list[int], drawn: list[tuple[Tensor, Tensor]]) -> list[int]:
        """Take what a few steps have drawn, of each (token, log-probability) for the rows; returns the places of
        those that still go on.
        """
        before = len(going)
        steps = zip(*(torch.stack(column).tolist() for column in zip(*drawn, strict=True)), strict=True)
        for tokens, logprobs in steps:
            going = self.take(rows, going, tokens, logprobs)
        if len(going) < before:
            self.told(before - len(going))
        return going

    def take(self, rows: list[int], going: list[int], tokens: list[int], logprobs: list[float]) -> list[int]:
        """Add what was drawn to the rows that go on; returns the places of those that still do."""
        still = []
        for place in going:
            row = rows[place]
            self.tokens[row].append(tokens[place])
            self.logprobs[row].append(logprobs[place])
            if (
                tokens[place] not in self.stop_ids
                and len(self.tokens[row]) < self.requests[row].max_new_tokens
            ):
                still.append(place)
        checked = [
            place for place in still if self.requests[rows[place]].stop and self.may_end(tokens[place])
        ]
        if not checked:
            return still
        tails = self.tokenizer.batch_decode(
            [self.tokens[rows[n]][-self.window :] for n in checked], skip_special_tokens=True
        )
        ended = {
            n
            for n, tail in zip(checked, tails, strict=True)
            if any(stop in tail for stop in self.requests[rows[n]].stop)
        }
        return [place for place in still if place not in ended]

    def may_end(self, token: int) -> bool:
        """Whether a stop string may end with this token: it has the last character of one, or a part of a
        character.

        White space at a token's edge is not seen when it is decoded alone.
        """
        if token not in self.endings:
            text = self.tokenizer.decode([token])
            self.endings[token] = "\ufffd" in text or any(
                last.isspace() or last in text for last in self.last
            )
        return self.endings[token]

    @staticmethod
    def select(value: Any, rows: Tensor) -> Any:
        """Masks and positions are (B, T), or (3, B, T) where positions have three axes."""
        return value.index_select(-2, rows) if isinstance(value, Tensor) and value.dim() >= 2 else value


def kept_places(places: list[int]) -> list[int]:
    """The same places, in an order in which as many as can be stay where they are: the n-th is n, or one from
    beyond the end.
    """
    count = len(places)
    beyond = iter([place for place in places if place >= count])
    staying = set(places)
    return [n if n in staying else next(beyond) for n in range(count)]
