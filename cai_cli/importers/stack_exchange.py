"""Stack Exchange dumps and preference rows -> ranked pairs of answers for preference-model pretraining.

    for item in make_pairs([Path("beer.Posts.xml")], PairOptions(seed=0), workdir, counts): ...

First every post goes into an on-disk index, then each question with two answers of different score gives its
pairs. Which pair is drawn depends on the seed, the site and the question id alone, never on the order of rows
or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cai_cli import keys
from cai_cli.errors import UserError
from cai_cli.importers.html_text import html_to_text
from cai_cli.importers.post_files import Advance, no_progress, read_source
from cai_cli.importers.post_index import PostIndex, Stored
from cai_cli.importers.posts import ID_LIMIT, Answer, Counts, Question, Site, Skip, parse_tags
from cai_cli.importers.posts_xml import Item
from cai_cli.importers.votes import Ranked, draw_pairs, fingerprint, near_duplicates, scores_differ
from cai_cli.rows.conversation import message, prompt_id
from cai_cli.rows.records import Comparison

BATCH_POSTS, BATCH_CHARS = 250, 1 << 22  # put into the index at once: what comes first
POSTS = (Question, Answer)
SLICE = 50  # answers of one question whose bodies are in memory together
REPEATED = "repeated post id"
TOO_LONG = "is longer than max_chars"
NEAR_DUPLICATE = "is a near-duplicate of another"
# Characters: no real post is longer, and the HTML parser's time is quadratic on nested rubbish
HTML_LIMIT = 100_000


@dataclass(frozen=True, slots=True)
class PairOptions:
    """How pairs are drawn. `min_score_gap`: a pair's scores are at least that far apart.

    `max_chars` holds for each text as written: the prompt (title and body) and each answer. Whatever it is,
    posts of more than 100,000 characters of HTML count as over-long.
    """

    seed: int
    pairs_per_question: int = 1
    min_answers: int = 2
    min_score_gap: int = 1
    max_pairs: int | None = None
    max_chars: int = 8192
    keep_html: bool = False

    def __post_init__(self) -> None:
        for name in ("pairs_per_question", "min_score_gap", "max_chars", "max_pairs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if self.min_answers < 2:
            raise UserError(f"min_answers must be at least 2, got {self.min_answers}")


def make_pairs(
    posts: Sequence[Path | str],
    options: PairOptions,
    workdir: Path,
    counts: Counts | None = None,
    advance: Advance = no_progress,
) -> Iterator[Comparison | Skip]:
    """Comparisons, and a Skip for each row, answer or question left out for what it is; `counts` is filled on
    the way.

    `posts`: files, or `hf:org/name[:split]` of data sets with rows as
    HuggingFaceH4/stack-exchange-preferences has them. `advance` is told, now and then, how many more bytes of
    the files have been read. Without `max_pairs` questions come by site and id; with it in an order drawn by
    key, so that the pairs taken are a uniform sample of all sites and a larger limit only adds to them.
    Memory does not grow with the data; `workdir` holds an index about as large as the unpacked dump, which is
    gone when the iterator is finished or closed.
    """
    counts = counts if counts is not None else Counts()
    with PostIndex(workdir) as index:
        for source in posts:
            yield from store_items(read_source(source, advance), index, counts)
        for question in questions_in_order(index, options, counts):
            if options.max_pairs is not None and counts.pairs >= options.max_pairs:
                break
            for result in pairs_of_question(question, index, options):
                if isinstance(result, Skip):
                    counts.skips[result.reason] += 1
                elif options.max_pairs is not None and counts.pairs >= options.max_pairs:
                    break
                else:
                    counts.pairs += 1
                yield result


def store_items(items: Iterator[Item], index: PostIndex, counts: Counts) -> Iterator[Skip]:
    """Count the items of one source and put its posts into the index; a Skip for each that does not get
    there.
    """
    batch: list[Question | Answer] = []
    size = 0
    for item in items:
        if isinstance(item, POSTS):
            batch.append(item)
            size += len(item.body)
            if len(batch) >= BATCH_POSTS or size >= BATCH_CHARS:
                yield from store(batch, index, counts)
                batch, size = [], 0
        elif isinstance(item, Skip):
            counts.skips[item.reason] += 1
            yield item
        else:
            counts.other_posts += 1
    yield from store(batch, index, counts)


def store(posts: list[Question | Answer], index: PostIndex, counts: Counts) -> Iterator[Skip]:
    repeated = index.add(posts)
    for post in repeated:
        counts.skips[REPEATED] += 1
        yield Skip(f"{post.site.name}/{post.id}", REPEATED)
    questions = sum(isinstance(post, Question) for post in posts) - sum(
        isinstance(post, Question) for post in repeated
    )
    counts.questions += questions
    counts.answers += len(posts) - len(repeated) - questions


def questions_in_order(
    index: PostIndex, options: PairOptions, counts: Counts
) -> Iterator[tuple[int, list[Ranked]]]:
    """(key, answers) of each question with enough answers and two different scores, counting them and all
    others.
    """
    for question, answers in index.answers_by_question():
        if isinstance(answers, int):
            counts.orphan_answers += answers
        elif len(answers) >= options.min_answers:
            counts.answered_questions += 1
            if scores_differ(answers, options.min_score_gap):
                counts.usable_questions += 1
                if options.max_pairs is None:
                    yield question, answers
                else:
                    site = index.site(question)
                    draw = keys.key(options.seed, "pmp order", site.name, question % ID_LIMIT) >> 65
                    index.put_draw(draw, question)
    if options.max_pairs is not None:
        for question in index.questions_by_draw():
            yield question, index.answers_of(question)


def pairs_of_question(
    entry: tuple[int, list[Ranked]], index: PostIndex, options: PairOptions
) -> Iterator[Comparison | Skip]:
    """Up to `pairs_per_question` comparisons of one question, after a Skip for each answer that was dropped."""
    key, answers = entry
    site, number = index.site(key), key % ID_LIMIT
    base, place = key - number, f"{site.name}/{number}"
    kept = answers
    if needs_judging(answers, options):
        kept = []
        for answer, problem in judged_answers(answers, base, index, options):
            if problem:
                yield Skip(f"{place}/{answer.id}", f"answer {problem}")
            else:
                kept.append(answer)
    texts = Texts(base, index, options)
    while True:
        pairs = draw_pairs(
            kept,
            options.pairs_per_question,
            options.seed,
            "pmp",
            site.name,
            number,
            gap=options.min_score_gap,
        )
        if not pairs or len(kept) < options.min_answers:
            yield Skip(place, "question is left with too few answers")
            return
        texts.load([number, *(answer.id for pair in pairs for answer in pair)])
        fault = first_fault(pairs, texts)
        if fault is None:
            break
        answer, problem = fault
        yield Skip(f"{place}/{answer.id}", f"answer {problem}")
        kept = [other for other in kept if other.id != answer.id]
    question = texts.posts[number]
    prompt, problem = prompt_of(question, options)
    if problem:
        yield Skip(place, f"question {problem}")
        return
    for pair in pairs:
        yield comparison(site, number, prompt, question, pair, texts)


class Texts:
    """Posts of one question, read from the index together, and the texts of its answers, each converted once."""

    def __init__(self, base: int, index: PostIndex, options: PairOptions) -> None:
        self.base, self.index, self.options = base, index, options
        self.posts: dict[int, Stored] = {}
        self.known: dict[int, tuple[str, str | None]] = {}

    def load(self, ids: list[int]) -> None:
        wanted = list(dict.fromkeys(number for number in ids if number not in self.posts))
        for start in range(0, len(wanted), SLICE):
            self.posts |= self.index.posts(self.base, wanted[start : start + SLICE])

    def of(self, answer: Ranked) -> tuple[str, str | None]:
        """The text of an answer that was loaded, and what is wrong with it, if anything."""
        if answer.id not in self.known:
            self.known[answer.id] = readable(self.posts[answer.id].body, self.options)
        return self.known[answer.id]


def first_fault(pairs: list[tuple[Ranked, Ranked]], texts: Texts) -> tuple[Ranked, str] | None:
    """The first answer among those drawn that has to go, and why; then others are drawn. None: the pairs
    stand.

    Copies are found beforehand by `judged_answers`. That two answers are alike in most of their words shows
    only from their whole texts, so it is looked at where it matters: between the two of a pair. The lower one
    goes.
    """
    for better, worse in pairs:
        (text, problem), (other, its_problem) = texts.of(better), texts.of(worse)
        if problem:  # longer as text than as HTML, or nothing but scripts
            return better, problem
        if its_problem:
            return worse, its_problem
        if near_duplicates(text, other):
            return worse, NEAR_DUPLICATE
    return None


def prompt_of(question: Stored, options: PairOptions) -> tuple[str, str | None]:
    """Title, blank line and body of a question, and what is wrong with them, if anything."""
    text, problem = readable(question.body, options)
    title = " ".join((question.title or "").split())
    prompt = f"{title}\n\n{text}".strip()
    return prompt, problem or (TOO_LONG if len(prompt) > options.max_chars else None)


def needs_judging(answers: list[Ranked], options: PairOptions) -> bool:
    """Whether some answer may be over-long, a near-duplicate or without text: cheap, and False for most
    questions.
    """
    openings = {answer.opening for answer in answers}
    if len(openings) < len(answers) or None in openings or b"" in openings:
        return True
    return max(answer.length for answer in answers) > min(options.max_chars, HTML_LIMIT)


def judged_answers(
    answers: list[Ranked], base: int, index: PostIndex, options: PairOptions
) -> Iterator[tuple[Ranked, str | None]]:
    """Each answer, best first and then oldest, with what speaks against it, if anything.

    Only those so long that the limit might hit them are converted from HTML here: text is no longer than its
    HTML.
    """
    seen: set[bytes] = set()
    ranked = sorted(answers, key=lambda answer: (-answer.score, answer.id))
    for start in range(0, len(ranked), SLICE):
        some = ranked[start : start + SLICE]
        stored = index.posts(base, [answer.id for answer in some])
        for answer in some:
            body = stored[answer.id].body
            if len(body) > HTML_LIMIT:
                yield answer, TOO_LONG
                continue
            words = fingerprint(body)
            problem = NEAR_DUPLICATE if words and words in seen else None
            if not problem and (not words or len(body) > options.max_chars):
                problem = readable(body, options)[1]
            if not problem:
                seen.add(words)
            yield answer, problem


def readable(body: str, options: PairOptions) -> tuple[str, str | None]:
    """The text of a post's HTML, and what is wrong with it, if anything."""
    if len(body) > HTML_LIMIT:
        return "", TOO_LONG
    text = body.strip() if options.keep_html else html_to_text(body)
    if not text:
        return "", "has no text"
    return text, TOO_LONG if len(text) > options.max_chars else None


