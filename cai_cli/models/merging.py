"""Adapter directories as models: the adapter read, checked against its base, and merged into it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from cai_cli.errors import UserError
from cai_cli.models.loaded import LANGUAGE_HEADS, counted
from cai_cli.models.paths import HEAD_NAMES
from cai_cli.models.weight_files import Shapes, adapter_shapes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


COPY = re.compile(r"\.(modules_to_save|original_module)\.")
SHELL = "base_model.model."  # what peft puts in front of the base model's own names


def merge_adapter(model: Any, adapter: str, flag: str) -> Any:
    """The model with the adapter of a directory merged into it.

    A preference model takes the adapter of a language model too, without its output layer. Raises UserError
    where the adapter's tensors are not the ones that its configuration asks for on this model.
    """
    from peft import PeftConfig, PeftModel, PeftModelForSequenceClassification

    where = f"{flag} {adapter}"
    shapes = adapter_shapes(adapter, flag)
    fit_vocabulary(model, shapes, where)
    try:
        config = PeftConfig.from_pretrained(adapter)
    except (ValueError, TypeError, KeyError) as error:
        problem = f"{where}: this version of peft cannot read its adapter_config.json: {told(error)}"
        raise UserError(problem, "update peft, or name the merged model") from None
    config.inference_mode = True
    try:
        # peft's class for language models asks for parts that a classifier lacks, and adds nothing to merge.
        shell = (PeftModelForSequenceClassification if config.task_type == "SEQ_CLS" else PeftModel)(
            model, config
        )
        result = shell.load_adapter(adapter, "default", torch_device="cpu")
    except Exception as error:  # peft and torch raise many types; each says what does not fit
        missing = " is not in it" if isinstance(error, KeyError) else ""
        problem = f"{where}: does not fit its base model: {told(error)}{missing}"
        raise UserError(problem, "name the base that it was trained on") from None
    check_merged_keys(model, shapes, result, where)
    try:
        # peft leaves what it merged frozen, as if there were adapters still.
        return shell.merge_and_unload().requires_grad_(True)
    except (NotImplementedError, AttributeError, ValueError) as error:
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        raise UserError(
            f"{where}: an adapter of kind {kind} cannot be merged: {told(error)}", "use one of LoRA's kind"
        ) from None


def check_merged_keys(model: Any, shapes: Shapes, result: Any, where: str) -> None:
    """Raise UserError where tensors are missing in the adapter, or have no place in the model."""
    # peft keeps the vector bank of VB-LoRA once, and layers that are trained in full a second time where the
    # vocabulary grew.
    missing = sorted(key for key in result.missing_keys if "vblora_vector_bank" not in key)
    twice = {key for key in result.unexpected_keys if COPY.search(key) and COPY.sub(".", key) in shapes}
    unexpected = sorted(
        key for key in result.unexpected_keys if key not in twice and not is_other_head(key, model)
    )
    for keys, problem in ((missing, "missing in it"), (unexpected, "without a place in its base model")):
        if keys:
            hint = "the adapter is not whole, or its base is another model: fetch or save it again"
            raise UserError(f"{where}: {counted(keys)} {problem}, first {keys[0]}", hint)


def fit_vocabulary(model: Any, shapes: Shapes, where: str) -> None:
    """Give the base model the vocabulary that the adapter was trained with, where it holds the embeddings of
    all its tokens.
    """
    names = {id(module): name for name, module in model.named_modules()}
    embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
    known = {
        part: rows_of(shapes, names[id(module)])
        for part, module in (("in", embeddings), ("out", output))
        if module is not None
    }
    rows = next((count for count in known.values() if count is not None), None)
    if rows is None or rows == embeddings.num_embeddings:
        return
    tied = output is not None and output.weight is embeddings.weight
    if None in known.values() and not tied:
        told_of = f"{where}: is of a vocabulary of {rows} tokens, its base of {embeddings.num_embeddings}, and lacks embeddings"
        raise UserError(
            told_of, "save it with embeddings and output layer (modules_to_save), or name the merged model"
        )
    model.resize_token_embeddings(rows, mean_resizing=False)


def rows_of(shapes: Shapes, name: str) -> int | None:
    """How many tokens the adapter's own copy of the layer has; None where it has none."""
    for suffix in ("weight", "base_layer.weight", "modules_to_save.weight"):
        if shape := shapes.get(f"{SHELL}{name}.{suffix}"):
            return shape[0]
    return None


def is_other_head(key: str, model: Any) -> bool:
    """Whether a tensor is of the output layer of a language model where the model scores."""
    scores = any(hasattr(model, name) for name in HEAD_NAMES)
    return scores and key.removeprefix(SHELL).split(".")[0] in LANGUAGE_HEADS


def told(error: Exception) -> str:
    """One line of an error: the size that differs, where torch lists sizes below a heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    sizes = [line for line in lines if line.startswith("size mismatch")]
    return (sizes or lines or [type(error).__name__])[0]


def is_peft(model: Any) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")


def whole_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of a model as it would be saved: the parts of active adapters added, under a checkpoint's names,
    and nothing changed in the model itself.
    """
    from peft import PeftModel
    from transformers.core_model_loading import revert_weight_conversion

    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if getattr(inner, "_weight_conversions", None):  # what loading has renamed, split or put together
        yield from revert_weight_conversion(inner, dict(merged_weights(inner))).items()
    else:
        yield from merged_weights(inner)  # one at a time: with adapters each is a copy


def merged_weights(inner: Any) -> Iterator[tuple[str, Tensor]]:
    """The same under the names of the model's own modules."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {name: module for name, module in inner.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, weight in inner.state_dict().items():
        layer, _, rest = name.rpartition(".base_layer.")
        if layer in adapted and rest == "weight":
            module: Any = adapted[layer]
            for one in module.active_adapters:
                weight = weight + module.get_delta_weight(one).detach()
            yield f"{layer}.weight", weight
        elif layer in adapted:
            yield f"{layer}.{rest}", weight
        elif not any(name.startswith(f"{one}.") for one in adapted):  # the adapters' own
            yield name, weight
