"""Posts.xml of a Stack Exchange dump -> questions and answers, as a stream in constant memory.

Rows go through lxml's target interface: no tree is built, so nothing has to be cleared, and it is faster than
iterparse. A document type declaration is refused at sight, which rules out entity expansion and outside
files; the parser's own size limits stay on (10 MB an attribute; a real post has at most some 100 kB).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lxml import etree

from cai_cli.errors import UserError
from cai_cli.importers.posts import LICENSE, Answer, Other, Question, Site, Skip, valid_id
from cai_cli.importers.votes import vote_score
from cai_cli.rows.jsonl import LONGEST_LINE

# Bytes fed to the parser at a time: bounds the rows that wait in memory; twice as much is slower
CHUNK = 1 << 15
QUESTION, ANSWER = "1", "2"  # PostTypeId; 3 and up are wikis, tag texts, elections and moderation
Row = Mapping[str, str]
Item = Question | Answer | Other | Skip
Attributes = dict[str, str]


class _Rows:
    """Parser target: collects the attributes of each <row> under <posts>."""

    def __init__(self) -> None:
        self.rows: list[Attributes] = []
        self.root = ""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise _NotPosts("has a document type declaration, which no Posts.xml has")

    def start(self, tag: Any, attrib: Any) -> None:
        if tag == "row" and self.root:
            self.rows.append(attrib)
        elif not self.root:
            self.root = tag
            if tag != "posts":
                raise _NotPosts(f"is not a Posts.xml: its root element is <{tag[:40]}>, not <posts>")

    def end(self, tag: Any) -> None:
        pass

    def close(self) -> None:
        pass


class _NotPosts(Exception):
    """The file is some other XML; the message says what."""


def read_rows(stream: BinaryIO, path: Path) -> Iterator[Attributes]:
    """The attributes of every row, in file order; a UserError with file and line unless it is a complete
    Posts.xml.
    """
    target = _Rows()
    # "internal" means the five entities of XML itself, since there is no declaration; False would make &amp;
    # in attributes &#38;. The target lacks `data` and `comment`, which its type asks for: the parser is
    # faster when it need not call them.
    settings: dict[str, Any] = {
        "target": target,
        "resolve_entities": "internal",
        "no_network": True,
        "huge_tree": False,
    }
    parser = etree.XMLParser(**settings)
    try:
        waiting = 0  # bytes since the last row: of a value without an end, the parser would hold them all
        while chunk := stream.read(CHUNK):
            parser.feed(chunk)
            waiting = 0 if target.rows else waiting + len(chunk)
            if waiting > LONGEST_LINE:
                raise _NotPosts(f"has no row in {LONGEST_LINE >> 20} MiB")
            yield from target.rows
            target.rows.clear()
        parser.close()
        yield from target.rows
    except _NotPosts as error:
        raise UserError(f"{path} {error}", "Posts.xml comes from a Stack Exchange data dump") from None
    except etree.XMLSyntaxError as error:
        problem = " ".join((error.msg or "malformed XML").split())
        advice = "damaged or cut short? download or unpack it again"
        raise UserError(f"{path}:{error.lineno or 1}: {problem}", advice) from None


def read_posts(stream: BinaryIO, path: Path, site: Site) -> Iterator[Item]:
    """Each row as a Question, an Answer, Other, or a Skip that says what the row lacks."""
    for number, row in enumerate(read_rows(stream, path), 1):
        kind = row.get("PostTypeId")
        try:
            if kind == ANSWER:
                yield answer_of(row, site)
            elif kind == QUESTION:
                yield question_of(row, site)
            elif kind is None:
                yield Skip(f"{path}: row {number}", "row without PostTypeId")
            else:
                yield Other()
        except _BadRow as problem:
            yield Skip(f"{path}: row {number}", str(problem))


class _BadRow(Exception):
    """A row lacks what it cannot go without."""


def question_of(row: Row, site: Site) -> Question:
    accepted = whole_number(row.get("AcceptedAnswerId"))
    return Question(
        site=site,
        id=post_id(row),
        title=row.get("Title", ""),
        body=row.get("Body", ""),
        author=author_of(row),
        license=row.get("ContentLicense", LICENSE),
        tags=row.get("Tags", ""),
        accepted=accepted if accepted is not None and valid_id(accepted) else None,
    )


def answer_of(row: Row, site: Site) -> Answer:
    votes = whole_number(row.get("Score"))
    if votes is None:
        raise _BadRow("answer without Score")
    parent = whole_number(row.get("ParentId", row.get("ParentID")))  # the dump's readme spells it ParentID
    question = parent if parent is not None and valid_id(parent) else 0
    license = row.get("ContentLicense", LICENSE)
    # By position: by name takes twice as long, and a dump has millions of them.
    return Answer(
        site, post_id(row), question, vote_score(votes), row.get("Body", ""), author_of(row), license
    )


def post_id(row: Row) -> int:
    number = whole_number(row.get("Id"))
    if number is None or not valid_id(number):
        raise _BadRow("row without Id")
    return number


def author_of(row: Row) -> str | None:
    return row.get("OwnerUserId") or row.get("OwnerDisplayName") or None


def whole_number(text: str | None) -> int | None:
    """The integer in `text`, None where it is missing or no number of sensible size."""
    if text is None or len(text) > 15:
        return None
    try:
        return int(text)
    except ValueError:
        return None
