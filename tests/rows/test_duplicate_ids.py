"""An id is on one line of a file: every reader of our rows refuses a second one and names both lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import mistake, run_cai
from ppo_setup import make_pm
from tiny import make_model

from cai_cli.artifacts.manifest import begin_manifest, write_manifest
from cai_cli.console.groups import build
from cai_cli.errors import RecordError
from cai_cli.rows.conversation import message
from cai_cli.rows.prompt_files import Known, read_prompts
from cai_cli.stages import sample
from cai_cli.training.sft.data import read_targets

Q, A, B = [message("user", "q")], [message("assistant", "First, mix it.")], [message("assistant", "No.")]
STEP = {
    "principle": "x",
    "critique_request": "c",
    "critique": "c",
    "revision_request": "r",
    "revision": "First, mix it.",
}
ROWS = {
    "prompts": {"prompt": Q},
    "samples": {"prompt": Q, "completion": A, "finish_reason": "stop"},
    "comparisons": {"prompt": Q, "chosen": A, "rejected": B, "probability": 0.75, "origin": "ai"},
    "revisions": {"prompt": Q, "completion": A, "initial": B, "rounds": [STEP]},
}
READERS = {
    "inspect prompts": ("prompts", "inspect {file}"),
    "inspect comparisons": ("comparisons", "inspect {file}"),
    "split": ("prompts", "split {file} --parts a=1 --out {out}"),
    "split samples": ("samples", "split {file} --parts a=1 --out {out}"),
    "revise": ("prompts", "revise --model {lm} --prompts {file} --out {out}.jsonl"),
    "sample": ("prompts", "sample --model {lm} --prompts {file} --out {out}.jsonl"),
    "ppo": ("prompts", "ppo --model {lm} --pm {pm} --prompts {file} --out {out}"),
    "ppo --eval-prompts": (
        "prompts",
        "ppo --model {lm} --pm {pm} --prompts {one} --eval-prompts {file} --out {out}",
    ),
    "sft samples": ("samples", "sft --model {lm} --data {file} --out {out}"),
    "sft revisions": ("revisions", "sft --model {lm} --data {file} --out {out}"),
    "label --pairs samples": ("samples", "label --pairs {file} --feedback-model {lm} --out {out}.jsonl"),
    "label --pairs comparisons": (
        "comparisons",
        "label --pairs {file} --feedback-model {lm} --out {out}.jsonl",
    ),
    "train-pm": ("comparisons", "train-pm --model {lm} --comparisons {file} --out {out}"),
    "evaluate pm": ("comparisons", "evaluate pm --pm {pm} --comparisons {file} --out {out}.json"),
    "evaluate elo": ("samples", "evaluate elo x={file} y={file} --judge {pm} --out {out}.json"),
    "evaluate elo games": ("comparisons", "evaluate elo --comparisons {file} --out {out}.json"),
    "evaluate labels": ("comparisons", "evaluate labels {file} {file} --out {out}.json"),
    "score": ("samples", "score --pm {pm} {file} --out {out}.jsonl"),
    "export": ("revisions", "export paper-chains {file} --out {out}.jsonl"),
}


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "lm")


@pytest.fixture(scope="module")
def pm(lm) -> Path:
    return make_pm(lm, lm.parent / "pm")


def put(path: Path, kind: str, ids: str) -> Path:
    path.write_text("".join(json.dumps({"id": name, **ROWS[kind]}) + "\n" for name in ids))
    return path


@pytest.mark.parametrize("reader", READERS)
def test_a_second_row_of_an_id_stops_with_both_lines(reader, lm, pm, tmp_path):
    kind, words = READERS[reader]
    file, one = put(tmp_path / "rows.jsonl", kind, "abcb"), put(tmp_path / "one.jsonl", kind, "a")
    done = run_cai(*words.format(file=file, one=one, lm=lm, pm=pm, out=tmp_path / "out").split())
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"error: {file}:4: field `id`: 'b' is on line 2 too — ids are unique in a file\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "rows.jsonl"]


def test_rows_that_two_commands_wrote_are_not_continued(lm, tmp_path):
    prompts, out = put(tmp_path / "prompts.jsonl", "prompts", "pq"), tmp_path / "x.jsonl"
    options = build(sample.Options, model=str(lm), prompts=[str(prompts)], out=out)
    write_manifest(tmp_path / "x.manifest.partial.json", begin_manifest("sample", options, tmp_path))
    partial = put(tmp_path / "x.jsonl.partial", "samples", "aba")
    words = ("sample", "--model", lm, "--prompts", prompts, "--out", out)
    mistake(run_cai(*words), f"{partial}:3: field `id`: 'a' is on line 1 too")


def test_merge_names_both_lines_of_a_shard(lm, tmp_path):
    prompts = put(tmp_path / "prompts.jsonl", "prompts", "pq")
    for index, ids in enumerate(("aba", "c")):
        path = put(tmp_path / f"{index}.jsonl", "samples", ids)
        options = build(sample.Options, model=str(lm), prompts=[str(prompts)], out=path, shard=f"{index}/2")
        counts = {"in": 1, "out": 1, "rejected": {}}
        write_manifest(
            tmp_path / f"{index}.manifest.json",
            {**begin_manifest("sample", options, tmp_path), "counts": counts},
        )
    words = ("merge", tmp_path / "0.jsonl", tmp_path / "1.jsonl", "--out", tmp_path / "x.jsonl")
    mistake(run_cai(*words), "0.jsonl:3: field `id`: 'a' is on line 1 too")


def test_two_files_may_share_ids(tmp_path, capsys):
    """Samples of the same prompts by two models are both trained on; a prompt in two files is one prompt."""
    files = [str(put(tmp_path / name, "samples", "ab")) for name in ("x.jsonl", "y.jsonl")]
    targets = [target for file in files for target in read_targets(file, "final", 0)]
    assert [target.id for target in targets] == ["a", "b", "a", "b"]
    assert [prompt.id for prompt in read_prompts(files)] == ["a", "b"]
    assert "merged 2 repeated prompts" in capsys.readouterr().err


def test_an_id_means_one_prompt_in_all_sources_of_a_run(tmp_path):
    one = put(tmp_path / "one.jsonl", "prompts", "a")
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"id": "a", "prompt": "another"}) + "\n")
    known = Known()
    assert [len(read_prompts([str(one)], known=known)) for _ in range(2)] == [1, 1]
    with pytest.raises(
        RecordError, match=rf"^{other}:1: .*'a' is used for two prompts \(the other one is at {one}:1"
    ):
        read_prompts([str(other)], known=known)


def test_rejects_may_repeat_an_id(tmp_path):
    """A trainer's rejects are of all its files."""
    path = tmp_path / "rejects.jsonl"
    path.write_text(2 * (json.dumps({"id": "a", "reason": "too_long", "detail": "", "row": None}) + "\n"))
    shown = run_cai("inspect", path)
    assert shown.returncode == 0 and shown.stdout.count("rejected: too_long") == 2
