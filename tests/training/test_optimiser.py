"""One door to the optimiser, and through it AdamW in one pass over the weights; schedules are transformers'."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import get_scheduler
from trl.trainer.sft_config import SFTConfig

import cai_cli
from cai_cli.training.optimiser import make_optimizer, make_schedule


def test_it_takes_the_steps_of_adamw_without_its_temporaries():
    torch.manual_seed(0)
    start, gradients = torch.randn(40, 30), torch.randn(5, 40, 30)
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    fused = make_optimizer([weights[0]], 1e-2, eps=1e-5)
    plain = torch.optim.AdamW(
        [weights[1]], lr=1e-2, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0, foreach=False
    )
    assert fused.defaults["fused"] is True and fused.defaults["weight_decay"] == 0.0
    for gradient in gradients:
        for weight, optimizer in zip(weights, (fused, plain), strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(weights[0], weights[1], atol=1e-6)
    assert not torch.allclose(weights[0], start, atol=1e-2)


def test_no_trainer_builds_one_by_itself(tmp_path):
    package = Path(cai_cli.__file__).parent
    found = {
        file.relative_to(package).as_posix() for file in package.rglob("*.py") if "AdamW(" in file.read_text()
    }
    assert found == {"training/optimiser.py"}
    assert SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False).optim == "adamw_torch_fused"


@pytest.mark.parametrize("warmup_steps", [0, 3])
@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_schedules_are_those_of_transformers(kind, warmup_steps):
    def rates(make) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        schedule, found = make(optimizer), []
        for _ in range(12):
            found.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return found

    name = "constant_with_warmup" if kind == "constant" else kind
    theirs = rates(lambda optimizer: get_scheduler(name, optimizer, warmup_steps, 10))
    assert rates(lambda optimizer: make_schedule(kind, optimizer, warmup_steps, 10))[:11] == theirs[:11]
