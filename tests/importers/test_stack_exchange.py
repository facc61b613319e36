"""Stack Exchange data: scores, pairs, readers, text. Numbers by hand on small dumps; a whole site where it is
at hand.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter, defaultdict
from itertools import combinations
from math import log2
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from stack_exchange_dumps import answer, dump, pairs, question, site_rows

from cai_cli.importers.html_text import html_to_text
from cai_cli.importers.post_files import read_file
from cai_cli.importers.posts import Answer, Question, Skip, parse_tags, site_of_file, site_of_host
from cai_cli.importers.votes import (
    Ranked,
    binarise,
    draw_pairs,
    fingerprint,
    full_score,
    near_duplicates,
    opening,
    vote_score,
)
from cai_cli.rows.conversation import prompt_id
from cai_cli.rows.records import Comparison

# (fewest, most) net votes and the score of all between: the table of round(log2(1 + n)), worked out by hand
TABLE = [
    (-9, -1, -1),
    (0, 0, 0),
    (1, 1, 1),
    (2, 4, 2),
    (5, 10, 3),
    (11, 21, 4),
    (22, 44, 5),
    (45, 89, 6),
    (90, 180, 7),
]
TABLE += [(181, 361, 8)]
# net votes, accepted, score: one more if accepted, but a negative one stays -1
SCORES = [
    (-7, False, -1),
    (-1, True, -1),
    (0, False, 0),
    (0, True, 1),
    (1, False, 1),
    (2, False, 2),
    (4, False, 2),
]
SCORES += [
    (5, False, 3),
    (10, True, 4),
    (11, False, 4),
    (21, False, 4),
    (22, False, 5),
    (44, True, 6),
    (361, False, 8),
]


@pytest.mark.parametrize(("fewest", "most", "score"), TABLE)
def test_every_vote_count_of_the_table(fewest: int, most: int, score: int) -> None:
    assert {vote_score(votes) for votes in range(fewest, most + 1)} == {score}
    accepted = {full_score(vote_score(votes), accepted=True) for votes in range(fewest, most + 1)}
    assert accepted == {score + 1 if score >= 0 else -1}


@pytest.mark.parametrize(("votes", "accepted", "score"), SCORES)
def test_score(votes: int, accepted: bool, score: int) -> None:
    assert full_score(vote_score(votes), accepted) == score


def test_scores_reach_the_records(tmp_path: Path) -> None:
    """Each vote count meets an answer of 999 votes (score 10) in a question of its own."""
    rows = []
    for position, (votes, accepted, _) in enumerate(SCORES):
        number = 10 * position + 1
        rows.append(question(number, AcceptedAnswerId=number + 1 if accepted else None))
        rows += [answer(number + 1, number, votes), answer(number + 2, number, 999)]
    found, _, _ = pairs(tmp_path, dump(tmp_path / "x.Posts.xml", rows))
    scores = [pair.attribution["scores"] for pair in found if pair.attribution]
    assert scores == [{"chosen": 10, "rejected": score} for _, _, score in SCORES]


@pytest.fixture
def beer() -> Path:
    folder = os.environ.get("CAI_TEST_DATA")
    if not folder:
        pytest.skip("CAI_TEST_DATA does not point to the folder with stack-exchange/beer.Posts.xml")
    return Path(folder) / "stack-exchange" / "beer.Posts.xml"


@pytest.fixture(params=["beer", "others"])
def site(request: pytest.FixtureRequest) -> Path:
    """Each whole dump in the folder of public data."""
    folder = Path(os.environ.get("CAI_TEST_DATA") or "/nonexistent") / "stack-exchange"
    found = sorted(folder.glob("*.Posts.xml"))
    wanted = [path for path in found if (path.name == "beer.Posts.xml") == (request.param == "beer")]
    if not wanted:
        pytest.skip("CAI_TEST_DATA does not point to a folder with such a dump")
    return wanted[0]


def test_whole_site_counts_as_counted_independently(tmp_path: Path, site: Path) -> None:
    """Everything is counted again by plain ElementTree, from the formula as the paper words it."""
    found, skips, counts = pairs(tmp_path, site, max_chars=1_000_000)
    rows = [row.attrib for row in ElementTree.parse(site).getroot()]
    asked = {row["Id"]: row.get("AcceptedAnswerId") for row in rows if row["PostTypeId"] == "1"}
    given = [row for row in rows if row["PostTypeId"] == "2"]
    scores: dict[str, dict[int, int]] = defaultdict(dict)
    for row in given:
        if row.get("ParentId") in asked:
            votes, accepted = int(row["Score"]), asked[row["ParentId"]] == row["Id"]
            scores[row["ParentId"]][int(row["Id"])] = -1 if votes < 0 else round(log2(1 + votes)) + accepted
    several = [own for own in scores.values() if len(own) >= 2]
    usable = [own for own in several if len(set(own.values())) > 1]
    assert (counts.questions, counts.answers) == (len(asked), len(given))
    assert counts.other_posts == len(rows) - len(asked) - len(given)
    assert counts.orphan_answers == sum(row.get("ParentId") not in asked for row in given)
    assert (counts.answered_questions, counts.usable_questions) == (len(several), len(usable))
    # A pair for every usable question, but for those whose texts do not allow one, which are named.
    lost = {skip.place for skip in skips if skip.place.count("/") == 1}
    assert counts.pairs == len(found) == len(usable) - len(lost) and len(lost) <= 0.01 * len(usable)
    assert len({(pair.attribution or {})["question_id"] for pair in found}) == len(found)
    for pair in found:
        noted = pair.attribution or {}
        own = scores[str(noted["question_id"])]
        assert own[noted["answer_ids"]["chosen"]] == noted["scores"]["chosen"] > noted["scores"]["rejected"]
        assert own[noted["answer_ids"]["rejected"]] == noted["scores"]["rejected"]
        assert "<p>" not in pair.chosen[0]["content"] + pair.prompt[0]["content"]


def test_bodies_are_read_as_another_parser_reads_them(beer: Path) -> None:
    expected = {int(row.get("Id", 0)): row.get("Body") for row in ElementTree.parse(beer).getroot()}
    read = {post.id: post.body for post in read_file(beer) if isinstance(post, Question | Answer)}
    assert len(read) == 2235 and all(expected[number] == body for number, body in read.items())


def test_the_opening_begins_the_fingerprint(beer: Path) -> None:
    bodies = [row.get("Body", "") for row in ElementTree.parse(beer).getroot()]
    bodies += [
        "<p>" + "<b></b>" * 99 + "x</p>",
        "a &amp;" * 60,
        "<a title='" + "long" * 60 + "'>x</a>",
        "a < b " * 90,
    ]
    bodies.append("<b></b>" * 19 + "   " + "a" * 21 + "&amp; the cut goes through the entity")
    known = [body for body in bodies if opening(body) is not None]
    assert len(known) > 0.9 * len(bodies)
    assert all(opening(body) == fingerprint(body)[:24] for body in known)


def test_pairs_are_drawn_uniformly_among_those_of_different_score() -> None:
    answers = [Ranked(number, score) for number, score in enumerate([0, 0, 0, 2, 2, 5])]
    differing = {(b.id, a.id) for a, b in combinations(answers, 2) if a.score != b.score}
    drawn = Counter(
        (better.id, worse.id) for key in range(11_000) for better, worse in draw_pairs(answers, 1, key)
    )
    assert drawn.keys() == differing and len(differing) == 11
    assert all(880 < count < 1120 for count in drawn.values())  # 1000 expected, four standard deviations
    assert len(set(draw_pairs(answers, 7, "k"))) == 7
    assert {(better.id, worse.id) for better, worse in draw_pairs(answers, 99, "k")} == differing
    assert draw_pairs(answers[:3], 1, "k") == draw_pairs([], 1, "k") == []


@pytest.mark.parametrize("limit", [None, 9])
def test_result_does_not_depend_on_the_order_of_rows_or_files(tmp_path: Path, limit: int | None) -> None:
    rows = site_rows()
    plain, _, counts = pairs(
        tmp_path, dump(tmp_path / "s.Posts.xml", rows), max_pairs=limit, pairs_per_question=2
    )
    mixed = random.Random(1).sample(rows, len(rows))
    parts = [
        dump(tmp_path / "a" / "s.Posts.xml", mixed[:50]),
        dump(tmp_path / "b" / "s.Posts.xml", mixed[50:], start=""),
    ]
    again, _, recount = pairs(tmp_path, *parts, max_pairs=limit, pairs_per_question=2)
    assert plain == again and counts.to_row() == recount.to_row()
    assert len(plain) == 9 if limit else len(plain) > 40
    other, _, _ = pairs(tmp_path, *parts, max_pairs=limit, pairs_per_question=2, seed=1)
    assert other != plain


def test_sites_do_not_mix_and_their_order_does_not_matter(tmp_path: Path) -> None:
    files = [dump(tmp_path / f"{name}.Posts.xml", site_rows()) for name in ("beer", "wine")]
    there, _, counts = pairs(tmp_path, *files)
    back, _, _ = pairs(tmp_path, *reversed(files))
    assert sorted(pair.id for pair in there) == sorted(pair.id for pair in back)
    # 24 a site: 8 of its 40 questions have one answer, 8 two of equal score
    assert len({pair.id for pair in there}) == counts.pairs == 48
    drawn = [
        [list((pair.attribution or {})["answer_ids"].values()) for pair in there if pair.source == name]
        for name in ("beer", "wine")
    ]
    assert drawn[0] != drawn[1]
    limited = Counter(pair.source for pair in pairs(tmp_path, *files, max_pairs=30)[0])
    assert limited["beer"] > 5 and limited["wine"] > 5


def test_a_larger_limit_only_adds(tmp_path: Path) -> None:
    posts = dump(tmp_path / "s.Posts.xml", site_rows())
    nine, twenty = (pairs(tmp_path, posts, max_pairs=limit)[0] for limit in (9, 20))
    assert twenty[:9] == nine
    assert len({pair.id for pair in twenty}) == 20


def test_rows_that_do_not_fit_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = [
        answer(2, 1, 5),  # before its question
        question(1, Title=None, AcceptedAnswerId="none", Tags="<a><b>"),
        answer(3, 1, -2, OwnerDisplayName="gone", ContentLicense="CC BY-SA 4.0"),
        answer(4, 1, 3, Score=None),
        answer(5, 77, 3),  # its question is elsewhere
        answer(6, 1, 3, ParentId=None),
        answer(7, 1, 3, Id="seven"),
        {"Id": 8, "Score": 1, "Body": "x"},
        {"Id": 9, "PostTypeId": 4, "Body": "a tag's text"},
        {"Id": 10, "PostTypeId": 5},
        answer(2, 1, 100, Body="<p>a second post 2</p>"),
        question(20),
        answer(21, 20, 3),
        question(30),
        answer(31, 30, 1),
        answer(32, 30, 1),
    ]
    found, skips, counts = pairs(tmp_path, dump(tmp_path / "x.Posts.xml", rows))
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in found] == [
        (
            [{"role": "user", "content": "Asked 1."}],
            [{"role": "assistant", "content": "Answer number 2."}],
            [{"role": "assistant", "content": "Answer number 3."}],
        )
    ]
    assert counts.skips == {
        "answer without Score": 1,
        "row without Id": 1,
        "row without PostTypeId": 1,
        "repeated post id": 1,
    }
    assert [skip.place for skip in skips if skip.reason == "repeated post id"] == ["x/2"]
    assert (counts.questions, counts.answers, counts.other_posts, counts.orphan_answers) == (3, 7, 2, 2)
    assert (counts.answered_questions, counts.usable_questions) == (2, 1)
    assert found[0].attribution == {
        "site": "x",
        "url": None,
        "question_id": 1,
        "answer_ids": {"chosen": 2, "rejected": 3},
        "authors": {"question": None, "chosen": None, "rejected": "gone"},
        "scores": {"chosen": 3, "rejected": -1},
        "tags": ["a", "b"],
        "license": "CC BY-SA, CC BY-SA 4.0",
    }
    assert found[0].id == f"{prompt_id(found[0].prompt)}/x-2-3"
    assert Comparison.from_row(json.loads(json.dumps(found[0].to_row()))) == found[0]


def test_texts_that_do_not_fit_are_skipped_and_counted(tmp_path: Path) -> None:
    same = "the same long beginning of an answer, word for word, "
    rows = [
        question(1),
        answer(2, 1, 9, Body="<p>Use  the <b>Tap</b> &amp; glass</p>"),
        answer(3, 1, 3, Body="use the tap &#38;\nGLASS"),  # a near-duplicate of 2
        answer(4, 1, 1, Body=f"<p>{same} one and only this</p>"),
        answer(5, 1, 0, Body=f"<p>{same} two of another kind</p>"),
        answer(6, 1, 7, Body="<p>" + "long " * 50 + "</p>"),
        answer(7, 1, 5, Body="<p> </p>"),
        answer(8, 1, 2, Body="<b></b>" * 99 + "short once it is text"),
        question(10, Body="<p>" + "long " * 50 + "</p>"),
        answer(11, 10, 1),
        answer(12, 10, 9),
        question(20),
        answer(21, 20, 5, Body="same"),
        answer(22, 20, 1, Body="<p>Same</p>"),
    ]
    posts = dump(tmp_path / "x.Posts.xml", rows)
    found, skips, counts = pairs(tmp_path, posts, max_chars=100, pairs_per_question=99)
    assert {(skip.place, skip.reason) for skip in skips} == {
        ("x/1/3", "answer is a near-duplicate of another"),
        ("x/1/6", "answer is longer than max_chars"),
        ("x/1/7", "answer has no text"),
        ("x/10", "question is longer than max_chars"),
        ("x/20/22", "answer is a near-duplicate of another"),
        ("x/20", "question is left with too few answers"),
    }
    taken = {tuple((pair.attribution or {})["answer_ids"].values()) for pair in found}
    assert taken == {(2, 4), (2, 5), (2, 8), (8, 4), (8, 5), (4, 5)}
    assert counts.usable_questions == 3


@pytest.mark.parametrize(
    ("body", "reason"), [("long " * 50, "answer is longer than max_chars"), ("<p></p>", "answer has no text")]
)
def test_one_bad_answer_does_not_cost_its_question(tmp_path: Path, body: str, reason: str) -> None:
    rows = [question(1), answer(2, 1, 5), answer(3, 1, 0), answer(4, 1, 99, Body=body)]
    posts = dump(tmp_path / "x.Posts.xml", rows)
    found, skips, _ = pairs(tmp_path, posts, max_chars=100)
    assert [(pair.attribution or {})["answer_ids"] for pair in found] == [{"chosen": 2, "rejected": 3}]
    assert skips == [Skip("x/1/4", reason)]
    found, skips, _ = pairs(tmp_path, posts, max_chars=100, min_answers=3)
    assert found == [] and skips[1:] == [Skip("x/1", "question is left with too few answers")]


def test_html_is_kept_on_request(tmp_path: Path) -> None:
    posts = dump(tmp_path / "x.Posts.xml", [question(1), answer(2, 1, 5), answer(3, 1, 0)])
    (pair,), _, _ = pairs(tmp_path, posts, keep_html=True)
    assert pair.prompt[0]["content"] == "Title 1\n\n<p>Asked 1.</p>"
    assert pair.chosen[0]["content"] == "<p>Answer number 2.</p>"


HTML = (
    '<h2>Pouring</h2>\n<p>See <a href="http://x.org">the  guide</a> on <code>a  b</code>,<br>x<sup>2</sup> &lt; 3&nbsp;m.</p>\n'
    '<pre class="lang-py"><code>def f():\n\n    return 1 &lt; 2\n</code></pre>\n'
    '<ol start="3">\n<li><p>one</p>\n<pre><code>x\n  y\n</code></pre></li>\n<li>two\n'
    "<ul><li>in</li><li>side</li></ul></li>\n</ol>"
    "<blockquote>\n<p>said</p><p>twice</p></blockquote><table><tr><th></th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>"
    '<img src="x" alt="A cat"><img alt="enter image description here"><script>alert(1)</script><!-- no --><hr>end'
)
TEXT = """## Pouring

