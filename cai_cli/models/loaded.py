"""Whether what was read from disk is the whole model: no tensor left at random values, none of the body left
out.

Read is what transformers itself reports of a load (`output_loading_info`): tied weights, buffers that are
computed and each architecture's own lists of keys to ignore are out of it already.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from cai_cli.console.messages import warn
from cai_cli.errors import UserError
from cai_cli.models.paths import HEAD_NAMES

LANGUAGE_HEADS = ("lm_head", "embed_out", "lm_loss", "output_projection", "pred_layer", "cls")
# Masks and tables that older versions saved and newer ones compute.
COMPUTED = re.compile(r"(^|\.)(inv_freq|position_ids|masked_bias|attn\.bias|attention\.bias)$")
EXTRA_LAYERS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
OTHER = "the weights are not whole, or config.json is of another model: fetch or save them again"

tell_once = cache(warn)


def check_loaded(model: Any, info: dict[str, Any], where: str, fresh_head: bool) -> None:
    """Raise UserError where the model is not what its directory describes; warn of tensors that no part of it
    reads.

    `fresh_head`: the score head may be missing, since a preference model starts here.
    """
    kind = type(model).__name__
    unexpected = [key for key in sorted(info["unexpected_keys"]) if not is_known(key, model)]
    missing = sorted(
        key for key in info["missing_keys"] if not (fresh_head and key.split(".")[0] in HEAD_NAMES)
    )
    if missing:
        foreign = next((key for key in unexpected if key.endswith(f".{missing[0]}")), None)
        hint = OTHER
        if foreign:
            prefix = foreign.removesuffix(missing[0])
            hint = f"its tensors are named {prefix}…, as of a model in a wrapper: save the model inside, or strip the prefix"
        elif missing[0].split(".")[0] in (*LANGUAGE_HEADS, *HEAD_NAMES):
            hint = f"it was saved without the output layer of a {kind}"
        raise UserError(f"{where}: {counted(missing)} of {kind} not in its weights, first {missing[0]}", hint)
    other_shape = sorted(
        (key, tuple(saved), tuple(own)) for key, saved, own in info["mismatched_keys"]
    ) + other_shapes(model)
    if other_shape:
        key, saved, own = other_shape[0]
        told = f"{counted(other_shape)} of another shape than config.json gives, first {key}: {list(saved)}, not {list(own)}"
        raise UserError(f"{where}: {told}", OTHER)
    if outside := [key for key in unexpected if in_body(key, model)]:
        told = f"{kind} as config.json describes it has no place for {counted(outside)} of its weights, first {outside[0]}"
        raise UserError(
            f"{where}: {told}", "correct config.json (layers, biases, sizes): the model would be cut short"
        )
    if unexpected:
        tell_once(f"{where}: {counted(unexpected)} not read, first {unexpected[0]}: {kind} has no such part")


def counted(keys: list[Any]) -> str:
    return f"{len(keys)} tensor{'s' if len(keys) > 1 else ''}"


def is_known(key: str, model: Any) -> bool:
    """Whether a tensor that the model has no place for is what a checkpoint may hold beside it."""
    if key.split(".")[0] in LANGUAGE_HEADS and not hasattr(model, key.split(".")[0]):
        return True
    return COMPUTED.search(key) is not None or any(key == name for name, _ in model.named_buffers())


def in_body(key: str, model: Any) -> bool:
    """Whether a tensor without a place would belong to a part that the model has: a further layer, a bias, a
    norm.
    """
    own = key.removeprefix(f"{model.base_model_prefix}.")
    layer = LAYER.search(own)
    config = model.config.get_text_config()
    count = getattr(config, "num_hidden_layers", None)
    if layer and count is not None and count <= int(layer[1]) < count + predicted_layers(config):
        return False
    parts = {name for part in (model, model.base_model) for name, _ in part.named_children()}
    return own.split(".")[0] in parts


def predicted_layers(config: Any) -> int:
    """Layers that predict several tokens ahead, numbered on behind the model's own."""
    return max(int(getattr(config, name, None) or 0) for name in EXTRA_LAYERS)


def other_shapes(model: Any) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """(name, shape, shape by config.json) of weights that differ, in a quantised model: there transformers
    takes any shape.
    """
    if not getattr(model, "is_quantized", False):
        return []
    import torch

    with torch.device("meta"):
        plain = {name: tuple(weight.shape) for name, weight in type(model)(model.config).named_parameters()}
    found = []
    for name, weight in model.named_parameters():
        state = getattr(weight, "quant_state", None)
        shape = tuple(weight.shape if state is None else state.shape)
        if name in plain and shape != plain[name]:
            found.append((name, shape, plain[name]))
    return found
