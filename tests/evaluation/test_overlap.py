"""Whether evaluation prompts are in a model's lineage: manifests as the stages leave them, without any model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai_cli.artifacts.manifest import begin_manifest, write_manifest
from cai_cli.artifacts.places import manifest_path
from cai_cli.console.groups import build
from cai_cli.evaluation.overlap import find_overlap, tell_overlap
from cai_cli.rows.conversation import message
from cai_cli.stages import label, sft, train_pm


def asked(text: str) -> list[dict[str, str]]:
    return [message("user", text)]


def write(path: Path, texts: list[str]) -> Path:
    rows = [{"prompt": asked(text)} for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def model_folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


@pytest.fixture
def chain(tmp_path):
    """sft data -> sl-cai/ ; sl-cai/ + prompts -> comparisons ; comparisons -> pm/, as manifests tell it."""
    base, judge = model_folder(tmp_path / "base"), model_folder(tmp_path / "judge")
    revisions = write(tmp_path / "revisions.jsonl", ["sft one", "sft two"])
    sl_cai = model_folder(tmp_path / "sl-cai")
    options = build(sft.Options, model=str(base), data=[f"{revisions}:0.5"], out=sl_cai)
    write_manifest(sl_cai / "cai.json", begin_manifest("sft", options, sl_cai))

    prompts = write(tmp_path / "label-prompts.jsonl", ["label one", "label two", "rejected by the judge"])
    comparisons = tmp_path / "comparisons.jsonl"
    options = build(
        label.Options,
        model=str(sl_cai),
        prompts=[str(prompts)],
        feedback_model=str(judge),
        constitution="article",
        out=comparisons,
    )
    write_manifest(manifest_path(comparisons), begin_manifest("label", options, tmp_path))
    write(comparisons, ["label one", "label two"])

    pm = model_folder(tmp_path / "pm")
    options = build(train_pm.Options, model=str(base), comparisons=[str(comparisons)], out=pm)
    write_manifest(pm / "cai.json", begin_manifest("train-pm", options, pm))
    return tmp_path


def test_prompts_in_the_lineage_are_counted_by_file(chain, capsys):
    evaluation = ["Label ONE!", "label two", "sft one", "rejected by the judge", "new"]
    overlap = find_overlap([asked(text) for text in evaluation], str(chain / "pm"))
    assert (overlap.prompts, overlap.shared, overlap.unread) == (5, 3, [])
    assert overlap.files == {str(chain / "comparisons.jsonl"): 2, str(chain / "revisions.jsonl"): 1}
    tell_overlap(overlap, "pm/")
    told = capsys.readouterr().err
    assert told.startswith("warning: 3 of the 5 prompts are in the lineage of pm/: 2 in ")
    later_turns = [*asked("label one"), message("assistant", "x"), message("user", "y")]
    assert find_overlap([later_turns], str(chain / "pm")).shared == 1


def test_held_out_prompts_say_nothing(chain, capsys):
    overlap = find_overlap([asked("new"), asked("also new")], str(chain / "pm"))
    assert (overlap.shared, overlap.files, overlap.unread, overlap.known) == (0, {}, [], True)
    tell_overlap(overlap, "pm/")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("how", ["gone", "has changed since"])
def test_what_is_not_at_hand_is_named_and_what_it_was_made_from_compared(chain, how, capsys):
    comparisons = chain / "comparisons.jsonl"
    if how == "gone":
        comparisons.unlink()
    else:
        write(comparisons, ["other"])
    overlap = find_overlap([asked("label one"), asked("rejected by the judge")], str(chain / "pm"))
    assert overlap.unread == [f"{comparisons} ({how})"]
    assert overlap.files == {str(chain / "label-prompts.jsonl"): 2}  # more than was trained on, and no less
    tell_overlap(overlap, "pm/")
    assert f"not at hand to compare prompts with: {comparisons} ({how})" in capsys.readouterr().err


def test_a_file_read_for_one_model_is_read_for_another(chain):
    """The prompts were only labelled for the preference model, but a second model was trained on them."""
    second = model_folder(chain / "second")
    options = build(
        sft.Options, model=str(chain / "pm"), data=[str(chain / "label-prompts.jsonl")], out=second
    )
    write_manifest(second / "cai.json", begin_manifest("sft", options, second))
    overlap = find_overlap([asked("rejected by the judge")], str(second))
    assert overlap.files == {str(chain / "label-prompts.jsonl"): 1}


def test_data_sets_on_the_hub_and_models_without_a_manifest(chain, capsys):
    manifest = json.loads((chain / "pm" / "cai.json").read_text())
    manifest["inputs"].append({"option": "comparisons", "path": "hf:org/name", "weight": 1.0, "sha256": None})
    write_manifest(chain / "pm" / "cai.json", manifest)
    overlap = find_overlap([asked("label one")], str(chain / "pm"))
    assert (overlap.shared, overlap.unread) == (1, ["hf:org/name (a data set on the Hub)"])
    overlap = find_overlap([asked("label one")], str(chain / "base"))
    assert (overlap.known, overlap.shared) == (False, 0)
    tell_overlap(overlap, "base/")
    assert "is not known" in capsys.readouterr().err


def test_pairs_of_a_dump_are_compared_with_those_kept_beside_the_model(chain):
    pmp = model_folder(chain / "pmp")
    manifest = json.loads((chain / "pm" / "cai.json").read_text()) | {"stage": "pmp"}
    manifest["inputs"] = [{"option": "posts", "path": "../Posts.xml", "weight": 1.0, "sha256": "0"}]
    write_manifest(pmp / "cai.json", manifest)
    assert find_overlap([asked("q")], str(pmp)).unread == [f"{pmp / 'comparisons.jsonl'} (gone)"]
    write(pmp / "comparisons.jsonl", ["q"])
    assert find_overlap([asked("q")], str(pmp)).files == {str(pmp / "comparisons.jsonl"): 1}
