"""The four models of PPO as two pairs, each of one that learns and the frozen one it started from.

    policy / reference            from --model
    value  / preference model     from --pm

In full fine-tuning a pair is two copies, the frozen one in its own dtype. With adapters it is ONE backbone:
with its adapter switched on it is the learner, with it off the frozen one; the value's score head is trained
beside its adapter, and switched with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from cai_cli.compute.packed_attention import SHORT
from cai_cli.compute.packed_rows import prepare
from cai_cli.compute.shortcuts import rope_words
from cai_cli.errors import UserError, first_line
from cai_cli.keys import key
from cai_cli.models.adapters import Task, add_lora
from cai_cli.models.configs import load_config
from cai_cli.models.devices import pick_device, training_dtype
from cai_cli.models.load import load_lm, load_pm
from cai_cli.models.saved_configs import settle_configs
from cai_cli.training.modes import disable_dropout
from cai_cli.training.parallel import Passes, to_load
from cai_cli.training.ppo.forward import has_plain_head
from cai_cli.training.zero import prepared_frozen

if TYPE_CHECKING:
    from cai_cli.training.ppo.settings import ModelOptions


class Pair:
    """`learner`: the model to call and to train; `whole`: what is saved (the learner, or the peft model
    around it). `passes`: of the learner, once it has an optimiser.
    """

    passes: Passes

    def __init__(self, learner: Any, whole: Any, copy: Passes | None = None) -> None:
        self.learner = learner
        self.whole = whole
        self.copy = copy

    @contextmanager
    def frozen(self) -> Iterator[Passes]:
        """The model as it was before training, for passes without gradients."""
        if self.copy is not None:
            yield self.copy
            return
        with self.whole.disable_adapter():
            yield self.passes

    def parameters(self) -> list[torch.nn.Parameter]:
        """The weights that learn."""
        return [weight for weight in self.learner.parameters() if weight.requires_grad]


def load_pair(models: ModelOptions, path: str, task: Task, tokenizer: Any, longest: int, seed: int) -> Pair:
    """Policy and reference (CAUSAL_LM), or value and preference model (SEQ_CLS), for rows of at most
    `longest` tokens. `seed`: of the adapters.
    """
    hardware, adapters = models.hardware, models.adapters
    load, name = (load_lm, "--model") if task == "CAUSAL_LM" else (load_pm, "--pm")
    if task == "CAUSAL_LM":
        check_angles(path, longest)
    device, dtype = to_load(hardware.device, training_dtype(hardware.dtype, models.bf16, adapters.lora))
    model = load(path, device, dtype, name, tokenizer, adapters.quantize)
    settle_configs(model, tokenizer)
    attention = models.attn_implementation
    if attention == "auto" and pick_device(hardware.device).type == "cpu" and longest <= SHORT:
        attention = "eager"
    if attention != "auto":
        set_attention(model, attention)
    disable_dropout(model)
    if adapters.lora:
        whole = add_lora(model, adapters, task, key(seed, "adapter", task) % (1 << 63))
        pair = Pair(whole.get_base_model(), whole)
        prepare(pair.learner, longest, packs=task == "SEQ_CLS" or has_plain_head(pair.learner))
    else:
        wanted = hardware.dtype if models.frozen_dtype == "auto" else models.frozen_dtype
        own_dtype = training_dtype(wanted, bf16=False, lora=False)
        frozen = load(path, *to_load(hardware.device, own_dtype), name, tokenizer).requires_grad_(False)
        frozen.set_attn_implementation(model.config._attn_implementation)
        for each in (model, frozen):
            prepare(each, longest, packs=task == "SEQ_CLS" or has_plain_head(each))
        pair = Pair(model, model, prepared_frozen(frozen, hardware.device, own_dtype))
    if models.gradient_checkpointing:
        pair.learner.gradient_checkpointing_enable({"use_reentrant": False})
        pair.learner.eval()
    return pair


def set_attention(model: Any, attention: str) -> None:
    """Raises UserError where the model or this machine has no such attention."""
    try:
        model.set_attn_implementation(attention)
    except (ImportError, ValueError, RuntimeError) as error:
        told = f"--attn-implementation {attention}: cannot be had here: {first_line(error)}"
        raise UserError(told, "leave it at auto, or install what it needs") from None


def check_angles(path: str, longest: int) -> None:
    """Raise UserError where a reply's tokens would be drawn at other rotary angles than a pass over the whole
    reply has.
    """
    for length, reason in rope_words(load_config(path).get_text_config()):
        if longest > length:
            told = f"--model {path}: {reason}, and the longest prompt and reply have {longest}"
            raise UserError(
                told,
                "give shorter prompts or a lower --max-new-tokens: an update needs the rollout's own numbers",
            )
