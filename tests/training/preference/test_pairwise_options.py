"""Beside the pairwise loss and around its loop: language loss, centring, adapters, checkpointing, ranks,
evaluations.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import forks
import pytest
import torch
from catching import catch
from conftest import mistake
from families import edit_json
from pairwise_runs import COMMAND, PAD, options, random_pairs, write_comparisons
from safetensors.torch import load_file
from transformers import CohereConfig, FalconH1Config, Gemma2Config, GraniteConfig, LlamaConfig

from cai_cli.errors import UserError
from cai_cli.models.adapters import add_lora
from cai_cli.models.configs import check_plain_logits
from cai_cli.models.language_head import TiedHead, language_head
from cai_cli.models.load import load_lm, load_pm
from cai_cli.models.score import final_scores, reset_head, score_all
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.training.modes import disable_dropout
from cai_cli.training.parallel import Parallel
from cai_cli.training.preference.loop import fit_pairwise
from cai_cli.training.preference.losses import backward, batch_losses


def fresh(path: Path):
    model = load_pm(str(path), "cpu", tokenizer=load_tokenizer(str(path)))
    reset_head(model, 0)
    return model


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


# Beside the pairwise loss


@pytest.mark.parametrize("which", ["llama", "helpful"], ids=["untied", "tied"])
def test_the_language_loss_is_the_language_models_own(which, request):
    path = request.getfixturevalue(which)
    pairs = random_pairs(6)
    model = fresh(path)
    head = language_head(model, str(path))
    assert isinstance(head, TiedHead) == (which == "helpful")
    ours = batch_losses(model, pairs, PAD, head)[2].item()
    lm = load_lm(str(path), "cpu")
    theirs = 0.0
    for pair in pairs:
        ids = torch.tensor([pair.chosen])
        with torch.no_grad():
            theirs += lm(input_ids=ids, labels=ids).loss.item() * (len(pair.chosen) - 1)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_chunks_of_logits_change_nothing(llama, monkeypatch):
    pairs, found = random_pairs(6), []
    for size in (1 << 24, 400 * 10):
        monkeypatch.setattr("cai_cli.compute.logit_chunks.CHUNK_LOGITS", size)
        model = fresh(llama)
        loss = batch_losses(model, pairs, PAD, language_head(model, str(llama)))[2]
        loss.backward()
        found.append((loss.item(), gradients(model)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert all(torch.allclose(found[0][1][name], found[1][1][name], atol=1e-4) for name in found[0][1])


def test_centring_is_trls(llama, tmp_path):
    import datasets
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    pairs, model = random_pairs(9, probability=1.0), fresh(llama)
    rows = [{"chosen_ids": pair.chosen, "rejected_ids": pair.rejected} for pair in pairs]
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "max_length": None}
    config = RewardConfig(**settings, center_rewards_coefficient=0.3)
    data = datasets.Dataset.from_list(rows)
    trainer = RewardTrainer(
        model=model, args=config, train_dataset=data, processing_class=load_tokenizer(str(llama))
    )
    theirs = trainer.compute_loss(model, trainer.data_collator(rows)).item()
    pairwise, centring, _ = (part.item() / len(pairs) for part in batch_losses(model, pairs, PAD))
    assert pairwise + 0.3 * centring == pytest.approx(theirs, abs=1e-5)


def test_each_coefficient_weighs_its_gradient(llama):
    """The gradient of a step is the weighted sum of those of its parts, means over pairs and over tokens."""
    pairs = random_pairs(4)
    parts = []
    for n in range(3):
        model = fresh(llama)
        batch_losses(model, pairs, PAD, language_head(model, str(llama)))[n].backward()
        parts.append(gradients(model))
    model = fresh(llama)
    settings = options(lm_coef=0.7, center_rewards_coefficient=0.2)
    parallel = Parallel(model, torch.optim.SGD)
    head = language_head(model, str(llama))
    losses = backward([pairs[:1], pairs[1:]], parallel, settings, PAD, head)
    assert losses.keys() == {"loss", "centring_loss", "lm_loss"}
    tokens = sum(len(pair.chosen) - 1 for pair in pairs)
    for name, gradient in gradients(model).items():
        expected = (parts[0][name] + 0.2 * parts[1][name]) / 4
        if name in parts[2]:
            expected += 0.7 * parts[2][name] / tokens
        assert torch.allclose(gradient, expected, atol=1e-5), name


def test_centring_moves_the_mean_score_to_zero(llama, tmp_path):
    means = []
    for coefficient in (0.0, 0.5):
        model = fresh(llama)
        with torch.no_grad():
            model.model.norm.weight.mul_(3)
        settings = options(center_rewards_coefficient=coefficient, num_train_epochs=2.0)
        held_out = random_pairs(32, 1.0, seed=1)
        facts = fit_pairwise(
            model, random_pairs(64, 1.0), held_out, settings, tmp_path / str(coefficient), PAD, 0
        )
        means.append(abs(facts["score_mean"]))
    assert means[1] < 0.5 * means[0]


# Around the loop


def test_gradient_checkpointing_changes_no_gradient(llama):
    pairs, found = random_pairs(6), []
    for on in (False, True):
        model = fresh(llama).train()
        if on:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        batch_losses(model, pairs, PAD)[0].backward()
        found.append(gradients(model))
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-6) for name in found[0])


def test_no_dropout_of_any_kind_is_left():
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "attn_pdrop": 0.5}
    model = GPT2ForSequenceClassification(GPT2Config(**sizes, num_labels=1, pad_token_id=PAD)).train()
    rows = [pair.chosen for pair in random_pairs(4)]
    assert not torch.equal(final_scores(model, rows, PAD), final_scores(model, rows, PAD))
    disable_dropout(model)
    assert torch.equal(final_scores(model, rows, PAD), final_scores(model, rows, PAD))


def test_adapters_learn_and_the_base_stays(llama, tmp_path):
    settings = options(lora=True, lora_r=4, num_train_epochs=3.0, learning_rate=1e-2)
    model = add_lora(fresh(llama), settings.adapters, "SEQ_CLS", 0)
    frozen = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    rows = [side for pair in random_pairs(8) for side in (pair.chosen, pair.rejected)]
    assert score_all(model.eval(), rows, PAD, 4) == pytest.approx(
        score_all(fresh(llama), rows, PAD, 4), abs=1e-5
    )
    facts = fit_pairwise(
        model, random_pairs(256, 1.0), random_pairs(64, 1.0, seed=1), settings, tmp_path, PAD, 0
    )
    assert facts["evaluation"]["all"]["accuracy"] > 0.9
    assert all(
        torch.equal(weight, frozen[name]) for name, weight in model.named_parameters() if name in frozen
    )


def test_evaluations_by_origin_on_the_way(llama, tmp_path):
    settings = options(eval_steps=8, num_train_epochs=1.0)
    facts = fit_pairwise(
        fresh(llama), random_pairs(128, 1.0), random_pairs(32, 1.0, seed=1), settings, tmp_path, PAD, 0
    )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: row["evaluation"] for row in rows if "evaluation" in row}
    assert list(found) == [8]  # the last step's is in cai.json
    assert found[8].keys() == {"all", "ai", "human"} == facts["evaluation"].keys()
    assert found[8]["human"]["pairs"] + found[8]["ai"]["pairs"] == 32
    low, high = found[8]["all"]["accuracy_interval"]
    assert low <= found[8]["all"]["accuracy"] <= high


# The commands


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A tiny language model and comparisons of two origins."""
    return write_comparisons(tmp_path_factory.mktemp("pairwise"))


