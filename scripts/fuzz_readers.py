"""Throw generated files at every reader: no error but ours, none slow, none large.

    python scripts/fuzz_readers.py --cases 10000 --seed 0

A case is a file (rows of every kind, mutated rows, nested and odd values, YAML, tables, transcripts, XML,
random bytes, other encodings and compressions) and a reader. Allowed: it reads, or raises a CaiError of one
line. Each case has `SECONDS` and may add `MEGABYTES` to the peak of the process. What fails is written into
--keep. Without torch.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import gzip
import io
import json
import lzma
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from cai_cli.errors import CaiError
from cai_cli.evaluation.multiple_choice import read_items
from cai_cli.feedback.pairs import comparisons_of_file, read_pairs
from cai_cli.importers import hh_rlhf, paper_chains, paper_samples, preferences, red_team, tables
from cai_cli.importers.post_files import read_file
from cai_cli.importers.public_files import read_public_rows
from cai_cli.importers.reject import Reject
from cai_cli.models.templates import template_kwargs
from cai_cli.prompting.constitution import load_constitution
from cai_cli.prompting.few_shot import load_critique_demonstrations
from cai_cli.prompting.published import import_constitution
from cai_cli.prompting.solved_questions import load_comparison_demonstrations
from cai_cli.rows.jsonl import dump_row, read_records, read_rows
from cai_cli.rows.prompt_files import read_prompts
from cai_cli.rows.trl_rows import RowReader
from cai_cli.rows.yaml_text import load_yaml
from cai_cli.stages.inspect_file import page_of
from cai_cli.training.sft.data import read_targets

SECONDS, MEGABYTES = 2.0, 300.0

# Readers: each consumes the file and writes what it has read as the commands would.


def written(items: Iterator[Any]) -> None:
    for item in items:
        row = {"line": item.line, "row": item.row} if isinstance(item, Reject) else item.to_row()
        dump_row(row).encode()


def inspected(path: Path) -> None:
    for _, row in read_rows(path):
        page_of(row)
        dump_row(row).encode()


def imported(make: Callable[..., Iterator[Any]], columns: tables.Columns) -> Callable[[Path], None]:
    return lambda path: written(make(read_public_rows(path), columns))


TURNS = tables.Columns(prompt="messages")
READERS: dict[str, Callable[[Path], Any]] = {
    "prompts": lambda path: [dump_row(prompt.to_row()).encode() for prompt in read_prompts([str(path)])],
    "comparisons": lambda path: written(read_records(path, RowReader().comparison)),
    "samples": lambda path: written(read_records(path, RowReader().sample)),
    "sft": lambda path: list(read_targets(str(path), "all", 0)),
    "pairs": lambda path: list(read_pairs([str(path)])),
    "labelled": lambda path: list(comparisons_of_file(path)),
    "chains": lambda path: written(read_records(path, paper_chains.PublishedChain.from_row)),
    "items": lambda path: list(read_items(path)),
    "inspect": inspected,
    "hh prompts": lambda path: written(hh_rlhf.import_prompts(path, every_turn=True)),
    "hh comparisons": lambda path: written(hh_rlhf.import_comparisons(path)),
    "red-team": lambda path: written(red_team.import_prompts(path)),
    "paper-chains": lambda path: written(paper_chains.import_chains(path)),
    "paper-samples": lambda path: written(paper_samples.import_samples(path)),
    "ultrafeedback": lambda path: written(preferences.import_ultrafeedback(read_public_rows(path))),
    "cai revisions": lambda path: written(preferences.import_cai_revisions(read_public_rows(path))),
    "table prompts": imported(tables.import_prompts, tables.Columns(id="id")),
    "table turns": imported(tables.import_prompts, TURNS),
    "table samples": imported(tables.import_samples, tables.Columns(id="id", kind="kind")),
    "table comparisons": imported(
        tables.import_comparisons, tables.Columns(id="id", probability="probability")
    ),
    "posts": lambda path: list(read_file(path)),
    "constitution": lambda path: load_constitution(str(path)),
    "paper constitution": import_constitution,
    "demonstrations": lambda path: load_critique_demonstrations(str(path)),
    "solved questions": lambda path: load_comparison_demonstrations(str(path)),
    "configuration": lambda path: json.dumps(load_yaml(path.read_bytes(), path)),
    "template settings": lambda path: json.dumps(
        template_kwargs(path.read_bytes().decode("utf-8", "surrogateescape"))
    ),
}

# Values

TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "",
            " ",
            "q",
            "\n\nHuman: q\n\nAssistant: a",
            "Human: q\r\n\r\nAssistant: a",
            "\\n\\nHuman: q",
            "[{'role': 'user', 'content': 'q'}]",
            '[{"from": "human", "value": "q"}]',
            "[{'role': 'user', 'content': ",
            "helpful",
            "2024-01-01",
            "1e999",
            "\x00\x1b[31m",
            "=1+1",
            "nan",
            '"',
            'a "b" c',
            "\n\nCritiqueRequest: w\n\nCritique:",
            " Options:",
        ]
    ),
)
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, 2**63, -1, 0.5, 1, True]))
SCALARS = st.one_of(st.none(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
ROLES = st.sampled_from(
    ["user", "assistant", "system", "developer", "human", "gpt", "tool", "User", "", None, 3]
)
CONTENTS = st.one_of(
    TEXTS,
    st.lists(st.fixed_dictionaries({"type": st.sampled_from(["text", "image"]), "text": TEXTS})),
    VALUES,
)
TURN = st.one_of(
    st.fixed_dictionaries({"role": ROLES, "content": CONTENTS}),
    st.fixed_dictionaries({"from": ROLES, "value": CONTENTS}),
    st.fixed_dictionaries({"role": ROLES}, optional={"content": CONTENTS, "tool_calls": VALUES}),
    VALUES,
)


def turn(role: str, text: str = "q") -> dict[str, str]:
    return {"role": role, "content": text}


CONVERSATIONS = st.one_of(
    st.lists(TURN, max_size=4),
    st.just([turn("user")]),
    st.just([turn("user"), turn("assistant", "a")]),
    TEXTS,
)
PROMPT, REPLY = [turn("user")], [turn("assistant", "a")]
ROUND = {"principle": "p", "critique_request": "c", "critique": "c", "revision_request": "r", "revision": "v"}
STEP = {
    "cst_key": "k",
    "cst_value": {
        "prompt": ["\n\nCritiqueRequest: w\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: m\n\nRevision:",
    },
    "critique": {"sample": " c"},
    "revision": {"sample": " r\n\nHuman:"},
}
TRANSCRIPTS = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
REAL: list[dict[str, Any]] = [
    {"id": "i", "prompt": PROMPT, "kind": "harmful", "source": None},
    {"id": "i/0", "prompt": PROMPT, "completion": REPLY, "finish_reason": "stop", "hygiene": ""},
    {
        "id": "i/0",
        "prompt": PROMPT,
        "chosen": REPLY,
        "rejected": [turn("assistant", "b")],
        "probability": 1,
        "origin": "human",
    },
    {"id": "i/0", "prompt": PROMPT, "completion": REPLY, "initial": REPLY, "rounds": [ROUND]},
    TRANSCRIPTS,
    {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 2, "score_rejected": 1},
    {"messages": [*PROMPT, *REPLY]},
    {"rl_prompt": "\n\nHuman: q\n\nAssistant:", "initial_response": [{"sample": " a"}], "cst": [STEP]},
    {"transcript": TRANSCRIPTS["chosen"], "rating": 1.0},
    {"prompt": "q Options:\n (A) a\n (B) b\nThe answer is:", "corrects": [" (A)"], "incorrects": [" (B)"]},
    {
        "qid": 1,
        "question": "<p>q</p>",
        "answers": [{"answer_id": 2, "pm_score": 1, "text": "a"}],
        "metadata": ["https://a.net"],
    },
    {
        "init_prompt": "q",
        "init_response": "a",
        "critic_prompt": "c",
        "critic_response": "d",
        "revision_prompt": "e",
    },
    {"id": "line-1", "reason": "empty", "detail": "", "row": {"prompt": ""}},
    {"stage": "sft", "options": {}, "inputs": [], "models": []},
    {"data": [{"prompt": "q"}]},
]
FIELDS = sorted({field for row in REAL for field in row})


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A real row, some of whose fields hold something else, are gone, or are new."""
    row = dict(draw(st.sampled_from(REAL)))
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.one_of(st.sampled_from(sorted(row) or FIELDS), st.sampled_from(FIELDS)))
        action = draw(st.sampled_from(["turns", "value", "drop", "inside"]))
        if action == "drop":
            row.pop(name, None)
        elif (
            action == "inside"
            and isinstance(row.get(name), list)
            and row[name]
            and isinstance(row[name][0], dict)
        ):
            inner = dict(row[name][0])
            inner[draw(st.one_of(st.sampled_from(sorted(inner) or [""]), TEXTS))] = draw(VALUES)
            row[name] = [inner, *row[name][1:]]
        else:
            row[name] = draw(CONVERSATIONS if action == "turns" else VALUES)
    return row


