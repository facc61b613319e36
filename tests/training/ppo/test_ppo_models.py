"""The two pairs of models: with adapters one backbone each, which switched off is the frozen model; what is
saved loads.
"""

from __future__ import annotations

import pytest
import torch
from ppo_setup import PAD, make_pair, options_for, random_completions, write_prompts

from cai_cli.compute.packed_rows import checkpointed_layers, training_pass
from cai_cli.models.load import load_lm, load_pm
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.rows.prompt_files import read_prompts
from cai_cli.training.parallel import Passes
from cai_cli.training.ppo.episodes import make_episodes
from cai_cli.training.ppo.forward import response_logprobs, response_values
from cai_cli.training.ppo.learner import PolicyLearner, ValueLearner
from cai_cli.training.ppo.models import load_pair
from cai_cli.training.ppo.rollout import Clock
from cai_cli.training.ppo.trainer import Trainer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ppo")
    return *make_pair(folder), write_prompts(folder / "prompts.jsonl")


@pytest.fixture(scope="module")
def episodes():
    return make_episodes(random_completions(6), PAD, "cpu")


def outputs(task, model, e):
    with torch.no_grad():
        if task == "SEQ_CLS":
            return response_values(model, e.ids, e.prompt_lengths, e.mask)
        return response_logprobs(model, e.ids, e.prompt_lengths, e.mask, 1.0)


def pair_of(options, task, tokenizer, longest=64):
    path = options.model if task == "CAUSAL_LM" else options.pm
    return load_pair(options.models, path, task, tokenizer, longest, options.output.seed)


def nudge(pair) -> None:
    with torch.no_grad():
        for weight in pair.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
@pytest.mark.parametrize(
    "changes", [{}, {"lora": True, "lora_r": 4}, {"lora": True, "lora_r": 4, "quantize": "4bit"}]
)
def test_learner_and_frozen_start_alike_and_only_one_learns(files, episodes, tmp_path, task, changes):
    options = options_for(*files, tmp_path, **changes)
    pair = pair_of(options, task, load_tokenizer(str(files[0])))
    path, load = (files[0], load_lm) if task == "CAUSAL_LM" else (files[1], load_pm)
    original = outputs(task, load(str(path), "cpu"), episodes)
    pair.passes = Passes(pair.learner)
    with pair.frozen() as frozen:
        before = outputs(task, frozen.model, episodes)
    exact = "quantize" not in changes
    assert torch.allclose(before, original, atol=1e-5 if exact else 0.5)
    assert torch.allclose(outputs(task, pair.learner, episodes), before, atol=1e-5)
    nudge(pair)
    assert not torch.allclose(outputs(task, pair.learner, episodes), before, atol=1e-2)
    with pair.frozen() as frozen:
        assert torch.equal(outputs(task, frozen.model, episodes), before)
        assert frozen is (pair.passes if options.models.adapters.lora else pair.copy)
    assert not torch.allclose(outputs(task, pair.learner, episodes), before, atol=1e-2)


def test_with_adapters_there_is_one_backbone(files, tmp_path):
    tokenizer = load_tokenizer(str(files[0]))
    whole = sum(weight.numel() for weight in load_lm(str(files[0]), "cpu").parameters())
    pair = pair_of(options_for(*files, tmp_path, lora=True, lora_r=2), "CAUSAL_LM", tokenizer)
    adapter = sum(weight.numel() for weight in pair.parameters())
    assert pair.copy is None and adapter < 0.2 * whole
    assert sum(weight.numel() for weight in pair.learner.parameters()) == whole + adapter
    value = pair_of(options_for(*files, tmp_path, lora=True, lora_r=2), "SEQ_CLS", tokenizer)
    assert any(weight is value.learner.score.weight for weight in value.parameters())


def test_the_frozen_models_dtype_is_a_choice(files, tmp_path):
    options = options_for(*files, tmp_path, frozen_dtype="bfloat16")
    pair = pair_of(options, "CAUSAL_LM", load_tokenizer(str(files[0])))
    assert pair.learner.dtype == torch.float32 and pair.copy.model.dtype == torch.bfloat16


def test_attention_is_eager_where_rows_are_short_on_a_cpu(files, tmp_path):
    tokenizer = load_tokenizer(str(files[0]))
    for longest, attention, expected in ((64, "auto", "eager"), (4000, "auto", "sdpa"), (64, "sdpa", "sdpa")):
        options = options_for(*files, tmp_path, attn_implementation=attention)
        pair = pair_of(options, "CAUSAL_LM", tokenizer, longest)
        assert (
            pair.learner.config._attn_implementation
            == pair.copy.model.config._attn_implementation
            == expected
        )


@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(files, episodes, tmp_path, lora):
    found = []
    once = {
        "num_ppo_epochs": 1,
        "num_mini_batches": 1,
        "per_device_train_batch_size": 4,
        "max_grad_norm": 0.0,
    }
    advantages = torch.randn(episodes.mask.shape, generator=torch.Generator().manual_seed(0)) * episodes.mask
    for checkpointing in (False, True):
        options = options_for(*files, tmp_path, lora=lora, gradient_checkpointing=checkpointing, **once)
        tokenizer = load_tokenizer(str(files[0]))
        pairs = [pair_of(options, task, tokenizer) for task in ("CAUSAL_LM", "SEQ_CLS")]
        assert bool(checkpointed_layers(pairs[0].learner)) == checkpointing
        with training_pass(pairs[0].learner):
            layer = pairs[0].learner.model.layers[0]
            assert layer.training == checkpointing and not layer.mlp.training
        assert not layer.training
        how = {"seed": 0, "models": options.models, "learning_rate": 1e-3, "steps": 10}
        policy = PolicyLearner(options.ppo, pairs[0], **how, temperature=1.0)
        for learner in (policy, ValueLearner(options.ppo, pairs[1], **how)):
            stats = learner.improve(episodes, torch.zeros_like(advantages), advantages, 6, 0)
            assert stats[f"{learner.name}_grad_norm"] > 0
        found.append(torch.cat([w.detach().flatten() for pair in pairs for w in pair.parameters()]))
    assert torch.allclose(*found, atol=1e-6)


@pytest.mark.parametrize("changes", [{"lora": True}, {"lora": True, "quantize": "4bit"}])
def test_an_adapter_learns_and_is_saved_merged(files, tmp_path, changes):
    trainer = Trainer(options_for(*files, tmp_path, steps=3, save_adapter=True, **changes), 64)
    prompts = read_prompts([str(files[2])])[:8]
    for step in range(3):
        row = trainer.learn(step, trainer.rollout(step, prompts, Clock()), Clock())
    assert row["kl"] != 0 and row["policy_grad_norm"] > 0
    trainer.save_policy(tmp_path / "saved")
    saved = load_lm(str(tmp_path / "saved"), "cpu")
    assert (tmp_path / "saved/adapter/adapter_model.safetensors").exists()
    ids = torch.arange(10, 30).unsqueeze(0)
    with torch.no_grad():
        gap = (saved(ids).logits - load_lm(str(files[0]), "cpu")(ids).logits).abs().max()
    assert gap > 1e-4
