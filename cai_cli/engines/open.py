"""The one door to engines: a model's directory or name, and how it is to run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from cai_cli.engines.base import Engine, EngineSettings, Reads
from cai_cli.errors import UserError
from cai_cli.models.paths import base_and_adapters, check_model
from cai_cli.processes.ranks import world_size

NEEDS = {"vllm": ("vllm",), "openai": ("openai", "tenacity")}  # packages, and the extra's name


def check_engine(path: str, settings: EngineSettings, flag: str = "--model") -> None:
    """Stop early where the engine is not installed or has no address, or where `path` is no language model; what
    a server calls its models is for the server to say.
    """
    prefix = prefix_of(flag)
    missing = [name for name in NEEDS.get(settings.engine, ()) if find_spec(name) is None]
    if missing:
        told = f"{prefix}engine {settings.engine}: {' and '.join(missing)} not installed"
        raise UserError(told, f"pip install 'cai-cli[{settings.engine}]'")
    if settings.engine == "vllm":
        check_vllm(path, flag)
    if settings.engine != "openai":
        if settings.base_url:
            raise UserError(f"{prefix}base-url: is a server's address", f"add {prefix}engine openai")
        check_model(path, flag, "language model")
        return
    from cai_cli.engines.server import check_url

    if not settings.base_url:
        raise UserError(
            f"{prefix}engine openai: no server named", f"add {prefix}base-url, as in http://127.0.0.1:8000/v1"
        )
    check_url(settings.base_url, f"{prefix}base-url")
    if Path(path).is_dir():
        check_model(path, flag)
    elif settings.template_kwargs and settings.api != "chat":
        told = f"{prefix}chat-template-kwargs: {path} is read without a chat template"
        raise UserError(told, f"add {prefix}api chat, or name the model's directory")


def prefix_of(flag: str) -> str:
    """How the options of an engine begin: --feedback-engine goes with --feedback-model, and with --judge."""
    return "--feedback-" if flag in ("--feedback-model", "--judge") else "--"


def check_vllm(path: str, flag: str) -> None:
    """Raise UserError for what vLLM in this process does not do."""
    if world_size() > 1:
        told = f"{prefix_of(flag)}engine vllm: each process would take the same GPUs"
        raise UserError(
            told, "start one command a GPU with --shard I/N and CUDA_VISIBLE_DEVICES, or use a server"
        )
    base, adapters = base_and_adapters(path, flag)
    if adapters:
        raise UserError(
            f"{flag} {path}: vLLM takes whole models, and this is an adapter on {base}",
            "name a merged model: our trainers save those, peft's merge_and_unload() makes one",
        )


def open_reader(path: str, settings: EngineSettings, flag: str = "--model") -> Reads:
    """How the model would read prompts, without its weights: for dry runs."""
    if settings.engine == "openai":
        from cai_cli.engines.openai_engine import open_renderer

        return open_renderer(path, settings, flag)
    from cai_cli.models.chat import Renderer
    from cai_cli.models.tokenizers import load_tokenizer

    return Renderer(load_tokenizer(path, flag), flag, settings.template_kwargs)


def open_engine(path: str, settings: EngineSettings, flag: str = "--model") -> Engine:
    """Load a model and its tokenizer, or connect to its server. Raises UserError where they cannot be had; `flag`
    is what named them.
    """
    if settings.engine == "vllm":
        from cai_cli.engines.vllm_engine import VllmEngine

        return VllmEngine(path, settings, flag)
    if settings.engine == "openai":
        from cai_cli.engines.openai_engine import OpenAIEngine

        return OpenAIEngine(path, settings, flag)
    from cai_cli.engines.transformers_engine import TransformersEngine
    from cai_cli.models.load import load_lm
    from cai_cli.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(path, flag)
    model = load_lm(path, settings.device, settings.dtype, flag, tokenizer)
    return TransformersEngine(model, tokenizer, settings, flag)
