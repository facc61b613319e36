"""The flags of `cai export openrlhf` and `cai export verl`: those of `cai ppo`, so that one --config file serves
both, and the machines that the other engine is to have.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar

from cai_cli.console.options import Needs, flag
from cai_cli.training.ppo import settings


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where the other engine will run."""

    num_nodes: Annotated[int, flag("Cluster", "Machines of the Ray cluster.", min=1)] = 1
    gpus_per_node: Annotated[int, flag("Cluster", "GPUs that training takes of each.", min=1)] = 8
    tensor_parallel_size: Annotated[
        int, flag("Cluster", "GPUs that hold one copy of the policy to sample with.", min=1)
    ] = 1
    reward_url: Annotated[
        str,
        flag("Cluster", "Where `cai serve` answers, as every machine reaches it; several with commas."),
    ] = "http://127.0.0.1:5000"


@dataclass(frozen=True, kw_only=True)
class Options(settings.Options):
    NEEDS: ClassVar[Needs] = MappingProxyType({})  # vLLM samples there, whatever --engine says

    cluster: ClusterOptions
