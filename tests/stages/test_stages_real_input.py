"""Real prompts through `revise` and `label` with small random models of two architectures; what comes out
feeds TRL as it is.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai_cli.rows.jsonl import read_records
from cai_cli.rows.records import Comparison, Prompt, Revision

HH = "hh-rlhf/harmless-base-test-1500.jsonl.gz"
COUNT = 8
GENERATION = ("--max-new-tokens", "8", "--on-truncated", "keep", "--max-reject-rate", "0.3")


@pytest.fixture(scope="module")
def prompts(cai, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("real") / "prompts.jsonl"
    done = cai(
        "import", "hh-rlhf", data(HH), "--to", "prompts", "--kind", "harmful", "--limit", COUNT, "--out", out
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def made(cai, prompts, llama, qwen) -> Path:
    """revisions-*.jsonl and comparisons-*.jsonl of both models, each judged by the other."""
    folder = prompts.parent
    for name, model, judge in (("llama", llama, qwen), ("qwen", qwen, llama)):
        revise = ("revise", "--model", model, "--rounds", "2", "--out", folder / f"revisions-{name}.jsonl")
        label = ("label", "--model", model, "--feedback-model", judge, "--min-mass", "0")
        for words in (revise, (*label, "--out", folder / f"comparisons-{name}.jsonl")):
            done = cai(*words, "--prompts", prompts, *GENERATION)
            assert done.returncode == 0, done.stderr
    return folder


def test_prompts(prompts):
    rows = list(read_records(prompts, Prompt.from_row))
    assert len(rows) == COUNT and {row.kind for row in rows} == {"harmful"}
    assert max(len(row.prompt) for row in rows) > 1, "some are conversations of several turns"


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_revisions(made, prompts, name):
    path = made / f"revisions-{name}.jsonl"
    rows = list(read_records(path, Revision.from_row))
    manifest = json.loads(path.with_name(f"revisions-{name}.manifest.json").read_text())
    counts = manifest["counts"]
    assert counts["in"] == COUNT and counts["out"] == len(rows) == COUNT - sum(counts["rejected"].values())
    wanted = {prompt.id: prompt for prompt in read_records(prompts, Prompt.from_row)}
    for row in rows:
        assert row.prompt == wanted[row.id.removesuffix("/0")].prompt and row.kind == "harmful"
        assert len(row.rounds) == 2 and row.completion[0]["content"] == row.rounds[-1].revision
        assert all(step.critique and step.revision for step in row.rounds)
    assert manifest["dtype"] == "float32" and manifest["chat_template"] and manifest["tokens"] > 0


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_comparisons(made, prompts, name):
    rows = list(read_records(made / f"comparisons-{name}.jsonl", Comparison.from_row))
    ids = [prompt.id for prompt in read_records(prompts, Prompt.from_row)]
    assert {row.prompt_id for row in rows} <= set(ids) and len(rows) >= COUNT * 0.7
    for row in rows:
        assert row.id == f"{row.prompt_id}/0" and row.origin == "ai" and row.chosen != row.rejected
        assert sorted(judgement.order for judgement in row.judgements) == ["chosen_first", "rejected_first"]
        mean = sum(judgement.probability_chosen for judgement in row.judgements) / 2
        assert row.probability == pytest.approx(mean, abs=1e-9) and 0 < row.judgements[0].mass < 1


@pytest.mark.parametrize("kind", ["prompts", "revisions", "comparisons"])
def test_datasets_read_every_artifact(made, kind, tmp_path):
    import datasets

    files = sorted(map(str, made.glob(f"{kind}*.jsonl")))
    files = [name for name in files if not name.endswith(".rejects.jsonl")]
    rows = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(tmp_path))
    assert len(rows) == sum(len(Path(name).read_text().splitlines()) for name in files)
    assert rows[0]["prompt"][0].keys() == {"role", "content"}


def train_one_step(trainer_type, config_type, model, file: Path, folder: Path, **settings) -> float:
    import datasets
    from tiny import byte_level_tokenizer

    rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder / "cache"))
    config = config_type(
        output_dir=str(folder / "out"),
        max_steps=1,
        per_device_train_batch_size=2,
        max_length=256,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        **settings,
    )
    trainer = trainer_type(
        model=model, args=config, train_dataset=rows, processing_class=byte_level_tokenizer()
    )
    return trainer.train().training_loss


def test_trl_trains_on_revisions_as_they_are(made, llama, tmp_path):
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(llama)
    loss = train_one_step(SFTTrainer, SFTConfig, model, made / "revisions-llama.jsonl", tmp_path)
    assert 4 < loss < 8, "the loss of a random model over 400 tokens is about ln 400"


def test_trl_trains_on_comparisons_as_they_are(made, qwen, tmp_path):
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    model = AutoModelForSequenceClassification.from_pretrained(qwen, num_labels=1)
    loss = train_one_step(RewardTrainer, RewardConfig, model, made / "comparisons-qwen.jsonl", tmp_path)
    assert 0.5 < loss < 0.9, "the loss of a random preference model is about ln 2"
