"""The engine interface: requests in, sampled continuations or option log-probabilities out, in the order of
the requests.

Sampling is keyed, not streamed: each request carries a key made from (seed, id, round, segment, sample,
attempt), so a text does not depend on batch size, shard or resume, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from cai_cli.console.options import (
    DeviceOptions,
    EngineOptions,
    FeedbackEngineOptions,
    GenerationOptions,
    ServingOptions,
)
from cai_cli.models.chat import Rendering
from cai_cli.models.templates import UnfitRow, template_kwargs
from cai_cli.rows.conversation import Conversation

# Why a continuation ended: a stop token or stop string; the length limit; or there is none, since the prompt
# did not fit the context, or could not be put into tokens at all.
STOP, LENGTH, OVERLONG, UNFIT = "stop", "length", "overlong", "unfit"


@dataclass(frozen=True, slots=True)
class Request:
    """One continuation to sample. `prompt` is plain text, or a conversation to go through the chat template."""

    prompt: str | Conversation
    key: int
    max_new_tokens: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled continuation. `token_ids` include the stop token; `text` ends before any stop string.

    `logprobs`: of each token under the sampling temperature, where the engine knows them. `stop`: what ended
    the text before its stop token: a stop string, or the special token with which another turn starts.
    `thinking`: what a reasoning model wrote in front of its answer, which is not part of `text`. `fault`: the
    reason not to keep the text, whatever it says, and its detail. `counted`: how many tokens were drawn, where
    a server says that but not which.
    """

    text: str
    finish_reason: str
    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: list[float] | None = None
    stop: str | None = None
    thinking: str = ""
    fault: tuple[str, str] | None = None
    counted: int | None = None

    @property
    def drawn(self) -> int:
        """How many tokens were drawn."""
        return len(self.token_ids) if self.counted is None else self.counted


@dataclass(frozen=True, slots=True)
class OptionRequest:
    """Options to score after a prompt: plain text, or a conversation whose last assistant turn is continued."""

    prompt: str | Conversation
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How a model is opened, to write or to judge: where and in what type, at what temperature, how many rows
    a pass.

    `template_kwargs`: settings of its chat template. `prefix_cache`: whether questions that start alike share
    the work on their start. `odd_numbers_end_it`: whether log-probabilities that are not finite end the run,
    or are left to the caller. `tensor_parallel_size` and `gpu_memory_utilization` are vLLM's; `base_url` to
    `votes` are for a server: where it is, how it is asked, by how many requests at once, how long it may be
    away, and how many sampled answers stand for log-probabilities; `seed` is of these answers (what a model writes
    has its own key).
    """

    engine: str = "transformers"
    device: str = "auto"
    dtype: str = "auto"
    temperature: float = 1.0
    batch_size: int = 64
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    prefix_cache: bool = True
    odd_numbers_end_it: bool = True
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    base_url: str = ""
    api: str = "completions"
    concurrency: int = 32
    patience: float = 600.0
    votes: int = 0
    seed: int = 0

    @classmethod
    def of(
        cls,
        hardware: DeviceOptions,
        generation: GenerationOptions,
        engine: EngineOptions,
        serving: ServingOptions,
    ) -> EngineSettings:
        """Those of a stage that samples. Raises UserError where --chat-template-kwargs is no JSON object."""
        own = cls(
            device=hardware.device,
            dtype=hardware.dtype,
            temperature=generation.temperature,
            batch_size=generation.batch_size,
            template_kwargs=template_kwargs(generation.chat_template_kwargs),
        )
        return own.of_writer(engine, serving)

    def of_writer(self, engine: EngineOptions, serving: ServingOptions) -> EngineSettings:
        """The same, by this engine."""
        return replace(
            self,
            engine=engine.engine,
            base_url=engine.base_url or "",
            api=engine.api,
            **asdict(serving),
        )

    def of_judge(self, judge: FeedbackEngineOptions, seed: int) -> EngineSettings:
        """The same, but for a judge's engine."""
        return replace(
            self,
            engine=judge.feedback_engine,
            base_url=judge.feedback_base_url or "",
            api=judge.feedback_api,
            votes=judge.votes or 0,
            seed=seed,
        )


class Reads(Protocol):
    """How a model reads prompts: those of `cai_cli.models.chat.Renderer` that stages use."""

    @property
    def reply_form(self) -> Rendering: ...

    def form(self, rendering: Rendering = "auto") -> Rendering: ...

    def show(self, prompt: str | Conversation) -> str: ...


class Engine(Protocol):
    """What a stage needs of a model that writes text and answers questions."""

    @property
    def renderer(self) -> Reads:
        """How it reads prompts."""
        ...

    @property
    def model(self) -> Any:
        """The model itself where it is in this process, else None."""
        ...

    @property
    def rows_at_once(self) -> int:
        """How many rows are worked on at a time, each in a thread of its own; 1 where rows share batches."""
        ...

    def follow(self, model: Any) -> None:
        """From here on, say what this model would say: one that is being trained in this process."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a manifest keeps of the model as it was run."""
        ...

    def generate(
        self, requests: list[Request], told: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """`told(count)` hears of requests as they end."""
        ...

    def score(self, requests: list[OptionRequest]) -> list[list[float] | UnfitRow]:
        """Log-probability of each option string; or why there are none: the prompt does not fit the context
        or the template.
        """
        ...
