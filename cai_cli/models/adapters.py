"""LoRA and QLoRA, the same for every trainer: put adapters on, keep what learns in checkpoints, save a model
that loads as it is.

Saved are merged weights, in the type that the frozen base is held in while training: float32, whatever its files
have, unless `--bf16` or `--dtype` says otherwise. Under `--quantize` it is held in 4 or 8 bits, under `--bf16` in
16; where that is fewer than its files have it is read again for saving, in their type, and the adapter merged into
that, so that no rounding is baked in. So it is where processes hold it in parts, by FSDP or ZeRO.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cai_cli.console.messages import warn
from cai_cli.errors import UserError, first_line
from cai_cli.models.finite import check_weights
from cai_cli.models.merging import is_peft
from cai_cli.models.saved_configs import as_settled

if TYPE_CHECKING:
    import torch

    from cai_cli.console.options import AdapterOptions

Task = Literal["CAUSAL_LM", "SEQ_CLS"]
ADAPTER = "adapter"
PROBE_TOKENS = 8


def add_lora(model: Any, options: AdapterOptions, task: Task, seed: int) -> Any:
    """The model with low-rank adapters on the linear layers that peft puts one on; a score head is trained in
    full beside them, both in float32 whatever the base is held in.

    The adapters' initial values are drawn from the seed alone. The rest of the weights is frozen; which of
    its matrices no adapter reaches is said in one line. Raises UserError where no layer is left.
    """
    import torch
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType[task],
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules="all-linear",
    )
    config.exclude_modules = refused_layers(model, config) or None
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapted = get_peft_model(model, config)
    except (ValueError, TypeError) as error:
        problem = (
            f"--lora: {type(model).__name__} has no layer that an adapter can be put on: {first_line(error)}"
        )
        raise UserError(problem, "leave --lora out") from None
    model.cai_unreached = unreached(model)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    if model.cai_unreached:
        left = ", ".join(model.cai_unreached)
        warn(f"--lora: adapters do not reach {left} of {type(model).__name__}, which stay as they are")
    return adapted


def refused_layers(model: Any, config: Any) -> list[str]:
    """Names of linear layers that peft will not adapt in this architecture, such as a state-space layer's
    last one.
    """
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
    from torch import nn

    def is_refused(name: str) -> bool:
        try:
            _check_lora_target_modules_mamba(config, model, name)
        except ValueError:
            return True
        return False

    names = {
        name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    return sorted(filter(is_refused, names))


def unreached(model: Any) -> list[str]:
    """The weight matrices of the layers that no adapter changes, by the last two parts of their names, in
    their order.

    `model`: what peft has put adapters into. Mixtures of experts hold all experts of a layer in one weight,
    which is no linear layer; and some layers are never called, since the one around them reads their weight.
    Embeddings, output layer and score head are not meant.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    adapters = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    apart = [model.get_output_embeddings(), *(getattr(model, name, None) for name in ("score", "classifier"))]
    apart += [module for module in model.modules() if isinstance(module, nn.Embedding)]
    known = {id(weight) for module in apart if module is not None for weight in module.parameters()}
    called = called_modules(model, adapters)
    for name, module in adapters.items():
        if kind_of(name) in called:
            # An adapter on one weight of a module that is no linear layer says which; others are around a
            # layer.
            known.add(
                id(module.get_param() if hasattr(module, "get_param") else module.get_base_layer().weight)
            )
    names = (
        name
        for name, weight in model.named_parameters()
        if weight.dim() > 1
        and id(weight) not in known
        and ".lora_" not in name
        and "modules_to_save" not in name
    )
    return list(dict.fromkeys(".".join(kind_of(name).split(".")[-2:]) for name in names))


def called_modules(model: Any, modules: dict[str, Any]) -> set[str]:
    """The kinds of those modules that a pass over a few tokens calls."""
    import torch

    called: set[str] = set()

    def note(kind: str, *_: Any) -> None:
        called.add(kind)

    hooks = [module.register_forward_hook(partial(note, kind_of(name))) for name, module in modules.items()]
    ids = torch.arange(PROBE_TOKENS, device=model.device)[None] % model.get_input_embeddings().num_embeddings
    try:
        with torch.no_grad(), torch.random.fork_rng():
            model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return called


def kind_of(name: str) -> str:
    """A module's or weight's name without the numbers of layers and experts, and without what adapters put
    into it.
    """
    return ".".join(
        part for part in name.split(".") if not part.isdigit() and part not in ("weight", "base_layer")
    )


def trainable_state(model: Any) -> dict[str, torch.Tensor]:
    """Name -> tensor of every weight that learns: what a checkpoint has to keep."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def save_trained(
    model: Any,
    tokenizer: Any,
    folder: Path,
    options: AdapterOptions,
    base: str,
    task: Task,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save a trained model and its tokenizer so that `from_pretrained(folder)` loads them without peft.

    `base` is the directory or name the model was loaded from. With `--save-adapter` the adapter alone goes to
    `folder/adapter`, to be used with that base. `state`: the whole weights of a model that is held in parts.
    """
    if is_peft(model):
        adapter = folder / ADAPTER
        shutil.rmtree(adapter, ignore_errors=True)
        name_base(model, base)
        # Embeddings are frozen; peft would save those of a base whose vocabulary has a pad token more now.
        model.save_pretrained(adapter, state_dict=state, save_embedding_layers=False)
        if state is not None or is_rounded(model.base_model.model, base):
            model, state = merge_into_base(base, adapter, tokenizer, task), None
        else:
            model = model.merge_and_unload().to(model.dtype)
        if options.save_adapter:
            tokenizer.save_pretrained(adapter)
        else:
            shutil.rmtree(adapter)
    save_whole(model, tokenizer, folder, state)


def save_whole(
    model: Any, tokenizer: Any, folder: Path, state: dict[str, torch.Tensor] | None = None
) -> None:
    """Save a model without adapters under its settled configs. Raises RunError where a weight is not finite."""
    check_weights(
        state or dict(model.named_parameters()), str(folder), "start afresh with a lower --learning-rate"
    )
    with as_settled(model, tokenizer):
        model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)


def name_base(model: Any, base: str) -> None:
    """Let the adapter name a local base so that it is found from any directory."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else base


def own_dtype(base: str) -> torch.dtype:
    """The type that a model's files have."""
    import torch

    from cai_cli.models.configs import load_config

    found: torch.dtype = getattr(torch, str(load_config(base).dtype or "float32").removeprefix("torch."))
    return found


def is_rounded(model: Any, base: str) -> bool:
    """Whether the model holds its base in fewer bits than its files do."""
    return getattr(model, "is_quantized", False) or model.dtype.itemsize < own_dtype(base).itemsize


def merge_into_base(base: str, adapter: Path, tokenizer: Any, task: Task) -> Any:
    """The base model, unquantised and on the CPU, with the adapter merged into it."""
    from cai_cli.models.load import load_lm, load_pm
    from cai_cli.models.merging import merge_adapter

    dtype = str(own_dtype(base)).removeprefix("torch.")
    load = load_lm if task == "CAUSAL_LM" else load_pm
    model = load(base, "cpu", dtype, tokenizer=tokenizer)
    return merge_adapter(model, str(adapter), "--out")
