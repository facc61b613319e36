"""The flags of `cai label`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, Literal

from cai_cli.console.options import (
    CONSTITUTION,
    DEMONSTRATIONS,
    INPUT,
    MODEL,
    NOTED,
    RUNTIME,
    DeviceOptions,
    EngineOptions,
    FeedbackEngineOptions,
    GenerationOptions,
    Needs,
    OutputOptions,
    Principles,
    RowOptions,
    ServingOptions,
    Takes,
    flag,
)
from cai_cli.engines.base import EngineSettings
from cai_cli.feedback.labels import Rule, parse_clamp
from cai_cli.models.templates import template_kwargs
from cai_cli.prompting.choices import FORMS, PLAIN, Form
from cai_cli.prompting.few_shot import NONE

COT_CLAMP = "0.4:0.6"

# How a judge is opened and asked, for each command that asks one
FeedbackDtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"], flag("Model", "The judge's --dtype."), NOTED
]
FeedbackChatTemplateKwargs = Annotated[str | None, flag("Model", "The judge's --chat-template-kwargs.")]
OptionFormat = Annotated[
    str,
    flag(
        "Feedback",
        "How options are marked: (A), A, A., (1), 1 ... The whole mark with its space is scored.",
    ),
]
PrefixCache = Annotated[bool, flag("Feedback", "Compute what questions have in common once."), RUNTIME]


def judge_settings(
    served: FeedbackEngineOptions,
    serving: ServingOptions,
    device: str,
    dtype: str,
    chat_template_kwargs: str | None,
    batch_size: int,
    seed: int,
    prefix_cache: bool = True,
) -> EngineSettings:
    """How a judge is opened that only answers. Raises UserError where its template's settings are no JSON object."""
    own = EngineSettings(
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        template_kwargs=template_kwargs(chat_template_kwargs),
        prefix_cache=prefix_cache,
        **asdict(serving),
    )
    return own.of_judge(served, seed)


@dataclass(frozen=True, kw_only=True)
class Options:
    NEEDS: ClassVar[Needs] = {
        **dict.fromkeys(
            ("max_new_tokens", "temperature", "chat_template_kwargs", "dtype", "num_samples"), ("prompts",)
        ),
        **dict.fromkeys(("engine", "base_url"), ("prompts",)),
        **dict.fromkeys(("cot_form", "rationale_tokens", "rationale_temperature"), ("cot",)),
        **dict.fromkeys(("on_truncated", "attempts"), ("prompts", "cot")),
    }

    hardware: DeviceOptions
    engines: EngineOptions
    judges: FeedbackEngineOptions
    serving: ServingOptions
    generation: GenerationOptions
    output: OutputOptions
    rows: RowOptions
    model: Annotated[
        str | None, flag("Model", "SL-CAI, which writes the replies. Not with --pairs."), MODEL
    ] = None
    prompts: Annotated[
        list[str] | None,
        flag("Data", "Prompts to reply to and compare (as for `cai sample`). Repeatable."),
        INPUT,
        Takes.STDIN,
    ] = None
    pairs: Annotated[
        list[str] | None,
        flag(
            "Data",
            "Existing samples, comparisons or hh-rlhf rows to label instead; nothing is sampled. Repeatable.",
        ),
        INPUT,
    ] = None
    feedback_model: Annotated[
        str,
        flag(
            "Model", "The judge (paper: a pretrained LM; the helpful model with --cot). Not the SL-CAI model."
        ),
        MODEL,
    ]
    feedback_dtype: FeedbackDtype = "auto"
    feedback_chat_template_kwargs: FeedbackChatTemplateKwargs = None
    allow_self_judge: Annotated[
        bool, flag("Model", "Let a model judge its own replies.", "--allow-self-judge")
    ] = False
    constitution: Annotated[
        str,
        flag("Data", "YAML file, the paper's RLMadisonInstructions.json, or article, humanity, thorough."),
        CONSTITUTION,
    ] = "article"
    principles: Principles = None
    orders: Annotated[
        Literal["both", "random", "first"],
        flag(
            "Feedback",
            "Option orders to ask: both, averaged (not in the paper); one drawn by key; first reply as (A).",
        ),
    ] = "both"
    principles_per_pair: Annotated[
        int,
        flag(
            "Feedback",
            "Principles asked about for each pair, averaged (paper: 1); none twice before all were drawn.",
            min=1,
        ),
    ] = 1
    option_format: OptionFormat = "(A)"
    few_shot: Annotated[
        str,
        flag(
            "Feedback",
            "Solved questions in front (paper: some; ours: none): none, default, or a file, such as the paper's "
            "RLMadisonFewShotPrompts.json, or RLMadisonPrecogFewShotPrompts.json with --cot. Principles and orders are drawn.",
        ),
        DEMONSTRATIONS,
    ] = NONE
    cot: Annotated[
        bool, flag("Feedback", "Let the judge reason before it answers (paper section 4.1).", "--cot")
    ] = False
    cot_form: Annotated[
        Literal["paper", "two-step"],
        flag(
            "Feedback",
            "paper: think step by step, then answer; two-step: rationale, then the plain question (Lee et al.).",
        ),
    ] = "paper"
    rationale_tokens: Annotated[int, flag("Feedback", "Longest rationale (Lee et al.: 512).", min=1)] = 512
    rationale_temperature: Annotated[
        float, flag("Feedback", "Temperature of rationales (paper: 1; Lee et al.: 0).", min=0.0)
    ] = 1.0
    clamp: Annotated[
        str | None,
        flag(
            "Feedback",
            f"LOW:HIGH for the averaged probability, or none. With --cot {COT_CLAMP} (paper), else none.",
        ),
    ] = None
    hard: Annotated[
        bool, flag("Feedback", "Labels of 0 or 1 instead of probabilities (paper: worse).", "--hard")
    ] = False
    min_mass: Annotated[
        float,
        flag(
            "Feedback",
            "Least mean probability on both options together; below it the pair is rejected.",
            min=0,
        ),
    ] = 0.1
    prefix_cache: PrefixCache = True
    num_samples: Annotated[
        int,
        flag(
            "Generation",
            "Replies to each prompt (paper: 2); of more, the two that share the fewest words make the pair.",
            "-n",
            "--num-samples",
            min=2,
        ),
    ] = 2
    on_truncated: Annotated[
        Literal["reject", "keep"],
        flag("Generation", "What to do with replies and rationales cut off by their length limit."),
    ] = "reject"
    attempts: Annotated[
        int, flag("Generation", "Draws of a reply or rationale, or of a pair that came out identical.", min=1)
    ] = 3

    @property
    def form(self) -> Form:
        return FORMS[self.cot_form] if self.cot else PLAIN

    @property
    def rule(self) -> Rule:
        """What becomes of the averaged probability."""
        default = COT_CLAMP if self.cot and not self.hard else NONE
        return Rule(parse_clamp(self.clamp or default), self.hard)
