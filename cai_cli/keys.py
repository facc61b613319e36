"""Keyed randomness: every draw is a function of (seed, what it is for), never of the order of the work.

So texts, principles and pairs do not depend on batch size, shards, ranks or where a run was cut off and
resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

Part = str | int
Item = TypeVar("Item")


def digest(*parts: Part) -> bytes:
    """128 bits of BLAKE2b over the parts, each with its type and length so that no two lists of parts
    collide.
    """
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = str(part).encode()
        state.update(f"{'i' if isinstance(part, int) else 's'}{len(data)}:".encode())
        state.update(data)
    return state.digest()


def key(*parts: Part) -> int:
    """A 128-bit integer key for a counter-based generator."""
    return int.from_bytes(digest(*parts), "little")


def uniform(*parts: Part) -> float:
    """One number in [0, 1) for the key."""
    return (int.from_bytes(digest(*parts)[:8], "little") >> 11) / (1 << 53)


def shuffled(items: Sequence[Item], *parts: Part) -> list[Item]:
    """The items in an order drawn by key."""
    return [items[n] for n in sorted(range(len(items)), key=lambda n: uniform(*parts, n))]
