"""The one place where a preference model's score is read: at the EOS that closes the sequence.

Training, evaluation, `ppo` and the value function all go through here, so that the scored token is one rule.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cai_cli.compute.batches import like_length, right_pad
from cai_cli.compute.packed_rows import states_at
from cai_cli.compute.products import fast_products
from cai_cli.compute.shortcuts import (
    at_rest,
    close,
    is_exact,
    row_states,
    says_cannot,
    trial_rows,
    trunk_states,
)
from cai_cli.errors import UserError, first_line
from cai_cli.models.finite import check_outputs
from cai_cli.models.merging import is_peft
from cai_cli.models.paths import HEAD_NAMES


class Passes(Protocol):
    """How several processes go through a model that they hold together (`training/parallel.py`)."""

    def run(self, compute: Callable[..., Any], *given: Any) -> Any: ...

    def no_grad(self) -> Any: ...

    def even(self, own: list[list[int]], filler: list[int]) -> list[tuple[list[int], bool]]: ...


def score_head(model: Any) -> Any:
    """The linear layer from hidden states to the score; as peft has wrapped it where it is trained beside an
    adapter.
    """
    for name in HEAD_NAMES:
        head = getattr(model, name, None)
        if isinstance(getattr(head, "original_module", head), nn.Linear):
            return head
    raise UserError(
        f"{type(model).__name__} has no linear score head", "use an architecture with a sequence classifier"
    )


def reset_head(model: Any, seed: int) -> None:
    """Fresh head: N(0, 1/(d+1)) weights (arXiv 2403.17031, detail 4), drawn from the seed alone."""
    head = score_head(model)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.empty(head.weight.shape).normal_(std=(head.in_features + 1) ** -0.5, generator=generator)
    with torch.no_grad():
        head.weight.copy_(weights)
        if head.bias is not None:
            head.bias.zero_()


def transformer(model: Any) -> Any:
    """The classifier itself, without the shell that peft puts around it."""
    return model.base_model.model if is_peft(model) else model


def hidden_states(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, T, D): what the head reads, at every position. Positions count from each row's first real token."""
    return row_states(transformer(model), ids, mask)


def check_scorer(model: Any, name: str) -> None:
    """Raise UserError where the classifier's own score is not its head on the last token's state, in reading
    order.

    That is what is trained here, and what the value function of PPO has for each token. `name`: of the model,
    for the message.
    """
    head = score_head(model)
    kind, exact = type(model).__name__, is_exact(model)
    hint = "take a causal architecture such as Llama, whose classifier reads the last token"
    ids = torch.tensor(trial_rows(model, [9] * 4), device=model.device)
    with at_rest(model):
        try:
            states = trunk_states(model, ids, None)
            others = trunk_states(
                model, ids.index_copy(1, torch.tensor([8], device=ids.device), ids[:, :1]), None
            )
            own = torch.cat([model(input_ids=row.unsqueeze(0)).logits.flatten() for row in ids])
        except Exception as error:
            if not says_cannot(error):
                raise
            raise UserError(
                f"{name}: {kind} cannot read a text from its token ids: {first_line(error)}", hint
            ) from None
    if not (states.isfinite().all() and own.isfinite().all()):
        return  # weights that are not finite tell nothing of how they are used; they are found where they are
    if not close(others[:, :-1], states[:, :-1], exact):
        raise UserError(f"{name}: {kind} is an encoder, whose tokens see what follows them", hint)
    if head.in_features != states.size(-1) or not close(
        head_scores(model, states[:, -1]).flatten(), own, exact
    ):
        raise UserError(
            f"{name}: the score of {kind} is not that of its head on the last token's state", hint
        )


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
    lengths, places = mask.sum(-1), torch.arange(len(ids), device=ids.device)
    return head_scores(model, states_at(transformer(model), ids, lengths, places, lengths - 1))


def score_all(
    model: Any,
    rows: Sequence[list[int]],
    pad: int,
    batch_size: int,
    told: Callable[[int], None] = lambda count: None,
    enter: Passes | None = None,
) -> list[float]:
    """Scores of any number of sequences, in their order, computed in batches of similar length.

    `told(count)` hears of sequences as they are scored. `enter`: where processes go through the model together.
    Raises RunError where a score is not finite.
    """
    scores = [0.0] * len(rows)
    batches = list(like_length([len(row) for row in rows], batch_size, most_tokens=sys.maxsize))
    with torch.inference_mode() if enter is None else enter.no_grad(), fast_products(model):
        for batch, counts in (
            [(batch, True) for batch in batches] if enter is None else enter.even(batches, [])
        ):
            some = [rows[n] for n in batch] if counts else [[pad]]
            scored = final_scores(model, some, pad) if enter is None else enter.run(final_scores, some, pad)
            if not counts:
                continue
            found = scored.tolist()
            check_outputs(model, found, "a score")
            for n, score in zip(batch, found, strict=True):
                scores[n] = score
            told(len(batch))
    return scores