# Files


def dumped(row: Any) -> str:
    return json.dumps(row)  # with NaN and lone surrogates, as other tools write them


NESTED = st.builds(
    lambda mark, depth, row: row.replace("0", mark[0] * depth + mark[1] * depth),
    st.sampled_from(["[]", "{}", ('{"a":', "}"), ("[", "")]),
    st.sampled_from([3, 99, 101, 990, 20_000]),
    st.sampled_from(["0", '{"prompt": 0}', '{"prompt": "q", "x": 0}', "[0]"]),
)
LITERALS = st.sampled_from(
    [
        '{"prompt": "q", "prompt": "r"}',
        '{"prompt": "q", "n": NaN}',
        '{"prompt": "q", "n": ' + "9" * 5000 + "}",
        '{"prompt": "q", "n": 1e999}',
        '{"prompt": "q", "n": "\\udfff"}',
        '{"\\ud800": "q", "prompt": "r"}',
        "{",
        "[",
        "null",
        "\x1e{}",
        "\u2028",
    ]
)
LINES = st.one_of(mutated().map(dumped), mutated().map(dumped), VALUES.map(dumped), NESTED, LITERALS, TEXTS)
JSONL = st.lists(LINES, min_size=1, max_size=4).map("\n".join)
ARRAYS = st.lists(st.one_of(mutated(), VALUES), max_size=4).map(dumped)
PRETTY = mutated().map(lambda row: json.dumps(row, indent=1))


