"""Command-line flags that several stages share, worded once, in small groups (frozen dataclasses).

A stage's `Options` has the groups it needs (see `groups`) beside its own handful of fields; `cli.py` turns all of
them into the command's flags. The second mark in `Annotated` says a flag's part in an artifact's identity:

    (none)          content: another value gives another artifact
    INPUT, MODEL, NAMED (NAME=PATH, either of the two), CONSTITUTION   content by what is in the file, wherever it lies
    DEMONSTRATIONS   a name, or a file by what is in it
    LIMIT           a higher value continues the artifact
    NOTED           recorded, warned about when it changes (dtype, engine)
    RUNTIME         where and how fast, never what: free to change
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import typer

from cai_cli.errors import UserError


class Part(Enum):
    CONTENT = "content"
    INPUT = "input"
    MODEL = "model"
    NAMED = "named"
    CONSTITUTION = "constitution"
    DEMONSTRATIONS = "demonstrations"
    LIMIT = "limit"
    NOTED = "noted"
    RUNTIME = "runtime"


class Takes(Enum):
    """What an INPUT takes besides the name of a file."""

    STDIN = "-"
    WEIGHT = "FILE:weight"


FLAG = re.compile(r"--[a-z][a-z0-9-]*")  # as it stands in a sentence
# Option -> what else has to be on for anything to read it, one of these: an option, or `option=value`.
Needs = Mapping[str, tuple[str, ...]]
INPUT, MODEL, NAMED, CONSTITUTION = Part.INPUT, Part.MODEL, Part.NAMED, Part.CONSTITUTION
DEMONSTRATIONS, LIMIT, NOTED, RUNTIME = Part.DEMONSTRATIONS, Part.LIMIT, Part.NOTED, Part.RUNTIME


def flag(panel: str, text: str, *names: str, **settings: Any) -> Any:
    """A Typer option on a help panel; `names` only where the flag is not the field's own name."""
    return typer.Option(*names, help=text, rich_help_panel=panel, **settings)


Prompts = Annotated[
    list[str],
    flag(
        "Data",
        "Prompts: our JSONL, hh-rlhf transcripts, .txt lines, .gz, hf:org/name[:split], or - for stdin. Repeatable.",
    ),
    INPUT,
    Takes.STDIN,
]
Principles = Annotated[
    list[str] | None,
    flag("Data", "Only the principle of this id, as if the constitution held no other. Repeatable."),
]
Device = Annotated[str, flag("Model", "auto, cpu, cuda, cuda:1, mps."), RUNTIME]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    flag("Model", "auto: float32 on a CPU and in training (--lora --bf16: bfloat16); else the checkpoint's."),
    NOTED,
]
ChatTemplateKwargs = Annotated[
    str | None,
    flag("Model", """JSON object of settings for the chat template, as in '{"enable_thinking": false}'."""),
]
BaseUrl = Annotated[
    str | None,
    flag(
        "Engine",
        "Address of a server that speaks the OpenAI API, as in http://127.0.0.1:8000/v1; its key is read from OPENAI_API_KEY.",
    ),
    NOTED,
]
Api = Annotated[
    Literal["completions", "chat"],
    flag(
        "Engine",
        "completions: our prompt as ids (where the model is a directory here) or text; chat: the server's own template.",
    ),
    NOTED,
]
IfChanged = Annotated[
    Literal["error", "restart"],
    flag(
        "Output",
        "When --out was made with other options or inputs: stop, or move it to .bak and start afresh.",
    ),
    RUNTIME,
]
GradientCheckpointing = Annotated[
    bool,
    flag("Optimisation", "Recompute activations to save memory.", "--gradient-checkpointing"),
    RUNTIME,
]
SaveSteps = Annotated[
    int,
    flag(
        "Output",
        "Steps between checkpoints, from which a killed run goes on; two are kept while a third is written.",
        min=1,
    ),
]


def flag_name(option: str) -> str:
    return "--" + option.replace("_", "-")


