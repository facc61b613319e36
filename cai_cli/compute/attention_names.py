"""An attention function of ours in a model's layers, for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def attending(model: Any, name: str, function: Callable[..., Any], mask: Any = None) -> Iterator[None]:
    """Within, all layers of the model attend by `function`, known to transformers as `name`, with the masks that
    `mask` makes; without it they are given none.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if model.config._attn_implementation == name:  # inside it already
        yield
        return
    AttentionInterface.register(name, function)
    if mask is not None:
        AttentionMaskInterface.register(name, mask)
    held: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in held if hasattr(config, "_attn_implementation")}.values()
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = name
    try:
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation
