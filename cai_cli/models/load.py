"""Load tokenizers, language models and preference models: device, dtype, adapters, and one clear error for a
bad directory.

Only safetensors are read, no code from a model repository is run (`NO_CODE` goes into every
`from_pretrained`), and what was read is checked to be the whole model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cai_cli.errors import UserError, first_line, lacks_memory
from cai_cli.models.configs import NO_CODE, check_classifier, next_step, quiet_transformers
from cai_cli.models.devices import keep_freed_memory, leave_out_cudnn_attention, pick_device, pick_dtype
from cai_cli.models.paths import base_and_adapters, check_unpacked, is_preference_model
from cai_cli.models.tokenizers import fit_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_lm(
    path: str,
    device: str = "auto",
    dtype: str = "auto",
    flag: str = "--model",
    tokenizer: Any = None,
    quantize: str | None = None,
) -> PreTrainedModel:
    """A causal language model in eval mode; adapter directories are merged into their base model.

    `quantize`: "4bit" or "8bit" holds the linear layers in that, to be trained through adapters.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, path, device, dtype, flag, tokenizer, quantize)


def load_pm(
    path: str,
    device: str = "auto",
    dtype: str = "auto",
    flag: str = "--pm",
    tokenizer: Any = None,
    quantize: str | None = None,
) -> PreTrainedModel:
    """A preference model: a sequence classifier with one label. From a language model, with a fresh zero-mean
    head.
    """
    from transformers import AutoModelForSequenceClassification

    from cai_cli.models.score import check_scorer

    check_classifier(path, flag)
    model = _load(
        AutoModelForSequenceClassification, path, device, dtype, flag, tokenizer, quantize, num_labels=1
    )
    check_scorer(model, f"{flag} {path}")
    return model


def quantisation(quantize: str, place: torch.device) -> dict[str, Any]:
    """Settings of `from_pretrained` for a base held in 4 or 8 bits by bitsandbytes; heads are left as they
    are.

    4 bits: NormalFloat with double quantisation, as in QLoRA (arXiv 2305.14314).
    """
    import torch
    from transformers import BitsAndBytesConfig

    compute = torch.bfloat16 if place.type == "cuda" else torch.float32
    heads = ["lm_head", "score", "classifier"]
    if quantize == "4bit":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=heads,
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=heads)
    return {"quantization_config": config, "device_map": {"": place}}


def _load(
    auto: Any,
    path: str,
    device: str,
    dtype: str,
    flag: str,
    tokenizer: Any,
    quantize: str | None = None,
    **settings: Any,
) -> PreTrainedModel:
    from cai_cli.models.loaded import check_loaded
    from cai_cli.models.merging import merge_adapter

    base, adapters = base_and_adapters(path, flag)
    place = pick_device(device)
    if place.type == "cpu":
        keep_freed_memory()
    else:
        leave_out_cudnn_attention()
    settings |= {"dtype": pick_dtype(dtype, place), "use_safetensors": True, **NO_CODE}
    if quantize and adapters:
        raise UserError(
            f"{flag} {path}: --quantize cannot hold an adapter's merged weights",
            "name the merged model instead of the adapter",
        )
    if quantize or adapters:
        check_unpacked(path, flag)
    if quantize:
        settings |= quantisation(quantize, place)
    fresh_head = "num_labels" in settings and not is_preference_model(base)
    quiet_transformers()
    try:
        # Sizes that differ are let through here, to be named by `check_loaded`.
        model, info = auto.from_pretrained(
            base, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    except Exception as error:  # transformers, safetensors and bitsandbytes raise many types
        if lacks_memory(error):
            raise
        hint = next_step(error, "fetch or save it again, or update transformers")
        raise UserError(f"{flag} {path}: cannot be loaded: {first_line(error)}", hint) from None
    check_loaded(model, info, f"{flag} {base}", fresh_head)
    check_causal(model, f"{flag} {base}")
    for adapter in adapters:
        model = merge_adapter(model, adapter, flag)
    if tokenizer is not None:
        fit_tokenizer(model, tokenizer, f"{flag} {path}")
    if quantize:
        keep_unpacked(model)
        return model.eval()
    return model.to(place).eval()


def check_causal(model: Any, where: str) -> None:
    """Raise UserError for an encoder, whose tokens see those behind them, and for an adapter put on by
    transformers itself.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    config = model.config.get_text_config()
    kind = config.model_type
    decodes = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and getattr(config, "is_decoder", True) is not False
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decodes:
        raise UserError(
            f"{where}: {kind} is an encoder: its tokens see those behind them", "name a causal model"
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"{where}: is an adapter on the Hub", "fetch it and name its directory")


def keep_unpacked(model: Any) -> None:
    """On a CPU, bitsandbytes repacks 4-bit weights for good at the first pass in eval mode; training needs
    them as they were.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
