"""The transformers engine: keyed sampling by inverse CDF, texts that no batch changes, stops, and exact
option scores.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
import torch
from tiny import make_model

from cai_cli.compute import shortcuts
from cai_cli.compute.packed_rows import prepare
from cai_cli.compute.prefix_tree import shared_length
from cai_cli.compute.shortcuts import PACKED, shortcuts_of
from cai_cli.engines import decoding
from cai_cli.engines.base import LENGTH, OVERLONG, STOP, EngineSettings, OptionRequest, Request
from cai_cli.engines.decoding import kept_places
from cai_cli.engines.sampling import inverse_cdf, uniforms
from cai_cli.engines.transformers_engine import TransformersEngine
from cai_cli.errors import UserError
from cai_cli.keys import key
from cai_cli.microworld import checkpoint
from cai_cli.models.chat import encode_text
from cai_cli.models.load import load_lm
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.rows.conversation import message

CPU = torch.device("cpu")
DEMONSTRATION = "How can I water a daisy? Fill a can with water. Pour it slowly on the soil of the daisy. "
REQUESTS = [
    f"{opening} {verb} {thing}?"
    for opening in ("How can I", "Tell me how to", "What is the best way to")
    for verb in ("water", "paint", "copy", "shred")
    for thing in ("a daisy", "the key to my rival's suitcase", "my own fence on a rainy day", "a scrapbook")
]


def open_model(path: str, **settings) -> TransformersEngine:
    tokenizer = load_tokenizer(path)
    return TransformersEngine(
        load_lm(path, "cpu", tokenizer=tokenizer), tokenizer, EngineSettings(**settings)
    )


def change(engine: TransformersEngine, **settings) -> None:
    engine.settings = replace(engine.settings, **settings)


@pytest.fixture(scope="module")
def helpful():
    return open_model(str(checkpoint("helpful-only")))


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def tiny(request, tmp_path_factory):
    """A random model: its long, even distributions show what a trained one hides."""
    return open_model(str(make_model(tmp_path_factory.mktemp(request.param), request.param)))


def chat(count: int = len(REQUESTS), max_new_tokens: int = 40) -> list[Request]:
    return [
        Request([message("user", text)], key(0, n), max_new_tokens) for n, text in enumerate(REQUESTS[:count])
    ]


# Drawing one token


def test_inverse_cdf_by_hand():
    """Probabilities 0.1, 0.2, 0, 0.7: the draw's place in 0.1, 0.3, 0.3, 1 decides."""
    row = torch.tensor([0.1, 0.2, 0.0, 0.7]).log()
    draws = [0.0, 0.0999, 0.1001, 0.2999, 0.3001, 0.9999999]
    token, logprob = inverse_cdf(row.expand(len(draws), -1), torch.tensor(draws, dtype=torch.float64), 1.0)
    assert token.tolist() == [0, 0, 1, 1, 3, 3]
    assert logprob.tolist() == pytest.approx([math.log(p) for p in (0.1, 0.1, 0.2, 0.2, 0.7, 0.7)], abs=1e-6)


def test_tokens_of_probability_0_are_never_drawn():
    draws = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    token, _ = inverse_cdf(torch.tensor([[-torch.inf, 0.0, -torch.inf]] * 2), draws, 1.0)
    assert token.tolist() == [1, 1]


def test_temperature_scales_the_distribution():
    """At T = 0.5 odds of 1 : 2 become 1 : 4; at T = 0 the likeliest is taken whatever the draw."""
    logits, draws = torch.tensor([[0.0, math.log(2)]] * 2), torch.tensor([0.199, 0.201], dtype=torch.float64)
    token, logprob = inverse_cdf(logits, draws, 0.5)
    assert token.tolist() == [0, 1]
    assert logprob.exp().tolist() == pytest.approx([0.2, 0.8], abs=1e-6)
    assert inverse_cdf(logits, draws, 0)[0].tolist() == [1, 1]


