"""Out of memory: half of the batch from there on, said once, with the same texts and scores; one row too many is one
line.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

from cai_cli.engines.base import EngineSettings, OptionRequest, Request
from cai_cli.engines.memory import bytes_a_token
from cai_cli.engines.open import open_engine
from cai_cli.errors import RunError
from cai_cli.keys import key

PROMPTS = [
    f"\n\nHuman: How do I clean my {word} spoon?\n\nAssistant:" for word in ("old", "new", "big", "small")
]


@pytest.fixture
def engine(helpful):
    return open_engine(str(helpful), EngineSettings(batch_size=16))


def short_of_memory(engine, rows: int):
    """A device on which passes of more rows fail."""
    forward = engine.model.forward

    def small(*words, **settings):
        ids = settings["input_ids"] if "input_ids" in settings else words[0]
        if len(ids) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*words, **settings)

    return patch.object(engine.model, "forward", small)


def requests(count: int) -> list[Request]:
    return [Request(PROMPTS[n % 4], key(0, n), 12) for n in range(count)]


def test_batches_are_halved_once_and_texts_stay(engine, caplog):
    wanted = [completion.text for completion in engine.generate(requests(12))]
    logging.getLogger("cai_cli").propagate = True
    with short_of_memory(engine, 3), caplog.at_level(logging.WARNING, "cai_cli"):
        assert [completion.text for completion in engine.generate(requests(12))] == wanted
        told = len(caplog.records)
        assert [completion.text for completion in engine.generate(requests(12))] == wanted
    assert told == len(caplog.records) == 2  # 12 rows, 6 rows; 3 fit


def test_scores_stay(engine):
    asked = [OptionRequest(f"{prompt} Sure. The answer is:", (" (A)", " (B)")) for prompt in PROMPTS * 4]
    engine.settings = EngineSettings(batch_size=16, prefix_cache=False)
    wanted = engine.score(asked)
    with short_of_memory(engine, 5):
        for ours, theirs in zip(engine.score(asked), wanted, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)


def test_one_row_that_does_not_fit_is_one_line(engine):
    question = OptionRequest(PROMPTS[0], (" (A)", " (B)"))
    engine.generate(requests(2)), engine.score([question])  # what the model can do is found out before
    with short_of_memory(engine, 0):
        with pytest.raises(RunError, match="out of memory with one row"):
            engine.generate(requests(2))
        with pytest.raises(RunError, match="out of memory with one row"):
            engine.score([question])


def test_progress_hears_of_each_row_once(engine):
    heard: list[int] = []
    engine.generate(requests(4))
    with short_of_memory(engine, 3):
        engine.generate(requests(12), heard.append)
    assert sum(heard) == 12


def test_rows_that_failed_are_counted_by_their_own_pass(engine):
    """One long question passes alone; the short ones behind it do not share a pass, and are halved."""
    short = [OptionRequest(f"{prompt} Yes. The answer is:", (" (A)", " (B)")) for prompt in PROMPTS]
    asked = [OptionRequest(PROMPTS[0] * 20, (" (A)", " (B)")), *short]
    engine.settings = EngineSettings(batch_size=16, prefix_cache=False)
    wanted = engine.score(asked)
    with short_of_memory(engine, 2):
        for ours, theirs in zip(engine.score(asked), wanted, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        ("MambaConfig", 0),
        ("RwkvConfig", 0),
        ("FalconConfig", 2 * 1 * 64),  # multi-query: one head for all
        ("DeepseekV3Config", 512 + 64),  # a latent vector and the rotary part
    ],
)
def test_bytes_of_other_caches(config, numbers):
    import transformers

    made = getattr(transformers, config)()
    assert bytes_a_token(made, 4) == 2 * made.num_hidden_layers * numbers * 4


def test_bytes_of_a_token():
    """Two layers, 3 key-value heads of 8, keys and values in float32, twice: 2 x 2 x 2 x 3 x 8 x 4."""
    text = SimpleNamespace(num_hidden_layers=2, num_key_value_heads=3, num_attention_heads=6, head_dim=8)
    assert bytes_a_token(SimpleNamespace(get_text_config=lambda: text), 4) == 768
