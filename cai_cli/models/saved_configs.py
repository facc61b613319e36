"""What stands in a trained model's config.json and generation_config.json: the base model's, but for what
training settles.

Settled are the tokens that pad and end a reply, the same in tokenizer, config and generation config, so that
`generate` ends where `cai sample` does. Trainers and engines write into a model's configs for as long as they
run (`use_cache`, `output_router_logits`, their own generation settings); none of that is saved.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig

from cai_cli.console.messages import warn
from cai_cli.models.chat import stop_ids


def settle_configs(model: Any, tokenizer: Any) -> None:
    """Make a freshly loaded model's configs those that are to be saved, and keep a copy for `as_settled`."""
    for config in {id(config): config for config in (model.config, model.config.get_text_config())}.values():
        drop_generation_settings(config)
        config.pad_token_id = tokenizer.pad_token_id
        declared = config.eos_token_id
        if not (isinstance(declared, list) and tokenizer.eos_token_id in declared):
            config.eos_token_id = tokenizer.eos_token_id
        if tokenizer.bos_token_id is not None:
            config.bos_token_id = tokenizer.bos_token_id
    if model.can_generate():
        model.generation_config = settled_generation(model.generation_config, tokenizer)
    model.cai_configs = copy.deepcopy((model.config, getattr(model, "generation_config", None)))


@contextmanager
def as_settled(model: Any, tokenizer: Any) -> Iterator[None]:
    """Within, the model has the configs that `settle_configs` made (or makes now), whatever was written into
    its own since.
    """
    if not hasattr(model, "cai_configs"):
        settle_configs(model, tokenizer)
    in_use = model.config, getattr(model, "generation_config", None)
    model.config, model.generation_config = copy.deepcopy(model.cai_configs)
    try:
        yield
    finally:
        model.config, model.generation_config = in_use


def drop_generation_settings(config: Any) -> None:
    """Old configs hold settings of `generate`, which loading has taken over, and which transformers refuses
    to save there.
    """
    for name in config._get_generation_parameters():
        delattr(config, name)


def settled_generation(given: Any, tokenizer: Any) -> Any:
    """The base's generation settings with our stop tokens, without those that transformers ignores and
    refuses to save.

    Such as a temperature without `do_sample`. They are told in one line.
    """
    stops = stop_ids(tokenizer, given)
    ours = {
        "eos_token_id": stops if len(stops) > 1 else stops[0],
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": given.bos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
    }
    settled = with_settings(given, ours)
    if is_saveable(settled):
        return settled
    settled = GenerationConfig(**ours)
    left = {
        name: value
        for name, value in given.to_diff_dict().items()
        if name not in ours and name != "transformers_version"
    }
    while fitting := [name for name in left if is_saveable(with_settings(settled, {name: left[name]}))]:
        # One may need another: top_p needs do_sample
        settled = with_settings(settled, {fitting[0]: left.pop(fitting[0])})
    warn(f"the base's generation settings {told(left)} have no effect together, and are not saved")
    return settled


def with_settings(config: Any, settings: dict[str, Any]) -> Any:
    """A copy with these settings."""
    changed = copy.deepcopy(config)
    for name, value in settings.items():
        setattr(changed, name, value)
    return changed


def is_saveable(config: Any) -> bool:
    """Whether `save_pretrained` would take it."""
    try:
        config.validate(strict=True)
    except ValueError:
        return False
    return True


def told(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
