"""Trees of sequences as rows for a model: their tokens, positions and masks, and logits at a few places
alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cai_cli.compute.prefix_tree import OptionTokens, TreeRow

ROW_TOKENS = 256  # Largest tree in one row: attention's work grows with the square, and much of it is masked.


def ids_of(row: TreeRow, sequences: list[OptionTokens]) -> list[int]:
    stretches = [piece.stretch for piece in row.pieces]
    return [
        token
        for stretch in stretches
        for token in sequences[stretch.members[0]].ids[stretch.begin : stretch.end]
    ]


def positions_of(row: TreeRow) -> list[int]:
    """The place of each token in its own sequence."""
    return [place for piece in row.pieces for place in range(piece.stretch.begin, piece.stretch.end)]


def tree_mask(rows: list[TreeRow], whole: Tensor, dtype: torch.dtype) -> Tensor:
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
    return torch.zeros(seen.shape, dtype=dtype, device=whole.device).masked_fill_(
        ~seen, torch.finfo(dtype).min
    )


@contextmanager
def outputs_at(model: Any, places: list[tuple[int, int]]) -> Iterator[None]:
    """Within, the model's output layer gets the hidden states of these (row, column) alone, and logits are
    (1, N, V).

    What an architecture does to logits after that layer (scaling, capping) stays as it is.
    """
    if not places:
        yield
        return
    rows, columns = torch.tensor(places, device=model.device).unbind(-1)
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, given: (given[0][rows, columns].unsqueeze(0),)
    )
    try:
        yield
    finally:
        hook.remove()
