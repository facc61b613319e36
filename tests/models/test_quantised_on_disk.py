"""A model whose files hold quantised weights: it writes and scores; it is not trained, and takes no adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from ppo_setup import make_pm

from cai_cli.cli import app
from cai_cli.errors import UserError
from cai_cli.models.load import load_lm, load_pm
from cai_cli.models.paths import check_model
from cai_cli.models.tokenizers import load_tokenizer

TRAINERS = {
    "sft": ["sft", "--model", "packed", "--data", "rows"],
    "sft --lora": ["sft", "--model", "packed", "--data", "rows", "--lora", "--dry-run"],
    "train-pm": ["train-pm", "--model", "packed", "--comparisons", "rows"],
    "pmp": ["pmp", "--model", "packed", "--posts", "rows", "--dry-run"],
    "ppo": ["ppo", "--model", "packed", "--pm", "pm", "--prompts", "rows"],
    "ppo --pm": ["ppo", "--model", "lm", "--pm", "packed-pm", "--prompts", "rows"],
}


@pytest.fixture(scope="module")
def folder(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    (folder / "lm").symlink_to(llama)
    make_pm(llama, folder / "pm")
    for load, name, packed in ((load_lm, "lm", "packed"), (load_pm, "pm", "packed-pm")):
        load(str(folder / name), "cpu", quantize="8bit").save_pretrained(folder / packed)
        load_tokenizer(str(llama)).save_pretrained(folder / packed)
    (folder / "rows").write_text("no rows: read only after the models are looked at\n")
    return folder


@pytest.mark.parametrize("command", TRAINERS)
def test_it_is_not_trained(folder: Path, tmp_path: Path, monkeypatch, command: str) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=r"packed.*quantised on disk \(bitsandbytes\).*trained") as raised:
        app([*TRAINERS[command], "--out", str(tmp_path / "out")], prog_name="cai", standalone_mode=False)
    assert "the unquantised model" in str(raised.value.hint) and not list(tmp_path.iterdir())


def test_it_writes(folder: Path) -> None:
    check_model(str(folder / "packed"), "--model", "language model")
    model = load_lm(str(folder / "packed"), "cpu")
    whole = load_lm(str(folder / "lm"), "cpu")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        packed, exact = model(input_ids=ids).logits, whole(input_ids=ids).logits
    assert torch.nn.functional.cosine_similarity(packed.flatten(), exact.flatten(), dim=0) > 0.9


@pytest.mark.parametrize("look", [lambda path: check_model(path, role="either"), load_lm])
def test_it_takes_no_adapter(folder: Path, tmp_path: Path, look) -> None:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    get_peft_model(load_lm(str(folder / "lm"), "cpu"), settings).save_pretrained(tmp_path)
    shutil.copy(folder / "lm" / "tokenizer.json", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for base in ("lm", "packed"):
        config["base_model_name_or_path"] = str(folder / base)
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        if base == "lm":
            look(str(tmp_path))
            continue
        with pytest.raises(UserError, match=r"its base model .*packed has weights that are quantised"):
            look(str(tmp_path))