def check_draws(
    count: int, flag: str, temperature: float, temperature_flag: str = "--temperature", least: int = 1
) -> None:
    """Raise UserError where several texts are asked for that can only be the same one; `least`: how many one
    can ask for.
    """
    if count > 1 and temperature == 0:
        told = f"{temperature_flag} 0 draws the same text each time, and {flag} {count} asks for {count}"
        fewer = f"give {flag} 1, or " if least == 1 else ""
        raise UserError(told, f"{fewer}give a {temperature_flag} above 0 (paper: 1)")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What every command that writes an artifact takes."""

    out: Annotated[Path, flag("Output", "The artifact to write; a manifest goes beside it."), RUNTIME]
    seed: Annotated[
        int, flag("Output", "Every draw is keyed by it, whatever the batch size or order of work.")
    ] = 0
    dry_run: Annotated[
        bool, flag("Output", "Show what would be done, without loading weights.", "--dry-run"), RUNTIME
    ] = False
    if_changed: IfChanged = "error"


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """For stages that write rows."""

    limit: Annotated[
        int | None, flag("Data", "Take at most this many; raising it later continues.", min=1), LIMIT
    ] = None
    max_reject_rate: Annotated[
        float,
        flag("Output", "Exit 1 when a larger share of the rows is rejected.", min=0.0, max=1.0),
        RUNTIME,
    ] = 0.5


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where a model is computed, and in what type."""

    device: Device = "auto"
    dtype: Dtype = "auto"


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How text is sampled. The paper samples at temperature 1 throughout (section 3.2), so no top-k and no
    top-p.
    """

    max_new_tokens: Annotated[
        int, flag("Generation", "Longest text a single request may generate.", min=1)
    ] = 512
    temperature: Annotated[
        float, flag("Generation", "Sampling temperature (paper: 1); 0 is greedy.", min=0.0)
    ] = 1.0
    batch_size: Annotated[
        int, flag("Generation", "Requests per forward pass; does not change texts.", min=1), RUNTIME
    ] = 64
    chat_template_kwargs: ChatTemplateKwargs = None
    shard: Annotated[
        str | None,
        flag("Output", "Work on part I of N only, from 0/N to N-1/N; `cai merge` joins the parts."),
        RUNTIME,
    ] = None


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What writes."""

    NEEDS: ClassVar[Needs] = {"api": ("base_url",)}

    engine: Annotated[
        Literal["transformers", "vllm", "openai"],
        flag("Engine", "vllm: in this process, extra cai-cli[vllm]; openai: a server, see --base-url."),
        NOTED,
    ] = "transformers"
    base_url: BaseUrl = None
    api: Api = "completions"


