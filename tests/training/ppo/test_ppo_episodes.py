"""Episodes and the passes over them: padding, micro-batches, chunks and odd output layers change nothing."""

from __future__ import annotations

import math

import pytest
import torch
from ppo_setup import PAD, make_pair, random_completions

from cai_cli.compute import packed_attention
from cai_cli.compute.batches import like_size
from cai_cli.compute.packed_rows import can_pack, prepare
from cai_cli.compute.shortcuts import shortcuts_of
from cai_cli.engines.base import STOP, Completion
from cai_cli.models.load import load_lm, load_pm
from cai_cli.training.parallel import Passes
from cai_cli.training.ppo.advantages import generalised_advantages, token_rewards
from cai_cli.training.ppo.episodes import make_episodes, over_episodes, sampled_logprobs
from cai_cli.training.ppo.forward import has_plain_head, response_logprobs, response_values


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    model, pm = make_pair(tmp_path_factory.mktemp("pair"))
    return load_lm(str(model), "cpu"), load_pm(str(pm), "cpu")


def logprobs_of(model, part, temperature=1.0):
    return response_logprobs(model, part.ids, part.prompt_lengths, part.mask, temperature)


def values_of(model, part):
    return response_values(model, part.ids, part.prompt_lengths, part.mask)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed", "packed-sdpa"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_batch_equals_each_row_alone(models, attention, temperature, monkeypatch):
    """Log-probabilities and values against plain forward passes of single rows, without padding."""
    policy, pm = models
    if attention == "packed-sdpa":
        monkeypatch.setattr(packed_attention, "SHORT", 0)
    for model in models:
        model.set_attn_implementation("sdpa" if "packed" in attention else attention)
        has_plain_head(policy)
        prepare(model, 64, packs="packed" in attention)
        assert shortcuts_of(model).packs == ("packed" in attention)
    completions = random_completions(13)
    episodes = make_episodes(completions, PAD, "cpu")
    sampled = sampled_logprobs(completions, episodes)
    for batch_size in (1, 4, 64):
        logprobs = over_episodes(
            episodes, lambda part: logprobs_of(policy, part, temperature), batch_size, Passes(policy)
        )
        values = over_episodes(episodes, lambda part: values_of(pm, part), batch_size, Passes(pm))
        for n, completion in enumerate(completions):
            ids = torch.tensor([completion.prompt_ids + completion.token_ids])
            start, length = len(completion.prompt_ids), len(completion.token_ids)
            with torch.no_grad():
                logits = policy(ids).logits[0, start - 1 : -1] / temperature
                hidden = pm.model(ids).last_hidden_state[0, start - 1 : -1]
                expected_values = pm.score(hidden).squeeze(-1)
            expected = torch.log_softmax(logits, -1).gather(-1, ids[0, start:, None]).squeeze(-1)
            assert episodes.mask[n].tolist() == [1.0] * length + [0.0] * (episodes.mask.size(1) - length)
            for got, wanted in (
                (logprobs[n], expected.tolist()),
                (values[n], expected_values.tolist()),
                (sampled[n], completion.logprobs),
            ):
                assert got[:length].tolist() == pytest.approx(wanted, abs=1e-5)
                assert not got[length:].any()


def test_selected_episodes_lose_only_padding():
    completions = random_completions(9)
    episodes = make_episodes(completions, PAD, "cpu")
    part = episodes.select(torch.tensor([7, 2]))
    chosen = [completions[7], completions[2]]
    assert part.ids.size(1) == max(len(c.prompt_ids) + len(c.token_ids) for c in chosen)
    assert part.mask.size(1) == max(len(c.token_ids) for c in chosen)
    for n, completion in enumerate(chosen):
        row = completion.prompt_ids + completion.token_ids
        assert part.ids[n, : len(row)].tolist() == row
        assert part.prompt_lengths[n] == len(completion.prompt_ids)
        assert part.mask[n].sum() == len(completion.token_ids)
    nothing = episodes.select(torch.tensor([], dtype=torch.long))
    assert nothing.ids.shape == (0, 0) and nothing.mask.shape == (0, 0)


@pytest.mark.parametrize("batch_size", [1, 3, 16, 100])
def test_micro_batches_hold_every_row_once_longest_first(batch_size):
    lengths = torch.randint(1, 90, (53,), generator=torch.Generator().manual_seed(0))
    batches = like_size(lengths.tolist(), batch_size)
    order = [n for batch in batches for n in batch]
    assert sorted(order) == list(range(53))
    assert max(map(len, batches)) <= min(batch_size, min(map(len, batches)) + 1)
    assert len(batches) == math.ceil(53 / batch_size)
    assert lengths[order].tolist() == sorted(lengths.tolist(), reverse=True)
    assert like_size([], batch_size) == []


