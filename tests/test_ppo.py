"""PPO: episodes that padding does not touch, updates that learn what is rewarded and nothing under a heavy KL penalty."""

from __future__ import annotations

import copy
import math
import shutil
from dataclasses import replace
from random import Random

import pytest
import torch
from tiny import make_model

from cai_cli.conversation import message
from cai_cli.engines.base import LENGTH, STOP, Completion, Request
from cai_cli.engines.transformers_engine import TransformersEngine
from cai_cli.errors import RunError
from cai_cli.keys import key
from cai_cli.models.load import load_lm, load_pm, load_tokenizer
from cai_cli.models.score import final_scores, reset_head
from cai_cli.ppo.episodes import make_episodes, response_logprobs, response_values, score_completions
from cai_cli.ppo.update import UpdateSettings, check_ratio, update
from cai_cli.training.advantages import generalised_advantages, sequence_kl, token_rewards, whiten

EOS, PAD = 2, 0
SETTINGS = UpdateSettings(
    seed=0,
    epochs=2,
    minibatches=2,
    microbatch=8,
    clip_range=0.2,
    value_clip_range=0.2,
    value_coef=0.1,
    max_grad_norm=1.0,
    temperature=1.0,
)
ONE_PASS = replace(SETTINGS, epochs=1, minibatches=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("lm"))


@pytest.fixture
def models(folder):
    """Policy, its frozen copy, a preference model and its trained copy."""
    tokenizer = load_tokenizer(str(folder))
    policy = load_lm(str(folder), "cpu", tokenizer=tokenizer)
    pm = load_pm(str(folder), "cpu", tokenizer=tokenizer)
    reset_head(pm, 0)
    reference, value = copy.deepcopy(policy), copy.deepcopy(pm)
    return tokenizer, policy, reference.requires_grad_(False), pm.requires_grad_(False), value


def random_completions(count: int) -> list[Completion]:
    rng = Random(0)
    rows = []
    for _ in range(count):
        prompt = [rng.randrange(3, 300) for _ in range(rng.randint(1, 30))]
        reply = [rng.randrange(3, 300) for _ in range(rng.randint(1, 12))]
        rows.append(Completion("", STOP, prompt, reply, [rng.gauss(-3, 1) for _ in reply]))
    return rows


# Episodes


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_padded_episodes_equal_each_one_alone(models, temperature):
    """Reference log-probabilities and values, row by row, against plain forward passes without padding."""
    _, _, reference, pm, _ = models
    completions = random_completions(13)
    for batch_size in (1, 4, 64):
        episodes = make_episodes(completions, reference, pm, [0.0] * 13, temperature, PAD, batch_size)
        for n, completion in enumerate(completions):
            ids = torch.tensor([completion.prompt_ids + completion.token_ids])
            start, length = len(completion.prompt_ids), len(completion.token_ids)
            with torch.no_grad():
                logits = reference(ids).logits[0, start - 1 : -1] / temperature
                hidden = pm.model(ids).last_hidden_state[0, start - 1 : -1]
                values = pm.score(hidden).squeeze(-1)
            expected = torch.log_softmax(logits, -1).gather(-1, ids[0, start:, None]).squeeze(-1)
            assert episodes.response_mask[n].tolist() == [1.0] * length + [0.0] * (episodes.response_mask.size(1) - length)
            for got, wanted in (
                (episodes.reference_logprobs[n], expected.tolist()),
                (episodes.values[n], values.tolist()),
                (episodes.logprobs[n], completion.logprobs),
            ):
                assert got[:length].tolist() == pytest.approx(wanted, abs=1e-5)
                assert not got[length:].any()


def test_selected_episodes_lose_only_padding(models):
    _, _, reference, pm, _ = models
    completions = random_completions(9)
    episodes = make_episodes(completions, reference, pm, [float(n) for n in range(9)], 1.0, PAD, 4)
    part = episodes.select(torch.tensor([7, 2]))
    chosen = [completions[7], completions[2]]
    assert part.ids.size(1) == max(len(c.prompt_ids) for c in chosen) + max(len(c.token_ids) for c in chosen)
    for n, completion in enumerate(chosen):
        real = part.ids[n][part.mask[n].bool()].tolist()
        assert real == completion.prompt_ids + completion.token_ids
        length = len(completion.token_ids)
        assert part.ids[n, part.prompt_width : part.prompt_width + length].tolist() == completion.token_ids
        assert part.logprobs[n, :length].tolist() == pytest.approx(completion.logprobs)
    assert part.scores.tolist() == [7.0, 2.0]
    logprobs = response_logprobs(reference, part.ids, part.mask, part.response_mask.size(1), 1.0) * part.response_mask
    assert torch.allclose(logprobs, part.reference_logprobs, atol=1e-5)
    values = response_values(pm, part.ids, part.mask, part.response_mask.size(1)) * part.response_mask
    assert torch.allclose(values, part.values, atol=1e-5)