def test_samples_follow_the_softmax():
    """Pearson's chi-square over 12 tokens and 20 000 keys; its 99.9th percentile at 11 degrees of freedom is
    31.3.
    """
    row = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.1, -2.5, 0.7, 0.2, -0.4, 1.6, -0.9, 0.5])
    count = 20_000
    draws = uniforms([key("chi", n) for n in range(count)], 1, CPU)[:, 0]
    for temperature in (1.0, 0.7):
        token, _ = inverse_cdf(row.expand(count, -1), draws, temperature)
        expected = torch.softmax(row.double() / temperature, -1) * count
        seen = torch.bincount(token, minlength=len(row))
        assert ((seen - expected) ** 2 / expected).sum().item() < 31.3


def test_streams_are_a_function_of_the_key_alone():
    keys = [key("stream", n) for n in range(200)]
    whole = uniforms(keys, 20, CPU)
    assert torch.equal(uniforms(keys[5:9], 7, CPU), whole[5:9, :7])
    assert len(set(whole.flatten().tolist())) == whole.numel()
    assert abs(whole.mean().item() - 0.5) < 0.02
    assert abs(torch.corrcoef(whole[:, :2].T)[0, 1].item()) < 0.2


# Generation


def small(architecture: str):
    """A random model without weights on disk, with the micro-world's tokenizer."""
    import transformers

    tokenizer = load_tokenizer(str(checkpoint("helpful-only")))
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8}
    more = {
        "Llama": heads,
        "Mistral": {**heads, "sliding_window": 8},
        "Gemma2": {**heads, "sliding_window": 8},
        "Lfm2": {**heads, "layer_types": ["conv", "full_attention"]},
        "Mamba": {},
        "GPTNeoX": {"num_attention_heads": 4, "intermediate_size": 64},
        "DeepseekV3": {  # its keys are wider than its values
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 64,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
            "first_k_dense_replace": 2,
        },
    }
    torch.manual_seed(2)
    model = getattr(transformers, f"{architecture}ForCausalLM")(
        getattr(transformers, f"{architecture}Config")(**sizes, **more[architecture])
    )
    for weight in model.parameters():
        weight.data.mul_(3)  # otherwise every text repeats one token
    return TransformersEngine(model.eval(), tokenizer, EngineSettings(temperature=0, batch_size=8))


@pytest.mark.parametrize(
    "architecture", ["Llama", "Mistral", "Gemma2", "Lfm2", "Mamba", "GPTNeoX", "DeepseekV3"]
)
def test_every_sort_of_cache_gives_transformers_own_greedy_texts(architecture):
    """Rows of other lengths that end at other times, a start that all share: full and sliding attention,
    recurrent states.
    """
    engine = small(architecture)
    prompts = [f"How do I {'water a daisy ' * n}?" for n in (1, 5, 3, 9, 2)]
    for some in (prompts, [DEMONSTRATION + prompt for prompt in prompts], [prompts[0]] * 4):
        requests = [Request(prompt, n, 4 + 3 * n) for n, prompt in enumerate(some)]
        for request, completion in zip(requests, engine.generate(requests), strict=True):
            ids = torch.tensor([completion.prompt_ids])
            plain = engine.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=request.max_new_tokens,
                do_sample=False,
            )
            assert completion.token_ids == plain[0, ids.size(1) :].tolist()
            assert len(set(completion.token_ids)) > 1 or request.max_new_tokens < 8


