"""Files of Stack Exchange data: gzip, preference rows, damage, and that nothing is left behind."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import threading
from pathlib import Path
from random import Random
from typing import Any

import py7zr
import pytest
from stack_exchange_dumps import answer, dump, pairs, question, site_rows

from cai_cli.errors import UserError
from cai_cli.importers.stack_exchange import PairOptions, make_pairs


def test_gzip_reads_like_the_plain_file(tmp_path: Path) -> None:
    posts = dump(tmp_path / "s.Posts.xml", site_rows())
    packed = tmp_path / "packed" / "s.Posts.xml.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(posts.read_bytes()))
    assert pairs(tmp_path, packed)[0] == pairs(tmp_path, posts)[0]


def archive(path: Path, members: dict[str, bytes], **settings: Any) -> Path:
    with py7zr.SevenZipFile(path, "w", **settings) as packed:
        for name, content in members.items():
            packed.writef(io.BytesIO(content), name)
    return path


def test_7z_reads_like_the_plain_file(tmp_path: Path) -> None:
    """As a dump is published: one archive a site, its other tables around the posts."""
    posts = dump(tmp_path / "s.Posts.xml", site_rows()).read_bytes()
    others = {"Badges.xml": b"<badges />" * 9999, "Users.xml": b"<users />"}
    members = {"Badges.xml": others["Badges.xml"], "Posts.xml": posts, "Users.xml": others["Users.xml"]}
    for filters in (None, [{"id": py7zr.FILTER_BZIP2}]):
        packed = archive(tmp_path / "s.7z", members, filters=filters)
        assert pairs(tmp_path, packed)[0] == pairs(tmp_path, tmp_path / "s.Posts.xml")[0] != []
    with pytest.raises(UserError, match=r"holds no Posts\.xml"):
        pairs(tmp_path, archive(tmp_path / "other.7z", others))
    with pytest.raises(UserError, match="is encrypted"):
        pairs(tmp_path, archive(tmp_path / "locked.7z", members, password="x"))


def test_damaged_7z_is_a_one_line_error(tmp_path: Path) -> None:
    noise = Random(0).randbytes(300_000).hex()
    rows = [question(1), answer(2, 1, 5, Body=noise), answer(3, 1, 1, Body=noise[::-1])]
    packed = archive(tmp_path / "s.7z", {"Posts.xml": dump(tmp_path / "s.Posts.xml", rows).read_bytes()})
    content = bytearray(packed.read_bytes())
    for name, damage in (
        ("cut", content[:-100]),
        ("zeros", content[:200_000] + bytes(9) + content[200_009:]),
    ):
        (tmp_path / f"{name}.7z").write_bytes(damage)
        with pytest.raises(UserError, match=rf"{name}\.7z: damaged 7z archive: .") as caught:
            pairs(tmp_path, tmp_path / f"{name}.7z")
        assert "\n" not in str(caught.value)


def test_stopping_early_stops_the_unpacking(tmp_path: Path) -> None:
    # Far more than a pipe holds; the first row is a skip
    posts = dump(tmp_path / "s.Posts.xml", [{}, *site_rows() * 200])
    items = make_pairs(
        [archive(tmp_path / "s.7z", {"Posts.xml": posts.read_bytes()})],
        PairOptions(seed=0),
        tmp_path / "work",
    )
    before = threading.active_count()
    next(items)
    items.close()
    assert threading.active_count() == before


ROWS: list[Any] = [
    {
        "qid": 1,
        "question": "<p>Which glass?</p>",
        "answers": [
            {
                "answer_id": 2,
                "author": "A",
                "author_id": 12,
                "author_profile": "x",
                "pm_score": 4,
                "selected": True,
                "text": "<b>Tall</b>",
            },
            {
                "answer_id": 3,
                "author": "B",
                "author_id": None,
                "author_profile": "x",
                "pm_score": -1,
                "selected": False,
                "text": "Any \ud800",
            },
            {
                "answer_id": 4,
                "author": "C",
                "author_id": 14,
                "author_profile": "x",
                "pm_score": "high",
                "selected": False,
                "text": "No",
            },
        ],
        "date": "2014/01/21",
        "metadata": ["https://beer.stackexchange.com/questions/1", "https://beer.stackexchange.com"],
    },
    {"qid": None, "question": "x", "answers": []},
    {"qid": 9, "question": "x"},
    [1],
]


def test_preference_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\n{broken\n\n", encoding="utf-8")
    (pair,), skips, counts = pairs(tmp_path, path)
    assert [pair.prompt[0]["content"], pair.chosen[0]["content"], pair.rejected[0]["content"]] == [
        "Which glass?",
        "Tall",
        "Any ?",
    ]
    noted = pair.attribution or {}
    assert noted["authors"] == {"question": None, "chosen": "12", "rejected": "B"}
    assert noted["scores"] == {"chosen": 4, "rejected": -1}  # pm_score as it is: acceptance is in it
    assert (pair.source, noted["url"]) == ("beer", "https://beer.stackexchange.com/questions/1")
    assert {(skip.place.rsplit(":")[-1], skip.reason) for skip in skips} == {
        ("1", "answer without pm_score"),
        ("2", "row without qid"),
        ("3", "row without question or answers"),
        ("4", "line is not a JSON object"),
        ("5", "line is not a JSON object"),
    }
    assert (counts.questions, counts.answers) == (1, 2)


def test_preference_rows_in_parquet(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    row = {**ROWS[0], "answers": [ROWS[0]["answers"][0], {**ROWS[0]["answers"][1], "text": "Any"}]}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert pairs(tmp_path, tmp_path / "rows.parquet")[0] == pairs(tmp_path, tmp_path / "rows.jsonl")[0] != []
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="not a readable parquet file"):
        pairs(tmp_path, tmp_path / "bad.parquet")


def test_a_data_set_of_the_hub_is_streamed(tmp_path: Path) -> None:
    """A local folder stands for the Hub's: `datasets` takes both by the same name."""
    rows = [{**ROWS[0], "answers": [ROWS[0]["answers"][0], {**ROWS[0]["answers"][1], "text": "Any"}]}]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    items = list(make_pairs([f"hf:{tmp_path / 'set'}"], PairOptions(seed=0), tmp_path / "work"))
    assert items == pairs(tmp_path, tmp_path / "set" / "train.jsonl")[0] != []
    with pytest.raises(UserError, match="is not cached here, and HF_HUB_OFFLINE is set"):
        list(make_pairs([f"hf:{tmp_path / 'none'}"], PairOptions(seed=0), tmp_path / "work"))


