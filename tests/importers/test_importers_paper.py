"""The paper's published files: principles and chains, character for character."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cai_cli.errors import RecordError, UserError
from cai_cli.importers import paper_chains
from cai_cli.prompting import published as paper
from cai_cli.prompting.constitution import load_constitution
from cai_cli.prompting.prompts import critique_prompt, direct_revision_prompt
from cai_cli.rows.conversation import message, prompt_id, to_transcript
from cai_cli.rows.foreign_turns import Refused
from cai_cli.rows.records import Revision

H, A = "\n\nHuman:", "\n\nAssistant:"


def public(name: str) -> Path:
    folder = os.environ.get("CAI_TEST_DATA")
    if not folder or not (path := Path(folder) / name).exists():
        pytest.skip(f"set CAI_TEST_DATA to a folder that holds {name}")
    return path


def write_lines(path: Path, rows: list) -> Path:
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8"
    )
    return path


# The paper's principles


def test_published_constitution_renders_as_published(tmp_path):
    critiques = public("constitutional-ai/CritiqueRevisionInstructions.json")
    comparisons = public("constitutional-ai/RLMadisonInstructions.json")
    published = json.loads(critiques.read_text(encoding="utf-8"))
    questions = json.loads(comparisons.read_text(encoding="utf-8"))
    constitution = paper.import_constitution(critiques, comparisons)
    prompt = [message("user", "q")]
    head = to_transcript([*prompt, message("assistant", "a")])
    assert [principle.id for principle in constitution.principles] == list(published)
    for principle, question in zip(constitution.principles, questions, strict=True):
        item = published[principle.id]
        assert critique_prompt(prompt, "a", principle.critique) == head + item["prompt"][0]
        assert direct_revision_prompt(prompt, "a", principle.revision) == head + item["edit_request"]
        assert f"\n{principle.comparison} Options:" == question
    path = tmp_path / "paper.yaml"
    path.write_text(paper.constitution_yaml(constitution), encoding="utf-8")
    assert load_constitution(str(path)).principles == constitution.principles
    alone = paper.import_constitution(critiques)
    assert {principle.comparison for principle in alone.principles} == {paper.GENERIC_COMPARISON}
    assert alone.sha256 != constitution.sha256


def principle_file(path: Path, prompt: object, edit: object) -> Path:
    return write_lines(path, [{"p": {"prompt": prompt, "edit_request": edit}}])


WRAPPED = ["\n\nCritiqueRequest:   odd  spaces \n\nCritique:"], "\n\nRevisionRequest: x\n\nRevision:"


def test_spaces_inside_the_wrappers_are_kept(tmp_path):
    constitution = paper.import_constitution(principle_file(tmp_path / "c.json", *WRAPPED))
    principle = constitution.principles[0]
    assert principle.critique == "  odd  spaces "
    assert critique_prompt([message("user", "q")], "a", principle.critique).endswith(WRAPPED[0][0])
    with pytest.raises(UserError, match="principle 'p': field `critique`: white space"):
        paper.constitution_yaml(constitution)


@pytest.mark.parametrize(
    ("prompt", "edit", "field"),
    [
        (["no wrapper"], WRAPPED[1], r"p: field `prompt\[0\]`"),
        (["\n\nCritiqueRequest:x\n\nCritique:"], WRAPPED[1], r"p: field `prompt\[0\]`"),
        (["\n\nCritiqueRequest: \n\nCritique:"], WRAPPED[1], r"p: field `prompt\[0\]`"),
        (["a", "b"], WRAPPED[1], "p: field `prompt`"),
        (WRAPPED[0], "x", "p: field `edit_request`"),
        (WRAPPED[0], None, "p: field `edit_request`"),
    ],
)
def test_broken_principles_name_file_and_field(tmp_path, prompt, edit, field):
    with pytest.raises(UserError, match=r"c\.json: " + field):
        paper.import_constitution(principle_file(tmp_path / "c.json", prompt, edit))


def test_broken_principle_files(tmp_path):
    good = principle_file(tmp_path / "c.json", *WRAPPED)
    with pytest.raises(UserError, match=r"r\.json: 2 texts for the 1 principles"):
        paper.import_constitution(good, write_lines(tmp_path / "r.json", ['["a", "b"]']))
    with pytest.raises(UserError, match=r"r\.json: \[0\]: is empty"):
        paper.import_constitution(good, write_lines(tmp_path / "r.json", ['["\\n Options:"]']))
    with pytest.raises(UserError, match=r"x\.json:2: not valid JSON"):
        paper.import_constitution(write_lines(tmp_path / "x.json", ["{", "}}"]))
    with pytest.raises(UserError, match=r"y\.json: expected an object"):
        paper.import_constitution(write_lines(tmp_path / "y.json", ["[]"]))
    with pytest.raises(UserError, match="no such file"):
        paper.import_constitution(tmp_path / "none.json")


# The paper's chains


def step(**changes: object) -> dict:
    value = {"edit_request": WRAPPED[1], "prompt": ["\n\nCritiqueRequest: c\n\nCritique:"]}
    sample = {"critique": {"sample": " why"}, "revision": {"sample": " better"}}
    return {"cst_key": "harmful1", "cst_value": value, **sample, **changes}


def chain(**changes: object) -> dict:
    start = {"comparison_model": "other", "rl_prompt": f"{H} q{A}", "comparison_dataset": "LaMDA"}
    return {**start, "cst": [step(), step()], "initial_response": [{"sample": " first"}], **changes}


@pytest.mark.parametrize(
    "row",
    [
        chain(),
        chain(rl_prompt=f"{H}  q \n{A}"),
        chain(rl_prompt=f"{H} a\nAssistant: b{H} c{A}"),
        chain(rl_prompt=f"{H} a{A} b{H} c"),
        chain(rl_prompt=f"{H} Who?\nAssistant: She.{H} How?\nAssistant: So.{H} Why?{A}"),
        chain(rl_prompt=f"{H} code:\n\ndef f():\n    return 1\n    \n{A}"),
        chain(cst=[step(critique={"sample": " It is good.\n\nRevisionNone: No revision is needed."})]),
        chain(cst=[step(critique={"sample": "no space"}, revision={"sample": " r\n\n---------\n\n\n"})]),
        chain(
            cst=[
                step(revision={"sample": f" r{H}"}),
                step(critique={"sample": f" c{H} more{A} yet", "score": 1}),
            ]
        ),
        chain(
            cst=[step(note=[1, {"x": None}])],
            initial_response=[{"sample": "\n first \n"}, {"sample": "second"}],
        ),
        chain(comparison_model=[{"sample": "x"}], other={"a": 1}),
    ],
)
def test_chains_come_back_as_they_were(tmp_path, row):
    [item] = paper_chains.import_chains(write_lines(tmp_path / "chains.jsonl", [row]))
    assert isinstance(item, paper_chains.PublishedChain)
    stored = json.loads(json.dumps(item.to_row()))
    assert Revision.from_row(stored) == item.revision
    again = paper_chains.export_chain(paper_chains.PublishedChain.from_row(stored))
    assert json.dumps(again) == json.dumps(row)
    texts = [
        item.revision.initial[0]["content"],
        *(text for r in item.revision.rounds for text in (r.critique, r.revision)),
    ]
    assert all(text == text.strip() and H not in text and "---" not in text for text in texts)
    assert item.revision.completion[0]["content"] == item.revision.rounds[-1].revision


def test_an_edited_chain_comes_out_edited():
    item = paper_chains.chain_of_row(chain(), "harmful")
    item.revision.rounds[0].critique = "edited"
    assert paper_chains.export_chain(item)["cst"][0]["critique"] == {"sample": " edited"}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({}, "not_a_chain"),
        (chain(cst=[]), "not_a_chain"),
        (chain(cst=[step(cst_value={})]), "not_a_chain"),
        (chain(cst=[{"cst_key": "x"}]), "not_a_chain"),
        (chain(cst=3), "not_a_chain"),
        (chain(initial_response=[]), "not_a_chain"),
        (chain(rl_prompt=3), "not_a_chain"),
        (chain(rl_prompt="q"), "not_a_transcript"),
        (chain(rl_prompt=f"{H} q{A} said{A}"), "not_a_chain"),
        (chain(cst=[step(revision={"sample": H})]), "empty_text"),
        (chain(cst=[step(cst_value={**step()["cst_value"], "prompt": ("x",)})]), "not_a_chain"),
    ],
)
def test_refused_chains(row, why):
    with pytest.raises(Refused) as refused:
        paper_chains.chain_of_row(row, None)
    assert refused.value.reason == why


def test_chains_on_one_prompt_have_ids_of_their_own(tmp_path):
    items = list(
        paper_chains.import_chains(write_lines(tmp_path / "chains.jsonl", [chain(), {"x": 1}, chain()]))
    )
    identity = prompt_id([message("user", "q")])
    assert [getattr(item, "revision", item) for item in items][1].reason == "not_a_chain"
    assert [item.revision.id for item in items[::2]] == [f"{identity}/0", f"{identity}/1"]


def test_export_of_what_does_not_fit():
    item = paper_chains.chain_of_row(chain(), None)
    item.revision.rounds.pop()
    with pytest.raises(UserError, match="does not fit the revision"):
        paper_chains.export_chain(item)
    with pytest.raises(UserError, match="does not fit the revision"):
        paper_chains.export_chain(paper_chains.PublishedChain(item.revision, {}))


def test_a_chain_of_our_own_is_exported_in_the_published_format(tmp_path):
    """What `cai revise` made comes out so that it can be imported again, texts and principles the same."""
    item = paper_chains.chain_of_row(chain(), "harmful")
    row = paper_chains.export_chain(paper_chains.PublishedChain.from_row(item.revision.to_row()))
    assert row["cst"][0]["cst_value"]["prompt"] == step()["cst_value"]["prompt"]
    [again] = paper_chains.import_chains(write_lines(tmp_path / "c.jsonl", [row]))
    again.revision.id = item.revision.id
    assert again.revision == item.revision
    item.revision.rounds[0].critique = ""
    with pytest.raises(RecordError, match="without a critique"):
        paper_chains.PublishedChain.from_row(item.revision.to_row())


def test_real_chains_round_trip():
    path = public("constitutional-ai/PALMS_SLMADISON.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    items = list(paper_chains.import_chains(path))
    assert len(items) == len(lines) == 40
    for line, item in zip(lines, items, strict=True):
        assert isinstance(item, paper_chains.PublishedChain) and len(item.revision.rounds) == 4
        stored = json.loads(json.dumps(item.to_row()))
        again = paper_chains.export_chain(paper_chains.PublishedChain.from_row(stored))
        assert json.dumps(again, ensure_ascii=False) == line
        assert Revision.from_row(stored) == item.revision
        assert all(text == text.strip() for r in item.revision.rounds for text in (r.critique, r.revision))