def test_chunks_of_the_vocabulary_change_nothing(models, monkeypatch):
    """Values and gradients, with 7 rows of logits at a time instead of all."""
    policy, _ = models
    episodes = make_episodes(random_completions(6), PAD, "cpu")
    found = []
    for chunk in (1 << 24, 7 * policy.config.vocab_size):
        monkeypatch.setattr("cai_cli.compute.logit_chunks.CHUNK_LOGITS", chunk)
        policy.zero_grad()
        logprobs = logprobs_of(policy, episodes)
        (logprobs * torch.arange(logprobs.numel()).view_as(logprobs)).sum().backward()
        with torch.no_grad():
            again = logprobs_of(policy, episodes)
        found.append((logprobs.detach(), again, [w.grad.clone() for w in policy.parameters()]))
    whole, chunked = found
    assert torch.allclose(whole[0], chunked[0], atol=1e-6)
    assert torch.allclose(whole[0], chunked[1], atol=1e-6)
    for one, other in zip(whole[2], chunked[2], strict=True):
        assert torch.allclose(one, other, atol=1e-3, rtol=1e-4)


def test_packed_rows_give_the_gradients_of_padded_ones(models):
    policy, pm = models
    episodes = make_episodes(random_completions(7), PAD, "cpu")
    weight = torch.randn(episodes.mask.shape, generator=torch.Generator().manual_seed(0))
    for model, compute in ((policy, logprobs_of), (pm, values_of)):
        found = []
        for packs in (False, True):
            prepare(model, 64, packs)
            model.zero_grad()
            (compute(model, episodes) * weight).sum().backward()
            found.append(torch.cat([w.grad.flatten() for w in model.parameters()]))
        assert torch.allclose(*found, atol=1e-4, rtol=1e-3)
        assert found[0].abs().max() > 0.1


@pytest.mark.parametrize("window", [None, 16, 4096])
def test_rows_are_packed_only_where_attention_reaches_all_of_them(window):
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = MistralForCausalLM(
        MistralConfig(vocab_size=99, num_key_value_heads=1, sliding_window=window, **sizes)
    ).eval()
    assert can_pack(model, 64) == (window != 16)
    assert model.config._attn_implementation == "sdpa"


def test_an_architecture_that_caps_its_logits_is_read_through_its_own_head():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    config = Gemma2Config(vocab_size=400, num_key_value_heads=1, final_logit_softcapping=0.5, **sizes)
    model = Gemma2ForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.weight)
    assert not has_plain_head(model) and not can_pack(model, 64)
    completion = random_completions(1)[0]
    episodes = make_episodes([completion], PAD, "cpu")
    with torch.no_grad():
        got = logprobs_of(model, episodes)[0]
        logits = model(episodes.ids).logits[0, len(completion.prompt_ids) - 1 : -1]
    expected = (
        torch.log_softmax(logits, -1).gather(-1, torch.tensor(completion.token_ids)[:, None]).squeeze(-1)
    )
    assert torch.allclose(got, expected, atol=1e-5)


def test_replies_without_a_token_are_inert(models):
    """Another engine may return them: no reward, no advantage, nothing to learn from."""
    policy, pm = models
    completions = [Completion("", STOP, [5, 6, 7], [], []), *random_completions(2)]
    episodes = make_episodes(completions, PAD, "cpu")
    assert not episodes.mask[0].any()
    assert not logprobs_of(policy, episodes)[0].any() and not values_of(pm, episodes)[0].any()
    sampled, scores = sampled_logprobs(completions, episodes), torch.tensor([9.0, 1.0, 2.0])
    rewards = token_rewards(scores, sampled, sampled, episodes.mask, 0.1)
    assert rewards.sum(-1).tolist() == [0.0, 1.0, 2.0]
    advantages, returns = generalised_advantages(rewards, torch.zeros_like(sampled), episodes.mask, 1.0, 0.95)
    assert not advantages[0].any() and not returns[0].any()


def test_the_score_lands_on_the_last_generated_token():
    completions = random_completions(5)
    episodes = make_episodes(completions, PAD, "cpu")
    sampled = sampled_logprobs(completions, episodes)
    rewards = token_rewards(10 * torch.arange(5.0), sampled, sampled, episodes.mask, 0.1)
    for n, completion in enumerate(completions):
        expected = [0.0] * rewards.size(1)
        expected[len(completion.token_ids) - 1] = 10.0 * n
        assert rewards[n].tolist() == pytest.approx(expected)
