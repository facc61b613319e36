"""The sizes of a transformer that memory depends on, from its configuration alone: it is built on the meta device,
where a weight has a shape and no numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cai_cli.errors import UserError, first_line
from cai_cli.models.adapters import Task
from cai_cli.models.configs import NO_CODE, check_classifier, load_config, next_step


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a model. `weights`: numbers in all; `linear`: those of its layers' matrices, which adapters are put on and
    --quantize packs; `adapter`: what an adapter of rank 1 on all of them has; `matrices`: how many.

    `hidden`, `inner` (of the MLP, of all experts that a token goes to), `queries` and `keys` (heads times their
    size): numbers a token. `embedding`: numbers of the embeddings, `head`: of an output layer of its own; `tied`:
    whether the language model's is the embeddings. `gated`: whether the MLP multiplies two of its layers.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    queries: int
    keys: int
    vocabulary: int
    weights: int
    linear: int
    adapter: int
    matrices: int
    embedding: int
    head: int
    tied: bool
    gated: bool


def shape_of(path: str, task: Task, flag: str = "--model") -> Shape:
    """Of the language model or preference model that would be loaded from there. Raises UserError where none can be
    made of its configuration.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = load_config(path, flag)
    if task == "SEQ_CLS":
        check_classifier(path, flag)
        config.num_labels = 1
    auto = AutoModelForCausalLM if task == "CAUSAL_LM" else AutoModelForSequenceClassification
    try:
        with torch.device("meta"):
            model = auto.from_config(config, **NO_CODE)
    except Exception as error:  # each architecture raises its own types for what does not go together
        hint = next_step(error, "fetch or save it again, or update transformers")
        raise UserError(f"{flag} {path}: cannot be loaded: {first_line(error)}", hint) from None
    return shape_from(model)


def shape_from(model: Any) -> Shape:
    text = model.config.get_text_config()
    output = model.get_output_embeddings()
    matrices = [
        module
        for name, module in model.base_model.named_modules()
        if is_matrix(module) and module is not output
    ]
    sizes = [tuple(module.weight.shape) for module in matrices]
    heads = getattr(text, "num_attention_heads", None) or 1  # none in a state-space model
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    experts = getattr(text, "num_experts_per_tok", None) or 1
    inner = getattr(text, "moe_intermediate_size", None) if experts > 1 else None
    inner = inner or getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None)
    inner = inner or getattr(text, "ffn_dim", None) or 4 * text.hidden_size
    if isinstance(inner, (list, tuple)):  # one for each layer, as Gemma 3n has it: of the widest
        inner = max(inner)
    embedding = model.get_input_embeddings().weight
    apart = output is not None and output.weight is not embedding
    return Shape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        inner=inner * experts,
        heads=heads,
        queries=heads * size,
        keys=(getattr(text, "num_key_value_heads", None) or heads) * size,
        vocabulary=embedding.shape[0],
        weights=sum(weight.numel() for weight in model.parameters()),
        linear=sum(rows * columns for rows, columns in sizes),
        adapter=sum(rows + columns for rows, columns in sizes),
        matrices=len(sizes),
        embedding=embedding.numel(),
        head=output.weight.numel() if apart else 0,
        tied=bool(getattr(text, "tie_word_embeddings", False)),
        gated=sum(inner in pair for pair in sizes) != 2 * text.num_hidden_layers,
    )


def is_matrix(module: nn.Module) -> bool:
    """A linear layer, or what GPT-2 has in its place."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))
