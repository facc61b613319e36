"""What several processes do with one model, as far as one process can show it: `test_pairwise_ranks.py` and
`test_ppo_ranks.py` are the real thing.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from torch import nn

from cai_cli.errors import RunError, UserError
from cai_cli.processes import ranks
from cai_cli.training.checkpoints import check_pace
from cai_cli.training.optimiser import make_optimizer
from cai_cli.training.parallel import hold_in
from cai_cli.training.parts import kept_state, put_back, put_together
from cai_cli.training.zero import stretch


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


def stretched(kept: dict, parts: int) -> list[dict]:
    """As ZeRO keeps it: equal stretches of all numbers, zeros behind the last ones."""

    def stretch(value: torch.Tensor, n: int) -> torch.Tensor:
        if value.dim() == 0:
            return value.clone()
        each = -(-value.numel() // parts)
        return nn.functional.pad(value.flatten(), (0, each * parts - value.numel()))[n * each :][:each]

    return [
        {
            "model": {name: stretch(weight, n) for name, weight in kept["model"].items()},
            "optimizer": {
                name: {key: stretch(value, n) for key, value in moments.items()}
                for name, moments in kept["optimizer"].items()
            },
            "rates": kept["rates"],
        }
        for n in range(parts)
    ]


@pytest.mark.parametrize("kept_as", [cut, stretched])
@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_parts_of_any_number_make_the_same_whole(parts: int, kept_as) -> None:
    """Weights and moments, so that the next step is the same one."""
    model, optimizer = trained(0)
    other, others = trained(1)
    put_back(other, others, kept_as(kept_state(model, optimizer), parts))
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


def test_what_no_process_makes_is_not_waited_for_without_end(monkeypatch) -> None:
    """A launcher would end this process; where there is none, another one's death is seen by the clock alone."""
    found = iter([None, None, "there"])
    monkeypatch.setattr(ranks, "POLL_SECONDS", 0)
    assert ranks.wait_for(lambda: next(found), "tokens") == "there"
    monkeypatch.setattr(ranks, "PATIENCE", timedelta(0))
    with pytest.raises(RunError, match=r"tokens: another process was to make it, and has not within 0 hours"):
        ranks.wait_for(lambda: None, "tokens")


def test_a_weight_s_stretches_end_in_zeros(monkeypatch) -> None:
    """Of five numbers four processes have two, two, one and none."""
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    monkeypatch.setenv("WORLD_SIZE", "4")
    parts = []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(stretch(weight))
    assert [part.tolist() for part in parts] == [[1, 2], [3, 4], [5, 0], [0, 0]]
    assert torch.equal(put_together(parts, weight.shape), weight)
