"""Options scored through trees of shared prefixes are those of whole sequences, whatever an architecture does
with masks.
"""

from __future__ import annotations

import pytest
import torch
import transformers

from cai_cli.compute.prefix_tree import OptionTokens, Stretch, alone, grow, row_of
from cai_cli.compute.tree_rows import ids_of, positions_of, tree_mask
from cai_cli.engines.base import EngineSettings, OptionRequest
from cai_cli.engines.option_scores import readings_of
from cai_cli.engines.transformers_engine import TransformersEngine
from cai_cli.engines.trials import shares_prefixes, takes_tree_masks
from cai_cli.microworld import checkpoint
from cai_cli.models.templates import UnfitRow
from cai_cli.models.tokenizers import load_tokenizer

HEADS = {"num_attention_heads": 4, "intermediate_size": 64}
GROUPED = {**HEADS, "num_key_value_heads": 2, "head_dim": 8}
# Name: settings, whether its prefixes are shared, whether it takes tree masks.
ARCHITECTURES = {
    "Llama": (GROUPED, True, True),
    "Qwen3": (GROUPED, True, True),
    "GPTNeoX": (HEADS, True, True),
    "GPT2": ({"n_head": 4}, True, True),
    "Granite": ({**HEADS, "num_key_value_heads": 2, "logits_scaling": 3.0}, True, True),
    "Gemma2": ({**GROUPED, "sliding_window": 8, "final_logit_softcapping": 1.0}, False, None),
    "Bloom": ({"n_head": 4}, True, False),
    "Mpt": ({"n_heads": 4}, False, None),
    "Mamba": ({}, False, None),
}


def engine_of(architecture: str) -> TransformersEngine:
    """A random model with weights large enough for attention to matter, and the micro-world's tokenizer."""
    tokenizer = load_tokenizer(str(checkpoint("helpful-only")))
    names = {"hidden_size": "hidden_size", "num_hidden_layers": "num_hidden_layers"}
    if architecture == "GPT2":
        names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer"}
    elif architecture == "Bloom":
        names["num_hidden_layers"] = "n_layer"
    elif architecture == "Mpt":
        names = {"hidden_size": "d_model", "num_hidden_layers": "n_layers"}
    sizes = {
        names["hidden_size"]: 32,
        names["num_hidden_layers"]: 2,
        "vocab_size": len(tokenizer),
        "pad_token_id": 0,
    }
    config = getattr(transformers, f"{architecture}Config")(**sizes, **ARCHITECTURES[architecture][0])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        weight.data.mul_(3)
    return TransformersEngine(model, tokenizer)


def questions() -> list[OptionRequest]:
    """Few-shots, conversations of unlike lengths, two orders, options of one and of several tokens."""
    requests = []
    for n in range(10):
        talk = f"{'How can I water a daisy? Fill a can with water. ' * 8}How can I {'paint a fence ' * (1 + 3 * n % 7)}?"
        options = (" the can", " the can with water", " a daisy") if n % 3 == 0 else (" water", " paint")
        requests += [
            OptionRequest(f"{talk}{replies} is:", options)
            for replies in (" pour it slowly", " the soil of the daisy")
        ]
    return requests


def whole_scores(engine: TransformersEngine, request: OptionRequest) -> list[float]:
    """One forward pass for each option, without cache, padding or a mask."""
    ids = engine.renderer.encode(request.prompt)
    scores = []
    for option in request.options:
        row = engine.renderer.encode(request.prompt, option)
        assert row[: len(ids)] == ids
        with torch.no_grad():
            logprobs = torch.log_softmax(engine.model(torch.tensor([row])).logits[0].double(), -1)
        scores.append(sum(logprobs[place - 1, row[place]].item() for place in range(len(ids), len(row))))
    return scores


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_those_of_whole_sequences(architecture):
    engine = engine_of(architecture)
    requests = questions()
    expected = [whole_scores(engine, request) for request in requests]
    assert max(scores[0] for scores in expected) - min(scores[0] for scores in expected) > 0.01
    for prefix_cache in (True, False):
        for batch_size in (64, 3):
            engine.settings = EngineSettings(prefix_cache=prefix_cache, batch_size=batch_size)
            for got, wanted in zip(engine.score(requests), expected, strict=True):
                assert got == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_an_architecture_takes_is_found_out(architecture):
    """Bloom counts positions in the mask, so that a second branch would seem further away; MPT in the cache,
    padding too.
    """
    _, shares, takes = ARCHITECTURES[architecture]
    model = engine_of(architecture).model
    assert shares_prefixes(model) == shares
    if shares:
        assert takes_tree_masks(model) == takes


