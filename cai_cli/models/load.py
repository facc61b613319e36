"""Load tokenizers, language models and preference models: device, dtype, adapters, and one clear error for a bad directory.

Only safetensors are read, no code from a model repository is run (`NO_CODE` goes into every `from_pretrained`), and what was
read is checked to be the whole model.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_cli.artifacts.places import is_adapter
from cai_cli.errors import UserError, first_line
from cai_cli.models.paths import base_and_adapters, check_model, is_preference_model, read_json
from cai_cli.processes.ranks import local_rank

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NO_CODE = {"trust_remote_code": False}  # left to itself, transformers asks on stdin whether to run a directory's code
PROBE = "How can I mend a fence? (A) Oil it. (B) Paint it."  # words of the demo's vocabulary, too
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as in malloc.h


def quiet_transformers() -> None:
    """No bars for loading and saving, no notes on fresh heads: what matters is said by us."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def pick_device(device: str, flag: str = "--device") -> torch.device:
    import torch

    if device == "auto":
        return torch.device(f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"{flag} {device}: unknown", "auto, cpu, cuda, cuda:1 or mps")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"{flag} {device}: no MPS device here", f"use {flag} cpu")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{flag} {device}: no CUDA device here", f"use {flag} cpu")
    if chosen.type == "cuda" and 0 < (count := torch.cuda.device_count()) <= (chosen.index or 0):
        raise UserError(f"{flag} {device}: there are {count} CUDA devices here", f"cuda:0 to cuda:{count - 1}")
    return chosen


def check_device(options: Any) -> None:
    """Raise UserError where there is no such device here, before anything is read for it; a dry run needs none."""
    if options.device not in ("auto", "cpu") and not options.dry_run:
        pick_device(options.device)


def check_attention(options: Any) -> None:
    """Raise UserError where flash attention is asked for and cannot be had, before a model is loaded; a dry run needs none."""
    if options.attn_implementation != "flash_attention_2" or options.dry_run:
        return
    from transformers.utils.import_utils import is_flash_attn_2_available

    if not is_flash_attn_2_available():
        told = "--attn-implementation flash_attention_2: needs the package flash-attn and a GPU that it knows"
        raise UserError(told, "leave it at auto, or install what it needs")


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
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", **NO_CODE)
    except Exception as error:  # the libraries raise many types, `tokenizers` bare Exceptions
        config = Path(path) / "config.json"
        if config.is_file() and read_json(config).get("model_type"):
            load_config(path, flag)  # by which a tokenizer is looked up: it may be the one at fault
        hint = next_step(error, "its tokenizer files are missing or damaged: fetch or save them again")
        raise UserError(f"{flag} {path}: no usable tokenizer: {first_line(error)}", hint) from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{flag} {path}: its tokenizer has no EOS token", "set eos_token in tokenizer_config.json")
    check_text_is_kept(tokenizer, Path(path), flag)
    separate_padding(tokenizer)
    return tokenizer


def check_text_is_kept(tokenizer: PreTrainedTokenizerBase, path: Path, flag: str) -> None:
    """Raise UserError where transformers' class for an architecture loses text that the directory's tokenizer.json keeps.

    For some architectures (Qwen2, Phi-3 ...) it takes their own class, whatever tokenizer_config.json names. Of another
    model's vocabulary, put beside such a model, that class may make no token at all, and prompts end up empty.
    """

    def kept(decoded: str) -> int:
        return len("".join(decoded.split()))

    own = kept(str(tokenizer.decode(tokenizer.encode(PROBE, add_special_tokens=False))))
    if own >= kept(PROBE) or not (file := path / "tokenizer.json").is_file():
        return
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(file))
    if own < kept(plain.decode(plain.encode(PROBE, add_special_tokens=False).ids, skip_special_tokens=False)):
        told = f"{flag} {path}: read as {type(tokenizer).__name__}, as transformers does for the model, its tokenizer loses text"
        raise UserError(told, "its tokenizer.json is of another kind: take the tokenizer that the model was trained with")


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

    from cai_cli.models.score import check_scorer

    check_classifier(path, flag)
    model = _load(AutoModelForSequenceClassification, path, device, dtype, flag, tokenizer, quantize, num_labels=1)
    check_scorer(model, f"{flag} {path}")
    return model


def check_classifier(path: str, flag: str) -> None:
    """Raise UserError where transformers has no sequence classifier of the architecture, which a preference model is."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    config = load_config(path, flag)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        told = f"{flag} {path}: no preference model can be made of it: transformers has no classifier for {config.model_type}"
        raise UserError(told, "take a base model of another architecture")


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
    import torch

    from cai_cli.models.loaded import check_loaded
    from cai_cli.models.merging import merge_adapter

    base, adapters = base_and_adapters(path, flag)
    place = pick_device(device)
    if place.type == "cpu":
        keep_freed_memory()
    settings |= {"dtype": pick_dtype(dtype, place), "use_safetensors": True, **NO_CODE}
    if quantize and adapters:
        raise UserError(
            f"{flag} {path}: --quantize cannot hold an adapter's merged weights", "name the merged model instead of the adapter"
        )
    if quantize:
        settings |= quantisation(quantize, place)
    fresh_head = "num_labels" in settings and not is_preference_model(base)
    quiet_transformers()
    try:
        # Sizes that differ are let through here, to be named by `check_loaded`.
        model, info = auto.from_pretrained(base, output_loading_info=True, ignore_mismatched_sizes=True, **settings)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # transformers, safetensors and bitsandbytes raise many types
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
    """Raise UserError for an encoder, whose tokens see those behind them, and for an adapter put on by transformers itself."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config = model.config.get_text_config()
    kind = config.model_type
    decodes = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and getattr(config, "is_decoder", True) is not False
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decodes:
        raise UserError(f"{where}: {kind} is an encoder: its tokens see those behind them", "name a causal model")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"{where}: is an adapter on the Hub", "fetch it and name its directory")


def fit_tokenizer(model: Any, tokenizer: Any, where: str) -> None:
    """Set the pad token, and make room for tokens that the tokenizer alone knows. A pad token is masked wherever it stands;
    other tokens mean nothing until they are trained, which is said, and start from the same values each time.
    """
    import torch

    from cai_cli.models.loaded import tell_once

    model.config.pad_token_id = tokenizer.pad_token_id
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) <= rows:
        return
    beyond = [index for index in range(rows, len(tokenizer)) if index != tokenizer.pad_token_id]
    with torch.random.fork_rng(enabled=bool(beyond)):
        if beyond:
            name = tokenizer.convert_ids_to_tokens(beyond[0])
            tell_once(f"{where}: {len(beyond)} tokens of its tokenizer have no embeddings, first {name!r}: they mean nothing yet")
            torch.manual_seed(0)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


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


def context_length(config: Any) -> int:
    """Longest sequence the model was made for, in tokens."""
    text_config = config.get_text_config()
    return int(getattr(text_config, "max_position_embeddings", None) or getattr(text_config, "n_positions", None) or 1 << 30)
