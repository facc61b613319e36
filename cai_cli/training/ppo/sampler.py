"""What samples the replies of a rollout: the policy itself, or a copy of it in vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cai_cli.engines.base import Engine, EngineSettings
from cai_cli.errors import UserError
from cai_cli.models.templates import template_kwargs
from cai_cli.processes.ranks import by_fsdp, in_zero_parts, world_size

if TYPE_CHECKING:
    from cai_cli.training.ppo.settings import Options


def open_sampler(options: Options, policy: Any, tokenizer: Any) -> Engine:
    """An engine that `follow`s the policy."""
    # Numbers that are not finite: their KL ends the run, with the last policy that was good.
    common: dict[str, Any] = {
        "temperature": options.temperature,
        "template_kwargs": template_kwargs(options.chat_template_kwargs),
        "odd_numbers_end_it": False,
    }
    if options.engine == "vllm":
        from cai_cli.engines.vllm_engine import VllmEngine

        settings = EngineSettings(
            engine="vllm",
            device=options.models.hardware.device,
            dtype=str(policy.dtype).removeprefix("torch."),
            gpu_memory_utilization=options.gpu_memory_utilization,
            **common,
        )
        return VllmEngine(options.model, settings)
    from cai_cli.engines.transformers_engine import TransformersEngine

    return TransformersEngine(policy, tokenizer, EngineSettings(batch_size=options.batch_size, **common))


def check_sampler(options: Options) -> None:
    """Raise UserError where vLLM is not there, or cannot follow the policy."""
    from cai_cli.engines.open import check_engine

    if options.engine != "vllm":
        return
    check_engine(options.model, EngineSettings(engine="vllm"))
    if (by_fsdp() or in_zero_parts()) and world_size() > 1:
        name = "FSDP" if by_fsdp() else "ZeRO 3"
        raise UserError(f"--engine vllm under {name}: weights in parts cannot be sent", "leave one out")
    if options.models.adapters.quantize:
        raise UserError(
            "--engine vllm with --quantize: weights held in few bits cannot be sent", "leave one out"
        )
