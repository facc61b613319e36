"""The flags that `cai pmp` and `cai train-pm` share: how a preference model is fitted to pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cai_cli.console.options import (
    AdapterOptions,
    DeviceOptions,
    Needs,
    ReportOptions,
    TrainingOptions,
    check_training_dtype,
    flag,
)


@dataclass(frozen=True, kw_only=True)
class PairwiseOptions:
    """How a preference model is fitted to pairs: `pmp` and `train-pm` share the loop."""

    NEEDS: ClassVar[Needs] = {"eval_steps": ("held_out",)}

    adapters: AdapterOptions
    hardware: DeviceOptions
    report: ReportOptions
    training: TrainingOptions
    lm_coef: Annotated[
        float,
        flag(
            "Optimisation",
            "Weight of a language-modelling loss on the chosen text, beside the pairwise loss.",
            min=0.0,
        ),
    ] = 0.0
    center_rewards_coefficient: Annotated[
        float,
        flag(
            "Optimisation",
            "Weight of the squared sum of a pair's scores, which keeps their mean at zero.",
            min=0.0,
        ),
    ] = 0.0
    eval_steps: Annotated[
        int | None,
        flag("Output", "Steps between evaluations of the held-out part, by origin, in metrics.jsonl.", min=1),
    ] = None

    def __post_init__(self) -> None:
        check_training_dtype(self.hardware.dtype)