@dataclass(frozen=True, kw_only=True)
class FeedbackEngineOptions:
    """What judges."""

    NEEDS: ClassVar[Needs] = dict.fromkeys(("feedback_api", "votes"), ("feedback_base_url",))

    feedback_engine: Annotated[
        Literal["transformers", "vllm", "openai"], flag("Engine", "The judge's --engine."), NOTED
    ] = "transformers"
    feedback_base_url: BaseUrl = None
    feedback_api: Api = "completions"
    votes: Annotated[
        int | None,
        flag(
            "Engine",
            "Where a server gives no log-probabilities: answers sampled to each question; an option has "
            "(answers + 1/2) / (N + 1). Not in the paper.",
            min=2,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """How much an engine may take, of those that write and judge."""

    NEEDS: ClassVar[Needs] = {
        **dict.fromkeys(
            ("tensor_parallel_size", "gpu_memory_utilization"), ("engine=vllm", "feedback_engine=vllm")
        ),
        **dict.fromkeys(("concurrency", "patience"), ("engine=openai", "feedback_engine=openai")),
    }

    tensor_parallel_size: Annotated[
        int, flag("Engine", "vllm: GPUs that hold one model together.", min=1), RUNTIME
    ] = 1
    gpu_memory_utilization: Annotated[
        float, flag("Engine", "vllm: share of a GPU's memory to take.", min=0.01, max=1.0), RUNTIME
    ] = 0.9
    concurrency: Annotated[int, flag("Engine", "openai: requests under way at once.", min=1), RUNTIME] = 32
    patience: Annotated[
        float,
        flag("Engine", "openai: seconds for which a request that fails is tried again.", min=1),
        RUNTIME,
    ] = 600.0


def check_training_dtype(dtype: str) -> None:
    """Raises UserError for a dtype in which weights cannot learn."""
    if dtype == "float16":
        hint = "train in float32, with --bf16 where memory is short"
        raise UserError("--dtype float16: small gradients vanish in it and large ones overflow", hint)


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Where a trainer's measurements go besides."""

    report_to: Annotated[
        list[str] | None,
        flag(
            "Output",
            "tensorboard, wandb: send the metrics there too; metrics.jsonl is always written. Repeatable.",
        ),
        RUNTIME,
    ] = None


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Optimisation flags in the spelling of the Hugging Face trainers."""

    learning_rate: Annotated[float, flag("Optimisation", "Peak learning rate.", min=0.0)] = 1e-5
    num_train_epochs: Annotated[float, flag("Optimisation", "Passes over the data (paper: 1).", min=0.0)] = (
        1.0
    )
    per_device_train_batch_size: Annotated[
        int, flag("Optimisation", "Rows per forward and backward pass.", min=1)
    ] = 8
    gradient_accumulation_steps: Annotated[
        int, flag("Optimisation", "Passes per optimiser step, on each process.", min=1), NOTED
    ] = 1
    lr_scheduler_type: Annotated[
        Literal["constant", "linear", "cosine"],
        flag("Optimisation", "Learning-rate schedule after the warm-up (paper: constant)."),
    ] = "constant"
    warmup_steps: Annotated[int, flag("Optimisation", "Steps of linear warm-up.", min=0)] = 0
    max_grad_norm: Annotated[float, flag("Optimisation", "Gradient clipping; 0 turns it off.", min=0.0)] = 1.0
    max_length: Annotated[
        int,
        flag("Optimisation", "Longest row, at most the model's context; longer ones are rejected.", min=8),
    ] = 2048
    bf16: Annotated[
        bool, flag("Optimisation", "Mixed precision in bfloat16 (what learns stays in float32).", "--bf16")
    ] = False
    gradient_checkpointing: GradientCheckpointing = False
    save_steps: SaveSteps = 200
    logging_steps: Annotated[int, flag("Output", "Steps between lines of metrics.jsonl.", min=1)] = 10

    def __post_init__(self) -> None:
        if self.num_train_epochs == 0:
            raise UserError(
                "--num-train-epochs 0: nothing would be learned",
                "leave it at 1, or give another number above 0",
            )


def schedule_of(lr_scheduler_type: str) -> str:
    """The schedule's name in transformers: its "constant" knows no warm-up."""
    return "constant_with_warmup" if lr_scheduler_type == "constant" else lr_scheduler_type


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Low-rank adapters instead of all weights, in the spelling of peft and the Hugging Face trainers."""

    NEEDS: ClassVar[Needs] = dict.fromkeys(
        ("lora_r", "lora_alpha", "lora_dropout", "quantize", "save_adapter"), ("lora",)
    )

    lora: Annotated[
        bool,
        flag(
            "Adapters",
            "Train low-rank adapters on all linear layers, saved merged (not in the paper).",
            "--lora",
        ),
    ] = False
    lora_r: Annotated[int, flag("Adapters", "Rank of the adapters.", min=1)] = 16
    lora_alpha: Annotated[int, flag("Adapters", "Adapters are scaled by alpha / r.", min=1)] = 32
    lora_dropout: Annotated[float, flag("Adapters", "Dropout on the adapters' input.", min=0.0, max=1.0)] = (
        0.0
    )
    quantize: Annotated[
        Literal["4bit", "8bit"] | None,
        flag("Adapters", "Hold the frozen base in 4 bits (QLoRA) or 8 bits while training; needs --lora."),
    ] = None
    save_adapter: Annotated[
        bool, flag("Adapters", "Save the adapter alone too, in OUT/adapter.", "--save-adapter"), RUNTIME
    ] = False
