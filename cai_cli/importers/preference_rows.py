"""Rows of HuggingFaceH4/stack-exchange-preferences -> the same questions and answers as a dump's.

A row: qid, question (HTML), answers [{answer_id, author, author_id, author_profile, pm_score, selected, text
(HTML)}], date, metadata (addresses of the question, the site, the asker). `pm_score` already holds the +1 of
the accepted answer, so these questions name no accepted one. Files are JSONL (or gzip of it) or parquet;
parquet and the Hub's data sets are streamed by `datasets`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from cai_cli.errors import UserError
from cai_cli.importers.posts import LICENSE, Answer, Question, Site, Skip, site_of_url, valid_id
from cai_cli.importers.public_files import parquet_rows
from cai_cli.rows.hub import read_hub
from cai_cli.rows.json_text import JsonError, decoder, load_json, missing
from cai_cli.rows.jsonl import bounded_lines
from cai_cli.rows.row_kinds import kind_of

SCORE_LIMIT = 1000  # of |pm_score|, which is a logarithm: beyond it the row is garbage


def read_jsonl_rows(stream: BinaryIO, path: Path, site: Site) -> Iterator[Question | Answer | Skip]:
    """Questions, each followed by its answers. A line that is no JSON object is a Skip."""
    for number, line in enumerate(bounded_lines(stream, path), 1):
        text = line.decode("utf-8-sig" if number == 1 else "utf-8", "replace")
        if not text.strip():
            continue
        try:
            row = load_json(text, missing)
        except JsonError as error:
            if error.reason != "broken_unicode":
                yield Skip(f"{path}:{number}", "line is not a JSON object")
                continue
            row = decoder(missing).decode(text)  # `clean` mends what is used of it
        if number == 1 and isinstance(row, dict) and "qid" not in row and (kind := kind_of(row)):
            raise UserError(
                f"{path}:1: is a row of {kind.name}, and questions with `qid` are read here", kind.advice
            )
        if isinstance(row, dict):
            yield from posts_of(row, f"{path}:{number}", site)
        else:
            yield Skip(f"{path}:{number}", "line is not a JSON object")


def read_parquet_rows(path: Path, site: Site) -> Iterator[Question | Answer | Skip]:
    """The same from a parquet file."""
    for number, row in parquet_rows(path):
        yield from posts_of(row, f"{path}: row {number}", site)


def read_hub_rows(source: str) -> Iterator[Question | Answer | Skip]:
    """The same from `hf:org/name[:split]`."""
    for place, row in read_hub(source):
        yield from posts_of(row, place, Site("stack-exchange"))


def posts_of(row: dict[str, Any], place: str, file_site: Site) -> Iterator[Question | Answer | Skip]:
    """One row's question and answers; what cannot be used is a Skip at `place`."""
    number, body, answers = row.get("qid"), row.get("question"), row.get("answers")
    if not is_id(number):
        yield Skip(place, "row without qid")
        return
    if not isinstance(body, str) or not isinstance(answers, list):
        yield Skip(place, "row without question or answers")
        return
    site = site_of_metadata(row.get("metadata")) or file_site
    yield Question(site, number, "", clean(body), None, LICENSE, "", None)
    for answer in answers:
        if not isinstance(answer, dict) or not is_id(answer.get("answer_id")):
            yield Skip(place, "answer without answer_id")
            continue
        score = answer.get("pm_score")
        if isinstance(score, bool) or not isinstance(score, int) or abs(score) > SCORE_LIMIT:
            yield Skip(place, "answer without pm_score")
            continue
        text = answer.get("text")
        yield Answer(
            site=site,
            id=answer["answer_id"],
            question=number,
            score=score,
            body=clean(text) if isinstance(text, str) else "",
            author=author_of(answer),
            license=LICENSE,
        )


def is_id(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and valid_id(value)


def author_of(answer: dict[str, Any]) -> str | None:
    for name in ("author_id", "author"):
        value = answer.get(name)
        if isinstance(value, int | str) and str(value).strip():
            return clean(str(value))
    return None


def site_of_metadata(metadata: object) -> Site | None:
    """The site of the first web address in `metadata`, None where there is none."""
    for entry in metadata if isinstance(metadata, list) else []:
        if isinstance(entry, str) and (site := site_of_url(clean(entry))):
            return site
    return None


def clean(text: str) -> str:
    """JSON can smuggle half a surrogate pair into a string, which neither sqlite nor a UTF-8 file can hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