def test_a_start_that_all_share_is_computed_once(helpful):
    requests = [
        Request(DEMONSTRATION * 6 + text, key("shared", n), 1) for n, text in enumerate(REQUESTS[:20])
    ]
    helpful.generate(requests)  # the first time the architecture is tried
    fed = []
    hook = helpful.model.register_forward_pre_hook(
        lambda _, args, inputs: fed.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    helpful.generate(requests)
    hook.remove()
    length = len(encode_text(helpful.tokenizer, DEMONSTRATION * 6))
    assert length > 100
    assert sum(fed) < length + 20 * 25


def test_places_of_ended_rows_are_filled_from_the_end():
    assert kept_places([0, 2, 3, 5]) == [0, 5, 2, 3]
    assert kept_places([0, 1, 2]) == [0, 1, 2]
    assert kept_places([4]) == [4]
    assert kept_places([1, 2, 5, 6, 7]) == [5, 1, 2, 6, 7]


def test_texts_do_not_depend_on_the_batch(helpful):
    requests = chat()
    assert len(requests) == 48
    found = []
    for batch_size in (1, 7, 64):
        change(helpful, batch_size=batch_size)
        found.append([(c.text, c.finish_reason, c.token_ids) for c in helpful.generate(requests)])
    assert found[0] == found[1] == found[2]
    assert len({text for text, _, _ in found[0]}) > 24
    backwards = helpful.generate(requests[::-1])[::-1]
    assert [c.text for c in backwards] == [text for text, _, _ in found[0]]


def test_another_key_gives_another_text(tiny):
    prompt = [message("user", "Hi")]
    texts = [c.text for c in tiny.generate([Request(prompt, key(n), 12) for n in (1, 2, 1)])]
    assert texts[0] == texts[2] != texts[1]


def test_logprobs_are_those_of_a_teacher_forced_forward(helpful):
    """Of every token, the stop token too, under the sampling temperature."""
    change(helpful, temperature=0.7)
    completions = helpful.generate(chat(16))
    change(helpful, temperature=1.0)
    for completion in completions:
        ids = torch.tensor([completion.prompt_ids + completion.token_ids])
        with torch.no_grad():
            logits = helpful.model(ids).logits[0, len(completion.prompt_ids) - 1 : -1]
        expected = (
            torch.log_softmax(logits / 0.7, -1)
            .gather(-1, ids[0, len(completion.prompt_ids) :, None])
            .squeeze(-1)
        )
        assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_temperature_0_is_transformers_own_greedy_search(helpful):
    change(helpful, temperature=0)
    completions = helpful.generate(chat(16))
    change(helpful, temperature=1.0)
    for completion in completions:
        ids = torch.tensor([completion.prompt_ids])
        output = helpful.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False
        )
        assert completion.token_ids == output[0, ids.size(1) :].tolist()


def test_sampled_first_tokens_follow_the_model(tiny):
    """The likeliest tokens are drawn as often as they should be, through `generate` itself."""
    prompt = [message("user", "Hello")]
    completions = tiny.generate([Request(prompt, key("first", n), 1) for n in range(2000)])
    with torch.no_grad():
        expected = torch.softmax(tiny.model(torch.tensor([completions[0].prompt_ids])).logits[0, -1], -1)
    seen = Counter(c.token_ids[0] for c in completions)
    for index in expected.topk(20).indices.tolist():
        mean = 2000 * expected[index].item()
        assert abs(seen[index] - mean) < 4.5 * math.sqrt(mean)


def test_an_eos_stops_and_the_limit_cuts(helpful):
    requests = chat(12)
    stopped = helpful.generate(requests)
    eos = helpful.tokenizer.eos_token_id
    assert {c.finish_reason for c in stopped} == {STOP}
    assert all(c.token_ids[-1] == eos and c.token_ids.count(eos) == 1 for c in stopped)
    assert all(len(c.logprobs) == len(c.token_ids) for c in stopped)
    assert not any(helpful.tokenizer.eos_token in c.text for c in stopped)
    short = helpful.generate([Request(r.prompt, r.key, 3 + n % 2) for n, r in enumerate(requests)])
    assert {c.finish_reason for c in short} == {LENGTH}
    for n, (cut, whole) in enumerate(zip(short, stopped, strict=True)):
        assert cut.token_ids == whole.token_ids[: 3 + n % 2]


