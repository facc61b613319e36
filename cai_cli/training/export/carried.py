"""What becomes of each setting of `cai ppo` in another engine: its equal there, what is done for it here, or
nothing. None is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cai_cli.console.groups import flags_of, values_of
from cai_cli.console.options import flag_name
from cai_cli.errors import UserError
from cai_cli.training.export.settings import Options

# Neither engine leaves a reward as it is without bounds: these are none. Plain digits, since argparse takes
# -1e6 for a flag.
UNBOUNDED = 1_000_000.0


@dataclass(frozen=True, slots=True)
class Carried:
    """`theirs`: the engine's settings that one of ours becomes; `remark`: what differs, or what is done for it;
    `lost`: whether the run there goes as if it had not been given.
    """

    theirs: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""
    lost: bool = False


def there(*names: str, value: Any, remark: str = "") -> Carried:
    return Carried(dict.fromkeys(names, value), remark)


def here(remark: str) -> Carried:
    return Carried({}, remark)


def lost(remark: str) -> Carried:
    return Carried({}, remark, lost=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of a run there. `longest`: tokens of the longest prompt; `micro_batch`: episodes of a pass on one
    GPU; `samplers`: copies of the policy that write.
    """

    longest: int
    gpus: int
    mini_batch: int
    micro_batch: int
    samplers: int


def plan(options: Options, longest: int) -> Plan:
    """Raises UserError where the episodes cannot be shared out among the GPUs."""
    cluster, ppo = options.cluster, options.ppo
    gpus = cluster.num_nodes * cluster.gpus_per_node
    mini_batch = ppo.rollout_batch_size // ppo.num_mini_batches
    if mini_batch % gpus:
        told = (
            f"--rollout-batch-size {ppo.rollout_batch_size} in --num-mini-batches {ppo.num_mini_batches}: "
            f"{mini_batch} episodes are not shared evenly by {gpus} GPUs"
        )
        raise UserError(told, "change one of them, --num-nodes or --gpus-per-node")
    if gpus % cluster.tensor_parallel_size:
        told = f"--tensor-parallel-size {cluster.tensor_parallel_size} does not divide {gpus} GPUs"
        raise UserError(told, "give a divisor of --gpus-per-node")
    each = mini_batch // gpus
    most = min(each, ppo.per_device_train_batch_size)
    micro = next(size for size in range(most, 0, -1) if each % size == 0)
    return Plan(longest, gpus, mini_batch, micro, gpus // cluster.tensor_parallel_size)


def alike() -> dict[str, Carried]:
    """The settings of which the same becomes whichever the engine is."""
    its_own = "the engine places and holds its models itself"
    served = "done by `cai serve`, as here"
    exported = "decides what the export holds"
    stops_not = "the engine runs all steps: watch its KL"
    return {
        "out": here(exported),
        "dry_run": here(exported),
        "if_changed": here(exported),
        "steps": here(
            "the prompts of all steps are written, one episode each; the engine goes through them once"
        ),
        "max_reject_rate": here(exported),
        "normalise_scores": here(served),
        "score_clip": here(served),
        "missing_eos_penalty": here(served),
        "device": lost(its_own),
        "value_device": lost(its_own),
        "bf16": lost(its_own),
        "frozen_dtype": lost(its_own),
        "save_adapter": lost("the engine saves what it trains"),
        "target_kl": lost("theirs aims at the KL a token, not a reply: the coefficient stays fixed"),
        "kl_horizon": lost("belongs to --target-kl"),
        "max_kl": lost(stops_not),
        "whiten_rewards": lost(
            "token rewards stay as they are; advantages are whitened over the batch, as here"
        ),
        "value_coef": lost(
            "the value's loss has weight 1; it has an optimiser and a gradient norm of its own there"
        ),
        "gold_pm": lost("score checkpoints with `cai score`"),
        "load_best_model_at_end": lost("import the checkpoint that you choose"),
        "best_max_kl": lost("belongs to --load-best-model-at-end"),
        "sample_steps": lost("the engine logs samples in its own way"),
        "batch_size": lost("vLLM makes its own batches"),
        "engine": here("the engine samples with vLLM"),
        "tensor_parallel_size": here("see the cluster's settings"),
        "num_nodes": here("see the cluster's settings"),
        "gpus_per_node": here("see the cluster's settings"),
        "reward_url": here("REWARD_URL in launch.sh, which the environment may set otherwise"),
    }


def theirs(carried: Mapping[str, Carried]) -> dict[str, Any]:
    """All of the engine's settings that ours became."""
    return {name: value for each in carried.values() for name, value in each.theirs.items()}


def not_carried(options: Options, carried: Mapping[str, Carried]) -> list[str]:
    """Flags that have another value than their default, and no equal there."""
    values, flags = values_of(options), flags_of(type(options))
    return [
        f"{flag_name(name)} ({each.remark})"
        for name, each in carried.items()
        if each.lost and values[name] != flags[name].default
    ]