# Scores


def test_the_pm_reads_the_reply_closed_by_eos_and_a_cut_one_pays(models):
    _, _, _, pm, _ = models
    ended = Completion("", STOP, [5, 6], [7, 8, EOS], [0.0] * 3)
    cut = Completion("", LENGTH, [5, 6], [7, 8], [0.0] * 2)
    scores, rewards = score_completions(pm, [ended, cut], EOS, PAD, 1.5, 8)
    with torch.no_grad():
        expected = final_scores(pm, [[5, 6, 7, 8, EOS]], PAD).item()
    assert scores == pytest.approx([expected, expected], abs=1e-5)
    assert rewards == pytest.approx([expected, expected - 1.5], abs=1e-5)


def test_the_score_lands_on_the_last_generated_token(models):
    _, _, reference, pm, _ = models
    completions = random_completions(5)
    episodes = make_episodes(completions, reference, pm, [10.0 * n for n in range(5)], 1.0, PAD, 4)
    rewards = token_rewards(episodes.scores, episodes.logprobs, episodes.logprobs, episodes.response_mask, 0.1)
    for n, completion in enumerate(completions):
        expected = [0.0] * rewards.size(1)
        expected[len(completion.token_ids) - 1] = 10.0 * n
        assert rewards[n].tolist() == pytest.approx(expected)


# The update


def rollout(models, step: int, score, count: int = 32, length: int = 8, kl_coef: float = 0.0):
    """One step's episodes, advantages and returns, with replies scored by `score(token_ids)`."""
    tokenizer, policy, reference, _, value = models
    engine = TransformersEngine(policy, tokenizer, 1.0, 64)
    completions = engine.generate([Request([message("user", "Hi")], key("bandit", step, n), length) for n in range(count)])
    scores = [score(completion.token_ids) for completion in completions]
    episodes = make_episodes(completions, reference, value, scores, 1.0, PAD, 16)
    mask = episodes.response_mask
    rewards = token_rewards(episodes.scores, episodes.logprobs, episodes.reference_logprobs, mask, kl_coef)
    advantages, returns = generalised_advantages(rewards, episodes.values, mask, 1.0, 0.95)
    return completions, episodes, whiten(advantages, mask), returns


