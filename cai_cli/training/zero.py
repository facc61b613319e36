"""A model that learns by DeepSpeed's ZeRO, where the launch file asks for it: gradients and optimiser in parts, one in
each process (stage 2), or weights too (stage 3), of frozen models as well. `prepared` and `prepared_frozen` make of the
launch what it is, with or without it.

DeepSpeed's engine clips, steps and forgets the gradients in one: `clip` does it all. A checkpoint is in parts, as under
FSDP: of each weight and of AdamW's moments a process keeps its stretch, laid out flat. So launches of any kind go on
from it, and this one from theirs.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cai_cli.errors import UserError
from cai_cli.models.devices import pick_device
from cai_cli.processes.ranks import by_deepspeed, in_zero_parts, join_group, rank, world_size
from cai_cli.training.parallel import Entered, Item, Parallel, Passes, check_parts
from cai_cli.training.parts import Kept, check_names, put_together

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def prepared(model: Any, make_optimizer: MakeOptimizer, device: str, dtype: str) -> Parallel:
    """The model as the launch asks for it; see `Parallel`."""
    kind = ByZero if by_deepspeed() and world_size() > 1 else Parallel
    return kind(model, make_optimizer, device, dtype)


def prepared_frozen(model: Any, device: str, dtype: str) -> Passes:
    """A frozen model as the launch asks for it; see `Passes`. Stage 2 leaves it whole."""
    kind = FrozenByZero if in_zero_parts() and world_size() > 1 else Passes
    return kind(model, device, dtype)


class FrozenByZero(Passes):
    """See `Passes`: by stage 3, whose engine then has no optimiser."""

    def __init__(self, model: Any, device: str, dtype: str) -> None:
        """Raises UserError where the model cannot be had in parts."""
        self.model, self.in_parts = model, True
        check_parts(model)
        join_group()
        config = by_the_launch_file(pick_device(device).type)
        import deepspeed

        root = Entered(model)
        take_apart(root, config, getattr(torch, dtype))
        self.root, *_ = deepspeed.initialize(model=root, config=config)

    def run(self, compute: Callable[..., Any], *given: Any) -> Any:
        """See `Passes`."""
        return through(self.root, compute, *given)


class ByZero(Parallel):
    """See `Parallel`. All passes go through the engine, those without gradients too."""

    def __init__(self, model: Any, make_optimizer: MakeOptimizer, device: str, dtype: str) -> None:
        """Raises UserError where the model cannot be had by ZeRO."""
        self.model, self.in_parts = model, True
        if in_zero_parts():
            check_parts(model)
        join_group()
        config = by_the_launch_file(pick_device(device).type)
        import deepspeed

        root = Entered(model)
        if in_zero_parts():
            take_apart(root, config, getattr(torch, dtype))
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        if any(weight.dtype != torch.float32 for weight in self.weights):
            raise UserError(
                "DeepSpeed: what learns has to be held in float32",
                "leave --dtype out: --bf16 computes in bfloat16",
            )
        self.optimizer = make_optimizer(self.weights)
        self.root, *_ = deepspeed.initialize(model=root, optimizer=self.optimizer, config=config)

    def run(self, compute: Callable[..., Any], *given: Any) -> Any:
        """See `Passes`."""
        return through(self.root, compute, *given)

    def whole(self, compute: Callable[..., Item], *given: Any) -> Item:
        """See `Passes`. Within, the hooks are gone that would gather each layer's weights once more."""
        if not in_zero_parts():
            return compute(self.model, *given)
        from deepspeed.runtime.zero.stage3 import unwrap_model_for_generation

        with torch.no_grad(), unwrap_model_for_generation(self.root):
            return compute(self.model, *given)

    def backward(self, loss: Tensor) -> None:
        self.root.backward(loss * world_size())

    def clip(self, most: float) -> float:
        """And takes the step, with the optimiser, unless the norm is not finite."""
        self.root.optimizer.clip_grad = most
        self.root.step()
        return float(self.root.get_global_grad_norm())

    def step(self) -> None:
        """Taken."""

    # Checkpoints

    @property
    def stretches(self) -> list[Tensor]:
        """What the optimiser has as weights: this process's parts of them all, one behind the other."""
        zero = self.root.optimizer
        found: list[Tensor] = (
            zero.fp32_partitioned_groups_flat if in_zero_parts() else zero.single_partition_of_fp32_groups
        )
        return found

    @property
    def learned(self) -> dict[str, Any]:
        """The weights that learn, by name."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def kept(self) -> Kept:
        """See `kept_state`."""
        state = self.optimizer.state.get(self.stretches[0], {})
        return {
            "model": {name: self.own(weight) for name, weight in self.learned.items()},
            "optimizer": {
                name: {
                    key: value.clone() if value.dim() == 0 else self.own(weight, key)
                    for key, value in state.items()
                }
                for name, weight in self.learned.items()
            },
            "rates": [group["lr"] for group in self.optimizer.param_groups],
        }

    def own(self, weight: Any, moment: str | None = None) -> Tensor:
        """This process's stretch of a weight, or of a moment of it."""
        from deepspeed import utils

        if in_zero_parts():
            local = utils.safe_get_local_fp32_param, utils.safe_get_local_optimizer_state
            found: Tensor = (local[1](weight, moment) if moment else local[0](weight)).clone()
            found[filled_of(shape_of(weight).numel()) :] = 0  # where DeepSpeed leaves what memory held
            return found
        whole = utils.safe_get_full_optimizer_state(weight, moment) if moment else weight.detach()
        return stretch(whole)

    def put_back(self, parts: list[Kept]) -> None:
        """See `parts.put_back`."""
        from deepspeed import utils

        self.make_moments(parts[0])
        self.put_weights([part["model"] for part in parts])
        for name, weight in self.learned.items():
            for key, first in parts[0]["optimizer"].get(name, {}).items():
                if first.dim():
                    whole = put_together([part["optimizer"][name][key] for part in parts], shape_of(weight))
                    if in_zero_parts():
                        utils.safe_set_local_optimizer_state(weight, stretch(whole), key)
                    else:
                        utils.safe_set_full_optimizer_state(weight, whole, key)
        for group, rate in zip(self.optimizer.param_groups, parts[0]["rates"], strict=True):
            group["lr"] = rate

    def put_weights(self, parts: list[dict[str, Tensor]]) -> None:
        """See `parts.put_weights`."""
        check_names(self.learned, parts[0])
        for name, weight in self.learned.items():
            self.set(weight, put_together([part[name] for part in parts], shape_of(weight)))

    def make_moments(self, kept: Kept) -> None:
        """Let there be what AdamW would make at its first step, to be filled."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        first: dict[str, Tensor] = next(iter(kept["optimizer"].values()), {})
        if not first:
            return
        for part in self.stretches:
            self.optimizer.state[part] = {
                key: torch.zeros_like(part) if value.dim() else value.to(part.device, copy=True)
                for key, value in first.items()
            }
        if not in_zero_parts():
            zero = self.root.optimizer
            for weights, part in zip(zero.bit16_groups, self.stretches, strict=True):
                lazy_init_hp_params_optimizer_state(weights, part, self.optimizer.state)

    def set(self, weight: Any, whole: Tensor) -> None:
        """Give a weight, and the float32 that it is made of, its numbers."""
        from deepspeed import utils, zero

        if in_zero_parts():
            utils.safe_set_local_fp32_param(weight, stretch(whole))
            with zero.GatheredParameters([weight], modifier_rank=0), torch.no_grad():
                weight.copy_(whole)
        else:
            utils.safe_set_full_fp32_param(weight, whole)
            weight.data.copy_(whole)


def through(engine: Any, compute: Callable[..., Any], *given: Any) -> Any:
    """`compute(model, *given)` by the engine, which would switch mixed precision off inside, and after a pass without
    gradients keep weights together for a backward pass that does not come.
    """

    def inside(model: Any, *given: Any) -> Any:
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=mixed):
            return compute(model, *given)

    mixed = torch.is_autocast_enabled(engine.module.model.device.type)
    found = engine(inside, *given)
    if in_zero_parts() and not torch.is_grad_enabled():
        engine.empty_partition_cache()
    return found


def stretch(whole: Tensor) -> Tensor:
    """This process's of as many equal stretches of all numbers of a tensor; zeros behind the last ones."""
    each = -(-whole.numel() // world_size())
    own = whole.detach().flatten()[rank() * each :][: filled_of(whole.numel())]
    return nn.functional.pad(own, (0, each - own.numel())).clone()


def filled_of(count: int) -> int:
    """How many of so many numbers are in this process's stretch."""
    each = -(-count // world_size())
    return max(0, min(each, count - rank() * each))


def shape_of(weight: Any) -> torch.Size:
    return torch.Size(getattr(weight, "ds_shape", weight.shape))


def take_apart(root: Entered, config: dict[str, Any], dtype: torch.dtype) -> None:
    """Leave of each weight this process's part, on its device: of one that is frozen in the dtype, of one that learns
    in float32. No device ever holds the whole.
    """
    import deepspeed

    frozen = [weight for weight in root.parameters() if not weight.requires_grad]
    changed = {id(weight) for weight in frozen or root.parameters() if weight.is_floating_point()}
    for module in reversed(list(root.modules())):  # each after those inside it
        for weight in module.parameters(recurse=False):
            if id(weight) in changed and not hasattr(weight, "ds_id"):
                weight.data = weight.data.to(dtype)
        deepspeed.zero.Init(module=module, config_dict_or_path=config)


def by_the_launch_file(device_type: str) -> dict[str, Any]:
    """DeepSpeed's settings: those of accelerate's launch file, and what is ours to say. Raises UserError where it is
    not installed.
    """
    os.environ.setdefault("DS_ACCELERATOR", device_type)  # before its import, which looks for one
    try:
        import deepspeed
    except ImportError:
        raise UserError(
            "DeepSpeed is not installed", "pip install deepspeed, or launch it with FSDP"
        ) from None
    from accelerate.utils import DeepSpeedPlugin

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings(
        "ignore", r"`torch\.distributed\.", FutureWarning
    )  # of names that it calls torch's by
    deepspeed.init_distributed(auto_mpi_discovery=False)
    return DeepSpeedPlugin(zero3_init_flag=False).deepspeed_config | {
        "train_batch_size": world_size(),  # told alone: batches are ours
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # a step is where we take it
        "gradient_clipping": 0.0,  # `clip` says
        "zero_allow_untested_optimizer": True,
    }