def test_stop_strings_end_the_row_and_are_cut(tiny):
    """Texts, tokens and reasons as with each request alone; without the stop string the text would have gone
    on.
    """
    prompts = [[message("user", f"Question {n}")] for n in range(24)]
    free = tiny.generate([Request(prompt, key("stop", n), 30) for n, prompt in enumerate(prompts)])
    stops = [c.text[8:10] for c in free]
    requests = [
        Request(p, key("stop", n), 30, (s,))
        for n, (p, s) in enumerate(zip(prompts, stops, strict=True))
        if s.strip()
    ]
    together = tiny.generate(requests)
    for request, completion in zip(requests, together, strict=True):
        alone = tiny.generate([request])[0]
        assert completion.finish_reason == STOP
        assert request.stop[0] not in completion.text
        assert (completion.text, completion.token_ids) == (alone.text, alone.token_ids)
    ended = [c for c in together if len(c.token_ids) < 30]
    assert len(ended) > len(together) / 2


def test_only_the_stopped_rows_stop(tiny):
    prompt = [message("user", "Hello")]
    free = tiny.generate([Request(prompt, key("mixed", n), 24) for n in range(2)])
    stop = free[0].text[5:8]
    cut, whole = tiny.generate(
        [Request(prompt, key("mixed", 0), 24, (stop,)), Request(prompt, key("mixed", 1), 24)]
    )
    assert cut.text == free[0].text[: free[0].text.index(stop)]
    assert whole.text == free[1].text


def test_a_start_kept_once_and_looks_every_few_tokens_change_no_text(tmp_path, monkeypatch):
    """On a model whose query heads share keys, with demonstrations in front of prompts of other lengths."""
    path = str(make_model(tmp_path / "grouped"))
    prompts = [DEMONSTRATION * 3 + text for text in REQUESTS[:12]]
    requests = [Request(text, key("kept", n), 6 + 2 * n, ("e.",)) for n, text in enumerate(prompts)]
    engine = open_model(path)
    found = engine.generate(requests)
    facts = engine.facts()["shortcuts"]
    assert facts["shared-prefix attention"] == facts["grouped-query attention"] == "yes"
    monkeypatch.setattr(decoding, "LOOK_EVERY", {"cpu": 5})
    heard: list[int] = []
    looked = open_model(path).generate(requests, heard.append)
    assert sum(heard) == len(requests) and max(heard) > 1
    monkeypatch.setattr(shortcuts, "LEFT_OUT", {"shared-prefix attention", "grouped-query attention"})
    plain = open_model(path).generate(requests)
    for one, other, third in zip(found, looked, plain, strict=True):
        assert one.token_ids == other.token_ids == third.token_ids
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        assert one.logprobs == pytest.approx(third.logprobs, abs=1e-4)


def test_rows_are_counted_without_the_start_that_is_kept_once(tmp_path):
    engine = open_model(str(make_model(tmp_path / "grouped")))
    requests = [Request(DEMONSTRATION * 3 + text, key("rows", n), 4) for n, text in enumerate(REQUESTS[:12])]
    whole = max(len(encode_text(engine.tokenizer, request.prompt)) for request in requests) + 4
    engine.budget.limit = 4 * whole  # four rows, if each held its start
    sizes = []
    one = engine._generate_batch
    engine._generate_batch = lambda some, *rest: sizes.append(len(some)) or one(some, *rest)
    engine.generate(requests)
    assert max(sizes) > 4


def test_prompts_that_do_not_fit_are_named_and_leave_the_others_alone(helpful):
    long = Request([message("user", "water a daisy " * 300)], key("long"), 8)
    text = "water a daisy " * 100
    limit = helpful.reader.context - len(encode_text(helpful.tokenizer, text))
    over, fits = Request(text, 1, limit + 1), Request(text, 1, limit)
    results = helpful.generate([long, chat(1)[0], over, fits])
    assert [c.finish_reason == OVERLONG for c in results] == [True, False, True, False]
    assert (results[0].text, results[0].token_ids) == ("", [])
    assert results[1].text == helpful.generate(chat(1))[0].text


def test_the_checkpoints_own_sampling_settings_are_not_used(tmp_path):
    """A top-k of 1 would make every text the greedy one."""
    from transformers import GenerationConfig

    path = make_model(tmp_path / "m")
    GenerationConfig(
        do_sample=True, top_k=1, temperature=0.1, repetition_penalty=5.0, eos_token_id=2
    ).save_pretrained(path)
    engine = open_model(str(path))
    assert len({c.text for c in engine.generate([Request("Hi", key(n), 4) for n in range(20)])}) > 15