def start(files: Path, *arguments: str) -> forks.Command:
    return forks.start([*COMMAND.split(), *arguments], files)


def finish(files: Path, *arguments: str) -> str:
    process = start(files, *arguments)
    _, said = process.communicate(timeout=250)
    assert process.returncode == 0, said
    return said


def test_a_killed_adapter_run_ends_in_the_same_bytes(files):
    """With dropout on the adapters, which draws; killed after a checkpoint, and once more as if in the middle
    of the save.
    """
    adapters = ("--lora", "--lora-r", "4", "--lora-dropout", "0.1", "--save-adapter")
    finish(files, *adapters, "--out", "whole")
    sealed = lambda: list(files.glob("cut/checkpoints/step-*/complete"))  # noqa: E731
    catch(lambda: start(files, *adapters, "--out", "cut"), files / "cut", sealed)
    (files / "cut/model.safetensors").write_bytes(b"half a model")
    (files / "cut/config.json").write_text("{")
    assert "continuing from step" in finish(files, *adapters, "--out", "cut")
    for name in (
        "model.safetensors",
        "metrics.jsonl",
        "adapter/adapter_model.safetensors",
        "README.md",
        "lm_head.safetensors",
    ):
        assert (files / "cut" / name).read_bytes() == (files / "whole" / name).read_bytes(), name
    kept = load_file(files / "whole/lm_head.safetensors")["weight"]
    assert torch.equal(kept, load_file(files / "lm/model.safetensors")["lm_head.weight"])


