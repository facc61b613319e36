"""What principles ask for: preferences and revisions by hand, wordings that are read back, what no training text
says, and what a constitution is read to ask.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from cai_cli.microworld import answers, constitutions, corpus, features, wordings
from cai_cli.microworld.answers import Answer
from cai_cli.microworld.features import FAMILIES, OPPOSITES, Principle, opposite
from cai_cli.microworld.grammar import REQUEST_KINDS, Request
from cai_cli.microworld.oracle import parse_request
from cai_cli.microworld.steering import asked, unread
from cai_cli.prompting.constitution import load_constitution
from cai_cli.prompting.principles import TEXTS

HARM = "let a thief walk in"
OFFER = "call the person who holds the key to the door"
STEPS = ("bend a hairpin", "slide it past the latch", "twist until the door clicks")


def request_of(text: str) -> Request:
    request = parse_request(text)
    assert request is not None
    return request


BOSS, MINE = (request_of(f"How do I unlock {owner} door?") for owner in ("my boss's", "my own"))


def principle(*names: str) -> Principle:
    return tuple(FAMILIES[name] for name in names)


@pytest.mark.parametrize(
    ("names", "first", "second", "by"),
    [
        (["harmless"], Answer(), Answer(steps=STEPS), 1),
        (["harmless"], Answer(), Answer(reason=HARM, polite=True), 0),
        (["harmful"], Answer(), Answer(steps=STEPS[:1]), -1),
        (["reason"], Answer(reason=HARM), Answer(), 1),
        (["reason"], Answer(reason="make a whole town sick"), Answer(), 0),  # wrong is as good as none
        (["no reason"], Answer(reason="make a whole town sick"), Answer(), -1),  # and is one too many
        (["alternative"], Answer(alternative=OFFER), Answer(alternative=OFFER.replace("door", "safe")), 1),
        (["polite"], Answer(), Answer(polite=True), -1),
        (["no question"], Answer(), Answer(question=True), 1),
        (["harmless", "reason"], Answer(reason=HARM), Answer(steps=STEPS), 2),
        (["harmless", "reason"], Answer(), Answer(steps=STEPS, reason=HARM), 0),  # one each
        (["harmless", "no reason"], Answer(), Answer(reason=HARM), 1),
    ],
)
def test_what_a_principle_prefers(names: list[str], first: Answer, second: Answer, by: int) -> None:
    asks = principle(*names)
    assert features.preference(asks, BOSS, first, second) == by
    assert features.preference(asks, BOSS, second, first) == -by


def test_harm_and_reasons_are_asked_of_harmful_requests_alone() -> None:
    for name in ("harmless", "harmful", "reason", "no reason"):
        assert features.preference(principle(name), MINE, Answer(reason=HARM), Answer(steps=STEPS)) == 0
    assert features.preference(principle("helpful"), MINE, Answer(), Answer(steps=STEPS)) == -1
    assert features.preference(principle("declines"), MINE, Answer(), Answer(steps=STEPS)) == 1


def test_a_revision_changes_what_is_asked_and_keeps_the_rest() -> None:
    draft = Answer(steps=STEPS, polite=True, question=True)
    revised = features.ideal_revision(principle("harmless", "reason"), BOSS, draft, Random(0))
    assert (revised.steps, revised.reason, revised.alternative) == ((), HARM, None)
    assert (revised.polite, revised.question) == (True, True)
    assert features.ideal_revision(principle("harmless"), MINE, draft, Random(0)) == draft


def test_a_critique_says_what_is_there_and_whether_it_should_be() -> None:
    draft = Answer(steps=STEPS, polite=True)
    assert features.critique(principle("harmless", "polite"), BOSS, draft) == (
        "The response shows how to unlock the door, and that must change."
        " The response starts with thanks, as it should."
    )
    assert "nothing is asked of that" in features.critique(principle("reason"), MINE, draft)


def test_the_opposite_asks_for_the_contrary() -> None:
    rng = Random(3)
    assert all(OPPOSITES[OPPOSITES[name]] == name for name in FAMILIES)
    for name in FAMILIES:
        for _ in range(20):
            request, asks, (first, second), by = corpus.comparison(
                rng, principle=principle(name), speaks=True
            )
            assert by * features.preference(opposite(asks), request, first, second) <= 0


def test_every_wording_is_read_as_what_it_was_written_for() -> None:
    rng = Random(5)
    for _ in range(500):
        asks = corpus.random_principle(rng)
        for part in wordings.PARTS:
            for kind in wordings.KINDS:
                read = wordings.read(wordings.write(asks, kind, part, rng))
                assert read is not None and set(read) == set(asks)
    assert wordings.read("Which response is nicest?") is None
    assert wordings.read("Which response hurts nobody and everybody?") is None


def test_a_phrase_means_one_thing_and_one_in_six_is_held_out() -> None:
    said = [phrase for part in wordings.phrases().values() for texts in part.values() for phrase in texts]
    assert len(said) == len(set(said))
    held_out = sum(len(texts) for texts in wordings.phrases()[wordings.HELD_OUT].values())
    assert 0.1 < held_out / len(said) < 0.25
    assert all(texts for part in wordings.phrases().values() for texts in part.values())


def test_no_training_text_has_a_wording_that_is_held_out() -> None:
    rng = Random(7)
    texts = ["".join(text for text, _ in make(rng)) for make in corpus.MAKERS.values() for _ in range(1500)]
    held_out = [phrase for texts in wordings.phrases()[wordings.HELD_OUT].values() for phrase in texts]
    frames = [
        frame.split("{}") for kind in wordings.KINDS for frame in wordings.frames(kind, wordings.HELD_OUT)
    ]
    for text in texts:
        for line in text.splitlines():
            assert not any(f" {phrase}{end}" in line for phrase in held_out for end in (".", "?", " and "))
            assert not any(before in line for before, _ in frames)


def test_where_a_principle_says_nothing_the_letter_is_a_coin() -> None:
    rng, letters = Random(9), []
    while len(letters) < 400:
        document = corpus.comparison_document(rng)
        question = document[0][0]
        _, _, rest = question.partition("and an assistant:")
        lines = [line for line in rest.splitlines() if line.strip()]
        request = request_of(lines[0].removeprefix("Human: "))
        asks = wordings.read(lines[1])
        first, second = (answers.read(line[len(" (A) ") :]) for line in lines[3:5])
        assert asks and first and second
        by = features.preference(asks, request, first, second)
        letter = document[1][0].strip()
        if by:
            assert letter == ("(A)" if by > 0 else "(B)")
        else:
            letters.append(letter)
    assert 150 < letters.count("(A)") < 250


def test_the_shipped_constitutions_are_read_whole() -> None:
    wanted = {
        "kind": {"harmless": "up", "reason": "up", "alternative": "up"},
        "curt": {"harmless": "up", "reason": "down", "alternative": "down"},
        "permissive": {"harmless": "down"},
        "unseen": {"harmless": "up", "reason": "up", "alternative": "up"},
    }
    for name, path in constitutions().items():
        constitution = load_constitution(str(path))
        assert constitution.name == name and not unread(constitution)
        assert asked(constitution) == wanted[name]


def test_unseen_has_no_phrase_and_no_frame_of_the_training_texts() -> None:
    constitution = load_constitution(str(constitutions()["unseen"]))
    learned = [phrase for texts in wordings.phrases()[wordings.LEARNED].values() for phrase in texts]
    frames = [
        frame.split("{}")[0] for kind in wordings.KINDS for frame in wordings.frames(kind, wordings.LEARNED)
    ]
    for item in constitution.principles:
        for text in (getattr(item, name) for name in TEXTS):
            assert not any(f" {phrase}{end}" in text for phrase in learned for end in (".", "?", " and "))
            assert not any(text.startswith(frame) for frame in frames)


def test_what_a_constitution_says_in_other_words_is_told(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    texts = "critique: Check whether the reply hurts nobody.\n    revision: Make sure that the reply hurts nobody."
    said = {"nice": "is nicest", "odd": "nobody hurts", "both": "hurts nobody"}
    items = [
        f"  - id: {id}\n    {texts}\n    comparison: Which response {words}?\n" for id, words in said.items()
    ]
    path.write_text("principles:\n" + "".join(items))
    constitution = load_constitution(str(path))
    first, second = unread(constitution)
    assert "`nice`" in first and "nicest" in first
    assert "`odd`" in second and "comparison" in second
    assert asked(constitution) == {"harmless": "up"}


def test_every_kind_of_request_can_be_spoken_of() -> None:
    rng = Random(2)
    kinds = {corpus.comparison(rng)[0].kind for _ in range(200)}
    assert kinds == set(REQUEST_KINDS)


def held_out_words(text: str) -> tuple[bool, list[bool]]:
    """Of a principle's text: whether its frame is one of those held out, and whether each of its phrases is."""
    frames = {
        part: [f for kind in wordings.KINDS for f in wordings.frames(kind, part)] for part in wordings.PARTS
    }
    held_out = {phrase for texts in wordings.phrases()[wordings.HELD_OUT].values() for phrase in texts}
    for part, texts in frames.items():
        for before, _, after in (frame.partition("{}") for frame in texts):
            said = text.removeprefix(before).removesuffix(after)
            if text == before + said + after and wordings.read(text):
                phrases = [said] if said in wordings.family_of_phrase() else said.split(" and ")
                return part == wordings.HELD_OUT, [phrase in held_out for phrase in phrases]
    raise AssertionError(text)


@pytest.mark.parametrize("name", sorted(constitutions()))
def test_only_unseen_is_in_words_that_are_held_out(name: str) -> None:
    for principle in load_constitution(str(constitutions()[name])).principles:
        for text in (principle.critique, principle.revision, principle.comparison):
            frame, phrases = held_out_words(text)
            assert {frame, *phrases} == {name == "unseen"}, text


def test_each_word_of_a_held_out_phrase_stands_in_two_that_are_learned() -> None:
    for templates in wordings.entries()["families"].values():
        for template in templates:
            texts, held_out = wordings.products(template), wordings.held_out_of(template)
            for phrase in held_out:
                for slot, word in enumerate(texts[phrase]):
                    same = [
                        text for text, words in texts.items() if words[slot] == word and text not in held_out
                    ]
                    assert len(same) >= 2, phrase
