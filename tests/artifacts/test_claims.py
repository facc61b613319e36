"""A model directory is claimed when its training starts: what is found out before leaves nothing that refuses
another command.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import mistake, run_cai
from stack_exchange_dumps import answer, dump, question
from tiny import byte_level_tokenizer, make_model

from cai_cli.rows.conversation import message

COMMANDS = {
    "sft": "sft --data samples.jsonl",
    "pmp": "pmp --posts posts.xml",
    "train-pm": "train-pm --comparisons comparisons.jsonl",
    "ppo": "ppo --pm pm --prompts prompts.jsonl --steps 1 --rollout-batch-size 4",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_model(folder / "lm")
    no_classifier(folder / "gpt")
    # A model directory that looks right until its weights are read.
    make_model(folder / "broken")
    (folder / "broken/model.safetensors").write_bytes(b"no weights")
    prompt, good, bad = [message("user", "q")], [message("assistant", "yes")], [message("assistant", "no")]
    rows = {
        "prompts": {"prompt": prompt},
        "samples": {"prompt": prompt, "completion": good, "finish_reason": "stop"},
        "comparisons": {
            "prompt": prompt,
            "chosen": good,
            "rejected": bad,
            "probability": 0.75,
            "origin": "ai",
        },
    }
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"id": f"{n}", **row}) + "\n" for n in range(8))
        )
    posts, same = [], []
    for n in range(1, 60, 3):
        posts += [question(n), answer(n + 1, n, 9), answer(n + 2, n, 0)]
        same += [question(n), answer(n + 1, n, 3), answer(n + 2, n, 3)]
    dump(folder / "posts.xml", posts)
    dump(folder / "same.xml", same)
    return folder


def no_classifier(folder: Path) -> None:
    """A language model whose architecture transformers has no sequence classifier for."""
    from transformers import CodeGenConfig, CodeGenForCausalLM

    tokenizer = byte_level_tokenizer()
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4, "n_positions": 256, "n_ctx": 256}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    CodeGenForCausalLM(CodeGenConfig(vocab_size=len(tokenizer), **sizes, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def left(folder: Path) -> list[str]:
    """What a failed command left that is not of its own accord an artifact, as a pmp's comparisons are."""
    return sorted(path.name for path in folder.glob("*") if not path.name.startswith("comparisons."))


@pytest.mark.parametrize(
    ("stage", "mistake"),
    [
        ("train-pm", "--model gpt"),
        ("pmp", "--model gpt"),
        ("train-pm", "--model broken"),
        ("sft", "--model broken"),
        ("pmp", "--model broken"),
        ("ppo", "--model broken"),
        ("train-pm", "--model lm --held-out 0.9 --max-length 8"),
        ("sft", "--model lm --max-length 8"),
        ("pmp", "--model lm --max-length 8"),
        ("pmp", "--model lm --posts same.xml"),
        ("pmp", "--model lm --posts comparisons.jsonl"),
    ],
)
def test_a_run_that_fails_before_its_first_step_claims_nothing(stage, mistake, inputs, tmp_path):
    words = COMMANDS[stage]
    if "--posts" in mistake:
        words = "pmp"
    failed = run_cai(*words.split(), *mistake.split(), "--out", tmp_path / "m", cwd=inputs)
    assert failed.returncode in (1, 2), failed.stderr
    assert not (tmp_path / "m/cai.partial.json").exists() and left(tmp_path / "m") == [], failed.stderr


def test_a_corrected_pmp_goes_on_in_the_same_folder(inputs, tmp_path):
    out = tmp_path / "m"
    assert run_cai("pmp", "--model", "lm", "--posts", "same.xml", "--out", out, cwd=inputs).returncode == 1
    done = run_cai(
        "pmp", "--model", "lm", "--posts", "posts.xml", "--learning-rate", "1e-3", "--out", out, cwd=inputs
    )
    assert done.returncode == 0 and (out / "cai.json").is_file(), done.stderr


def test_a_restarted_pmp_has_the_old_one_in_bak(inputs, tmp_path):
    words = ("pmp", "--model", "lm", "--posts", "posts.xml", "--out", tmp_path / "m")
    assert run_cai(*words, cwd=inputs).returncode == 0
    pairs = (tmp_path / "m/comparisons.jsonl").read_bytes()
    again = run_cai(*words, "--learning-rate", "1e-3", "--if-changed", "restart", cwd=inputs)
    assert again.returncode == 0, again.stderr
    for folder in ("m", "m.bak"):
        assert (tmp_path / folder / "cai.json").is_file()
        assert (tmp_path / folder / "comparisons.jsonl").read_bytes() == pairs


def test_a_finished_model_that_a_kill_left_uncleaned_is_cleaned_up(inputs, tmp_path):
    words = ("train-pm", "--model", "lm", "--comparisons", "comparisons.jsonl", "--out", tmp_path / "m")
    assert run_cai(*words, cwd=inputs).returncode == 0
    whole = sorted(path.name for path in (tmp_path / "m").iterdir())
    (tmp_path / "m/cai.partial.json").write_bytes((tmp_path / "m/cai.json").read_bytes())
    (tmp_path / "m/checkpoints/step-00000001").mkdir(parents=True)
    assert run_cai(*words, "--dry-run", cwd=inputs).returncode == 0
    assert (tmp_path / "m/cai.partial.json").exists()
    done = run_cai(*words, cwd=inputs)
    assert done.returncode == 0 and "already done" in done.stderr
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == whole


@pytest.mark.parametrize(
    "words", ["pmp --model gpt --posts posts.xml", "train-pm --model gpt --comparisons comparisons.jsonl"]
)
def test_an_architecture_without_a_classifier_is_told_before_anything_is_read(words, inputs, tmp_path):
    failed = run_cai(*words.split(), "--out", tmp_path / "m", cwd=inputs)
    mistake(
        failed,
        "--model gpt: no preference model can be made of it",
        "take a base model of another architecture",
    )
    assert not (tmp_path / "m").exists()