See the guide on `a b`,
x^2 < 3 m.

```
def f():

    return 1 < 2
```

3. one

   ```
   x
     y
   ```

4. two
   - in
   - side

> said

> twice

| b
1 | 2

[image: A cat][image]

end"""


def test_html_becomes_readable_text() -> None:
    assert html_to_text(HTML) == TEXT
    assert (
        html_to_text("") == html_to_text("<p> \n</p><!-- x -->") == html_to_text("<script>x</script>") == ""
    )
    assert html_to_text("plain &amp; <b>bro</i>ken") == "plain & broken"
    assert html_to_text("<pre>```</pre>") == "````\n```\n````"
    assert html_to_text("<blockquote>" * 3000 + "deep").endswith("deep")


def test_both_spellings_of_tags() -> None:
    assert parse_tags("<ale><c++>") == parse_tags("|ale|c++|") == ["ale", "c++"]
    assert parse_tags("") == []


def test_site_names(tmp_path: Path) -> None:
    assert site_of_file(Path("x/beer.Posts.xml.gz")).name == "beer"
    assert site_of_file(tmp_path / "stackoverflow.com" / "Posts.xml") == (
        "stackoverflow",
        "stackoverflow.com",
    )
    assert site_of_host("beer.meta.stackexchange.com").name == "beer.meta"


def test_answers_alike_in_most_words_do_not_meet_in_a_pair(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(30)]
    changed = [*words[:15], "other", *words[16:]]
    rows = [
        question(1),
        answer(2, 1, 9, Body=f"<p>{' '.join(words)}.</p>"),
        answer(3, 1, 3, Body=f"<p>{' '.join(changed)}!</p>"),
        question(10),
        answer(11, 10, 9, Body=f"<p>{' '.join(words)}</p>"),
        answer(12, 10, 4, Body=f"<p>{', '.join(changed)}</p>"),
        answer(13, 10, 0, Body="<p>Something else.</p>"),
        question(20),
        answer(21, 20, 4, Body=f"<p>{' '.join(words)}</p>"),
        answer(22, 20, 1, Body=f"<p>{' '.join(words[:15])}</p>"),  # half of it: another answer
    ]
    found, skips, _ = pairs(tmp_path, dump(tmp_path / "x.Posts.xml", rows), pairs_per_question=9)
    taken = {tuple((pair.attribution or {})["answer_ids"].values()) for pair in found}
    assert taken == {(11, 13), (21, 22)}
    assert [(skip.place, skip.reason) for skip in skips] == [
        ("x/1/3", "answer is a near-duplicate of another"),
        ("x/1", "question is left with too few answers"),
        ("x/10/12", "answer is a near-duplicate of another"),
    ]


def test_similar_texts() -> None:
    alike = near_duplicates
    assert (
        alike("Yes, sir", "yes sir!")
        and alike("Use the tap.", "(use, the: TAP)")
        and alike("+", "+")
        and alike("“Größe”", "GRÖSSE")
    )
    assert not alike("Yes", "No") and not alike("+", "-") and not alike("Use the tap.", "Use the bottle.")
    # The same words in another order
    assert not alike("one two three four five six", "six five four three two one")
    text = [f"w{number}" for number in range(19)]
    assert alike(" ".join(text), " ".join([*text[:9], "x", *text[10:]]))  # 16 of 20 pairs are shared
    assert not alike(" ".join(text[:18]), " ".join([*text[:9], "x", *text[10:18]]))


# id -> (votes, whether the asker accepted it, score), ten answers of the beer site looked up in the file by
# eye
LOOKED_UP = {
    17: (5, False, 3),
    18: (36, True, 6),
    19: (22, True, 6),
    343: (-4, False, -1),
    653: (2, False, 2),
    664: (-1, False, -1),
    981: (22, False, 5),
    3488: (4, False, 2),
    5019: (21, True, 5),
    5075: (0, True, 1),
}


def test_ten_answers_looked_up_by_hand(tmp_path: Path, beer: Path) -> None:
    found, _, _ = pairs(tmp_path, beer, pairs_per_question=1_000)
    scores: dict[int, int] = {}
    for pair in found:
        noted = pair.attribution or {}
        scores |= {noted["answer_ids"][side]: noted["scores"][side] for side in ("chosen", "rejected")}
    assert {number: scores.get(number) for number in LOOKED_UP} == {
        number: row[2] for number, row in LOOKED_UP.items()
    }


def test_binarise_gives_each_text_a_good_and_a_bad_side() -> None:
    def reply(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    prompt = [{"role": "user", "content": "Q"}]
    noted: dict[str, Any] = {"site": "x", "answer_ids": {"chosen": 7, "rejected": 8}}
    noted["authors"] = {"question": "q", "chosen": "a", "rejected": "b"}
    pair = Comparison("p/x", "p", prompt, reply("A"), reply("B"), 1.0, "votes", attribution=noted)
    first, second = binarise(pair)
    assert (first.id, first.chosen, first.rejected) == ("p/x/good", reply("GOOD: A"), reply("BAD: A"))
    assert (second.id, second.chosen, second.rejected) == ("p/x/bad", reply("BAD: B"), reply("GOOD: B"))
    assert first.prompt == second.prompt == prompt and (first.attribution or {})["site"] == "x"
    # Each names the one answer whose text stands on both of its sides.
    assert (first.attribution or {})["answer_ids"] == {"chosen": 7, "rejected": 7}
    assert (second.attribution or {})["authors"] == {"question": "q", "chosen": "b", "rejected": "b"}
    assert pair.chosen == reply("A")
