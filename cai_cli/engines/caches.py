"""Keys and values of a batch that is being continued: memory that is allocated once, and a start that all rows
share kept once for all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from cai_cli.compute.shortcuts import shortcuts_of


class PreallocatedLayer(DynamicLayer):
    """Keys and values (B, H, T, D) of a layer in memory for `room` tokens: new ones are written, and the
    others stay.

    `start`: keys and values (1, H, S, D) of tokens in front of all rows; attention is given those behind them
    alone, and takes these from here (`grouped_attention`).
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.memory: list[Tensor] = []
        self.start: tuple[Tensor, Tensor] | None = None

    @property
    def begun(self) -> int:
        """How many tokens stand in front of all rows."""
        return 0 if self.start is None else self.start[0].size(-2)

    def get_seq_length(self) -> int:
        return self.begun + super().get_seq_length()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        begin = self.get_seq_length() - self.begun
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
        count, end = len(beam_idx), self.get_seq_length() - self.begun
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


def shared_starts(cache: Any) -> dict[str, list[Any]]:
    """What a pass over a cache of ours is told: its layers, whose attention takes their `start` from them; nothing
    where they have none.
    """
    layers = getattr(cache, "layers", None) or []
    if any(getattr(layer, "start", None) is not None for layer in layers):
        return {"shared_starts": layers}
    return {}
