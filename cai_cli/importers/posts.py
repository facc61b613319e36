"""What the readers of Stack Exchange data hand on: questions, answers, and the rows they had to leave out."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

# Of every Stack Exchange post; the version depends on its date and stands in newer dumps
LICENSE = "CC BY-SA"
ID_LIMIT = 1 << 40  # ids are positive and below it, so that (site, id) packs into one 64-bit key


class Site(NamedTuple):
    """`name` is the short name ("beer"), `host` the address ("beer.stackexchange.com") where it is known,
    else "".
    """

    name: str
    host: str = ""


class Question(NamedTuple):
    site: Site
    id: int
    title: str
    body: str  # HTML
    author: str | None  # user id as text; the display name where the account is gone
    license: str
    tags: str  # as in the source; see `parse_tags`
    accepted: int | None  # id of the answer the asker accepted


class Answer(NamedTuple):
    site: Site
    id: int
    question: int  # id of its question, 0 where the row names none
    score: (
        int  # log2 score of votes.py, without the +1 of an accepted answer that is only known to the question
    )
    body: str  # HTML
    author: str | None
    license: str


@dataclass(frozen=True, slots=True)
class Skip:
    """One thing left out: a row, an answer or a question. `place` is file:line or site/question/id."""

    place: str
    reason: str

    def to_row(self) -> dict[str, Any]:
        return asdict(self)


class Other(NamedTuple):
    """A well-formed row that is neither question nor answer (wiki pages, tag texts, election posts): only
    counted.
    """


@dataclass(slots=True)
class Counts:
    """What went by. Row counts are final once reading is over, the rest at the end of `make_pairs`."""

    questions: int = 0
    answers: int = 0
    other_posts: int = 0
    orphan_answers: int = 0  # their question is not in the data
    answered_questions: int = 0  # with at least `min_answers` answers
    usable_questions: int = 0  # of those, with two different scores
    pairs: int = 0
    skips: Counter[str] = field(default_factory=Counter)  # by reason

    def to_row(self) -> dict[str, Any]:
        return {**asdict(self), "skips": dict(sorted(self.skips.items()))}


def site_of_host(host: str) -> Site:
    """`beer.stackexchange.com` -> beer, `stackoverflow.com` -> stackoverflow, `mathoverflow.net` ->
    mathoverflow.
    """
    host = host.lower().removeprefix("www.")
    name = host
    for ending in (".stackexchange.com", ".com", ".net"):
        if name.endswith(ending):
            name = name.removesuffix(ending)
            break
    return Site(name or "stack-exchange", host if name != host else "")


def site_of_url(url: str) -> Site | None:
    """The site a question's address points to, None where `url` is no web address."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return None
    return site_of_host(host) if host and parts.scheme in ("http", "https") else None


def site_of_file(path: Path) -> Site:
    """beer.Posts.xml -> beer; Posts.xml and Posts.xml.gz -> the directory's name; other files -> their stem."""
    stem = path.name
    for ending in (".7z", ".gz", ".xml", ".jsonl", ".json", ".parquet"):
        stem = stem.removesuffix(ending)
    if stem.lower() == "posts":
        stem = path.resolve().parent.name
    for ending in (".Posts", ".posts", "-Posts", "-posts", "_Posts"):
        stem = stem.removesuffix(ending)
    return site_of_host(stem)


def parse_tags(text: str) -> list[str]:
    """The tags of either spelling: `<ale><lager>` of older dumps, `|ale|lager|` of newer ones."""
    return [tag for tag in text.replace("><", "|").strip("<>|").split("|") if tag]


def valid_id(value: int) -> bool:
    return 0 < value < ID_LIMIT