def test_the_card_tells_accuracy_by_origin(files):
    if not (files / "one").exists():
        finish(files, "--gradient-accumulation-steps", "2", "--out", "one")
    card = (files / "one/README.md").read_text()
    evaluation = json.loads((files / "one/cai.json").read_text())["evaluation"]
    for origin in ("ai", "human"):
        assert f"| {origin} | {evaluation[origin]['pairs']} | {evaluation[origin]['accuracy']:.1%} |" in card
    assert "| loss weight |" in card and "| 3 |" in card and "library_name: transformers\n" in card


def test_a_lost_output_layer_is_named(files):
    load_pm(str(files / "lm"), "cpu").save_pretrained(files / "headless")
    with pytest.raises(UserError, match=r"--lm-coef: .*headless has lost its language model's output layer"):
        language_head(fresh(files / "lm"), str(files / "headless"))


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(),
        GraniteConfig(logits_scaling=8.0),
        CohereConfig(),
        FalconH1Config(lm_head_multiplier=0.5),
    ],
)
def test_logits_that_the_output_layer_does_not_give(tmp_path, config):
    """The language loss goes through that layer alone."""
    config.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"--lm-coef: .* changes its logits behind the output layer \("
    ) as told:
        check_plain_logits(str(tmp_path))
    assert told.value.hint == "leave --lm-coef at 0, or take another base"
    for plain in (LlamaConfig(), GraniteConfig(), Gemma2Config(final_logit_softcapping=None)):
        plain.save_pretrained(tmp_path)
        check_plain_logits(str(tmp_path))


@pytest.mark.parametrize("words", ["train-pm --comparisons rows.jsonl", "pmp --posts rows.jsonl"])
def test_logits_are_looked_at_before_anything_is_made(cai, files, words):
    capped = shutil.copytree(files / "lm", files / f"capped-{words.split()[0]}")
    edit_json(capped / "config.json", logits_scaling=8.0)
    command = [*words.replace("rows.jsonl", str(files / "ai.jsonl")).split(), "--model", capped]
    told = mistake(
        cai(*command, "--lm-coef", 0.5, "--out", files / "never"), "--lm-coef: ", "logits_scaling 8.0"
    )
    assert "leave --lm-coef at 0" in told and not (files / "never").exists()


def test_a_quantised_base_is_saved_whole(files):
    """QLoRA with recomputed activations: saved are the unquantised weights with the adapter merged into the
    linear layers.
    """
    finish(files, "--lora", "--quantize", "4bit", "--gradient-checkpointing", "--out", "quantised")
    saved, base = load_file(files / "quantised/model.safetensors"), load_file(files / "lm/model.safetensors")
    assert saved.keys() - base.keys() == {"score.weight"}
    assert all(weight.dtype == torch.float32 for weight in saved.values())
    assert not (files / "quantised/adapter").exists()
    moved = [name for name in saved if name in base and not torch.equal(saved[name], base[name])]
    assert moved and all("_proj" in name for name in moved)
    evaluation = json.loads((files / "quantised/cai.json").read_text())["evaluation"]
    assert evaluation["human"]["accuracy"] > 0.6
