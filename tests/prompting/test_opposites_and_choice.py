"""A principle's opposite, and `--principles`: what is read, what is refused, what it changes."""

from __future__ import annotations

import json

import pytest
from conftest import mistake

from cai_cli.errors import UserError
from cai_cli.prompting.constitution import load_constitution
from cai_cli.rows.yaml_text import lines_of, load_yaml

PLAIN = "id: kind, critique: c, revision: r, comparison: 'Which response is kinder?'"


def put(path, *principles: str):
    path.write_text("name: mine\nprinciples:\n" + "".join(f"- {{{item}}}\n" for item in principles))
    return path


def test_an_opposite_is_read_and_need_not_be_there(tmp_path):
    mine = put(
        tmp_path / "mine.yaml",
        f"{PLAIN}, opposite: ' Which response is\n  harsher? '",
        "id: b, " + PLAIN[10:],
    )
    kind, other = load_constitution(str(mine)).principles
    assert (kind.comparison, kind.opposite) == ("Which response is kinder?", "Which response is harsher?")
    assert other.opposite == ""


@pytest.mark.parametrize(
    ("item", "parts"),
    [
        (f"{PLAIN}, opposite: ''", ["field `opposite`: expected text"]),
        (f"{PLAIN}, opposite: [a]", ["field `opposite`: expected text"]),
        (f"{PLAIN}, opposite:", ["field `opposite`: expected text"]),
        (
            f"{PLAIN}, opposite: 'which response is  KINDER?'",
            ["field `opposite`: says the same as `comparison`"],
        ),
        (f"{PLAIN}, oposite: x", ["unknown field `oposite`", "did you mean `opposite`?"]),
        ("id: kind, critique: c, revision: r, opposite: x", ["field `comparison`: missing or empty"]),
    ],
)
def test_mistakes_are_told_with_file_line_and_field(cai, tmp_path, item, parts):
    mine = put(tmp_path / "mine.yaml", PLAIN.replace("kind", "first", 1), item)
    mistake(cai("constitution", "check", mine), "mine.yaml:4: principles[1]: ", *parts)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("name: x\nprinciples:\n- id: a\n\n- id: b\n", [3, 5]),
        ("<<: {principles: [{id: a},\n {id: b}]}\nname: x", [1, 2]),
        ("<<: {principles: [{id: a}]}\nprinciples:\n- id: b\n- id: c\n", [3, 4]),
        ("base: &b\n- {id: a}\nprinciples: *b\n", [2]),
        ("principles: a text", []),
        ("- no mapping", []),
        ("", []),
    ],
)
def test_where_principles_start(tmp_path, text, lines):
    assert lines_of(text, "principles") == lines
    found = (load_yaml(text, tmp_path) or {}) if lines else {}
    assert len(found.get("principles", [])) == len(lines)


def test_principles_are_chosen_by_id_in_the_files_order():
    whole = load_constitution("article")
    some = load_constitution("article", only=["no-crime", "no-harm"])
    assert [item.id for item in some.principles] == ["no-harm", "no-crime"] and some.sha256 == whole.sha256
    assert load_constitution("article", only=None) == load_constitution("article", only=[]) == whole
    with pytest.raises(UserError) as raised:
        load_constitution("article", only=["no-harm", "no-crimes"])
    assert raised.value.message == "--principles no-crimes: no principle of article"
    assert raised.value.hint.startswith("did you mean no-crime")
    with pytest.raises(UserError) as raised:
        load_constitution("article", only=["xyzzy"])
    assert "it has no-harm, positive-direction" in raised.value.hint


def test_label_asks_about_the_chosen_ones_alone(cai, world, helpful, tmp_path):
    out = tmp_path / "x.jsonl"
    words = ["label", "--pairs", world / "human-helpfulness.jsonl", "--feedback-model", helpful, "--limit", 6]
    words += ["--constitution", world / "constitution.yaml", "--principles-per-pair", 2, "--min-mass", 0]
    chosen = ["--principles", "open", "--principles", "harm"]
    done = cai(*words, *chosen, "--out", out)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all({item["principle"] for item in row["judgements"]} == {"harm", "open"} for row in rows)
    assert "already done" in cai(*words, *chosen, "--out", out).stderr
    mistake(
        cai(*words, "--principles", "harm", "--out", out), "--principles was ['open', 'harm'], now ['harm']"
    )
    wrong = cai(*words, "--principles", "hram", "--out", tmp_path / "y.jsonl")
    mistake(wrong, "--principles hram: no principle of kind", "did you mean harm")


def test_revise_draws_from_the_chosen_ones_alone(cai, world, helpful, tmp_path):
    out = tmp_path / "x.jsonl"
    prompts = world / "harmful-sft.jsonl"
    words = [
        "revise",
        "--model",
        helpful,
        "--prompts",
        prompts,
        "--limit",
        4,
        "--rounds",
        2,
        "--few-shot",
        "none",
    ]
    words += ["--constitution", world / "constitution.yaml", "--max-new-tokens", 48, "--max-reject-rate", 1]
    done = cai(*words, "--principles", "reason", "--out", out)
    assert done.returncode == 0, done.stderr
    rounds = [item for line in out.read_text().splitlines() for item in json.loads(line)["rounds"]]
    assert rounds and {item["principle"] for item in rounds} == {"reason"}
    wrong = cai(*words, "--principles", "x", "--out", tmp_path / "y.jsonl")
    mistake(wrong, "--principles x: no principle of kind", "it has harm, reason")
