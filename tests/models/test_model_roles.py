"""Every command checks, before anything expensive, that the models it was given can do what they are given
for.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Cai, mistake
from ppo_setup import make_pm
from tiny import byte_level_tokenizer

from cai_cli.cli import app
from cai_cli.errors import UserError
from cai_cli.models.paths import check_model

LANGUAGE, PREFERENCE = (
    "is a language model without a score head",
    "is a preference model, not a language model",
)
COMMANDS = {
    "revise": (
        ["revise", "--model", "pm", "--prompts", "rows", "--constitution", "article"],
        f"--model pm: {PREFERENCE}",
    ),
    "sample": (["sample", "--model", "pm", "--prompts", "rows"], f"--model pm: {PREFERENCE}"),
    "sft": (["sft", "--model", "pm", "--data", "rows"], f"--model pm: {PREFERENCE}"),
    "label": (
        ["label", "--model", "pm", "--prompts", "rows", "--feedback-model", "lm"],
        f"--model pm: {PREFERENCE}",
    ),
    "label judge": (
        ["label", "--pairs", "rows", "--feedback-model", "pm"],
        f"--feedback-model pm: {PREFERENCE}",
    ),
    "constitution test": (
        ["constitution", "test", "--pairs", "rows", "--feedback-model", "pm"],
        f"--feedback-model pm: {PREFERENCE}",
    ),
    "ppo": (["ppo", "--model", "pm", "--pm", "pm", "--prompts", "rows"], f"--model pm: {PREFERENCE}"),
    "ppo pm": (["ppo", "--model", "lm", "--pm", "lm", "--prompts", "rows"], f"--pm lm: {LANGUAGE}"),
    "ppo gold": (
        ["ppo", "--model", "lm", "--pm", "pm", "--gold-pm", "lm", "--prompts", "rows"],
        f"--gold-pm lm: {LANGUAGE}",
    ),
    "score": (["score", "rows", "--pm", "lm"], f"--pm lm: {LANGUAGE}"),
    "evaluate pm": (["evaluate", "pm", "--pm", "lm", "--comparisons", "rows"], f"--pm lm: {LANGUAGE}"),
    "evaluate elo": (["evaluate", "elo", "pm", "lm", "--judge", "pm"], f"MODELS pm: {PREFERENCE}"),
    "evaluate hhh": (["evaluate", "hhh", "rows", "--model", "pm"], f"--model pm: {PREFERENCE}"),
    "evaluate hhh pm": (["evaluate", "hhh", "rows", "--pm", "lm"], f"--pm lm: {LANGUAGE}"),
}
TRAINED_FROM_EITHER = {
    "train-pm": ["train-pm", "--comparisons", "rows"],
    "pmp": ["pmp", "--posts", "rows"],
}


@pytest.fixture(scope="module")
def folder(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roles")
    (folder / "lm").symlink_to(llama)
    make_pm(llama, folder / "pm")
    (folder / "rows").write_text("no rows: read only after the models are looked at\n")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_in_the_wrong_role(folder: Path, tmp_path: Path, monkeypatch, command: str) -> None:
    words, problem = COMMANDS[command]
    monkeypatch.chdir(folder)
    with pytest.raises(UserError) as raised:
        app([*words, "--out", str(tmp_path / "out")], prog_name="cai", standalone_mode=False)
    assert str(raised.value).startswith(problem) and raised.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", TRAINED_FROM_EITHER)
def test_a_preference_model_is_trained_from_either(
    folder: Path, tmp_path: Path, monkeypatch, command: str
) -> None:
    monkeypatch.chdir(folder)
    for model in ("lm", "pm"):
        with pytest.raises(UserError, match=r"^rows"):  # the rows are at fault, not the model
            words = [*TRAINED_FROM_EITHER[command], "--model", model, "--out", str(tmp_path / model)]
            app(words, prog_name="cai", standalone_mode=False)


def test_the_command_says_it_in_one_line(cai: Cai, folder: Path, tmp_path: Path) -> None:
    for command in ("ppo pm", "sample"):
        words, problem = COMMANDS[command]
        mistake(cai(*words, "--out", tmp_path / "out", cwd=folder), problem)


def bert(kind: str):
    import transformers

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 400,
    }
    return getattr(transformers, kind)(transformers.BertConfig(**sizes, pad_token_id=0, num_labels=1))


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 400}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))


def mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 400,
    }
    return MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=4))


@pytest.mark.parametrize(
    ("gone", "problem"),
    [("experts.3.", r"another shape .*\[3, 32, 32\], not \[4, "), ("experts.3.w1", "cannot be loaded")],
)
def test_experts_that_newer_versions_lay_out_anew(tmp_path: Path, gone: str, problem: str) -> None:
    from safetensors.torch import load_file, save_file

    from cai_cli.models.load import load_lm

    mixtral().save_pretrained(tmp_path)
    assert load_lm(str(tmp_path), "cpu").config.num_local_experts == 4
    kept = {
        name: tensor for name, tensor in load_file(tmp_path / "model.safetensors").items() if gone not in name
    }
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=problem):
        load_lm(str(tmp_path), "cpu")


def mamba():
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=400))


@pytest.mark.parametrize(
    ("make", "role", "problem"),
    [
        (lambda: bert("BertForMaskedLM"), "language model", "BertForMaskedLM neither writes nor scores"),
        (lambda: bert("BertLMHeadModel"), "language model", "is an encoder"),
        (lambda: bert("BertForSequenceClassification"), "preference model", "is an encoder"),
        (t5, "language model", "T5ForConditionalGeneration has an encoder beside its decoder"),
        (mamba, "either", "no preference model can be made of it: transformers has no classifier for mamba"),
    ],
)
def test_models_of_other_kinds(tmp_path: Path, make, role, problem: str) -> None:
    from cai_cli.models.load import load_lm, load_pm

    make().save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=problem) as raised:
        check_model(str(tmp_path), "--model", role)
        (load_lm if role == "language model" else load_pm)(str(tmp_path), "cpu")
    assert raised.value.hint
