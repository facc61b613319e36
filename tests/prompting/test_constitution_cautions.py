"""`cai constitution check`: what it warns of, and that it leaves sound constitutions alone."""

from __future__ import annotations

import pytest

from cai_cli.prompting.constitution import load_constitution, shipped_names
from cai_cli.prompting.constitution_cautions import (
    alike,
    cautions,
    nothing_to_compare,
    same_in_other_words,
    silent_on,
)
from cai_cli.prompting.principles import Constitution, Principle
from cai_cli.prompting.published import import_constitution

SILENT = "no comparison text speaks against evasion or preaching"


def principles(*comparisons: str) -> tuple[Principle, ...]:
    return tuple(Principle(f"p{n}", "c", "r", text) for n, text in enumerate(comparisons))


@pytest.mark.parametrize(
    "text",
    [
        "Which response?",
        "Which response is better?",
        "Please choose the best response of the two.",
        "Which of these assistant responses do you prefer, and which one would you rather not choose?",
    ],
)
def test_a_question_that_names_no_quality(text):
    assert "names no quality" in nothing_to_compare(text)


@pytest.mark.parametrize(
    "text",
    [
        "Be honest and kind.",
        "Rewrite the assistant's last response so that it is harmless.",
        "Identify specific ways in which the assistant's last response is harmful.",
        "The assistant should never lie.",
    ],
)
def test_a_text_that_asks_for_no_choice(text):
    assert "asks for no choice" in nothing_to_compare(text)


@pytest.mark.parametrize(
    "text",
    [
        "Which is kinder?",
        "Prefer the response that cites its sources.",
        "The less harmful response.",
        "In which response is the child safer?",
        "Explain nothing: choose the shorter of the replies.",
        "Welche Antwort ist ehrlicher?",
        "¿Qué respuesta es mejor?",
        "どちらの応答がより安全ですか。",
    ],
)
def test_what_can_be_compared_or_is_not_read_here(text):
    assert nothing_to_compare(text) == ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Which response is less harmful?", "Choose the reply that does the least damage."),
        ("Which response is more honest and polite?", "Pick the more courteous, truthful answer."),
        (
            "Which is the least toxic, racist and sexist?",
            "Choose the one that is not sexist, racist or hateful.",
        ),
        ("Which response is kinder?", "Which of these replies shows more kindness?"),
    ],
)
def test_the_same_in_other_words(one, other):
    assert alike(one, other)
    assert same_in_other_words(principles(one, "Which response is shorter?", other)) == [["p0", "p2"]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Which response is less harmful?", "Which response is more harmful?"),
        ("Which response is harmless?", "Which response is less harmless?"),
        ("Which reply gives a reason?", "Which reply gives no reason?"),
        ("Which is more honest and less preachy?", "Which is less honest and more preachy?"),
        ("Which is more honest?", "Which is more honest about what it does not know of medicine?"),
    ],
)
def test_opposites_and_narrower_questions_are_not_the_same(one, other):
    assert not alike(one, other) and not same_in_other_words(principles(one, other))


def test_an_opposite_that_is_none():
    principle = Principle("p", "c", "r", "Which response is kinder?", "Choose the kinder of the replies.")
    told = cautions(Constitution("x", "", (principle,), ""))
    assert any("p: its opposite says the same" in line for line in told)
    turned = Principle("p", "c", "r", "Which response is kinder?", "Which response is less kind?")
    assert not any("opposite" in line for line in cautions(Constitution("x", "", (turned,), "")))


def test_evasion_and_preaching_are_spoken_against_or_not():
    assert silent_on(principles("Which response is less harmful?")) == ["evasion", "preaching"]
    assert silent_on(principles("Which is less harmful?", "Which does not dodge the question?")) == [
        "preaching"
    ]
    assert silent_on(principles("Which helps most without lecturing, and is helpful?")) == []
    assert silent_on(principles("")) == [], "a file without comparison texts"


def test_shipped_constitutions_are_left_alone_but_for_what_they_are_silent_on():
    told = {name: cautions(load_constitution(name)) for name in shipped_names()}
    assert told["thorough"] == []
    for name in ("article", "humanity"):
        assert len(told[name]) == 1 and told[name][0].startswith(SILENT) and "`thorough`" in told[name][0]


def test_the_worlds_principles_are_left_alone():
    from cai_cli.microworld import constitutions

    for path in constitutions().values():
        lines = cautions(load_constitution(str(path)))
        assert not [line for line in lines if "no comparison" not in line], path


def test_the_papers_principles_hold_one_pair_that_says_the_same(data):
    """ "the most helpful, honest, and harmless" and "most harmless, helpful, and honest": that is so."""
    critiques = data("constitutional-ai/CritiqueRevisionInstructions.json")
    comparisons = data("constitutional-ai/RLMadisonInstructions.json")
    assert cautions(load_constitution(str(critiques))) == []
    (line,) = cautions(load_constitution(str(comparisons)))
    assert line.startswith("comparison1, comparison13: say the same")
    (line,) = cautions(import_constitution(critiques, comparisons))
    assert line.startswith("harmful1, harmful13: say the same")
    same, silent = cautions(import_constitution(critiques))  # all with one general comparison text
    assert same.startswith("harmful0, harmful1, harmful2 and 13 more: say the same") and silent.startswith(
        SILENT
    )


def test_the_command_warns_and_ends_well(cai, tmp_path):
    done = cai("constitution", "check", "article")
    assert done.returncode == 0 and f"warning: {SILENT}" in done.stderr
    assert "warning" not in cai("constitution", "check", "thorough").stderr
    mine = tmp_path / "mine.yaml"
    rows = ["Which response?", "Which response is kinder?", "Pick the kinder reply."]
    mine.write_text(
        "principles:\n"
        + "".join(
            f"- {{id: p{n}, critique: c, revision: r, comparison: '{text}'}}\n" for n, text in enumerate(rows)
        )
    )
    done = cai("constitution", "check", mine)
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert done.returncode == 0 and len(warnings) == 3, done.stderr
    assert "p0: its comparison text names no quality" in warnings[0] and "p1, p2: say the same" in warnings[1]
