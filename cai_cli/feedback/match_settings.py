"""The flags of `cai evaluate elo`, and the options that its judged games are made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import typer

from cai_cli.console.options import (
    CONSTITUTION,
    DEMONSTRATIONS,
    INPUT,
    MODEL,
    NAMED,
    RUNTIME,
    DeviceOptions,
    EngineOptions,
    FeedbackEngineOptions,
    Needs,
    OutputOptions,
    RowOptions,
    ServingOptions,
    Takes,
    flag,
)
from cai_cli.evaluation.answers import READ_BY_WRITERS, WriterOptions
from cai_cli.feedback.settings import FeedbackChatTemplateKwargs, FeedbackDtype, OptionFormat, PrefixCache
from cai_cli.prompting.few_shot import NONE


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Who judges, and how a feedback model is asked."""

    # What only a feedback model reads
    ASKED: ClassVar[tuple[str, ...]] = (
        "constitution",
        "helpful_constitution",
        "principles_per_pair",
        "option_format",
        "few_shot",
        "min_mass",
        "feedback_dtype",
        "feedback_chat_template_kwargs",
        "prefix_cache",
        "feedback_engine",
        "feedback_base_url",
    )
    NEEDS: ClassVar[Needs] = dict.fromkeys(ASKED, ("judge",))

    served: FeedbackEngineOptions
    judge: Annotated[
        str | None,
        flag("Model", "A preference model, or a language model that is asked which reply is better."),
        MODEL,
    ] = None
    feedback_dtype: FeedbackDtype = "auto"
    feedback_chat_template_kwargs: FeedbackChatTemplateKwargs = None
    constitution: Annotated[
        str | None,
        flag(
            "Feedback",
            "What a language model is asked about harmful prompts: a principle drawn for each game, as for `cai label`. "
            "Default: which response is less harmful, of equally harmless ones that which is not evasive.",
        ),
        CONSTITUTION,
    ] = None
    helpful_constitution: Annotated[
        str | None,
        flag("Feedback", "The same for helpful prompts. Default: which one is more helpful and honest."),
        CONSTITUTION,
    ] = None
    principles_per_pair: Annotated[
        int, flag("Feedback", "Principles asked about for each game, averaged.", min=1)
    ] = 1
    option_format: OptionFormat = "(A)"
    few_shot: Annotated[
        str,
        flag("Feedback", "Solved questions in front, as for `cai label`: none, default, or a file."),
        DEMONSTRATIONS,
    ] = NONE
    min_mass: Annotated[
        float,
        flag("Feedback", "Least probability on both options together; below it a game is rejected.", min=0),
    ] = 0.1
    prefix_cache: PrefixCache = True


@dataclass(frozen=True, kw_only=True)
class Options:
    """All of them."""

    NEEDS: ClassVar[Needs] = dict.fromkeys(("prompts", "limit", "budget", *READ_BY_WRITERS), ("judge",))

    output: OutputOptions
    judging: JudgeOptions
    hardware: DeviceOptions
    engines: EngineOptions
    serving: ServingOptions
    players: Annotated[
        list[str] | None,
        typer.Argument(help="Model directories, or files of samples; NAME=PATH names one.", metavar="MODELS"),
        NAMED,
    ] = None
    prompts: Annotated[
        list[str] | None,
        flag("Data", "Held-out prompts, as for `cai sample`. Default: those of the samples. Repeatable."),
        INPUT,
        Takes.STDIN,
    ] = None
    comparisons: Annotated[
        list[Path] | None,
        flag(
            "Data",
            "Games that people or a judge have decided, instead of --judge: comparisons with chosen_model and "
            "rejected_model, or model_a, model_b and winner. Repeatable.",
        ),
        INPUT,
    ] = None
    kind: Annotated[
        Literal["helpful", "harmful"] | None, flag("Data", "The kind of prompts that say none.")
    ] = None
    limit: Annotated[int | None, flag("Data", "Take at most this many prompts.", min=1)] = None
    budget: Annotated[
        int | None,
        flag("Data", "Play at most this many games of each two models on each kind of prompt.", min=1),
    ] = None
    anchor: Annotated[
        str | None, flag("Output", "The model whose Elo is 0 (paper: SL-CAI). Default: the first one.")
    ] = None
    writing: WriterOptions
    max_reject_rate: Annotated[
        float,
        flag("Output", "Exit 1 when a larger share of replies or games is rejected.", min=0.0, max=1.0),
        RUNTIME,
    ] = 0.5

    @property
    def judge(self) -> str | None:
        return self.judging.judge


@dataclass(frozen=True, kw_only=True)
class GameOptions:
    """What judged games are made from."""

    output: OutputOptions
    rows: RowOptions
    judging: JudgeOptions
    hardware: DeviceOptions
    samples: Annotated[list[str], flag("Data", "The replies of each model."), NAMED]
    prompts: Annotated[list[str] | None, flag("Data", "The prompts."), INPUT] = None
    kind: Annotated[str | None, flag("Data", "The kind of prompts that say none.")] = None
    budget: Annotated[int | None, flag("Data", "Games of each two models.")] = None
