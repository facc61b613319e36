"""The losses of one step of a preference model, and what it says of held-out pairs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cai_cli.compute.batches import right_pad
from cai_cli.errors import RunError
from cai_cli.evaluation.comparisons import Judged, by_group, sigmoid
from cai_cli.models.devices import exact_place
from cai_cli.models.finite import LEARNED_TOO_FAST
from cai_cli.models.language_head import language_loss
from cai_cli.models.score import hidden_states, last_scores, score_all
from cai_cli.processes.collective import gathered, own_part, total
from cai_cli.training.losses import centring_loss, soft_pairwise_loss
from cai_cli.training.modes import autocast
from cai_cli.training.parallel import Parallel, Passes
from cai_cli.training.preference.pairs import Replies, TokenPair
from cai_cli.training.preference.settings import PairwiseOptions


def backward(
    group: list[list[TokenPair]], parallel: Parallel, fit: PairwiseOptions, pad: int, head: nn.Module | None
) -> dict[str, float]:
    """Add this process's part of the gradients of one step, whose batches are `group`; the mean losses of the
    whole step.

    `loss` is the pairwise one, a mean over pairs; `lm_loss` one over the tokens of the chosen texts.
    """
    pairs = sum(map(len, group))
    tokens = sum(len(pair.chosen) - 1 for batch in group for pair in batch)
    device = parallel.model.device
    sums = torch.zeros(3, device=exact_place(device), dtype=torch.float64)
    batches = parallel.learning(own_part(group), group[0])
    for number, (batch, counts) in enumerate(batches):
        with parallel.one_pass(last=number == len(batches) - 1):
            with autocast(device.type, fit.training.bf16):
                parts = parallel.run(batch_losses, batch, pad, head if fit.lm_coef else None)
                loss = (
                    parts[0] / pairs
                    + fit.center_rewards_coefficient * parts[1] / pairs
                    + fit.lm_coef * parts[2] / tokens
                )
            parallel.backward(loss if counts else loss * 0)
        if counts:
            sums += torch.stack(parts).detach().to(sums.device).double()
    pairwise, centring, language = total(sums).tolist()
    losses = {"loss": pairwise / pairs}
    if fit.center_rewards_coefficient:
        losses["centring_loss"] = centring / pairs
    if fit.lm_coef:
        losses["lm_loss"] = language / tokens
    return losses


def batch_losses(
    model: Any, batch: list[TokenPair], pad: int, head: nn.Module | None = None
) -> list[torch.Tensor]:
    """Sums over the batch: weight times soft pairwise loss, centring loss, language loss of the chosen texts
    (0 without head).
    """
    size = len(batch)
    ids, mask = right_pad(
        [pair.chosen for pair in batch] + [pair.rejected for pair in batch], pad, model.device
    )
    hidden = hidden_states(model, ids, mask)
    scores = last_scores(model, hidden, mask)
    chosen, rejected = scores[:size], scores[size:]
    probability = torch.tensor([pair.probability for pair in batch], device=scores.device)
    weight = torch.tensor([pair.weight for pair in batch], device=scores.device)
    language = scores.new_zeros(())
    if head is not None:
        real = mask[:size, 1:].bool()
        language = language_loss(head, hidden[:size, :-1][real], ids[:size, 1:][real])
    pairwise = (weight * soft_pairwise_loss(chosen, rejected, probability)).sum()
    return [pairwise, centring_loss(chosen, rejected).sum(), language]


def evaluate_pairs(passes: Passes, pairs: Sequence[TokenPair], pad: int, batch_size: int) -> dict[str, Any]:
    """Accuracy, Brier score and calibration error by origin, and the mean and deviation of all scores."""
    model, training = passes.model, passes.model.training
    model.eval()
    try:
        judged, scores = score_pairs(passes, pairs, pad, batch_size)
    except RunError as error:  # found in a model in training, whatever it was made of
        raise RunError(f"held-out pairs: {error.message}", LEARNED_TOO_FAST) from None
    model.train(training)
    groups: dict[str, list[Judged]] = defaultdict(list)
    for item in judged:
        groups["all"].append(item)
        groups[item.origin].append(item)
    centre = sum(scores) / len(scores)
    deviation = math.sqrt(sum((score - centre) ** 2 for score in scores) / len(scores))
    return {"evaluation": by_group(groups), "score_mean": centre, "score_deviation": deviation}


def score_pairs(
    passes: Passes, pairs: Sequence[TokenPair], pad: int, batch_size: int
) -> tuple[list[Judged], list[float]]:
    """What the model says of each pair, and all scores: the chosen texts' and then the rejected ones'."""
    part = own_part(Replies(pairs))
    scores = gathered(score_all(passes.model, part, pad, batch_size, enter=passes))
    judged = []
    for pair, high, low in zip(pairs, scores[: len(pairs)], scores[len(pairs) :], strict=True):
        lengths = len(pair.chosen), len(pair.rejected)
        judged.append(Judged(sigmoid(high - low), pair.probability, pair.origin, pair.kind, *lengths))
    return judged, scores