def comparison(
    site: Site,
    number: int,
    prompt_text: str,
    question: Stored,
    pair: tuple[Ranked, Ranked],
    texts: Texts,
) -> Comparison:
    """The record of one ranked pair, better answer first. Its id holds no counter, so any order of the work
    gives it.
    """
    prompt = [message("user", prompt_text)]
    prompt_key = prompt_id(prompt)
    better, worse = pair
    posts = {"question": question, "chosen": texts.posts[better.id], "rejected": texts.posts[worse.id]}
    return Comparison(
        id=f"{prompt_key}/{site.name}-{better.id}-{worse.id}",
        prompt_id=prompt_key,
        prompt=prompt,
        chosen=[message("assistant", texts.of(better)[0])],
        rejected=[message("assistant", texts.of(worse)[0])],
        probability=1.0,
        origin="votes",
        source=site.name,
        attribution={
            "site": site.name,
            "url": f"https://{site.host}/questions/{number}" if site.host else None,
            "question_id": number,
            "answer_ids": {"chosen": better.id, "rejected": worse.id},
            "authors": {name: post.author for name, post in posts.items()},
            "scores": {"chosen": better.score, "rejected": worse.score},
            "tags": parse_tags(question.tags or ""),
            "license": ", ".join(sorted({post.license for post in posts.values()})),
        },
    )
