"""The flags of `cai sft`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cai_cli.console.options import (
    INPUT,
    MODEL,
    AdapterOptions,
    ChatTemplateKwargs,
    DeviceOptions,
    OutputOptions,
    ReportOptions,
    Takes,
    TrainingOptions,
    check_training_dtype,
    flag,
)


@dataclass(frozen=True, kw_only=True)
class Options:
    output: OutputOptions
    hardware: DeviceOptions
    report: ReportOptions
    training: TrainingOptions
    adapters: AdapterOptions
    model: Annotated[str, flag("Model", "The base language model to finetune."), MODEL]
    data: Annotated[
        list[str],
        flag(
            "Data",
            "Revisions or samples, FILE[:proportion]; 0.5 takes half of its rows, 2 takes them twice. Repeatable.",
        ),
        INPUT,
        Takes.WEIGHT,
    ]
    targets: Annotated[
        Literal["final", "all"],
        flag("Data", "Train on each chain's final revision, or on all of them (paper)."),
    ] = "final"
    train_on_thinking: Annotated[
        bool,
        flag(
            "Data",
            "Train on what a reasoning model thought, too, in front of its answer.",
            "--train-on-thinking",
        ),
    ] = False
    held_out: Annotated[
        float,
        flag(
            "Data",
            "Share of the prompts, by first human turn, kept apart to measure the loss on.",
            min=0.0,
            max=0.5,
        ),
    ] = 0.0
    packing: Annotated[
        bool,
        flag(
            "Optimisation",
            "Put several rows into one sequence of --max-length; they do not see each other.",
            "--packing",
        ),
    ] = False
    chat_template: Annotated[
        Path | None,
        flag("Model", "Jinja file to install; else a model without a template gets the transcript one."),
        INPUT,
    ] = None
    tokenizer_from: Annotated[
        str | None,
        flag("Model", "Take tokenizer and chat template from this model, of the same vocabulary."),
        MODEL,
    ] = None
    chat_template_kwargs: ChatTemplateKwargs = None

    def __post_init__(self) -> None:
        check_training_dtype(self.hardware.dtype)
