"""Read a model's config.json through transformers, without its code, and with one line for what it raises."""

from __future__ import annotations

from typing import Any

from cai_cli.errors import UserError, first_line
from cai_cli.models.paths import base_and_adapters

# Left to itself, transformers asks on stdin whether to run a directory's code
NO_CODE = {"trust_remote_code": False}
# How architectures name their longest sequence; the first that is there counts
CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")

# What architectures do to logits behind their output layer, and the value at which it is nothing
AFTER_THE_HEAD = {
    "final_logit_softcapping": None,
    "logits_scaling": 1,
    "logit_scale": 1,
    "lm_head_multiplier": 1,
    "output_multiplier": 1,
}


def quiet_transformers() -> None:
    """No bars for loading and saving, no notes on fresh heads: what matters is said by us."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def load_config(path: str, flag: str = "--model") -> Any:
    from transformers import AutoConfig

    base, _ = base_and_adapters(path, flag)
    try:
        return AutoConfig.from_pretrained(base, **NO_CODE)
    except Exception as error:  # each architecture checks its fields in its own way
        hint = next_step(error, "fetch or save it again, or update transformers")
        raise UserError(f"{flag} {path}: no usable config.json: {first_line(error)}", hint) from None


def next_step(error: Exception, otherwise: str) -> str:
    text = str(error)
    if "custom code" in text:
        return "its own code is not run: name a model that transformers knows"
    if "Unrecognized configuration class" in text:
        return "take a model of an architecture that has such a class"
    if "CONVERSION" in text:
        return "tensors that belong together differ in number or shape, such as those of a layer's experts: fetch it again"
    return otherwise


def check_classifier(path: str, flag: str) -> None:
    """Raise UserError where transformers has no sequence classifier of the architecture, which a preference
    model is.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    config = load_config(path, flag)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        told = f"{flag} {path}: no preference model can be made of it: transformers has no classifier for {config.model_type}"
        raise UserError(told, "take a base model of another architecture")


def check_plain_logits(path: str, flag: str = "--model") -> None:
    """Raise UserError where the output layer alone does not give the model's logits. The language loss beside a
    preference model's is computed through that layer, and would be of another distribution.
    """
    text = load_config(path, flag).get_text_config()
    for name, nothing in AFTER_THE_HEAD.items():
        if (value := getattr(text, name, None)) not in (None, nothing):
            told = f"--lm-coef: {path} changes its logits behind the output layer ({name} {value})"
            raise UserError(told, "leave --lm-coef at 0, or take another base")


def longest_row(max_length: int, model: str) -> int:
    """The most tokens of a row that `model` is trained on: --max-length, but never more than its context."""
    return min(max_length, context_length(load_config(model)))


def context_length(config: Any) -> int:
    """Longest sequence the model was made for, in tokens."""
    text_config = config.get_text_config()
    return next((int(length) for name in CONTEXT if (length := getattr(text_config, name, None))), 1 << 30)
