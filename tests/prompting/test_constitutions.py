"""The shipped constitutions: complete, usable in the prompts as they are, and in our own words."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from cai_cli.prompting.constitution import load_constitution, shipped_constitutions, shipped_names

NAMES = ("article", "humanity", "thorough")

# What each of the article's nine principles is about: words that its three texts must hold between them.
ARTICLE = {
    "no-harm": "harmful unethical racist sexist toxic dangerous illegal insensitive socially inappropriate derogatory "
    "offensive misogynistic biased",
    "positive-direction": "conversation constructive",
    "harmful-assumptions": "polite harmful assumption",
    "problematic-assumptions": "polite problematic assumption",
    "age-appropriate": "child age-inappropriate",
    "no-risky-advice": "dangerous legal questionable advice",
    "common-sense-morals": "controversial objectionable common sense moral ethics",
    "caring-friend": "thoughtful empathetic caring sensitive friend therapist",
    "no-crime": "criminal violence theft hacking robbery",
}


def texts(name: str) -> list[tuple[str, str, str]]:
    return [
        (principle.id, kind, getattr(principle, kind))
        for principle in load_constitution(name).principles
        for kind in ("critique", "revision", "comparison")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_text_is_an_instruction_of_its_kind(name):
    for principle, kind, text in texts(name):
        place = f"{name}/{principle}/{kind}: {text}"
        assert text[0].isupper() and text[-1] in ".?", place
        assert text.isascii() and len(text) < 600, place
        if kind == "comparison":
            assert text.startswith("Which of these") and "? Choose the response that " in text, place
        else:
            assert "assistant's last response" in text or "jury" in text, place
        if kind == "revision":
            assert re.match(r"Rewrite|Please write", text), place
        for marker in ("Human:", "Assistant:", "Options:", "(A)", "CritiqueRequest", "{"):
            assert marker not in text, place


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_used_twice_and_the_file_says_where_it_is_from(name):
    all_texts = [text for _, _, text in texts(name)]
    assert len(set(all_texts)) == len(all_texts)
    data = yaml.safe_load((shipped_constitutions() / f"{name}.yaml").read_text(encoding="utf-8"))
    assert data["name"] == name and data["description"] and "written for this project" in data["source"]


def test_article_has_its_nine_principles():
    constitution = load_constitution("article")
    assert [principle.id for principle in constitution.principles] == list(ARTICLE)
    for principle in constitution.principles:
        whole = f"{principle.critique} {principle.revision} {principle.comparison}".lower().replace("-", " ")
        for word in ARTICLE[principle.id].replace("-", " ").split():
            assert word in whole, f"{principle.id} does not mention {word}"


def test_sizes_and_names():
    assert set(NAMES) <= set(shipped_names())
    assert len(load_constitution("humanity").principles) == 1
    assert len(load_constitution("thorough").principles) >= 16
    assert "humanity" in load_constitution("humanity").principles[0].critique


def test_thorough_counts_preaching_evasion_and_overreaction_as_faults():
    constitution = load_constitution("thorough")
    for principle, word in (
        ("not-preachy", "lecture"),
        ("not-evasive", "dodge"),
        ("not-overreactive", "proportion"),
    ):
        assert word in constitution.by_id(principle).comparison
    names = {principle.id for principle in constitution.principles}
    assert names.isdisjoint(principle.id for principle in load_constitution("article").principles)


def shingles(text: str, size: int = 7) -> set[str]:
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[n : n + size]) for n in range(len(words) - size + 1)}


def test_own_words():
    folder = Path(os.environ.get("CAI_TEST_DATA", "")) / "constitutional-ai"
    if not folder.is_dir():
        pytest.skip("set CAI_TEST_DATA to a folder that holds constitutional-ai/")
    published = set()
    for item in json.loads(
        (folder / "CritiqueRevisionInstructions.json").read_text(encoding="utf-8")
    ).values():
        published |= shingles(item["prompt"][0]) | shingles(item["edit_request"])
    for item in json.loads((folder / "RLMadisonInstructions.json").read_text(encoding="utf-8")):
        published |= shingles(item)
    for name in NAMES:
        for principle, kind, text in texts(name):
            assert not shingles(text) & published, f"{name}/{principle}/{kind} repeats published wording"