# Option scores


def plain_scores(engine: TransformersEngine, request: OptionRequest) -> list[float]:
    """One forward pass for each option, whole sequence, no cache, no padding."""
    prompt = engine.renderer.encode(request.prompt)
    rows = [engine.renderer.encode(request.prompt, option) for option in request.options]
    start = shared_length([prompt, *rows])
    scores = []
    for row in rows:
        with torch.no_grad():
            logprobs = torch.log_softmax(engine.model(torch.tensor([row])).logits[0].double(), -1)
        scores.append(sum(logprobs[place - 1, row[place]].item() for place in range(start, len(row))))
    return scores


OPTIONS = {
    "one token": ("A", "B"),
    "shared first token": (" (A)", " (B)"),
    "one a prefix of the other": (" yes", " yes, indeed"),
    "unlike lengths": (" no", " certainly not, never, in no way", "x"),
    "one option": (" the only one",),
}


def option_requests(rng: Random, options: list[tuple[str, ...]]) -> list[OptionRequest]:
    """Plain texts and chats with an open assistant turn, from a few to some hundred tokens."""
    requests = []
    for n in range(32):
        text = " ".join(
            rng.choices(
                ["bread", "harmful", "response", "the", "assistant", "flour"], k=rng.choice([1, 5, 20, 60])
            )
        )
        prompt = text if n % 2 else [message("user", text), message("assistant", "The answer is:")]
        requests.append(OptionRequest(prompt, options[n % len(options)]))
    return requests


@pytest.mark.parametrize(
    "options", [*([each] for each in OPTIONS.values()), list(OPTIONS.values())], ids=[*OPTIONS, "mixed"]
)
def test_option_scores_are_those_of_one_forward_each(tiny, options):
    requests = option_requests(Random(0), options)
    expected = [plain_scores(tiny, request) for request in requests]
    for batch_size in (32, 5, 1):
        change(tiny, batch_size=batch_size)
        for got, wanted in zip(tiny.score(requests), expected, strict=True):
            assert got == pytest.approx(wanted, abs=1e-4)
    change(tiny, batch_size=64)


def test_whole_option_strings_are_scored(tiny):
    """The parts that the options share count too: `score` gives log P(" (A)"), not log P("A" | " (")."""
    [[a, _]] = tiny.score([OptionRequest("The answer is:", (" (A)", " (B)"))])
    [[opening]] = tiny.score([OptionRequest("The answer is:", (" (",))])
    assert a < opening < -1


def test_options_that_do_not_fit_say_so(helpful):
    fits = OptionRequest("water a daisy", (" now", " later"))
    results = helpful.score([OptionRequest("water a daisy " * 300, (" now", " later")), fits])
    assert results[0].reason == "question_too_long"
    assert results[1] == pytest.approx(plain_scores(helpful, fits), abs=1e-4)


def tree_of_requests() -> list[OptionRequest]:
    """Prompts that start alike at several depths: few-shots, conversations, orders; some repeated, one the
    start of another.
    """
    words = ["bread", "flour", "harm", "response", "human", "answer"]
    rng = Random(1)
    shots = [" ".join(rng.choices(words, k=60)) for _ in range(2)]
    requests = []
    for n in range(12):
        talk = f"{shots[n % 2]} {' '.join(rng.choices(words, k=rng.choice([3, 20, 40])))}"
        options = (" yes", " yes, indeed", " no") if n % 3 == 0 else (" (A)", " (B)")
        requests += [OptionRequest(f"{talk}{order} is:", options) for order in (" one two", " two one", "")]
    return [
        *requests,
        *requests[:3],
        OptionRequest(shots[0], (" (A)", " (B)")),
        OptionRequest("a", (" b", " c")),
    ]


