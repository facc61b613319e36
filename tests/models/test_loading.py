"""A model is what its directory describes, whole, or one line: tensors missing, misnamed, of another shape,
files cut short.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Cai, mistake
from ppo_setup import make_pm
from safetensors.torch import load_file, save_file

from cai_cli.errors import UserError
from cai_cli.microworld import checkpoint
from cai_cli.models.devices import pick_device
from cai_cli.models.load import load_lm, load_pm
from cai_cli.models.paths import check_model, is_preference_model
from cai_cli.models.tokenizers import load_tokenizer

WEIGHTS = "model.safetensors"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def pm(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pm(llama, tmp_path_factory.mktemp("pm") / "pm")


def copy(
    model: Path,
    folder: Path,
    tensors: Callable[[Tensors], Tensors] | None = None,
    config: dict[str, object] | None = None,
) -> Path:
    """A copy with other tensors, and other fields in config.json (None takes a field away)."""
    target = shutil.copytree(model, folder / "copy")
    if tensors:
        save_file(tensors(load_file(target / WEIGHTS)), target / WEIGHTS, metadata={"format": "pt"})
    if config:
        fields = json.loads((target / "config.json").read_text()) | config
        (target / "config.json").write_text(
            json.dumps({key: value for key, value in fields.items() if value is not None})
        )
    return target


def load(model: Path, role: str = "language model", quantize: str | None = None):
    """As a stage does: the directory is looked at first, then the tokenizer, then the weights."""
    check_model(str(model), "--model", role)  # type: ignore[arg-type]
    tokenizer = load_tokenizer(str(model))
    return (load_lm if role == "language model" else load_pm)(
        str(model), "cpu", tokenizer=tokenizer, quantize=quantize
    )


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)
    }


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def along(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.zeros(*shape)}


# Tensors


@pytest.mark.parametrize("quantize", [None, "4bit", "8bit"])
@pytest.mark.parametrize(
    ("tensors", "config", "problem"),
    [
        (
            without("layers.0.self_attn.q_proj"),
            None,
            "1 tensor of .* first model.layers.0.self_attn.q_proj.weight",
        ),
        (without("layers.1.mlp"), None, "3 tensors of .* first model.layers.1.mlp.down_proj.weight"),
        (without("embed_tokens"), None, "first model.embed_tokens.weight"),
        (without("lm_head"), None, "lm_head.weight .*without the output layer of a LlamaForCausalLM"),
        (prefixed("_orig_mod."), None, "21 tensors of .*are named _orig_mod.…"),
        (prefixed("module."), None, "are named module.…"),
        (prefixed("base_model.model."), None, "are named base_model.model.…"),
        (
            None,
            {"num_hidden_layers": 1},
            "no place for 9 tensors of its weights, first model.layers.1.input_layernorm.weight",
        ),
        (None, {"num_hidden_layers": 3}, "first model.layers.2.input_layernorm.weight"),
        (along("model.layers.0.self_attn.q_proj.bias", 32), None, "no place for 1 tensor .*q_proj.bias"),
        (along("model.layers.0.self_attn.q_norm.weight", 8), None, "no place for 1 tensor .*q_norm.weight"),
        (
            None,
            {"vocab_size": 300},
            r"another shape than config.json gives, first .*: \[400, 32\], not \[300, 32\]",
        ),
        (None, {"hidden_size": 64}, r"\[400, 32\], not \[400, 64\]"),
        (None, {"intermediate_size": 96}, r"another shape .*mlp"),
    ],
)
def test_a_model_that_is_not_whole(llama: Path, tmp_path: Path, quantize, tensors, config, problem) -> None:
    if config and "num_hidden_layers" in config:
        config = config | {"layer_types": None}
    with pytest.raises(UserError, match=problem):
        load(copy(llama, tmp_path, tensors, config), quantize=quantize)


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        (
            without("score"),
            "first score.weight .*without the output layer of a LlamaForSequenceClassification",
        ),
        (without("mlp.up_proj"), "first model.layers.0.mlp.up_proj.weight"),
        (prefixed("module."), "are named module.…"),
        (along("score.weight", 2, 32), "score.weight gives 2 labels"),
    ],
)
def test_a_preference_model_that_is_not_whole(pm: Path, tmp_path: Path, tensors, problem) -> None:
    with pytest.raises(UserError, match=problem):
        load(copy(pm, tmp_path, tensors), "preference model")


@pytest.mark.parametrize(
    ("tensors", "config"),
    [
        (without("lm_head"), {"tie_word_embeddings": True}),
        (along("model.layers.0.self_attn.rotary_emb.inv_freq", 4), None),
        (None, {"architectures": None}),
    ],
)
def test_what_a_checkpoint_may_lack_or_hold_besides(
    llama: Path, tmp_path: Path, capsys, tensors, config
) -> None:
    assert load(copy(llama, tmp_path, tensors, config)).dtype == torch.float32
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("tensors", "config"),
    [
        (along("model.vision_tower.patch.weight", 4), None),
        (along("mtp.layers.0.weight", 4), None),
        (None, {"num_hidden_layers": 1, "num_nextn_predict_layers": 1, "layer_types": None}),
    ],
)
def test_parts_that_a_text_model_does_not_use_are_named(
    llama: Path, tmp_path: Path, capsys, tensors, config
) -> None:
    load(copy(llama, tmp_path, tensors, config))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: --model {tmp_path / 'copy'}: ") and "not read, first m" in line


def test_a_preference_model_starts_from_a_language_model_without_a_word(llama: Path, capsys) -> None:
    """The language model's own output layer is not missed."""
    assert load(llama, "either").config.num_labels == 1
    assert capsys.readouterr().err == ""


