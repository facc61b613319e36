"""The one door to engines: a model's directory or name, and how it is to run."""

from __future__ import annotations

from cai_cli.engines.base import Engine, EngineSettings
from cai_cli.engines.transformers_engine import TransformersEngine
from cai_cli.models.load import load_lm
from cai_cli.models.tokenizers import load_tokenizer


def open_engine(path: str, settings: EngineSettings, flag: str = "--model") -> Engine:
    """Load a model and its tokenizer. Raises UserError where they cannot be had; `flag` is what named them."""
    tokenizer = load_tokenizer(path, flag)
    model = load_lm(path, settings.device, settings.dtype, flag, tokenizer)
    return TransformersEngine(model, tokenizer, settings, flag)
