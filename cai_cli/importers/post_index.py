"""The on-disk index where answers meet their questions: sqlite, one file, memory bounded by its page cache.

    sites       number, name, host
    posts       key -> texts and attribution, appended in file order
    questions   key -> id of the accepted answer
    answers     (key of the question, id) -> score, length, opening: the thin table that pairs are drawn from
    draws       (draw, key of a question): the order in which a limited number of pairs is taken

A key is (site number, post id) in 64 bits, so posts of several sites live side by side and a site may come in
several files.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from cai_cli.errors import RunError, UserError
from cai_cli.importers.posts import ID_LIMIT, Answer, Question, Site
from cai_cli.importers.votes import Ranked, full_score, opening
from cai_cli.rows.storage import MAKE_ROOM

CACHE_KIB = 16 * 1024  # of pages in memory, whatever the size of the file
INDEX = "comparisons.index-"  # how the name of its folder begins
PAGE_BYTES = 16 * 1024  # most posts fit a page without overflow

SCHEMA = """
CREATE TABLE sites (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, host TEXT NOT NULL);
CREATE TABLE posts (
    key INTEGER PRIMARY KEY, title TEXT, body TEXT NOT NULL, author TEXT, license TEXT NOT NULL, tags TEXT
);
CREATE TABLE questions (key INTEGER PRIMARY KEY, accepted INTEGER);
CREATE TABLE answers (
    question INTEGER, id INTEGER, score INTEGER NOT NULL, length INTEGER NOT NULL, opening BLOB, PRIMARY KEY (question, id)
) WITHOUT ROWID;
CREATE TABLE draws (draw INTEGER, question INTEGER, PRIMARY KEY (draw, question)) WITHOUT ROWID;
"""
INSERT_POST = "INSERT OR IGNORE INTO posts VALUES (?, ?, ?, ?, ?, ?)"
INSERT_QUESTION = "INSERT INTO questions VALUES (?, ?)"
INSERT_ANSWER = "INSERT INTO answers VALUES (?, ?, ?, ?, ?)"
SELECT_POSTS = "SELECT key, title, body, author, license, tags FROM posts WHERE key IN ({})"
ANSWERS_OF_ONE = "SELECT id, score, length, opening FROM answers WHERE question = ? ORDER BY id"
# Both tables are read in the order of their keys: no sort, no temporary file.
ANSWERS_BY_QUESTION = """
SELECT a.question, q.key IS NULL, q.accepted, a.id, a.score, a.length, a.opening
FROM answers a LEFT JOIN questions q ON q.key = a.question ORDER BY a.question, a.id
"""


class Stored(NamedTuple):
    """Texts and attribution of one post."""

    title: str | None
    body: str
    author: str | None
    license: str
    tags: str | None


class PostIndex:
    """Use as a context manager. The file's name is gone as soon as it is open, so no crash leaves it behind."""

    def __init__(self, workdir: Path) -> None:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(prefix=INDEX, dir=workdir)
        except OSError as error:
            raise UserError(
                f"{workdir}: {error.strerror or error}", "the index of posts is built there"
            ) from None
        file = Path(self._folder.name) / "posts.sqlite"
        self._db = sqlite3.connect(file)
        self._db.isolation_level = None  # transactions are opened by hand
        # The index serves one run and is never read after a crash: no journal, no waiting for the disk.
        for pragma in (
            "journal_mode=OFF",
            "synchronous=OFF",
            "locking_mode=EXCLUSIVE",
            f"page_size={PAGE_BYTES}",
            f"cache_size=-{CACHE_KIB}",
        ):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.executescript(SCHEMA)
        with suppress(OSError):  # where an open file cannot be unlinked, it goes at the end
            self._folder.cleanup()
        self._db.execute("BEGIN")  # never committed: pages beyond the cache go to the file all the same
        self._last: tuple[Site, int] | None = None
        self._highest = 0  # key so far

    def __enter__(self) -> PostIndex:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        self._db.close()
        with suppress(OSError):
            self._folder.cleanup()
        if isinstance(error, sqlite3.OperationalError):  # a full disk, most likely
            advice = f"{MAKE_ROOM}; it needs about as much space as the unpacked dump"
            raise RunError(f"the index of posts: {error}", advice) from error

    def add(self, posts: list[Question | Answer]) -> list[Question | Answer]:
        """Store posts; returned, and not stored, are those whose site has a post of that id already (the
        first one stays).
        """
        rows: list[tuple] = []
        questions: list[tuple] = []
        answers: list[tuple] = []
        base, site, highest, ascending = 0, None, self._highest, True
        for post in posts:
            if post.site is not site:
                site, base = post.site, self._site_base(post.site)
            key = base + post.id
            ascending = ascending and key > highest
            highest = max(highest, key)
            if isinstance(post, Question):
                rows.append((key, post.title, post.body, post.author, post.license, post.tags))
                questions.append((key, post.accepted))
            else:
                body = post.body
                rows.append((key, None, body, post.author, post.license, None))
                answers.append((base + post.question, post.id, post.score, len(body), opening(body)))
        self._highest = highest
        if not ascending:
            return self._add_one_by_one(posts, rows, questions, answers)
        # Dumps come in the order of their ids, so no id can have been there before: batches insert twice as
        # fast.
        self._db.executemany(INSERT_POST, rows)
        self._db.executemany(INSERT_QUESTION, questions)
        self._db.executemany(INSERT_ANSWER, answers)
        return []

    def _add_one_by_one(
        self, posts: list[Question | Answer], rows: list[tuple], questions: list[tuple], answers: list[tuple]
    ) -> list[Question | Answer]:
        repeated = []
        thin = {Question: (INSERT_QUESTION, iter(questions)), Answer: (INSERT_ANSWER, iter(answers))}
        for post, row in zip(posts, rows, strict=True):
            statement, own = thin[type(post)]
            values = next(own)
            if self._db.execute(INSERT_POST, row).rowcount == 1:
                self._db.execute(statement, values)
            else:
                repeated.append(post)
        return repeated

    def answers_by_question(self) -> Iterator[tuple[int, list[Ranked] | int]]:
        """(key of a question, its answers with full scores), by key; a number of answers where the question
        is not there.
        """
        rows = self._db.execute(ANSWERS_BY_QUESTION)
        for question, group in groupby(rows, key=itemgetter(0)):
            own = list(group)
            _, orphan, accepted, *_ = own[0]
            if orphan:
                yield question, len(own)
            else:
                yield (
                    question,
                    [Ranked(row[3], full_score(row[4], row[3] == accepted), row[5], row[6]) for row in own],
                )

    def answers_of(self, question: int) -> list[Ranked]:
        """The answers of the question with this key and their full scores, by id."""
        (accepted,) = self._db.execute("SELECT accepted FROM questions WHERE key = ?", (question,)).fetchone()
        rows = self._db.execute(ANSWERS_OF_ONE, (question,))
        return [Ranked(row[0], full_score(row[1], row[0] == accepted), *row[2:]) for row in rows]

    def put_draw(self, draw: int, question: int) -> None:
        self._db.execute("INSERT INTO draws VALUES (?, ?)", (draw, question))

    def questions_by_draw(self) -> Iterator[int]:
        for (question,) in self._db.execute("SELECT question FROM draws ORDER BY draw, question"):
            yield question

    def posts(self, base: int, ids: list[int]) -> dict[int, Stored]:
        """The posts with these ids; `base` is the key of their site's post 0."""
        marks = ",".join("?" * len(ids))
        rows = self._db.execute(SELECT_POSTS.format(marks), [base + number for number in ids])
        return {row[0] - base: Stored._make(row[1:]) for row in rows}

    def site(self, key: int) -> Site:
        """The site of the post with this key."""
        number = key // ID_LIMIT
        if self._last is None or self._last[1] != number:
            site = Site(
                *self._db.execute("SELECT name, host FROM sites WHERE number = ?", (number,)).fetchone()
            )
            self._last = (site, number)
        return self._last[0]

    def _site_base(self, site: Site) -> int:
        """The key of the site's post 0, numbering the site when it is new."""
        if self._last is None or self._last[0] != site:
            find = "SELECT number FROM sites WHERE name = ?"
            found = self._db.execute(find, (site.name,)).fetchone()
            if found is None:
                self._db.execute("INSERT INTO sites (name, host) VALUES (?, ?)", site)
                found = self._db.execute(find, (site.name,)).fetchone()
            elif (
                site.host
            ):  # a dump's file name may not tell the address that another source of the site knows
                self._db.execute(
                    "UPDATE sites SET host = ? WHERE name = ? AND host = ''", (site.host, site.name)
                )
            self._last = (site, found[0])
        return self._last[1] * ID_LIMIT
