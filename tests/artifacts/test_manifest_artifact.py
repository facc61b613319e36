"""Artifacts through the command line: done is left alone, unfinished is continued, another command on the
same --out stops.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import forks
import pytest
from catching import catch
from conftest import mistake

from cai_cli.artifacts.fingerprints import fingerprint_file, fingerprint_model
from cai_cli.artifacts.identity import differences
from cai_cli.artifacts.places import manifest_path
from cai_cli.rows.conversation import message
from cai_cli.rows.records import Prompt, Sample
from cai_cli.rows.sources import parse_weight
from cai_cli.stages import sample


def transcript(text: str) -> dict:
    return {"transcript": f"\n\nHuman: {text}\n\nAssistant: no"}


def put(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(path: Path) -> list[str]:
    return [row["prompt"][0]["content"] for row in rows_of(path)]


def contents(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, byte for byte."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def attempts(tmp_path: Path) -> Path:
    """Twenty red-team attempts, of which the third and the twelfth cannot be read."""
    rows: list = [transcript(f"attempt {n}") for n in range(20)]
    rows[2], rows[11] = {"transcript": 3}, "{broken"
    (tmp_path / "in").mkdir()
    return put(tmp_path / "in" / "attempts.jsonl", rows)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "prompts.jsonl"


# The same command again


def test_done_is_left_alone(cai, attempts, out):
    words = ("import", "red-team", attempts, "--out", out)
    first = cai(*words)
    assert first.returncode == 0 and "18 rows, 2 rejected (not_text 1, not_json 1)" in first.stderr
    assert sorted(contents(out.parent)) == ["prompts.jsonl", "prompts.manifest.json", "prompts.rejects.jsonl"]
    before = contents(out.parent)
    again = cai(*words)
    assert again.returncode == 0 and again.stderr == f"{out}: already done (18 rows); nothing to do\n"
    assert contents(out.parent) == before


def test_the_manifest_tells_what_the_artifact_is(cai, attempts, out):
    cai("import", "red-team", attempts, "--out", out, "--seed", "5")
    manifest = json.loads((out.parent / "prompts.manifest.json").read_text())
    assert (manifest["stage"], manifest["seed"], manifest["options"]["format"]) == ("import", 5, "red-team")
    assert manifest["counts"] == {"in": 20, "out": 18, "rejected": {"not_json": 1, "not_text": 1}}
    source = manifest["inputs"][0]
    assert source["path"] == "../in/attempts.jsonl" and source["sha256"] == fingerprint_file(attempts)
    assert {"python", "torch", "transformers"} <= manifest["libraries"].keys()
    assert [Prompt.from_row(row).kind for row in rows_of(out)] == ["harmful"] * 18
    rejects = rows_of(out.with_name("prompts.rejects.jsonl"))
    assert [(row["id"], row["reason"]) for row in rejects] == [
        ("line-3", "not_text"),
        ("line-12", "not_json"),
    ]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (["--seed", "1"], "--seed was 0, now 1"),
        (["--kind", "helpful"], "--kind was None, now helpful"),
        (["--kind", "helpful", "--seed", "1"], "--kind was None, now helpful; --seed was 0, now 1"),
    ],
)
def test_other_options_are_an_error_that_names_them(cai, attempts, out, change, difference):
    words = ("import", "red-team", attempts, "--out", out)
    cai(*words)
    before = contents(out.parent)
    mistake(cai(*words, *change), f"{out} was made differently: {difference} — ", "--if-changed restart")
    assert contents(out.parent) == before


@pytest.fixture
def comparisons(tmp_path: Path) -> Path:
    """What `evaluate labels` makes a result of, without a model."""
    turns = {"prompt": [message("user", "q")]}
    turns |= {name: [message("assistant", name)] for name in ("chosen", "rejected")}
    return put(tmp_path / "ai.jsonl", [{"id": "1", **turns, "probability": 0.75, "origin": "ai"}])


def test_files_of_one_stem_would_have_one_manifest(cai, attempts, out, comparisons):
    """prompts.json beside prompts.jsonl is refused, in either order, a renamed one and one that is unfinished too."""
    rows = ("import", "red-team", attempts, "--out")
    results = ("evaluate", "labels", comparisons, comparisons, "--out")
    assert cai(*rows, out).returncode == 0
    before = contents(out.parent)
    told = f"prompts.manifest.json is that of {out}, and would be overwritten — choose another --out"
    mistake(cai(*results, out.with_suffix(".json")), told)
    mistake(cai(*rows, out.with_suffix(".json")), told)
    assert contents(out.parent) == before
    other = out.with_name("other.jsonl")
    for ending in (".jsonl", ".manifest.json"):
        out.with_suffix(ending).rename(other.with_suffix(ending))
    told = "other.manifest.json is that of"
    mistake(cai(*results, other.with_suffix(".json")), told)
    other.rename(other.with_name("other.jsonl.partial"))
    other.with_suffix(".manifest.json").rename(other.with_suffix(".manifest.partial.json"))
    mistake(cai(*results, other.with_suffix(".json")), "other.manifest.partial.json is that of")

    assert cai(*results, out.with_suffix(".json")).returncode == 0
    mistake(cai(*rows, out), "prompts.manifest.json is that of")
    put(out, [])
    mistake(cai(*rows, out, "--if-changed", "restart"), "prompts.manifest.json is that of")
    out.unlink()
    out.with_suffix(".json").unlink()
    assert cai(*rows, out).returncode == 0, "what is gone holds nobody up"


def test_another_stage_on_the_same_out(cai, attempts, out, tmp_path):
    cai("import", "red-team", attempts, "--out", out)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    done = cai("sample", "--model", tmp_path / "model", "--prompts", attempts, "--out", out)
    mistake(done, "was made differently: it was made by `cai import`")


def test_other_content_under_the_same_path_is_detected(cai, attempts, out):
    words = ("import", "red-team", attempts, "--out", out)
    cai(*words)
    attempts.write_text(attempts.read_text().replace("attempt 7", "attempt x"))
    before = contents(out.parent)
    mistake(cai(*words), "--file has other content")
    assert contents(out.parent) == before


def test_the_same_content_elsewhere_is_the_same(cai, attempts, out, tmp_path):
    cai("import", "red-team", attempts, "--out", out)
    moved = attempts.rename(tmp_path / "moved.jsonl")
    done = cai("import", "red-team", moved, "--out", out)
    assert done.returncode == 0 and "nothing to do" in done.stderr


def test_runtime_options_are_free(cai, attempts, out):
    cai("import", "red-team", attempts, "--out", out)
    done = cai(
        "import", "red-team", attempts, "--out", out, "--max-reject-rate", "0.9", "--if-changed", "restart"
    )
    assert done.returncode == 0 and "nothing to do" in done.stderr


def test_restart_moves_the_old_to_bak(cai, attempts, out):
    words = ("import", "red-team", attempts, "--out", out)
    cai(*words)
    before = contents(out.parent)
    done = cai(*words, "--seed", "1", "--if-changed", "restart")
    assert done.returncode == 0 and "--seed was 0, now 1: the old one goes to .bak" in done.stderr
    after = contents(out.parent)
    assert {name: after[f"{name}.bak"] for name in before} == before
    assert json.loads(after["prompts.manifest.json"])["seed"] == 1
    assert cai(*words, "--seed", "2", "--if-changed", "restart").returncode == 0
    assert json.loads(contents(out.parent)["prompts.manifest.json.bak"])["seed"] == 1


def test_a_restart_that_fails_at_once_leaves_the_old(cai, attempts, out):
    words = ("import", "hh-rlhf", "--out", out)
    good = put(attempts.with_name("good.jsonl"), [{"chosen": transcript("q")["transcript"], "rejected": ""}])
    assert cai(*words, good, "--to", "prompts").returncode == 0
    before = contents(out.parent)
    broken = attempts.with_name("broken.jsonl.gz")
    broken.write_bytes(b"\x1f\x8b\x08broken")
    done = cai(*words, broken, "--to", "prompts", "--if-changed", "restart")
    assert done.returncode == 2 and "broken gzip data" in done.stderr
    assert contents(out.parent) == before


def test_a_dry_run_changes_nothing(cai, attempts, out):
    words = ("import", "red-team", attempts, "--out", out)
    shown = cai(*words, "--dry-run")
    assert shown.returncode == 0 and not out.parent.exists()
    assert json.loads(shown.stdout)["prompt"][0]["content"] == "attempt 0" and "18 records" in shown.stderr
    cai(*words, "--limit", "4")
    before = contents(out.parent)
    assert cai(*words, "--limit", "9", "--dry-run").returncode == 0
    assert cai(*words, "--seed", "1", "--if-changed", "restart", "--dry-run").returncode == 0
    assert contents(out.parent) == before


def test_rows_can_go_to_stdout(cai, attempts, tmp_path):
    done = cai("import", "red-team", attempts, "--out", "-", cwd=tmp_path)
    assert [json.loads(line)["prompt"][0]["content"] for line in done.stdout.splitlines()][:3] == [
        "attempt 0",
        "attempt 1",
        "attempt 3",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


# More of the same


def test_a_raised_limit_continues(cai, attempts, out):
    words = ("import", "red-team", attempts, "--out", out)
    cai(*words, "--limit", "4")
    assert texts(out) == ["attempt 0", "attempt 1", "attempt 3", "attempt 4"]
    four = out.read_bytes()
    done = cai(*words, "--limit", "12")
    assert done.returncode == 0 and "continuing after 5 rows" in done.stderr
    assert out.read_bytes().startswith(four) and len(rows_of(out)) == 12
    assert "nothing to do" in cai(*words, "--limit", "6").stderr
    assert cai(*words).returncode == 0
    whole = out.with_name("whole.jsonl")
    cai("import", "red-team", attempts, "--out", whole)
    assert out.read_bytes() == whole.read_bytes()
    assert rows_of(out.with_name("prompts.rejects.jsonl")) == rows_of(whole.with_name("whole.rejects.jsonl"))
    assert json.loads(out.with_name("prompts.manifest.json").read_text())["counts"]["out"] == 18


def cut(out: Path, bytes_left: int) -> None:
    """What a kill leaves behind: some rows, the last one half, and the manifest of an unfinished run."""
    content = out.read_bytes()[:bytes_left]
    out.with_name(out.name + ".partial").write_bytes(content)
    out.unlink()
    manifest = out.with_name("prompts.manifest.json")
    manifest.rename(out.with_name("prompts.manifest.partial.json"))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.55, 0.999])
def test_a_truncated_last_line_is_repaired(cai, attempts, out, share):
    words = ("import", "red-team", attempts, "--out", out)
    cai(*words)
    whole = contents(out.parent)
    cut(out, int(len(whole["prompts.jsonl"]) * share))
    (out.with_name("prompts.rejects.jsonl")).write_bytes(whole["prompts.rejects.jsonl"][:-9])
    assert cai(*words).returncode == 0
    after = contents(out.parent)
    assert sorted(after) == sorted(whole)
    for name in ("prompts.jsonl", "prompts.rejects.jsonl"):
        assert after[name] == whole[name]
    assert (
        json.loads(after["prompts.manifest.json"])["counts"]
        == json.loads(whole["prompts.manifest.json"])["counts"]
    )


def test_an_unfinished_run_is_not_continued_with_other_options(cai, attempts, out):
    words = ("import", "red-team", attempts, "--out", out)
    cai(*words)
    cut(out, 300)
    before = contents(out.parent)
    mistake(cai(*words, "--seed", "1"), "--seed was 0, now 1")
    assert contents(out.parent) == before
    assert cai(*words, "--seed", "1", "--if-changed", "restart").returncode == 0
    assert contents(out.parent)["prompts.jsonl.partial.bak"] == before["prompts.jsonl.partial"]
    assert len(rows_of(out)) == 18


def test_rows_without_a_manifest_are_not_touched(cai, attempts, out):
    words = ("import", "red-team", attempts, "--out", out)
    cai(*words)
    cut(out, 300)
    out.with_name("prompts.manifest.partial.json").unlink()
    mistake(cai(*words), "prompts.jsonl.partial exists and has no manifest")


def test_a_deleted_artifact_is_made_anew_with_its_rejects(cai, attempts, out):
    words = ("import", "red-team", attempts, "--out", out)
    cai(*words)
    whole = contents(out.parent)
    out.unlink()
    assert cai(*words, "--seed", "1").returncode == 0
    for name in ("prompts.jsonl", "prompts.rejects.jsonl"):
        assert contents(out.parent)[name] == whole[name]


def test_too_many_rejects(cai, attempts, out):
    put(attempts, [transcript("one"), *[{"transcript": n} for n in range(3)]])
    words = ("import", "red-team", attempts, "--out", out)
    done = cai(*words)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert (
        "3 of 4 rows were rejected (not_text 3)" in done.stderr
        and "--max-reject-rate raises the bar" in done.stderr
    )
    assert not out.exists()
    assert cai(*words, "--max-reject-rate", "0.8").returncode == 0
    assert texts(out) == ["one"]


# Splits


def test_split_leaves_what_is_done_and_what_is_not_its_own(cai, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"prompt {n}\n" for n in range(60)))
    folder = tmp_path / "splits"
    words = ("split", prompts, "--out", folder, "--parts")
    assert cai(*words, "sft=0.5,rl=0.5").returncode == 0
    mine = put(folder / "notes.txt", ["mine"])
    before = contents(folder)
    assert "already done" in cai(*words, "sft=0.5,rl=0.5").stderr
    mistake(cai(*words, "sft=0.9,test=0.1"), "--parts was sft=0.5,rl=0.5, now sft=0.9,test=0.1")
    assert cai(*words, "sft=0.9,test=0.1", "--if-changed", "restart", "--dry-run").returncode == 0
    assert contents(folder) == before
    assert cai(*words, "sft=0.9,test=0.1", "--if-changed", "restart").returncode == 0
    after = contents(folder)
    assert after["rl.jsonl.bak"] == before["rl.jsonl"] and "rl.jsonl" not in after and mine.exists()
    assert sum(len(rows_of(folder / f"{name}.jsonl")) for name in ("sft", "test")) == 60
    put(folder / "rl.jsonl", ["precious"])
    put(folder / "b.json", ["precious too"])
    shutil.copy(folder / "sft.manifest.json", folder / "b.manifest.json")
    before = contents(folder)
    for parts, told in (("rl=1", "rl.jsonl: exists and is not from a split"), ("a=1,b=1", "that of")):
        mistake(cai(*words, parts, "--if-changed", "restart"), told, "choose another --out")
    assert contents(folder) == before, "what is no part of the old split is not overwritten"
    other = tmp_path / "other"
    other.mkdir()
    put(other / "sft.jsonl", ["precious"])
    mistake(
        cai("split", prompts, "--parts", "sft=1", "--out", other), "sft.jsonl: exists and is not from a split"
    )


# A kill in the middle of real work

SAMPLE = (
    "--limit",
    "30",
    "-n",
    "2",
    "--max-new-tokens",
    "48",
    "--temperature",
    "1",
    "--on-truncated",
    "keep",
)


@pytest.fixture(scope="module")
def uninterrupted(cai, world, helpful, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "samples.jsonl"
    done = cai("sample", "--model", helpful, "--prompts", world / "helpful-sft.jsonl", *SAMPLE, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_a_killed_run_ends_as_an_uninterrupted_one(world, helpful, uninterrupted, tmp_path, cai):
    out = tmp_path / "samples.jsonl"
    prompts = world / "helpful-sft.jsonl"
    words = ["sample", "--model", helpful, "--prompts", prompts, *SAMPLE, "--batch-size", "2", "--out", out]
    partial = out.with_name("samples.jsonl.partial")
    catch(lambda: forks.start(list(map(str, words))), out, lambda: partial.read_bytes().count(b"\n") >= 8)
    survived = partial.read_bytes()
    assert not out.exists() and 8 <= survived.count(b"\n") < 60
    with partial.open("ab") as stream:  # and a disk that kept half of the next row
        stream.write(b'{"id": "half a r')
    done = cai(*words)
    assert done.returncode == 0 and "continuing after" in done.stderr, done.stderr
    assert out.read_bytes() == uninterrupted.read_bytes()
    ids = [Sample.from_row(row).id for row in rows_of(out)]
    assert len(ids) == len(set(ids)) == 60 and out.read_bytes().startswith(survived)
    assert not partial.exists() and not out.with_name("samples.manifest.partial.json").exists()
    # A copy of the model is the same model; another one is not.
    copy = shutil.copytree(helpful, tmp_path / "copy")
    again = ["sample", "--model", copy, *words[3:]]
    assert "nothing to do" in cai(*again).stderr
    config = copy / "config.json"
    config.write_text(config.read_text() + "\n")
    mistake(cai(*again), "--model: config.json has other content")
    changed = cai(*words, "--dtype", "bfloat16")
    assert (
        changed.returncode == 0
        and "warning:" in changed.stderr
        and "--dtype was auto, now bfloat16" in changed.stderr
    )


# Manifests


def test_weights_and_places():
    assert parse_weight("a/b.jsonl:0.5") == ("a/b.jsonl", 0.5)
    assert parse_weight("a:.5") == ("a", 0.5)
    for plain in ("a.jsonl", "C:\\x", "hf:org/name:train", "a:b", "a:1e3"):
        assert parse_weight(plain) == (plain, 1.0)
    assert manifest_path(Path("x/rows.jsonl")) == Path("x/rows.manifest.json")
    assert manifest_path(Path("x/rows.jsonl.gz")) == Path("x/rows.manifest.json")
    assert manifest_path(Path("x/model")) == Path("x/model/cai.json")


def test_fingerprints_go_by_content(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "notes.md").write_text(name)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert fingerprint_model(a) == fingerprint_model(b) != fingerprint_model("org/name")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"other weights")
    assert fingerprint_model(a) != fingerprint_model(b)
    monkeypatch.setattr("cai_cli.artifacts.fingerprints.WHOLE_FILE_BYTES", 1 << 20)
    large = tmp_path / "large"
    content = bytearray(2 << 20)
    large.write_bytes(content)
    whole = fingerprint_file(large)
    content[-1] = 1
    large.write_bytes(content)
    assert fingerprint_file(large) != whole


def test_differences_by_part():
    options = {"limit": 3, "seed": 0, "dtype": "auto", "batch_size": 64}
    source = {"option": "prompts", "path": "p", "weight": 1.0, "sha256": "1"}
    model = {"option": "model", "path": "m", "fingerprint": "1", "files": {}}
    old = {"stage": "sample", "options": options, "inputs": [source], "models": [model], "constitution": None}
    free = {**old, "options": {**options, "limit": 9, "dtype": "bfloat16", "batch_size": 1}}
    moved = {**old, "inputs": [{**source, "path": "elsewhere"}], "models": [{**model, "path": "elsewhere"}]}
    assert differences(old, free, sample.Options) == differences(old, moved, sample.Options) == []
    for change, told in (
        ({"options": {**options, "seed": 1}}, "--seed was 0, now 1"),
        ({"inputs": [{**source, "sha256": "2"}]}, "--prompts has other content"),
        ({"inputs": [source, source]}, "--prompts has other content"),
        ({"models": [{**model, "fingerprint": "2"}]}, "--model has other content"),
        ({"constitution": {"sha256": "2"}}, "--constitution is new"),
    ):
        assert differences(old, {**old, **change}, sample.Options) == [told]
