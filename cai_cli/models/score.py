"""The one place where a preference model's score is read: at the EOS that closes the sequence.

Training, evaluation, `ppo` and the value function all go through here, so that the scored token is one rule.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cai_cli.errors import UserError
from cai_cli.models.adapters import is_peft
from cai_cli.models.finite import check_outputs
from cai_cli.models.model_directory import HEAD_NAMES
from cai_cli.models.packing import is_packed, packed_states


def score_head(model: Any) -> Any:
    """The linear layer from hidden states to the score; as peft has wrapped it where it is trained beside an adapter."""
    for name in HEAD_NAMES:
        head = getattr(model, name, None)
        if isinstance(getattr(head, "original_module", head), nn.Linear):
            return head
    raise UserError(f"{type(model).__name__} has no linear score head", "use an architecture with a sequence classifier")


def reset_head(model: Any, seed: int) -> None:
    """Fresh head: N(0, 1/(d+1)) weights (arXiv 2403.17031, detail 4), drawn from the seed alone."""
    head = score_head(model)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.empty(head.weight.shape).normal_(std=(head.in_features + 1) ** -0.5, generator=generator)
    with torch.no_grad():
        head.weight.copy_(weights)
        if head.bias is not None:
            head.bias.zero_()


def right_pad(rows: list[list[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    """(B, T) ids and mask, padded on the right."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def transformer(model: Any) -> Any:
    """The classifier itself, without the shell that peft puts around it."""
    return model.base_model.model if is_peft(model) else model


def hidden_states(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, T, D): what the head reads, at every position. Positions count from each row's first real token."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    trunk = transformer(model).base_model
    return trunk(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)[0]


def head_scores(model: Any, hidden: Tensor) -> Tensor:
    """(...,) float32 scores of hidden states (..., D)."""
    head = score_head(transformer(model))
    return head(hidden.to(head.weight.dtype)).squeeze(-1).float()


def position_scores(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, T) float32: the head's output at every position."""
    return head_scores(model, hidden_states(model, ids, mask))


def last_scores(model: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    """(B,) float32 scores at the last real token of right-padded rows, which the caller has made EOS."""
    rows = torch.arange(len(hidden), device=hidden.device)
    return head_scores(model, hidden[rows, mask.sum(-1) - 1])


def final_scores(model: Any, rows: list[list[int]], pad: int) -> Tensor:
    """(B,) float32: the score of each sequence, read at its last token, which the caller has made EOS."""
    ids, mask = right_pad(rows, pad, model.device)
    if is_packed(model):
        lengths = mask.sum(-1)
        return head_scores(model, packed_states(model, ids, lengths, torch.arange(len(ids), device=ids.device), lengths - 1))
    return last_scores(model, hidden_states(model, ids, mask), mask)


@torch.inference_mode()
def score_all(model: Any, rows: list[list[int]], pad: int, batch_size: int) -> list[float]:
    """Scores of any number of sequences, in their order, computed in batches of similar length.

    Raises RunError where one is not finite.
    """
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n]))
    scores = [0.0] * len(rows)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        found = final_scores(model, [rows[n] for n in batch], pad).tolist()
        check_outputs(model, found, "a score")
        for n, score in zip(batch, found, strict=True):
            scores[n] = score
    return scores
