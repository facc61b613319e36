"""Samples, comparisons (ours or TRL's) or hh-rlhf rows -> pairs of replies to be labelled. No row is lost:
what makes no pair is rejected.

Of more than two different replies to a prompt, the pair is the two that share the fewest words (the least
Jaccard similarity of their sets of words; of several such pairs the first): replies that say the same thing
teach nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from cai_cli.artifacts.rejects import Rejected
from cai_cli.errors import RecordError, UserError
from cai_cli.feedback.labels import Pair
from cai_cli.keys import uniform
from cai_cli.rows.foreign_turns import is_transcript
from cai_cli.rows.jsonl import check_new, read_rows
from cai_cli.rows.records import Comparison, Sample
from cai_cli.rows.row_kinds import COMPARISONS, CONVERSATIONS, SAMPLES, kind_taken
from cai_cli.rows.seen import Seen
from cai_cli.rows.sources import parse_weight
from cai_cli.rows.trl_rows import RowReader

IDENTICAL, SINGLE = "identical_replies", "single_reply"


def read_pairs(sources: list[str], limit: int | None = None) -> Iterator[Pair]:
    """The pairs of all sources, rejected ones among them, at most `limit`. Raises UserError with file, line
    and field.

    Their labels go into one file, so an id may be in one source only.
    """
    seen: set[str] = set()
    reader = RowReader()
    for source in sources:
        path = Path(parse_weight(source)[0])
        for pair in pairs_of_file(path, reader):
            if pair.id in seen:
                raise UserError(
                    f"{path}: there is a pair {pair.id!r} already", "ids are unique over all --pairs"
                )
            seen.add(pair.id)
            yield pair
            if limit is not None and len(seen) == limit:
                return


def check_pairs(pairs: Sequence[Pair], sources: list[str]) -> None:
    """Raise UserError where none of them can be labelled."""
    if not all(pair.rejected for pair in pairs):
        return
    reasons = ", ".join(sorted({pair.rejected.reason for pair in pairs if pair.rejected}))
    problem = f"no pairs in it ({reasons})" if reasons else "no pairs in it"
    raise UserError(f"{', '.join(sources)}: {problem}", "a pair is two different replies to one prompt")


def pairs_of_file(path: Path, reader: RowReader) -> Iterator[Pair]:
    samples: dict[str, list[Sample]] = {}
    for comparison in comparisons_and_samples(path, samples, reader):
        yield comparison if isinstance(comparison, Pair) else pair_of_comparison(comparison)
    for prompt_id, group in samples.items():
        yield pair_of_samples(prompt_id, group)


def comparisons_of_file(path: Path) -> Iterator[Comparison | Pair]:
    """Comparisons as they are labelled; rejected rows, and pairs of samples where there are any, as pairs."""
    samples: dict[str, list[Sample]] = {}
    yield from comparisons_and_samples(path, samples, RowReader())
    for prompt_id, group in samples.items():
        yield replace(pair_of_samples(prompt_id, group), rejected=None)


def comparisons_and_samples(
    path: Path, samples: dict[str, list[Sample]], reader: RowReader
) -> Iterator[Comparison | Pair]:
    """The comparisons of a file; its samples are gathered by prompt."""
    if is_hh_rlhf(path):
        yield from read_hh_rlhf(path)
        return
    seen = Seen()
    for line, row in read_rows(path):
        try:
            if kind_taken(row, COMPARISONS, SAMPLES, CONVERSATIONS) == COMPARISONS:
                parsed: Comparison | Sample = reader.comparison(row)
            else:
                parsed = reader.sample(row)
                group = samples.setdefault(parsed.id.rsplit("/", maxsplit=1)[0], [])
                if group and group[0].prompt != parsed.prompt:
                    problem = f"{parsed.id!r} has another prompt than {group[0].id!r}"
                    raise RecordError("id", problem, "ids of one prompt's samples are <prompt id>/<number>")
        except RecordError as error:
            raise error.at(f"{path}:{line}") from None
        check_new(seen, parsed.id, path, line)
        if isinstance(parsed, Comparison):
            yield parsed
        else:
            group.append(parsed)


def is_hh_rlhf(path: Path) -> bool:
    """Whether the first row is one of Anthropic's {chosen, rejected} transcripts, which need no `cai import`
    first.
    """
    _, row = next(read_rows(path), (0, {}))
    chosen = row.get("chosen")
    return "prompt" not in row and isinstance(chosen, str) and is_transcript(chosen)


def read_hh_rlhf(path: Path) -> Iterator[Comparison | Pair]:
    """Rows that are no comparison come as rejected pairs, named by file and line."""
    from cai_cli.importers.hh_rlhf import import_comparisons, kind_of_path
    from cai_cli.importers.reject import Reject

    for item in import_comparisons(path, kind=kind_of_path(path)):
        if not isinstance(item, Reject):
            yield item
            continue
        name = f"{path.name}:{item.line}"
        yield Pair(
            name,
            name,
            [],
            rejected=Rejected(name, item.reason, item.detail, {"line": item.line, "row": item.row}),
        )


def pair_of_comparison(comparison: Comparison) -> Pair:
    """The two replies in an order drawn by id, so that the first one is not always the one somebody chose."""
    replies = [comparison.chosen[0]["content"], comparison.rejected[0]["content"]]
    if uniform("pair", comparison.id) < 0.5:
        replies.reverse()
    pair = Pair(comparison.id, comparison.prompt_id, comparison.prompt, comparison.kind, replies)
    if replies[0] == replies[1]:
        pair.reject(IDENTICAL, replies[0][:200])
    return pair


def pair_of_samples(prompt_id: str, samples: list[Sample]) -> Pair:
    texts = [sample.completion[0]["content"] for sample in samples]
    pair = Pair(f"{prompt_id}/0", prompt_id, samples[0].prompt, samples[0].kind)
    chosen = choose_pair(texts)
    if chosen:
        pair.replies = [texts[n] for n in chosen]
    else:
        pair.reject(SINGLE if len(texts) == 1 else IDENTICAL, texts[0][:200])
    return pair


def choose_pair(replies: list[str]) -> tuple[int, int] | None:
    """Places of the two different replies that share the fewest words, or None where all are the same."""
    different = list({reply: n for n, reply in reversed(list(enumerate(replies)))}.values())
    words = {n: frozenset(replies[n].lower().split()) for n in different}
    pairs = combinations(sorted(different), 2)
    return min(pairs, key=lambda pair: similarity(words[pair[0]], words[pair[1]]), default=None)


def similarity(first: frozenset[str], second: frozenset[str]) -> float:
    """Jaccard similarity of two sets of words."""
    return len(first & second) / max(len(first | second), 1)
