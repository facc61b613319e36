"""Load tokenizers, language models and preference models: device, dtype, adapters, and one clear error for a bad path.

Only safetensors are read and no code from a model repository is run.
"""

from __future__ import annotations

import ctypes
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_cli.errors import UserError
from cai_cli.fingerprints import ADAPTER_CONFIG
from cai_cli.manifest import is_adapter
from cai_cli.ranks import local_rank
from cai_cli.storage import read_input

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as in malloc.h

# bitsandbytes warns of an optional 4-bit CPU kernel when peft imports it (peft comes with any import of the Trainer), and of
# the half precision of its 8-bit products at each of them.
for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(name).setLevel(logging.ERROR)


def quiet_transformers() -> None:
    """No bars for loading and saving, no notes on fresh heads: what matters is said by us."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def check_model(path: str, flag: str = "--model") -> None:
    """Stop early, without torch, when `path` is neither a model directory nor the name of a model on the Hub."""
    folder = Path(path)
    if folder.is_file():
        raise UserError(f"{flag} {path}: is a file", "a model is a directory with config.json and *.safetensors")
    if folder.is_dir():
        # A stage writes cai.json last: before that, even saved weights may be half a model.
        stage = folder.parent if is_adapter(folder) else folder
        if (stage / "cai.partial.json").is_file() and not (stage / "cai.json").is_file():
            hint = "its training has not finished: run the same command again"
            raise UserError(f"{flag} {path}: is not a model directory", hint)
        if not (folder / "config.json").is_file() and not is_adapter(folder):
            raise UserError(f"{flag} {path}: is not a model directory", "no config.json in it")
        return
    if path.startswith((".", "/", "~")) or path.count("/") != 1 or path.endswith("/"):
        raise UserError(f"{flag} {path}: no such directory", "give a model directory, or org/name of a model on the Hub")


def pick_device(device: str, flag: str = "--device") -> torch.device:
    import torch

    if device != "auto":
        try:
            chosen = torch.device(device)
        except RuntimeError:
            raise UserError(f"{flag} {device}: unknown", "auto, cpu, cuda, cuda:1 or mps") from None
        if chosen.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"{flag} {device}: no CUDA device here", f"use {flag} cpu")
        return chosen
    return torch.device(f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu")


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """float32 on a CPU; on a GPU "auto" keeps the checkpoint's own type."""
    import torch

    if dtype != "auto":
        return getattr(torch, dtype)
    return torch.float32 if device.type == "cpu" else "auto"


def load_tokenizer(path: str, flag: str = "--model") -> PreTrainedTokenizerBase:
    """The tokenizer of a model, padding on the left, with a pad token that is not the EOS token.

    An adapter saved without one has that of its base model.
    """
    from transformers import AutoTokenizer

    check_model(path, flag)
    if is_adapter(Path(path)) and not (Path(path) / "tokenizer_config.json").is_file():
        path, _ = base_and_adapters(path, flag)
    quiet_transformers()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{flag} {path}: no usable tokenizer: {first_line(error)}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{flag} {path}: its tokenizer has no EOS token", "set eos_token in tokenizer_config.json")
    separate_padding(tokenizer)
    return tokenizer


def separate_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a pad token apart from EOS: an unused reserved one serves, a new one last.

    With pad == EOS, masks made from ids hide the EOS and a model never learns to stop.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    vocabulary = tokenizer.get_vocab()
    names = (
        "<pad>",
        "<|pad|>",
        "[PAD]",
        "<|finetune_right_pad_id|>",
        "<|reserved_special_token_0|>",
        "<unk>",
        "<|endoftext|>",
    )
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    reserved = next((name for name in names if name in vocabulary and name not in taken), None)
    if reserved:
        tokenizer.pad_token = reserved
    else:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})


def training_dtype(dtype: str) -> str:
    """Weights that are trained are kept in float32 unless told otherwise: a small step vanishes in 16 bits."""
    return "float32" if dtype == "auto" else dtype


def load_config(path: str, flag: str = "--model") -> Any:
    from transformers import AutoConfig

    base, _ = base_and_adapters(path, flag)
    try:
        return AutoConfig.from_pretrained(base)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{flag} {path}: no usable config.json: {first_line(error)}") from None


def base_and_adapters(path: str, flag: str) -> tuple[str, list[str]]:
    """The model below an adapter directory, and the adapters to put on it in their order; a model is its own base."""
    adapters: list[str] = []
    where = flag
    while True:
        check_model(path, where)
        if not is_adapter(Path(path)):
            return path, adapters[::-1]
        config = Path(path) / ADAPTER_CONFIG
        adapters.append(path)
        where = f"{flag} {path}: its base model"
        try:
            path = str(json.loads(read_input(config))["base_model_name_or_path"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{config}: no base_model_name_or_path in it", "it says which model the adapter belongs to") from None
        if path in adapters:
            raise UserError(f"{config}: the adapter is its own base model", "name the model that it was trained on")


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
    """A preference model: a sequence classifier with one label. From a language model, with a fresh zero-mean head."""
    from transformers import AutoModelForSequenceClassification

    return _load(AutoModelForSequenceClassification, path, device, dtype, flag, tokenizer, quantize, num_labels=1)


def is_preference_model(path: str) -> bool:
    """Whether the checkpoint was saved as a sequence classifier, so that its score head means something."""
    architectures = getattr(load_config(path), "architectures", None) or []
    return any(name.endswith("ForSequenceClassification") for name in architectures)


def quantisation(quantize: str, place: torch.device) -> dict[str, Any]:
    """Settings of `from_pretrained` for a base held in 4 or 8 bits by bitsandbytes; heads are left as they are.

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
    auto: Any, path: str, device: str, dtype: str, flag: str, tokenizer: Any, quantize: str | None = None, **settings: Any
) -> PreTrainedModel:
    base, adapters = base_and_adapters(path, flag)
    place = pick_device(device)
    if place.type == "cpu":
        keep_freed_memory()
    settings |= {"dtype": pick_dtype(dtype, place), "use_safetensors": True}
    if quantize and adapters:
        raise UserError(
            f"{flag} {path}: --quantize cannot hold an adapter's merged weights", "name the merged model instead of the adapter"
        )
    if quantize:
        settings |= quantisation(quantize, place)
    try:
        model = auto.from_pretrained(base, **settings)
        for adapter in adapters:
            from peft import PeftModel

            # peft leaves what it merged frozen, as if there were adapters still.
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload().requires_grad_(True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{flag} {path}: cannot be loaded: {first_line(error)}") from None
    if tokenizer is not None:
        model.config.pad_token_id = tokenizer.pad_token_id
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if quantize:
        keep_unpacked(model)
        return model.eval()
    return model.to(place).eval()


def keep_freed_memory() -> None:
    """Let the C library keep up to 256 MiB that tensors have freed, and take blocks up to 64 MiB from there.

    Left alone, glibc hands the activations of a pass back to the system and gets them again, page by page, in the next one: a
    sixth of the time of a small model's pass over 2,000 tokens.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter, value in ((M_TRIM_THRESHOLD, 256 << 20), (M_MMAP_THRESHOLD, 64 << 20)):
            libc.mallopt(parameter, value)


def keep_unpacked(model: Any) -> None:
    """On a CPU, bitsandbytes repacks 4-bit weights for good at the first pass in eval mode; training needs them as they were."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def context_length(config: Any) -> int:
    """Longest sequence the model was made for, in tokens."""
    text_config = config.get_text_config()
    return int(getattr(text_config, "max_position_embeddings", None) or getattr(text_config, "n_positions", None) or 1 << 30)
