"""A model's own numbers whatever its architecture: shortcuts are taken where its words and a trial allow
them, and nowhere else.

`scripts/check_architectures.py` has the whole matrix; here are the families that have gone wrong or are
likeliest to.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers

from cai_cli.compute.shortcuts import (
    ANY_LENGTH,
    close,
    difference,
    local_words,
    rope_words,
    row_states,
    shortcuts_of,
)
from cai_cli.errors import UserError
from cai_cli.models.score import check_scorer
from cai_cli.models.tokenizers import load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from architecture_families import FAMILIES, build
from check_architectures import EQUAL, check, recorders

# Family -> what is said instead of "equal", by check.
NO_CLASSIFIER = {
    "train-pm": "no preference model can be made",
    "score": "no preference model",
    "ppo": "no preference model",
}
TRICKY = {
    "llama": {},
    "gpt_neo": {},
    "phi3-longrope": {"ppo": "rope_type longrope"},
    "gemma3_text": {},
    "llama4_text": NO_CLASSIFIER,
    "mpt": {},
    "openai-gpt": {},
    "falcon-alibi": {},
    "minimax": {},
    "rwkv": NO_CLASSIFIER,
}


@pytest.fixture(scope="module")
def noted():
    with pytest.MonkeyPatch.context() as patch:
        from cai_cli.engines.transformers_engine import TransformersEngine

        for name in ("generate", "score"):  # as they are, to be put back
            patch.setattr(TransformersEngine, name, getattr(TransformersEngine, name))
        yield recorders()


@pytest.mark.parametrize("family", TRICKY)
def test_every_stage_gives_plain_transformers_numbers(family, noted):
    found = check(family, noted, ["sample 8", "label", "train-pm", "score", "ppo"])
    for title, said in found.items():
        assert TRICKY[family].get(title, EQUAL) in said, (title, said)


# What configurations say


def text_config(kind: str, **settings):
    return transformers.AutoConfig.for_model(kind, **settings).get_text_config()


@pytest.mark.parametrize(
    ("config", "lengths"),
    [
        (text_config("gpt_neo"), [256]),
        (text_config("gpt_neo", num_layers=2, attention_types=[[["global"], 2]]), []),
        (text_config("mistral", sliding_window=77), [77]),
        (text_config("mistral", sliding_window=None), []),
        (text_config("qwen2", sliding_window=77, use_sliding_window=False), []),
        (text_config("recurrent_gemma"), [2048]),
        (text_config("llama4_text"), [8192]),
        (text_config("mixtral", num_local_experts=4), []),
        (text_config("mamba2", chunk_size=16), []),
        (text_config("llama"), []),
    ],
)
def test_windows_are_read_from_the_configuration(config, lengths):
    assert sorted({length for length, _ in local_words(config)}) == lengths


@pytest.mark.parametrize(
    ("kind", "more", "lengths"),
    [
        ("default", {}, []),
        ("linear", {"factor": 2.0}, []),
        ("yarn", {"factor": 2.0, "original_max_position_embeddings": 64}, []),
        ("dynamic", {"factor": 2.0}, [512]),
        (
            "longrope",
            {"short_factor": [1.0], "long_factor": [2.0], "original_max_position_embeddings": 64},
            [64],
        ),
        ("a new one", {}, [0]),
    ],
)
def test_angles_that_change_with_a_pass_are_read_from_the_configuration(kind, more, lengths):
    config = transformers.LlamaConfig(max_position_embeddings=512)
    for parameters in ({"rope_type": kind, **more}, {"full_attention": {"rope_type": kind, **more}}):
        config.rope_parameters = parameters
        assert [length for length, _ in rope_words(config)] == lengths


# Trials


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: of this size"
        ),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("anything else"),
        KeyboardInterrupt(),
    ],
)
def test_a_trial_lets_other_errors_through(error):
    model = build("llama", 99)

    def attempt():
        raise error

    with pytest.raises(type(error)):
        difference(model, attempt)
    assert all(not module.training for module in model.modules())


@pytest.mark.parametrize(
    "error", [TypeError("no such argument"), RuntimeError("shape '[2, 3]' is invalid for input of size 4")]
)
def test_a_trial_that_an_architecture_does_not_take_has_a_reason(error):
    def attempt():
        raise error

    assert str(error) in difference(build("llama", 99), attempt)


def test_layers_that_mix_padding_in_are_found_and_their_rows_go_by_length(monkeypatch):
    """States, and their gradients, are those of each row alone."""
    model = build("llama", 99)
    mlp = model.model.layers[0].mlp
    monkeypatch.setattr(
        mlp, "forward", lambda hidden, whole=mlp.forward: whole(hidden) + hidden.mean(1, keepdim=True)
    )
    lengths = [5, 9, 5, 1]
    ids = torch.randint(3, 99, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(9) < torch.tensor(lengths).unsqueeze(-1)).long()
    states = row_states(model, ids, mask)
    assert "other numbers" in shortcuts_of(model).reasons["right padding"]
    for n, length in enumerate(lengths):
        alone = model.model(input_ids=ids[n : n + 1, :length])[0][0]
        assert close(states[n, :length], alone, exact=True)
    states[0, 4].sum().backward()
    assert model.model.embed_tokens.weight.grad[ids[0, :5]].abs().min() > 0


# Classifiers


@pytest.mark.parametrize("kind", ["deberta-v2", "bert", "distilbert", "electra", "modernbert"])
def test_classifiers_that_are_not_read_at_the_last_token_are_refused(kind):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    tokens = {
        "vocab_size": 99,
        "pad_token_id": 0,
        "cls_token_id": 1,
        "sep_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    names = {"distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}}
    config = transformers.AutoConfig.for_model(kind, **names.get(kind, sizes), **tokens, num_labels=1)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with pytest.raises(UserError, match=r"--pm x: .*(encoder|not that of its head)|no linear score head"):
        check_scorer(model, "--pm x")


def test_every_command_that_scores_refuses_an_encoder_in_one_line(cai, tmp_path, llama):
    config = transformers.DebertaV2Config(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=1,
    )
    transformers.DebertaV2ForSequenceClassification(config).save_pretrained(tmp_path / "pm")
    load_tokenizer(str(llama)).save_pretrained(tmp_path / "pm")
    pair = '{"id": "a", "prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Yes"}], '
    pair += '"rejected": [{"role": "assistant", "content": "No"}], "probability": 1, "origin": "human"}\n'
    (tmp_path / "pairs.jsonl").write_text(pair)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hi"}\n')
    pairs = tmp_path / "pairs.jsonl"
    for words in (
        ("score", "--pm", tmp_path / "pm", pairs),
        (
            "train-pm",
            "--model",
            tmp_path / "pm",
            "--comparisons",
            pairs,
            "--held-out",
            0,
            "--out",
            tmp_path / "out",
        ),
        (
            "ppo",
            "--model",
            llama,
            "--pm",
            tmp_path / "pm",
            "--prompts",
            tmp_path / "prompts.jsonl",
            "--out",
            tmp_path / "policy",
        ),
    ):
        done = cai(*words)
        assert done.returncode == 2, done.stderr
        assert "deberta-v2 is an encoder" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


def test_the_matrix_is_large():
    assert len(FAMILIES) >= 80
    assert len({kind for kind, _ in FAMILIES.values()}) >= 70
    assert ANY_LENGTH > 1 << 20
