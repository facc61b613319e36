"""`cai import policy`: what an engine trained comes back as a model directory whose lineage names the export, or is
refused with one line.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import mistake
from exports import scored, words
from families import edit_json
from ppo_setup import make_pair, write_prompts
from safetensors.torch import load_file, save_file
from tiny import byte_level_tokenizer, make_model
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="module")
def folder(cai, tmp_path_factory):
    """A policy, a preference model and their export; beside them what an engine made of the policy."""
    folder = tmp_path_factory.mktemp("policy")
    model, pm = make_pair(folder)
    done = cai(*words("openrlhf", model, pm, write_prompts(folder / "prompts.jsonl"), folder / "export"))
    assert done.returncode == 0, done.stderr
    trained = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    with torch.no_grad():
        for weight in trained.parameters():
            weight.add_(0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    trained.config.use_cache = False  # as both engines leave it
    trained.save_pretrained(folder / "trained")
    AutoTokenizer.from_pretrained(model).save_pretrained(folder / "trained")
    return folder


def imported(cai, folder, out, source="trained"):
    return cai("import", "policy", folder / source, "--from-export", folder / "export", "--out", out)


def test_it_samples_is_scored_and_knows_where_it_came_from(cai, folder, tmp_path):
    out = tmp_path / "rl-cai"
    done = imported(cai, folder, out)
    assert done.returncode == 0, done.stderr
    before, after = load_file(folder / "trained/model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(
        torch.equal(after[name], weight) and after[name].dtype == torch.bfloat16
        for name, weight in before.items()
    )
    assert json.loads((out / "config.json").read_text())["use_cache"] is True
    manifest = json.loads((out / "cai.json").read_text())
    assert manifest["trained_by"] == "openrlhf 0.11.2" and manifest["ppo"]["--steps"] == 2

    tree = cai("lineage", out)
    assert tree.returncode == 0 and "stale" not in tree.stderr, tree.stderr
    for part in ("from-export", "cai export openrlhf", "model", "pm", "prompts.jsonl"):
        assert part in tree.stdout, tree.stdout
    replies = tmp_path / "replies.jsonl"
    sample = ["sample", "--model", out, "--prompts", folder / "prompts.jsonl", "-n", 1, "--max-new-tokens", 4]
    done = cai(*sample, "--device", "cpu", "--max-reject-rate", 1, "--out", replies)
    assert done.returncode == 0, done.stderr
    prompt = json.loads((folder / "export/prompts.jsonl").read_text().splitlines()[0])["prompt"]
    assert isinstance(scored(cai, folder / "pm", prompt, "Mix.", tmp_path / "row.jsonl"), float)
    again = imported(cai, folder, out)
    assert (
        again.returncode == 0
        and (out / "cai.json").read_text() == json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    )
    # Another export is another origin
    edit_json(folder / "export/export.json", note="changed")
    assert "stale" in cai("lineage", out).stdout
    edit_json(folder / "export/export.json", note=None)


def test_adapters_come_back_merged(cai, folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(folder / "lm")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(folder / "adapter")
    AutoTokenizer.from_pretrained(folder / "lm").save_pretrained(folder / "adapter")
    done = imported(cai, folder, tmp_path / "out", "adapter")
    assert done.returncode == 0, done.stderr
    ids = torch.tensor([[5, 9, 20]])
    with torch.no_grad():
        wanted = adapted.eval()(ids).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
    assert torch.allclose(wanted, found, atol=1e-4)


def test_what_does_not_fit_is_refused_in_one_line(cai, folder, tmp_path):
    out = tmp_path / "out"

    def changed(name: str):
        return shutil.copytree(folder / "trained", folder / name)

    byte_level_tokenizer("{{ messages[0]['content'] }}").save_pretrained(changed("template"))
    mistake(imported(cai, folder, out, "template"), "its chat template is not the exported model's")
    tokenizer = AutoTokenizer.from_pretrained(folder / "lm")
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(changed("vocabulary"))
    mistake(imported(cai, folder, out, "vocabulary"), "its vocabulary is not the exported model's")
    make_model(folder / "qwen", "qwen2")
    mistake(imported(cai, folder, out, "qwen"), "its architecture is qwen2, and llama")
    edit_json(changed("larger") / "config.json", vocab_size=512)
    mistake(imported(cai, folder, out, "larger"), "vocab_size is 512")
    weights = load_file(folder / "trained/model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, changed("odd") / "model.safetensors", {"format": "pt"})
    mistake(imported(cai, folder, out, "odd"), "its weight model.norm.weight is not finite")
    torch.save(weights, changed("pickled") / "pytorch_model.bin")
    (folder / "pickled/model.safetensors").unlink()
    mistake(imported(cai, folder, out, "pickled"), "is a pickle")
    edit_json(changed("code") / "config.json", auto_map={"AutoConfig": "own.Config"}, model_type="own")
    mistake(imported(cai, folder, out, "code"))
    mistake(imported(cai, folder, out, "pm"), "is a preference model, not a language model")
    assert not out.exists()


def test_options_that_say_nothing_are_refused(cai, folder, tmp_path):
    out = ("--out", tmp_path / "out")
    mistake(cai("import", "policy", folder / "trained", *out), "of which export is it?", "--from-export")
    export = ("--from-export", folder / "export")
    mistake(
        cai("import", "policy", folder / "trained", *export, "--kind", "helpful", *out), "--kind is for rows"
    )
    mistake(cai("import", "hh-rlhf", folder / "prompts.jsonl", *export, *out), "--from-export is for policy")
    mistake(
        cai("import", "policy", folder / "trained", "--from-export", folder / "lm", *out), "is not an export"
    )