def test_a_tree_and_its_rows_by_hand():
    """Three sequences: 20 tokens in common, then 20 more in two of them."""
    stem, more = list(range(100, 120)), list(range(200, 220))
    sequences = [
        OptionTokens([*stem, *more, 1, 0], 41),
        OptionTokens([*stem, *more, 2, 3, 0], 41),
        OptionTokens([*stem, 4, 5, 0], 21),
    ]
    order = sorted(range(3), key=lambda n: sequences[n].ids)
    [tree] = grow(sequences, order)
    assert (tree.begin, tree.end, tree.members, tree.size) == (0, 20, [2, 0, 1], 20 + 2 + 20 + 1 + 2)
    assert [(child.begin, child.end, child.ends) for child in tree.children] == [(20, 22, [2]), (20, 40, [])]
    row = row_of(tree, 45)
    assert [(piece.start, piece.stop) for piece in row.pieces] == [
        (0, 45),
        (20, 22),
        (22, 45),
        (42, 43),
        (43, 45),
    ]
    assert row.children == [] and row.length == 45
    cut = row_of(tree, 44)
    assert (cut.length, cut.children) == (20, tree.children)
    assert [(stretch.begin, stretch.end) for stretch in alone(sequences, order)] == [
        (0, 22),
        (0, 41),
        (0, 42),
    ]


def test_a_mask_by_hand():
    """Two tokens behind a cache of one that is padding and one that is not; two branches of one token, one of
    which forks.
    """
    fork = Stretch(3, 4, [1, 2], [], [Stretch(4, 5, [1], [1]), Stretch(4, 5, [2], [2])])
    row = row_of(Stretch(1, 3, [0, 1, 2], [], [Stretch(3, 4, [0], [0]), fork]), 6)
    whole = torch.tensor([[0, 1] + [1] * 6])
    sees = tree_mask([row], whole, torch.float32)[0, 0] == 0
    assert sees.int().tolist() == [
        [0, 1, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 1, 0, 0],
        [0, 1, 1, 1, 0, 1, 1, 0],
        [0, 1, 1, 1, 0, 1, 0, 1],
    ]


def test_an_option_of_which_no_token_is_made_is_a_reject():
    """Its log-probability would be that of nothing at all, 0."""
    engine = engine_of("Llama")
    asked = [
        OptionRequest("How can I water a daisy?", options)
        for options in ((" water", " paint"), (" water", ""))
    ]
    known, lost = engine.score(asked)
    assert isinstance(known, list) and isinstance(lost, UnfitRow)
    assert (lost.reason, lost.detail) == ("option_without_tokens", "the tokenizer makes no token of ''")


def test_the_example_of_two_options(monkeypatch):
    """What the docstring of `OptionScorer.run` shows."""
    monkeypatch.setattr("cai_cli.compute.prefix_tree.LEAST_SAVING", 1)
    sequences = [OptionTokens([1, 2, 3, 4, 5], 4), OptionTokens([1, 2, 3, 4, 6, 7], 4)]
    [stretch] = grow(sequences, [0, 1])
    row = row_of(stretch, 256)
    assert (ids_of(row, sequences), positions_of(row)) == ([1, 2, 3, 4, 6], [0, 1, 2, 3, 4])
    found = [(row.place[1], row.token, row.member) for row in readings_of(0, row, sequences)]
    assert found == [(3, 5, 0), (3, 6, 1), (4, 7, 1)]
