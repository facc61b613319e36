"""The decoding loop of a batch: keyed draws, rows that have ended leave the batch, the cache is allocated
once.

transformers' own loop computes every row until the last one has ended and copies all keys and values at every
token. This one takes its place through `generate(custom_generate=...)`, so that preparing positions, masks
and caches for each architecture stays with transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from cai_cli.engines.base import Request
from cai_cli.engines.caches import make_room, shared_starts
from cai_cli.engines.sampling import inverse_cdf, uniforms

FULL = 15 / 16  # Ended rows are dropped once fewer than this share of a batch goes on.
# After how many tokens what was drawn is looked at. A GPU would wait for each look; rows that have ended meanwhile
# draw on in vain.
LOOK_EVERY = {"cpu": 1}
ELSEWHERE = 8


class KeyedDecoding:
    """Continues each prompt of a batch until a stop token, a stop string or its length limit.

    Called by `generate` with the prompts' ids (B, T) and what it prepared. `tokens`, `logprobs`: what was
    drawn for each row, the stop token included, and its log-probabilities under the sampling temperature.
    `room`: whether a fresh cache gets our layers. `told(count)` hears of rows as they end. `every`: after how many
    tokens what was drawn is looked at, and rows that have ended leave.
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
        every: int | None = None,
    ) -> None:
        self.every = LOOK_EVERY.get(torch.device(device).type, ELSEWHERE) if every is None else every
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
        drawn: list[tuple[Tensor, Tensor]] = []
        for step in range(self.longest):
            prepared = model.prepare_inputs_for_generation(
                ids, next_sequence_length=length, is_first_iteration=first, **inputs
            )
            output = model(**prepared, **shared_starts(past), return_dict=True)
            inputs = model._update_model_kwargs_for_generation(output, inputs)
            token, logprob = inverse_cdf(
                output.logits[:, -1].float(),
                self.uniforms[rows.to(self.uniforms.device), step],
                self.temperature,
            )
            drawn.append((token, logprob))
            looked = len(drawn) == self.every or step == self.longest - 1
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