@st.composite
def tables(draw: st.DrawFn) -> str:
    names = draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=4, unique=True))
    rows = draw(st.lists(st.lists(TEXTS, min_size=len(names), max_size=len(names) + 1), max_size=4))
    separator = draw(st.sampled_from(",,\t;|"))
    if draw(st.booleans()):
        return "\n".join(separator.join(row) for row in [names, *rows])
    stream = io.StringIO()
    csv.writer(stream, delimiter=separator).writerows([names, *rows])
    return stream.getvalue()


YAML_BITS = [
    "a",
    "- a",
    "principles:",
    "&x ",
    "*x",
    "<<: *x",
    "? [a]",
    "!!binary aGk=",
    "2024-01-01",
    ".inf",
    "on: 1",
    "|",
    "{",
    "[",
    "\t",
]
YAML_BITS += [
    "- id: a",
    "  critique: c",
    "  revision: r",
    "  comparison: p",
    "demonstrations:",
    '"\\ud800"',
    "1:30:99",
    "0x_",
    "%TAG",
    "---",
]
YAML = st.lists(st.one_of(st.sampled_from(YAML_BITS), TEXTS), max_size=12).flatmap(
    lambda bits: st.sampled_from(["\n", " ", ""]).map(lambda glue: glue.join(bits))
)
BOMBS = st.builds(
    lambda levels, width, head: (
        head
        + "\n".join(f"k{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * width)}]" for n in range(levels))
    ),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from(["", "name: x\n"]),
)
ROW_XML = '<row Id="{0}" PostTypeId="{1}" Body="{2}" Score="{0}" ParentId="1" />'
XML = st.builds(
    lambda head, rows, tail: head + "".join(ROW_XML.format(*row) for row in rows) + tail,
    st.sampled_from(
        [
            "<posts>",
            '<?xml version="1.0"?><posts>',
            '<!DOCTYPE a [<!ENTITY b "c">]><posts>',
            "<html>",
            "<posts>&b;",
        ]
    ),
    st.lists(
        st.tuples(
            st.sampled_from(["1", "2", "x", "9" * 30]),
            st.sampled_from("1234"),
            st.sampled_from(["a", "&lt;p&gt;", "&#0;"]),
        )
    ),
    st.sampled_from(["</posts>", "", "</post>", "<" * 99]),
)
JSONL_NAMES, ANY_NAMES = (
    (".jsonl", ".json", ".jsonl.gz", ""),
    (".jsonl", ".json", ".csv", ".tsv", ".txt", ".yaml", ".xml", ".parquet"),
)
DOCUMENTS = st.one_of(
    *[st.tuples(JSONL, st.sampled_from(JSONL_NAMES))] * 4,
    st.tuples(st.one_of(ARRAYS, PRETTY), st.sampled_from(JSONL_NAMES)),
    *[st.tuples(tables(), st.sampled_from((".csv", ".tsv")))] * 2,
    st.tuples(st.one_of(YAML, BOMBS), st.sampled_from((".yaml", ".json"))),
    st.tuples(XML, st.just(".xml")),
    st.tuples(st.one_of(JSONL, tables(), YAML, XML, st.text(max_size=60)), st.sampled_from(ANY_NAMES)),
)
ENCODINGS = ("utf-8",) * 40 + ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1")
PACKINGS: tuple[Callable[[bytes], bytes], ...] = (bytes,) * 30 + (gzip.compress, bz2.compress, lzma.compress)


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, str]:
    """The bytes of a file and how its name ends."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=80)), draw(st.sampled_from(ANY_NAMES))
    text, suffix = draw(DOCUMENTS)
    if draw(st.integers(0, 5)) == 0:
        text = text.replace("\n", "\r\n")
    content = text.encode(draw(st.sampled_from(ENCODINGS)), "replace")
    content = draw(st.sampled_from(PACKINGS))(content)
    if content and draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(content) - 1))
        content = content[:at] + draw(st.binary(max_size=3)) + content[at + draw(st.integers(0, 3)) :]
    return content, suffix


# Running


class Failed(Exception):
    """A case that a reader did not survive as it should."""


def run_case(reader: str, content: bytes, suffix: str, folder: Path) -> str:
    """ "read" or "refused". Raises Failed with what went wrong."""
    path = folder / f"case{suffix}"
    path.write_bytes(content)
    before, started = peak_megabytes(), time.monotonic()
    outcome = "read"
    try:
        READERS[reader](path)
    except CaiError as error:
        outcome = "refused"
        if not error.message:
            raise Failed(f"no message: {error!r}") from None
    except Exception:
        raise Failed(traceback.format_exc()) from None
    seconds, grown = time.monotonic() - started, peak_megabytes() - before
    if seconds > SECONDS or grown > MEGABYTES:
        raise Failed(f"{seconds:.2f} s, {grown:.0f} MB")
    if set(folder.iterdir()) != {path} or path.read_bytes() != content:
        raise Failed("the reader wrote something")
    path.unlink()
    return outcome


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(
    cases: int, seed: int, keep: Path | None = None, readers: tuple[str, ...] = tuple(READERS)
) -> Counter[str]:
    """Run the cases; returns counts of outcomes. Raises Failed at the first failure, shrunk, where nothing is
    kept.
    """
    counts: Counter[str] = Counter()
    slowest = [0.0, ""]
    with tempfile.TemporaryDirectory() as folder:

        @seeded(seed)
        @settings(
            max_examples=cases,
            deadline=None,
            database=None,
            phases=[Phase.generate] if keep else [Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.sampled_from(readers), files())
        def one(reader: str, file: tuple[bytes, str]) -> None:
            started = time.monotonic()
            try:
                counts[run_case(reader, *file, Path(folder))] += 1
            except Failed as failure:
                if keep is None:
                    raise
                counts["failed"] += 1
                keep.mkdir(parents=True, exist_ok=True)
                stem = f"{counts['failed']:04}-{reader.replace(' ', '-')}"
                (keep / f"{stem}{file[1]}").write_bytes(file[0])
                (keep / f"{stem}.why").write_text(str(failure))
                for left in Path(folder).iterdir():
                    left.unlink()
            slowest[:] = max(slowest, [time.monotonic() - started, reader])

        one()
    counts["slowest case in ms"] = round(1000 * slowest[0])
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    given_options = parser.parse_args()
    started = time.monotonic()
    counts = fuzz(given_options.cases, given_options.seed, given_options.keep)
    seconds = time.monotonic() - started
    print(f"{dict(counts)}, {seconds:.0f} s, peak {peak_megabytes():.0f} MB")
    sys.exit(bool(counts["failed"]))


if __name__ == "__main__":
    main()