GOOD = b'<?xml version="1.0"?>\n<posts>\n<row Id="1" PostTypeId="1" Body="x" />\n'
BOMB = (
    b'<?xml version="1.0"?>\n<!DOCTYPE posts [<!ENTITY a "%s"><!ENTITY f SYSTEM "file:///etc/hostname">]>\n'
    % (b"a" * 999)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD, r"odd\.xml:4: "),  # cut short between rows
        (GOOD + b'<row Id="2', r"odd\.xml:4: "),
        (GOOD + b'<row Id="2" Id="3"/></posts>', r"odd\.xml:4: .*redefined"),
        (GOOD + b"</posts><more/>", r"odd\.xml:4: "),
        (GOOD + b'<row Id="2" Body="&nope;"/></posts>', r"odd\.xml:4: "),
        (BOMB + b'<posts><row Id="1" PostTypeId="1" Body="&a;&f;"/></posts>', "document type declaration"),
        (b"<users><row Id='1'/></users>", "is not a Posts.xml: its root element is <users>"),
        (b"", "is empty"),
        (b"Id,Body\n1,x\n", "neither a Posts.xml nor JSONL"),
        (b"PK\x03\x04 rest", r"unpack it first: unzip odd\.xml Posts\.xml"),
        (b"7z\xbc\xaf\x27\x1c rest", r"odd\.xml: damaged 7z archive"),
        (gzip.compress(GOOD + b"</posts>", mtime=0)[:-12], "damaged gzip"),
    ],
)
def test_files_that_cannot_be_read_are_one_line_errors(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "odd.xml").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        pairs(tmp_path, tmp_path / "odd.xml")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "work").iterdir())


def test_missing_files_and_folders_are_one_line_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.xml", tmp_path):
        with pytest.raises(UserError, match=r"no such file|is a directory"):
            pairs(tmp_path, path)
    for wrong in ({"min_answers": 1}, {"max_pairs": 0}, {"pairs_per_question": 0}, {"max_chars": 0}):
        with pytest.raises(UserError, match="at least"):
            PairOptions(seed=0, **wrong)


def test_stopping_early_leaves_nothing_behind(tmp_path: Path) -> None:
    items = make_pairs([dump(tmp_path / "s.Posts.xml", site_rows())], PairOptions(seed=0), tmp_path / "work")
    next(items)
    items.close()
    assert not list((tmp_path / "work").iterdir())


def test_no_torch_is_imported() -> None:
    code = "import sys, cai_cli.importers.stack_exchange; sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
