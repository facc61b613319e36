"""Adapters of peft's other kinds, and of other tools: merged they give what peft gives unmerged, or one line
says why not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from ppo_setup import make_pm
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cai_cli.errors import UserError
from cai_cli.models.load import load_lm, load_pm
from cai_cli.models.paths import check_model
from cai_cli.models.tokenizers import load_tokenizer

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
IDS = torch.arange(10, 40).unsqueeze(0)
SOME = {"r": 4, "target_modules": ["q_proj", "down_proj"]}


@pytest.fixture(scope="module")
def pm(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pm(llama, tmp_path_factory.mktemp("pm") / "pm")


def outputs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def make(
    base: Path,
    folder: Path,
    config: Any,
    scores: bool = False,
    labels: int = 1,
    more_tokens: int = 0,
    **saving: Any,
) -> torch.Tensor:
    """Save a random adapter of `base` and its tokenizer, as other tools do; what the model gives with it,
    unmerged.
    """
    torch.manual_seed(0)
    if scores:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    else:
        model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = load_tokenizer(str(base))
    model.config.pad_token_id = tokenizer.pad_token_id
    if more_tokens:
        tokenizer.add_tokens([f"<new {n}>" for n in range(more_tokens)])
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    shell = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for weight in shell.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn(weight.shape))
    shell.save_pretrained(folder, **saving)
    tokenizer.save_pretrained(folder)
    change(folder, base_model_name_or_path=str(base))
    return outputs(shell)


def change(folder: Path, **fields: object) -> None:
    config = json.loads((folder / CONFIG).read_text()) | fields
    (folder / CONFIG).write_text(json.dumps(config))


def load(folder: Path, scores: bool = False) -> Any:
    """As a stage does."""
    check_model(str(folder), "--model", "preference model" if scores else "language model")
    return (load_pm if scores else load_lm)(str(folder), "cpu", tokenizer=load_tokenizer(str(folder)))


LM = {"task_type": "CAUSAL_LM"}
LANGUAGE: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "lora without a task": (lambda: peft.LoraConfig(**SOME), {}),
    "dora": (lambda: peft.LoraConfig(use_dora=True, **SOME, **LM), {}),
    "rslora": (lambda: peft.LoraConfig(use_rslora=True, **SOME, **LM), {}),
    "biases": (lambda: peft.LoraConfig(bias="lora_only", **SOME, **LM), {}),
    "ia3": (
        lambda: peft.IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **LM
        ),
        {},
    ),
    "loha": (lambda: peft.LoHaConfig(r=4, alpha=4, target_modules=["q_proj"], **LM), {}),
    "whole layers": (lambda: peft.LoraConfig(modules_to_save=["embed_tokens", "lm_head"], **SOME, **LM), {}),
    "more tokens": (lambda: peft.LoraConfig(**SOME, **LM), {"more_tokens": 3}),
    "more tokens, whole layers": (
        lambda: peft.LoraConfig(modules_to_save=["embed_tokens", "lm_head"], **SOME, **LM),
        {"more_tokens": 3},
    ),
    "more tokens, lora on embeddings": (
        lambda: peft.LoraConfig(r=4, target_modules=["embed_tokens", "lm_head", "q_proj"], **LM),
        {"more_tokens": 3},
    ),
}


@pytest.mark.parametrize("kind", LANGUAGE)
@pytest.mark.filterwarnings("ignore")
def test_language_models(llama: Path, tmp_path: Path, kind: str, capsys) -> None:
    config, settings = LANGUAGE[kind]
    expected = make(llama, tmp_path / "adapter", config(), **settings)
    capsys.readouterr()
    found = load(tmp_path / "adapter")
    assert torch.allclose(outputs(found), expected, atol=1e-5)
    assert (outputs(load_lm(str(llama), "cpu")) - expected[..., :400]).abs().max() > 1e-4
    assert all(weight.requires_grad for weight in found.parameters()) and capsys.readouterr().err == ""


CLASSIFIER = {"task_type": "SEQ_CLS", "r": 4, "target_modules": "all-linear"}
PREFERENCE: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "peft's own": (lambda: peft.LoraConfig(**CLASSIFIER), {}),
    "as TRL's RewardTrainer is told": (lambda: peft.LoraConfig(modules_to_save=["score"], **CLASSIFIER), {}),
    "without a task": (
        lambda: peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["score"]),
        {},
    ),
    "more tokens": (lambda: peft.LoraConfig(**CLASSIFIER), {"more_tokens": 2}),
}


@pytest.mark.parametrize("on", ["llama", "pm"])
@pytest.mark.parametrize("kind", PREFERENCE)
@pytest.mark.filterwarnings("ignore")
def test_preference_models(llama: Path, pm: Path, tmp_path: Path, kind: str, on: str) -> None:
    config, settings = PREFERENCE[kind]
    expected = make({"llama": llama, "pm": pm}[on], tmp_path / "adapter", config(), scores=True, **settings)
    assert torch.allclose(outputs(load(tmp_path / "adapter", scores=True)), expected, atol=1e-5)
    with pytest.raises(UserError, match="is a preference model, not a language model"):
        load(tmp_path / "adapter")


def test_a_preference_model_starts_from_a_language_models_adapter(llama: Path, tmp_path: Path) -> None:
    """The body is the merged one; an output layer in the adapter is left out."""
    make(llama, tmp_path / "adapter", peft.LoraConfig(modules_to_save=["lm_head"], **SOME, **LM))
    check_model(str(tmp_path / "adapter"), "--model", "either")
    found, merged = load_pm(str(tmp_path / "adapter"), "cpu"), load(tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(found.model(IDS)[0], merged.model(IDS)[0])
    with pytest.raises(UserError, match="is a language model without a score head"):
        load(tmp_path / "adapter", scores=True)


def test_the_base_may_lie_beside_the_adapter_and_be_an_adapter(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "base")
    make(llama, tmp_path / "first", peft.LoraConfig(**SOME, **LM))
    change(tmp_path / "first", base_model_name_or_path="../base")
    load(tmp_path / "first").save_pretrained(tmp_path / "merged")
    load_tokenizer(str(llama)).save_pretrained(tmp_path / "merged")
    expected = make(tmp_path / "merged", tmp_path / "second", peft.LoraConfig(**SOME, **LM))
    change(tmp_path / "second", base_model_name_or_path="../first")
    assert torch.allclose(outputs(load(tmp_path / "second")), expected, atol=1e-5)


def tensors(edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    return lambda folder: save_file(edit(load_file(folder / FILE)), folder / FILE)


def fields(**new: object) -> Callable[[Path], None]:
    return lambda folder: change(folder, **new)


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "one tensor gone": (
        tensors(lambda t: {k: v for k, v in t.items() if k != A}),
        r"1 tensor missing in it, first .*q_proj",
    ),
    "further layers": (
        tensors(lambda t: t | {A.replace("layers.0", "layers.9"): torch.zeros(4, 32)}),
        "1 tensor without a place in its base model, first .*layers.9",
    ),
    "a wrapper's prefix": (tensors(lambda t: {f"module.{k}": v for k, v in t.items()}), "8 tensors missing"),
    "narrower than its tensors": (fields(target_modules=["q_proj"]), "4 tensors without a place .*down_proj"),
    "no such layers": (fields(target_modules=["nix"]), "does not fit its base model: Target modules"),
    "another rank": (fields(r=8), "does not fit its base model: size mismatch for .*q_proj"),
    "cut short": (lambda f: (f / FILE).write_bytes((f / FILE).read_bytes()[:-8]), f"{FILE}: is cut short"),
    "no weights": (lambda f: (f / FILE).unlink(), f"has no {FILE}"),
    "a pickle": (lambda f: (f / FILE).rename(f / "adapter_model.bin"), "adapter_model.bin is a pickle"),
    "no JSON": (lambda f: (f / CONFIG).write_text("{"), f"{CONFIG}: is not JSON"),
    "no kind": (fields(peft_type=None), f"{CONFIG}: no peft_type in it"),
    "an unknown kind": (fields(peft_type="NEWFANGLED"), "this version of peft cannot read"),
    "another task": (fields(task_type="TOKEN_CLS"), "is an adapter for TOKEN_CLS"),
    "base gone": (fields(base_model_name_or_path="/gone"), "its base model /gone: no such directory"),
    "own base": (fields(base_model_name_or_path="../adapter"), "is its own base model"),
    "score head gone": (
        fields(task_type="SEQ_CLS"),
        "has no score head in it, and .* is a language model without one",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.filterwarnings("ignore")
def test_adapters_that_do_not_fit(llama: Path, tmp_path: Path, damage: str) -> None:
    break_it, problem = DAMAGE[damage]
    make(llama, tmp_path / "adapter", peft.LoraConfig(**SOME, **LM))
    break_it(tmp_path / "adapter")
    with pytest.raises(UserError, match=problem) as raised:
        load(tmp_path / "adapter")
    assert raised.value.hint and "\n" not in str(raised.value)


def test_an_adapter_of_the_other_role_than_its_base(llama: Path, pm: Path, tmp_path: Path) -> None:
    make(llama, tmp_path / "adapter", peft.LoraConfig(**SOME, **LM))
    change(tmp_path / "adapter", base_model_name_or_path=str(pm))
    with pytest.raises(UserError, match=r"is for a language model, but .*pm is a preference model"):
        load(tmp_path / "adapter")


def test_two_labels(llama: Path, tmp_path: Path) -> None:
    make(llama, tmp_path / "adapter", peft.LoraConfig(**CLASSIFIER), scores=True, labels=2)
    with pytest.raises(UserError, match=r"score.weight gives 2 labels"):
        load(tmp_path / "adapter", scores=True)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_adapters_that_cannot_be_merged(llama: Path, tmp_path: Path, kind: str) -> None:
    make(llama, tmp_path / "adapter", getattr(peft, kind)(num_virtual_tokens=4, **LM))
    with pytest.raises(UserError, match=r"an adapter of kind P.*_TUNING cannot be merged"):
        load(tmp_path / "adapter")


def test_tokens_without_embeddings_are_named(llama: Path, tmp_path: Path, capsys) -> None:
    """The tokenizer beside the adapter has tokens that nobody trained."""
    make(
        llama, tmp_path / "adapter", peft.LoraConfig(**SOME, **LM), more_tokens=3, save_embedding_layers=False
    )
    capsys.readouterr()
    found = [outputs(load(tmp_path / "adapter")) for _ in range(2)]
    (line,) = capsys.readouterr().err.splitlines()
    assert "3 tokens of its tokenizer have no embeddings, first '<new 0>'" in line
    assert torch.equal(*found)