def test_without_architectures_the_tensors_tell_the_role(pm: Path, llama: Path, tmp_path: Path) -> None:
    bare = copy(pm, tmp_path, None, {"architectures": None})
    assert is_preference_model(str(bare)) and not is_preference_model(str(llama))
    with pytest.raises(UserError, match="is a preference model, not a language model"):
        check_model(str(bare), "--model", "language model")


# Files


def cut(model: Path, name: str, size: int | None) -> None:
    (model / name).write_bytes((model / name).read_bytes()[:size])


def to_pickle(model: Path) -> None:
    torch.save(load_file(model / WEIGHTS), model / "pytorch_model.bin")
    (model / WEIGHTS).unlink()


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda model: (model / name).write_text(text)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda model: cut(model, WEIGHTS, -1000), "model.safetensors: is cut short"),
        (lambda model: cut(model, WEIGHTS, 200), "model.safetensors: is no safetensors file or is cut short"),
        (lambda model: cut(model, WEIGHTS, 0), "model.safetensors: is empty"),
        (lambda model: (model / WEIGHTS).unlink(), "has no weights"),
        (lambda model: (model / WEIGHTS).rename(model / f"{WEIGHTS}.incomplete"), "is half a download"),
        (to_pickle, "pytorch_model.bin is a pickle"),
        (write(WEIGHTS, POINTER), "model.safetensors: is a pointer of Git LFS"),
        (write(WEIGHTS, "<html>not found</html>" * 9), "model.safetensors: is no safetensors file"),
        (write("config.json", POINTER), "config.json: is a pointer of Git LFS"),
        (write("config.json", "{"), "config.json: is not JSON"),
        (write("config.json", "[]"), "config.json: is not a JSON object"),
        (write("config.json", "{}"), "config.json: no model_type in it"),
        (write("config.json", '{"model_type": "nix"}'), "does not recognize this architecture"),
        (
            write("config.json", '{"model_type": "llama", "hidden_size": "big"}'),
            "no usable config.json: .*hidden_size",
        ),
        (write("generation_config.json", "{"), "generation_config.json: is not JSON"),
        (write("tokenizer_config.json", "{"), "tokenizer_config.json: is not JSON"),
        (write("tokenizer.json", "{"), "no usable tokenizer"),
        (lambda model: (model / "tokenizer.json").unlink(), "no usable tokenizer"),
    ],
)
def test_damaged_files(llama: Path, tmp_path: Path, damage, problem) -> None:
    model = copy(llama, tmp_path)
    damage(model)
    with pytest.raises(UserError, match=problem) as raised:
        load(model)
    assert raised.value.hint and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda shards: shards[1].unlink(), "model-00002-of-.*safetensors is missing"),
        (lambda shards: cut(shards[1].parent, shards[1].name, -8), "model-00002-of-.*: is cut short"),
        (
            lambda shards: shutil.copy(shards[0], shards[1]),
            r"model-00002-of-.*\d tensors of .*index.json are not in it",
        ),
        (lambda shards: (shards[0].parent / f"{WEIGHTS}.index.json").write_text("{}"), "no weight_map in it"),
    ],
)
def test_damaged_shards(llama: Path, tmp_path: Path, damage, problem) -> None:
    model = copy(llama, tmp_path)
    whole = load(model)
    (model / WEIGHTS).unlink()
    whole.save_pretrained(model, max_shard_size="60KB")
    assert torch.equal(load(model).lm_head.weight, whole.lm_head.weight)
    damage(sorted(model.glob("model-*")))
    with pytest.raises(UserError, match=problem):
        load(model)


