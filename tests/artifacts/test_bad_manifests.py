"""Manifests of any shape, or that name themselves: one line with file and field, and every walk over them
ends.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import mistake

from cai_cli.artifacts.fingerprints import fingerprint_file
from cai_cli.artifacts.manifest import read_manifest
from cai_cli.artifacts.places import manifest_path
from cai_cli.console.groups import build
from cai_cli.errors import CaiError
from cai_cli.evaluation.overlap import find_overlap
from cai_cli.rows.conversation import message
from cai_cli.rows.storage import is_input
from cai_cli.stages import lineage

ROW = {"prompt": [message("user", "q")]}


def put(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_manifest(artifact: Path, *inputs: Path, **fields: Any) -> Path:
    """The manifest of an artifact that was made from `inputs`, which are there already or not."""
    items = []
    for path in inputs:
        sha256 = fingerprint_file(path) if is_input(path) else "0"
        items.append(
            {"option": "prompts", "path": path.name, "weight": 1.0, "sha256": sha256, "manifest_sha256": None}
        )
    manifest = {
        "stage": "split",
        "version": "0",
        "seed": 0,
        "options": {},
        "inputs": items,
        "models": [],
    } | fields
    place = manifest_path(artifact)
    place.write_text(json.dumps(manifest))
    return place


@pytest.fixture(scope="module")
def made(cai, tmp_path_factory) -> Path:
    """prompts.jsonl -> shards part.0 and part.1 of an import, and a split: manifests as stages write them."""
    folder = tmp_path_factory.mktemp("made")
    put(folder / "attempts.jsonl", *({"transcript": f"\n\nHuman: q{n}\n\nAssistant: no"} for n in range(9)))
    assert cai("import", "red-team", "attempts.jsonl", "--out", "prompts.jsonl", cwd=folder).returncode == 0
    assert cai("split", "prompts.jsonl", "--parts", "a=1,b=1", "--out", "splits", cwd=folder).returncode == 0
    return folder


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "copy")


def spoil(place: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads(place.read_text())
    change(manifest)
    place.write_text(json.dumps(manifest))


# One line


WRONG: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("`stage`", lambda m: m.update(stage=3)),
    ("`stage`", lambda m: m.pop("stage")),
    ("`seed`", lambda m: m.update(seed=[])),
    ("`options`", lambda m: m.update(options=[])),
    ("`options.parts`", lambda m: m.update(options={"parts": 7})),
    ("`options.limit`", lambda m: m["options"].update(limit="many")),
    ("`options.shard`", lambda m: m["options"].update(shard=[0, 1])),
    ("`inputs`", lambda m: m.update(inputs={})),
    ("`inputs[0]`", lambda m: m.update(inputs=["prompts.jsonl"])),
    ("`inputs[0].path`", lambda m: m["inputs"][0].pop("path")),
    ("`inputs[0].path`", lambda m: m["inputs"][0].update(path="a\0b")),
    ("`inputs[0].path`", lambda m: m["inputs"][0].update(path="\ud800")),
    ("`inputs[0].option`", lambda m: m["inputs"][0].update(option=None)),
    ("`inputs[0].weight`", lambda m: m["inputs"][0].update(weight=True)),
    ("`inputs[0].weight`", lambda m: m["inputs"][0].update(weight="1")),
    ("`inputs[0].sha256`", lambda m: m["inputs"][0].update(sha256={})),
    ("`models`", lambda m: m.update(models=None)),
    ("`models[0].path`", lambda m: m.update(models=[{"option": "model", "fingerprint": "0"}])),
    (
        "`models[0].fingerprint`",
        lambda m: m.update(models=[{"option": "model", "path": "m", "fingerprint": 3}]),
    ),
    ("`models[0].files`", lambda m: m.update(models=[{"option": "model", "path": "m", "fingerprint": "0"}])),
    (
        "`models[0].files.a`",
        lambda m: m.update(models=[{"option": "model", "path": "m", "fingerprint": "0", "files": {"a": 1}}]),
    ),
    ("`constitution`", lambda m: m.update(constitution="article")),
    ("`constitution.path`", lambda m: m.update(constitution={"sha256": "0"})),
    ("`counts`", lambda m: m.update(counts=[1])),
    ("`counts.out`", lambda m: m.update(counts={"out": "9"})),
    ("`counts.rejected.x`", lambda m: m["counts"].update(rejected={"x": None})),
    ("`identity`", lambda m: m.update(identity="same")),
    ("`libraries`", lambda m: m.update(libraries=["torch"])),
    ("`score_mean`", lambda m: m.update(score_mean="0.1")),
    ("nested", lambda m: m.update(note=nested(500))),
]


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(("field", "change"), WRONG)
def test_the_file_and_the_field_are_named(made, copy, field, change):
    for place in (copy / "prompts.manifest.json", copy / "splits" / "split.manifest.json"):
        spoil(place, change)
        with pytest.raises(CaiError) as raised:
            read_manifest(place)
        assert str(place) in raised.value.message and field in raised.value.message, raised.value.message


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        "{",
        "{}",
        '"text"',
        "\ufeff{}",
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 9999,
        "{" + '"a": 1, ' * 9,
    ],
)
def test_what_is_no_manifest_at_all(cai, copy, content):
    place = copy / "prompts.manifest.json"
    place.write_text(content)
    mistake(cai("lineage", copy / "prompts.jsonl"), "prompts.manifest.json: ")
    place.write_bytes(b'{"stage": "\xff"}')
    with pytest.raises(CaiError, match=r"prompts\.manifest\.json"):
        read_manifest(place)


def test_numbers_that_are_none(copy):
    place = copy / "prompts.manifest.json"
    whole = place.read_text()
    for number in ("NaN", "-Infinity", "1e999"):
        place.write_text(whole.replace('"weight": 1.0', f'"weight": {number}'))
        with pytest.raises(CaiError, match=r"prompts\.manifest\.json"):
            read_manifest(place)
    place.write_text(whole.replace('"weight": 1.0', '"weight": ' + "9" * 5000))
    with pytest.raises(CaiError):
        read_manifest(place)


def test_a_file_far_too_large_is_not_read(copy):
    place = copy / "prompts.manifest.json"
    with place.open("r+b") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(CaiError, match="larger than"):
        read_manifest(place)


def test_each_command_that_reads_one_says_it_in_one_line(cai, copy, helpful, tmp_path):
    shutil.copy(copy / "prompts.manifest.json", tmp_path / "kept.json")
    spoil(copy / "prompts.manifest.json", lambda m: m["inputs"][0].pop("sha256"))
    field = "prompts.manifest.json: field `inputs[0].sha256`: missing"
    mistake(cai("lineage", copy / "prompts.jsonl"), field)
    mistake(cai("import", "red-team", copy / "attempts.jsonl", "--out", copy / "prompts.jsonl"), field)
    mistake(cai("merge", copy / "prompts.jsonl", "--out", copy / "whole.jsonl"), field)
    words = ("--prompts", copy / "prompts.jsonl", "--feedback-model", helpful, "--out", tmp_path / "o.jsonl")
    mistake(cai("label", "--pairs", copy / "prompts.jsonl", *words[2:]), field)

    spoil(copy / "splits" / "split.manifest.json", lambda m: m["options"].update(parts=None))
    words = ("split", copy / "prompts.jsonl", "--parts", "a=1", "--out", copy / "splits")
    mistake(cai(*words), "was made differently")
    assert cai(*words, "--if-changed", "restart").returncode == 0

    model = tmp_path / "model"
    shutil.copytree(helpful, model)
    (model / "cai.partial.json").write_text('{"stage": 1, "options": {}, "inputs": [], "models": []}')
    done = cai("sft", "--model", helpful, "--data", copy / "prompts.jsonl", "--out", model)
    mistake(done, "cai.partial.json: field `stage`: expected text")
    results = tmp_path / "results.json"
    results.write_text("{}")
    results.with_name("results.manifest.json").write_text(
        '{"stage": "x", "options": {}, "inputs": [], "models": [[]]}'
    )
    hhh = put(tmp_path / "hhh.jsonl", {"question": "q", "options": ["a", "b"], "answer": 0})
    done = cai("evaluate", "hhh", "--model", helpful, "--data", hhh, "--out", results)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr


def test_fields_that_are_gone_where_a_stage_looks_at_them(cai, copy):
    """A finished manifest without counts or identity, and an input under the name of another flag."""
    spoil(copy / "prompts.manifest.json", lambda m: m.pop("counts"))
    words = ("import", "red-team", "attempts.jsonl", "--out", "prompts.jsonl")
    assert cai(*words, cwd=copy).stderr == "prompts.jsonl: already done; nothing to do\n"
    spoil(copy / "prompts.manifest.json", lambda m: m["inputs"][0].update(option="seed"))
    mistake(cai(*words, cwd=copy), "was made differently")
    spoil(copy / "prompts.manifest.json", lambda m: m["options"].update(shard="0/1") or m.pop("identity"))
    mistake(cai("merge", "prompts.jsonl", "--out", "whole.jsonl", cwd=copy), "has no finished manifest")


def test_an_import_is_not_taken_for_merged_shards(cai, copy):
    """Both have `merged` in their manifests: a count there, the shards here."""
    for n in range(2):
        words = ("import", "red-team", "attempts.jsonl", "--out", f"part.{n}.jsonl", "--kind", "harmful")
        assert cai(*words, cwd=copy).returncode == 0
        spoil(copy / f"part.{n}.manifest.json", lambda m, n=n: m["options"].update(shard=f"{n}/2"))
    mistake(
        cai("merge", "part.0.jsonl", "part.1.jsonl", "--out", "prompts.jsonl", cwd=copy),
        "was made differently",
    )


def test_what_other_versions_write_is_let_through(cai, copy):
    spoil(
        copy / "prompts.manifest.json",
        lambda m: m.update(
            version="99",
            new={"deep": [1, {"x": None}]},
            models=[{"option": "model", "path": "org/m", "fingerprint": "0", "files": {"a": "0"}, "new": 3}],
        ),
    )
    shown = cai("lineage", "prompts.jsonl", cwd=copy)
    assert shown.returncode == 0 and "model" in shown.stdout, shown.stderr


# Walks that would not end


def walked(capsys: pytest.CaptureFixture[str], artifact: Path) -> list[str]:
    started = time.monotonic()
    lineage.run(lineage.Options(artifact=artifact))
    find_overlap([ROW["prompt"]], str(artifact))
    assert time.monotonic() - started < 60
    return capsys.readouterr().out.splitlines()


def test_a_manifest_that_names_itself(cai, tmp_path):
    own = put(tmp_path / "own.jsonl", ROW)
    write_manifest(own, own)
    shown = cai("lineage", "own.jsonl", cwd=tmp_path)
    assert shown.returncode == 0
    assert shown.stdout.splitlines()[1:] == ["└── prompts own.jsonl  cai split, seed 0  (above)"]


def test_a_circle_of_files_and_models(capsys, tmp_path):
    a, b, model = put(tmp_path / "a.jsonl", ROW), put(tmp_path / "b.jsonl", ROW), tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    write_manifest(a, b)
    write_manifest(
        b, models=[{"option": "model", "path": "model", "fingerprint": "0", "files": {"config.json": "0"}}]
    )
    write_manifest(
        model, models=[{"option": "model", "path": ".", "fingerprint": "0", "files": {"config.json": "0"}}]
    )
    spoil(
        model / "cai.json",
        lambda m: m.update(inputs=[{"option": "data", "path": "../a.jsonl", "weight": 1, "sha256": "0"}]),
    )
    lines = walked(capsys, a)
    assert len(lines) == 5 and sum("(above)" in line for line in lines) == 2, lines
    # `a` has changed since: what it was made from
    assert find_overlap([ROW["prompt"]], str(model)).files == {str(b): 1}
    assert "(above)" in walked(capsys, model)[-1]


def test_a_link_that_leads_back(capsys, tmp_path):
    a = put(tmp_path / "a.jsonl", ROW)
    (tmp_path / "b.jsonl").symlink_to(a)
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    write_manifest(a, tmp_path / "b.jsonl", tmp_path / "loop.jsonl", tmp_path / ("n" * 300))
    shutil.copy(tmp_path / "a.manifest.json", tmp_path / "b.manifest.json")
    lines = walked(capsys, a)
    assert "(above)" in lines[1] and [line.rsplit(None, 1)[1] for line in lines[2:]] == ["missing", "missing"]


def test_a_chain_of_five_thousand(capsys, tmp_path):
    before = put(tmp_path / "0.jsonl", ROW)
    for n in range(1, 5001):
        here = put(tmp_path / f"{n}.jsonl", ROW)
        write_manifest(here, before)
        before = here
    lines = walked(capsys, before)
    assert len(lines) == 5001 and lines[-1].endswith("prompts " + str(tmp_path / "0.jsonl"))
    assert max(map(len, lines)) < 500


def test_the_same_source_through_many_ways(capsys, tmp_path):
    """Forty storeys of two files, each made from both below: 2^40 ways down."""
    below = [put(tmp_path / "ground.jsonl", ROW)]
    for n in range(40):
        here = [put(tmp_path / f"{side}{n}.jsonl", ROW) for side in "ab"]
        for file in here:
            write_manifest(file, *below)
        below = here
    lines = walked(capsys, below[0])
    assert len(lines) <= 2 * 2 * 40


# Any shape


def mutate(value: Any, chance: random.Random) -> Any:
    """The value with one thing in it deleted, retyped, nested or put elsewhere."""
    spots: list[tuple[Any, Any]] = []

    def collect(inner: Any) -> None:
        for key, item in inner.items() if isinstance(inner, dict) else enumerate(inner):
            spots.append((inner, key))
            if isinstance(item, dict | list):
                collect(item)

    collect(value)
    inner, key = chance.choice(spots)
    kind = chance.randrange(5)
    if kind == 0:
        del inner[key]
    elif kind == 1:
        inner[key] = chance.choice(
            [None, True, 0, -1, 1.5, "", "x\x1b", "../..", [], {}, [{}], {"a": 1}, 10**30, "hf:a/b"]
        )
    elif kind == 2:
        inner[key] = [inner[key]]
    elif kind == 3:
        inner[key] = {"path": inner[key], "option": "x"}
    else:
        other, name = chance.choice(spots)
        inner[key] = json.loads(json.dumps(other[name])) if name in other or isinstance(other, list) else None
    return value


def test_any_shape_is_read_or_refused(made, copy, capsys):
    """A few hundred spoilt manifests through all that reads them: nothing but errors of ours."""
    from cai_cli.artifacts.claims import claim
    from cai_cli.artifacts.manifest import begin_manifest
    from cai_cli.stages import merge, split

    chance = random.Random(0)
    place, artifact = copy / "splits" / "a.manifest.json", copy / "splits" / "a.jsonl"
    whole = json.loads(place.read_text())
    whole["models"] = [
        {
            "option": "model",
            "path": "../splits",
            "fingerprint": "0",
            "files": {"a": "0"},
            "manifest_sha256": None,
        }
    ]
    whole["constitution"] = {"name": "article", "path": "article.yaml", "sha256": "0"}
    whole["merged"] = whole["inputs"]
    whole["options"]["shard"] = "0/1"
    options = build(
        split.Options,
        prompts=[str(copy / "prompts.jsonl")],
        parts="a=1",
        out=copy / "splits",
        if_changed="restart",
    )
    merging = build(merge.Options, shards=[artifact], out=copy / "whole.jsonl", dry_run=True)
    now = begin_manifest("split", options, options.output.out)
    readers: list[Callable[[], object]] = [
        lambda: lineage.run(lineage.Options(artifact=artifact)),
        lambda: find_overlap([ROW["prompt"]], str(artifact)),
        lambda: claim(options, now, read_manifest(place) or {}, artifact, finished=lambda _: False),
        lambda: merge.run(merging),
    ]
    refused = 0
    for _ in range(400):
        spoilt = json.loads(json.dumps(whole))
        for _ in range(chance.randint(1, 3)):
            spoilt = mutate(spoilt, chance)
        place.write_text(json.dumps(spoilt))
        for read in readers:
            try:
                read()
            except CaiError:
                refused += 1
    assert 400 < refused < 1500  # many are refused, and some are no less a manifest
