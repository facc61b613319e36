"""The output layer of the language model that a preference model was made of, for a language-modelling loss
beside its scores.

A sequence classifier is saved without that layer. Where the model ties it to the embeddings it is still
there; where it does not, `pmp` keeps the base model's in `lm_head.safetensors`, so that `train-pm` can go on
with it. It is held fixed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from cai_cli.compute.logit_chunks import in_chunks
from cai_cli.errors import UserError
from cai_cli.models.configs import load_config
from cai_cli.models.load import load_lm
from cai_cli.models.paths import base_and_adapters, is_preference_model
from cai_cli.models.score import transformer

FILE = "lm_head.safetensors"


class TiedHead(nn.Module):
    """Logits through the embeddings, which are trained along."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, states: Tensor) -> Tensor:
        (weight,) = self.embeddings.parameters(recurse=False)
        return linear(states.to(weight.dtype), weight)


def is_tied(path: str) -> bool:
    return bool(getattr(load_config(path).get_text_config(), "tie_word_embeddings", False))


def language_head(model: Any, path: str) -> nn.Module:
    """The output layer for the classifier `model`, which was loaded from `path`. Raises UserError where it is
    lost.
    """
    if is_tied(path):
        return TiedHead(transformer(model).get_input_embeddings())
    base, _ = base_and_adapters(path, "--model")
    saved = Path(base) / FILE
    if saved.is_file():
        from safetensors.torch import load_file

        state = load_file(saved)
        head = nn.Linear(state["weight"].shape[1], state["weight"].shape[0], bias="bias" in state)
        head.load_state_dict(state)
    elif is_preference_model(base):
        hint = "train it with --lm-coef from the language model on, or leave --lm-coef at 0"
        raise UserError(f"--lm-coef: {path} has lost its language model's output layer", hint)
    else:
        # An adapter that scores has left the base's output layer as it was.
        source = base if is_preference_model(path) else path
        head = load_lm(source, "cpu", str(model.dtype).removeprefix("torch.")).get_output_embeddings()
    return head.to(model.device, model.dtype).requires_grad_(False)


def save_language_head(head: nn.Module | None, folder: Path) -> None:
    """Keep an output layer that is not tied to the embeddings; nothing to do for one that is."""
    if head is None or isinstance(head, TiedHead):
        return
    from safetensors.torch import save_file

    save_file(
        {name: weight.detach().cpu().contiguous() for name, weight in head.state_dict().items()},
        folder / FILE,
    )


def language_loss(head: nn.Module, states: Tensor, tokens: Tensor) -> Tensor:
    """Sum of the cross-entropy of tokens (N,) given the states (N, D) before them: scalar."""

    def part(some_states: Tensor, some_tokens: Tensor) -> Tensor:
        return cross_entropy(head(some_states).float(), some_tokens, reduction="sum")

    return torch.stack(in_chunks(part, states, tokens, int(next(head.parameters()).shape[0]))).sum()