def train(models, steps: int, score, kl_coef: float, learning_rate: float = 3e-3):
    """The bandit through the real sampler, episodes and update; the share of rewarded tokens and the KL at each step."""
    _, policy, _, _, value = models
    optimizer = torch.optim.AdamW([*policy.parameters(), *value.parameters()], lr=learning_rate, eps=1e-5, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    history = []
    for step in range(steps):
        completions, episodes, advantages, returns = rollout(models, step, score, kl_coef=kl_coef)
        stats = update(policy, value, optimizer, schedule, episodes, advantages, returns, step, SETTINGS)
        assert stats["first_log_ratio"] <= 1e-4
        kl = sequence_kl(episodes.logprobs, episodes.reference_logprobs, episodes.response_mask).mean().item()
        history.append((sum(score(c.token_ids) for c in completions) / len(completions), kl))
    return history


def say_this(token: int):
    """A hand-made preference model: the share of the reply's tokens that are the one wanted."""
    return lambda ids: 5 * ids.count(token) / len(ids)


def test_the_policy_learns_to_say_the_rewarded_token(models):
    history = train(models, 45, say_this(77), kl_coef=0.0)
    assert history[0][0] < 0.2
    assert sum(score for score, _ in history[-3:]) / 3 > 2.5
    assert history[-1][1] > 3


def test_under_a_heavy_kl_penalty_the_policy_stays(models):
    """Same reward, same steps: the tokens' log-ratio is all that counts."""
    history = train(models, 30, say_this(77), kl_coef=100.0)
    assert sum(score for score, _ in history[-3:]) / 3 < 0.5
    assert abs(history[-1][1]) < 1.0


def test_the_first_log_ratio_is_rounding(models):
    """And it is the largest of the whole first minibatch, whatever the micro-batches."""
    _, policy, _, _, value = models
    _, episodes, advantages, returns = rollout(models, 0, say_this(77))
    spoiled = episodes.logprobs.clone()
    spoiled[3, 2] -= 0.05
    for old, low, high in ((episodes.logprobs, 0.0, 1e-4), (spoiled, 0.049, 0.051)):
        for microbatch in (1, 7, 32):
            optimizer = torch.optim.SGD([*policy.parameters(), *value.parameters()], lr=0.0)
            schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
            settings, other = replace(ONE_PASS, microbatch=microbatch), replace(episodes, logprobs=old)
            stats = update(policy, value, optimizer, schedule, other, advantages, returns, 0, settings)
            assert low <= stats["first_log_ratio"] <= high


def test_micro_batches_change_nothing_but_rounding(models):
    """The same gradients and the same measures from micro-batches of 1, 5 and all 32."""
    _, policy, _, _, value = models
    _, episodes, advantages, returns = rollout(models, 0, say_this(77))
    found = []
    for microbatch in (32, 5, 1):
        pair = copy.deepcopy(policy), copy.deepcopy(value)
        parameters = [*pair[0].parameters(), *pair[1].parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        settings = replace(ONE_PASS, microbatch=microbatch, max_grad_norm=0.0)
        stats = update(*pair, optimizer, schedule, episodes, advantages, returns, 0, settings)
        found.append((stats, torch.cat([weight.detach().flatten() for weight in parameters])))
    for stats, weights in found[1:]:
        assert torch.allclose(weights, found[0][1], atol=1e-5)
        for name in ("loss", "policy_loss", "value_loss", "policy_grad_norm", "value_grad_norm", "value_clipped"):
            assert stats[name] == pytest.approx(found[0][0][name], abs=1e-4), name


@pytest.mark.parametrize("spoil", ["advantages", "returns"])
def test_what_is_not_finite_stops_before_the_step(models, spoil):
    """A NaN in any micro-batch, not only in the last."""
    _, policy, _, _, value = models
    _, episodes, advantages, returns = rollout(models, 0, say_this(77))
    {"advantages": advantages, "returns": returns}[spoil][5, 1] = math.nan
    weights = [weight.detach().clone() for model in (policy, value) for weight in model.parameters()]
    optimizer = torch.optim.AdamW([*policy.parameters(), *value.parameters()], lr=1e-3)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    with pytest.raises(RunError, match="nan at step 0"):
        update(policy, value, optimizer, schedule, episodes, advantages, returns, 0, replace(ONE_PASS, microbatch=1))
    now = [weight for model in (policy, value) for weight in model.parameters()]
    assert all(torch.equal(before, after) for before, after in zip(weights, now, strict=True))


def test_log_probabilities_that_disagree_warn_and_stop(capsys):
    check_ratio(0.019)
    assert capsys.readouterr().err == ""
    check_ratio(0.05)
    assert "differ by 0.05" in capsys.readouterr().err
    with pytest.raises(RunError, match="rollout and update differ"):
        check_ratio(0.2)


# The command


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    file.write_text('{"prompt": "Hi"}\n{"prompt": "How are you?"}\n')
    return file


def changed_pm(folder, target, vocabulary: bool):
    """The language model as a preference model, with another vocabulary or another template."""
    shutil.copytree(folder, target)
    tokenizer = load_tokenizer(str(folder))
    if vocabulary:
        tokenizer.add_tokens(["novel"])
    else:
        tokenizer.chat_template += " "
    tokenizer.save_pretrained(target)
    return target


@pytest.mark.parametrize("name", ["vocabulary", "chat template"])
def test_a_pm_that_reads_other_ids_is_refused(cai, folder, prompts, tmp_path, name):
    pm = changed_pm(folder, tmp_path / "pm", name == "vocabulary")
    done = cai("ppo", "--model", folder, "--pm", pm, "--prompts", prompts, "--out", tmp_path / "out", "--steps", 1)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: --pm {pm}: its {name} is not that of --model {folder}")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--rollout-batch-size", 10, "--num-mini-batches", 4), "10 is not divisible by --num-mini-batches 4"),
        (("--target-kl", 0), "--target-kl 0"),
    ],
)
def test_impossible_settings_are_refused_at_once(cai, folder, prompts, tmp_path, flags, told):
    done = cai("ppo", "--model", folder, "--pm", folder, "--prompts", prompts, "--out", tmp_path / "out", *flags)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