@pytest.mark.parametrize(
    ("device", "problem"),
    [("mps", "no MPS device"), ("cuda:99", "CUDA device"), ("meta", "unknown"), ("gpu", "unknown")],
)
def test_devices_that_are_not_there(device: str, problem: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match=f"--device {device}: .*{problem}"):
        pick_device(device)


def test_the_command_says_it_in_one_line(cai: Cai, llama: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "How do I bake bread?"}\n')
    model = copy(llama, tmp_path, without("q_proj"))
    words = ("sample", "--prompts", prompts, "--out", tmp_path / "out.jsonl")
    mistake(cai(*words, "--model", model), f"--model {model}: 2 tensors", "q_proj")
    mistake(cai(*words, "--model", llama, "--device", "mps"), "--device mps: no MPS device here")


# Tokenizers


def test_a_vocabulary_that_transformers_reads_as_another_kind_is_refused(
    cai: Cai, qwen: Path, tmp_path: Path
) -> None:
    """For Qwen2 it takes its own class, of bytes, whatever the files say: of words nothing is left."""
    model = Path(shutil.copytree(qwen, tmp_path / "lm"))
    words = checkpoint("helpful-only")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(words / name, model / name)
    (tmp_path / "p.jsonl").write_text('{"prompt": "How can I water a daisy?"}\n')
    for stage in ("sample", "revise"):
        result = cai(
            stage, "--model", model, "--prompts", tmp_path / "p.jsonl", "--out", tmp_path / "x.jsonl"
        )
        mistake(
            result,
            f"--model {model}",
            "read as Qwen2Tokenizer",
            "loses text",
            "the tokenizer that the model was trained with",
        )


def test_a_tokenizer_with_unknown_words_is_what_it_is(llama: Path, tmp_path: Path) -> None:
    """The probe's words are unknown to its own file as well: nothing is lost by reading it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = Path(shutil.copytree(llama, tmp_path / "lm"))
    vocabulary = Tokenizer(
        models.WordLevel({"<pad>": 0, "<eos>": 1, "Bonjour": 2, "?": 3}, unk_token="<pad>")
    )
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, eos_token="<eos>", pad_token="<pad>", unk_token="<pad>"
    )
    tokenizer.save_pretrained(model)
    assert load_tokenizer(str(model)).encode("Bonjour?") == [2, 3]
