"""Load a model's tokenizer so that it keeps all text and has a pad token of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_cli.artifacts.places import is_adapter
from cai_cli.errors import UserError, first_line
from cai_cli.models.configs import NO_CODE, load_config, next_step, quiet_transformers
from cai_cli.models.paths import base_and_adapters, check_model
from cai_cli.models.weight_files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "How can I mend a fence? (A) Oil it. (B) Paint it."  # words of the demo's vocabulary, too


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
        raise UserError(
            f"{flag} {path}: its tokenizer has no EOS token", "set eos_token in tokenizer_config.json"
        )
    check_text_is_kept(tokenizer, Path(path), flag)
    separate_padding(tokenizer)
    return tokenizer


def check_text_is_kept(tokenizer: PreTrainedTokenizerBase, path: Path, flag: str) -> None:
    """Raise UserError where transformers' class for an architecture loses text that the directory's
    tokenizer.json keeps.

    For some architectures (Qwen2, Phi-3 ...) it takes their own class, whatever tokenizer_config.json names.
    Of another model's vocabulary, put beside such a model, that class may make no token at all, and prompts
    end up empty.
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
        raise UserError(
            told, "its tokenizer.json is of another kind: take the tokenizer that the model was trained with"
        )


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


def fit_tokenizer(model: Any, tokenizer: Any, where: str) -> None:
    """Set the pad token, and make room for tokens that the tokenizer alone knows. A pad token is masked
    wherever it stands; other tokens mean nothing until they are trained, which is said, and all start as the
    mean of the known ones.
    """
    from cai_cli.models.loaded import tell_once

    model.config.pad_token_id = tokenizer.pad_token_id
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) <= rows:
        return
    beyond = [index for index in range(rows, len(tokenizer)) if index != tokenizer.pad_token_id]
    if beyond:
        name = tokenizer.convert_ids_to_tokens(beyond[0])
        tell_once(
            f"{where}: {len(beyond)} tokens of its tokenizer have no embeddings, first {name!r}: they mean nothing yet"
        )
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    start_as_mean(model, rows)


def start_as_mean(model: Any, rows: int) -> None:
    """Make every row of embeddings and output layer from `rows` on the mean of those before it.

    An output row of noise has a logit near 0. Where the known tokens' are far below, as GPT-2's are, it would
    take all the probability, a pad token's too, which nothing ever trains. The mean's logit is the mean of
    theirs: never more than an equal share.
    """
    import torch

    output = model.get_output_embeddings()
    weights = [model.get_input_embeddings().weight]
    if output is not None:
        bias = getattr(output, "bias", None)
        weights += [weight for weight in (output.weight, bias) if weight is not None]
    with torch.no_grad():
        for weight in weights:  # tied, one comes twice and stays the same
            weight[rows:] = weight[:rows].mean(0, dtype=torch.float32).to(weight.dtype)