def test_shared_prefixes_change_no_score(tiny):
    requests = tree_of_requests()
    expected = [plain_scores(tiny, request) for request in requests]
    for prefix_cache in (True, False):
        for batch_size in (32, 3, 1):
            change(tiny, prefix_cache=prefix_cache, batch_size=batch_size)
            for got, wanted in zip(tiny.score(requests), expected, strict=True):
                assert got == pytest.approx(wanted, abs=1e-4)
    change(tiny, prefix_cache=True, batch_size=64)


def test_what_prompts_share_is_computed_once(tiny):
    """Tokens that go through the model, padding included: with the cache far fewer, and no prompt twice for
    its two options.
    """
    requests = tree_of_requests()
    fed = {True: 0, False: 0}

    def count(module, positional, named):
        fed[tiny.settings.prefix_cache] += named["input_ids"].numel()

    hook = tiny.model.register_forward_pre_hook(count, with_kwargs=True)
    for prefix_cache in (False, True):
        change(tiny, prefix_cache=prefix_cache)
        tiny.score(requests)
    hook.remove()
    single = sum(len(tiny.renderer.encode(request.prompt)) for request in requests)
    assert fed[True] < 0.5 * fed[False] and fed[True] < 0.6 * single


def test_models_with_sliding_windows_do_without_the_cache():
    """Padding between two stretches would count as part of the window."""
    from transformers import MistralConfig, MistralForCausalLM

    from cai_cli.engines.option_scores import shares_prefixes

    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 50,
    }
    sliding = MistralForCausalLM(MistralConfig(**sizes, intermediate_size=32, sliding_window=8))
    assert not shares_prefixes(sliding)
    whole = MistralForCausalLM(MistralConfig(**sizes, intermediate_size=32, sliding_window=None))
    assert shares_prefixes(whole)


@pytest.mark.parametrize("most_tokens", [1 << 11, 150])
def test_packed_prompts_change_no_text(tiny, monkeypatch, most_tokens):
    """Prompts through the model as one row of distinct tokens; repeated ones, starts of others, and single
    tokens among them.
    """
    prompts = [
        *(f"{DEMONSTRATION}{text}" for text in REQUESTS[:9]),
        DEMONSTRATION,
        *REQUESTS[9:14],
        REQUESTS[9],
        "a",
    ]
    requests = [Request(prompt, key(0, n), 30) for n, prompt in enumerate(prompts)]
    expected = tiny.generate(requests)
    fed: list[int] = []
    hook = tiny.model.get_input_embeddings().register_forward_pre_hook(
        lambda _, given: fed.append(given[0].numel())
    )
    prepare(tiny.model, 512)
    monkeypatch.setattr("cai_cli.compute.batches.CPU_PREFILL_TOKENS", most_tokens)
    try:
        assert shortcuts_of(tiny.model).packs
        fed.clear()
        found = tiny.generate(requests)
    finally:
        hook.remove()
        del shortcuts_of(tiny.model).reasons[PACKED]
    starts = {tuple(done.prompt_ids[: n + 1]) for done in expected for n in range(len(done.prompt_ids) - 1)}
    assert fed[0] == len(starts) if most_tokens == 1 << 11 else fed[0] < len(starts)
    assert [done.token_ids for done in found] == [done.token_ids for done in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_a_temperature_that_vllm_does_not_sample_at_is_one_line(temperature):
    from cai_cli.engines.vllm_engine import VllmEngine

    with pytest.raises(UserError, match="vLLM samples at"):
        VllmEngine("model", EngineSettings(engine="vllm", temperature=temperature))


def test_the_trial_sees_rows_leave_where_draws_are_looked_at_later(monkeypatch):
    """As on a GPU: states that do not follow when a batch gets smaller are found out before a text is wrong."""
    from cai_cli.engines import trials

    monkeypatch.setattr(decoding, "LOOK_EVERY", {"cpu": 8})
    sizes = []
    kept = decoding.kept_places
    monkeypatch.setattr(decoding, "kept_places", lambda places: sizes.append(len(places)) or kept(places))
    trials.continued(open_model(str(checkpoint("helpful-only"))).model, [12, 12, 12])
    assert sizes
