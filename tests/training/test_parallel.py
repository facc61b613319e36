"""What several processes do with one model, as far as one process can show it: `test_pairwise_ranks.py` and
`test_ppo_ranks.py` are the real thing.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cai_cli.errors import RunError, UserError
from cai_cli.training.checkpoints import check_pace
from cai_cli.training.optimiser import make_optimizer
from cai_cli.training.parallel import hold_in
from cai_cli.training.parts import kept_state, put_back


class Tied(nn.Module):
    def __init__(self, learns: bool) -> None:
        super().__init__()
        self.inner, self.outer, self.adapter = (nn.Linear(3, 3, bias=False) for _ in range(3))
        self.outer.weight = self.inner.weight
        self.inner.weight.requires_grad_(learns)


@pytest.mark.parametrize("learns", [True, False])
def test_what_learns_on_a_frozen_base_keeps_its_dtype(learns: bool) -> None:
    model = Tied(learns)
    hold_in(model, torch.bfloat16)
    assert model.inner.weight is model.outer.weight and model.inner.weight.requires_grad == learns
    assert model.inner.weight.dtype == torch.bfloat16
    assert model.adapter.weight.dtype == (torch.bfloat16 if learns else torch.float32)


def trained(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 1))
    optimizer = make_optimizer(model.parameters(), 1e-2)
    for _ in range(2):
        model(torch.randn(4, 2)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def cut(kept: dict, parts: int) -> list[dict]:
    """As so many processes would have kept it: slices along the first axis, as torch.chunk cuts; some are empty."""
    found: list[dict] = [{"model": {}, "optimizer": {}, "rates": kept["rates"]} for _ in range(parts)]
    for name, weight in kept["model"].items():
        each = -(-len(weight) // parts)
        for n, part in enumerate(found):
            part["model"][name] = weight[n * each : (n + 1) * each].clone()
            part["optimizer"][name] = {
                key: value.clone() if value.dim() == 0 else value[n * each : (n + 1) * each].clone()
                for key, value in kept["optimizer"][name].items()
            }
    return found


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_parts_of_any_number_make_the_same_whole(parts: int) -> None:
    """Weights and moments, so that the next step is the same one."""
    model, optimizer = trained(0)
    other, others = trained(1)
    put_back(other, others, cut(kept_state(model, optimizer), parts))
    for each, learner in ((model, optimizer), (other, others)):
        each(torch.ones(4, 2)).sum().backward()
        learner.step()
    for weight, same in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, same)


def test_a_checkpoint_of_another_model_is_refused() -> None:
    model, optimizer = trained(0)
    kept = kept_state(model, optimizer)
    smaller = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    with pytest.raises(RunError, match=r"another model: a weight of \(5, 2\)"):
        put_back(smaller, make_optimizer(smaller.parameters(), 1e-2), [kept])
    with pytest.raises(RunError, match=r"another model: 0\.bias"):
        put_back(smaller[0], make_optimizer(smaller[0].parameters(), 1e-2), [kept])


def test_steps_keep_their_size() -> None:
    check_pace(8, 8)
    with pytest.raises(UserError, match=r"took 8 batches, and would take 4 now .*have to make 8"):
        check_pace(8, 4)
