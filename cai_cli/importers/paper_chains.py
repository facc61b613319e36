r"""The paper's published critique-revision chains (`*_SLMADISON.jsonl`) <-> revision rows, without loss both
ways.

A published row: `rl_prompt` (transcript with a cue), `initial_response` [{"sample"}], `cst`, a list of
{`cst_key`, `cst_value` {`prompt` [text], `edit_request`}, `critique` {"sample"}, `revision` {"sample"}},
`comparison_dataset`, and in some files `comparison_model`.

A Revision holds the texts themselves: without the space in front, trailing white space, rulers of dashes and
stop text such as `\n\nHuman:`. Beside it stands `published`: the row as it came, each text that the Revision
holds replaced by the pair [what was before it, what was after it]. Export puts the texts back, so unknown
fields and the order of the keys survive, and a text edited in between comes out edited.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai_cli.errors import RecordError, UserError
from cai_cli.importers.formats import Format
from cai_cli.importers.public_files import expect_fields, read_public_rows
from cai_cli.importers.reject import Reject, Row, convert
from cai_cli.prompting.prompts import CRITIQUE, CRITIQUE_REQUEST, REVISION, REVISION_REQUEST, TRANSCRIPT_STOPS
from cai_cli.prompting.published import request_texts
from cai_cli.rows.conversation import ASSISTANT, Conversation, message, prompt_id, to_transcript
from cai_cli.rows.foreign_turns import Refused, parse_transcript
from cai_cli.rows.records import Revision, Round
from cai_cli.rows.row_kinds import REVISIONS, kind_taken

# A stop text, with line breaks of Windows too.
STOP = re.compile("|".join(r"\r?\n".join(map(re.escape, marker.split("\n"))) for marker in TRANSCRIPT_STOPS))
RULER = re.compile(r"\n\n-{3,}\s*$")


@dataclass(frozen=True, slots=True)
class PublishedChain:
    """A revision, and the shell of the row that it came from."""

    revision: Revision
    published: Row

    def to_row(self) -> Row:
        """The revision's row with the field `published`, which stages that read revisions pass over."""
        return {**self.revision.to_row(), "published": self.published}

    @property
    def id(self) -> str:
        return self.revision.id

    @classmethod
    def from_row(cls, row: Row) -> PublishedChain:
        """A row that `import_chains` made, or any revisions row, which gets the shell of a published one."""
        kind_taken(row, REVISIONS)
        revision = Revision.from_row(row)
        published = row.get("published")
        return cls(revision, published if isinstance(published, dict) else plain_shell(revision))


def import_chains(path: Path, *, kind: str | None = "harmful") -> Iterator[PublishedChain | Reject]:
    """One chain a row, with the id `<prompt id>/<k>`, k counting the chains on one prompt."""
    counts: Counter[str] = Counter()

    def parse(row: Row) -> list[PublishedChain]:
        chain = chain_of_row(row, kind)
        identity = chain.revision.id
        chain.revision.id = f"{identity}/{counts[identity]}"
        counts[identity] += 1
        return [chain]

    return convert(expect_fields(path, read_public_rows(path), "rl_prompt", "cst"), parse)


def chain_of_row(row: Row, kind: str | None) -> PublishedChain:
    """Raises Refused for rows that are no such chain."""
    try:
        prompt = parse_transcript(row["rl_prompt"].rstrip().removesuffix(ASSISTANT), whole=False)
        initial, initial_shell = peel(row["initial_response"][0]["sample"])
        pairs = [round_of_step(step) for step in row["cst"]]
    except KeyError as error:
        raise Refused("not_a_chain", f"no field `{error.args[0]}`") from None
    except (TypeError, AttributeError, IndexError) as error:
        raise Refused("not_a_chain", f"{type(error).__name__}: {error}") from None
    if not pairs:
        raise Refused("not_a_chain", "field `cst`: no steps")
    rounds = [pair[0] for pair in pairs]
    texts = (initial, *(text for step in rounds for text in (step.critique, step.revision)))
    if not all(texts):
        raise Refused("empty_text", "a response, critique or revision is empty")
    if prompt[-1]["role"] != "user":
        raise Refused("not_a_chain", "field `rl_prompt`: does not end in a human turn")
    shell = {
        **row,
        "rl_prompt": None if row["rl_prompt"] == prompt_text(prompt) else row["rl_prompt"],
        "initial_response": [
            {**row["initial_response"][0], "sample": initial_shell},
            *row["initial_response"][1:],
        ],
        "cst": [pair[1] for pair in pairs],
    }
    reply = [message("assistant", rounds[-1].revision)]
    revision = Revision(prompt_id(prompt), prompt, reply, [message("assistant", initial)], rounds, kind)
    return PublishedChain(revision, shell)


def plain_shell(revision: Revision) -> Row:
    """The shell of a chain of ours: texts with one space in front, as published. Raises RecordError without
    critiques.
    """
    if not all(step.critique for step in revision.rounds):
        raise RecordError("rounds", "the published format has no place for revisions without a critique")
    sample = {"sample": [" ", ""]}
    steps = [
        {
            "cst_key": None,
            "cst_value": {"prompt": None, "edit_request": None},
            "critique": sample,
            "revision": sample,
        }
        for _ in revision.rounds
    ]
    return {"rl_prompt": None, "initial_response": [sample], "cst": steps}


def round_of_step(step: Row) -> tuple[Round, Row]:
    """The round, and the step with its texts peeled out."""
    try:
        critique_request, revision_request = request_texts(step["cst_value"], "cst_value")
    except UserError as error:
        raise Refused("not_a_chain", error.message) from None
    critique, critique_shell = peel(step["critique"]["sample"])
    revision, revision_shell = peel(step["revision"]["sample"])
    if not isinstance(step["cst_key"], str) or not step["cst_key"]:
        raise Refused("not_a_chain", "field `cst_key`: expected text")
    shell = {
        **step,
        "cst_key": None,
        "cst_value": {**step["cst_value"], "prompt": None, "edit_request": None},
        "critique": {**step["critique"], "sample": critique_shell},
        "revision": {**step["revision"], "sample": revision_shell},
    }
    return Round(step["cst_key"], critique_request, critique, revision_request, revision), shell


def peel(raw: str) -> tuple[str, list[str]]:
    """The text of a sample, and what was before and after it."""
    start = len(raw) - len(raw.lstrip())
    stop = STOP.search(raw)
    text = raw[start : max(start, stop.start() if stop else len(raw))].rstrip()
    text = RULER.sub("", text).rstrip()
    return text, [raw[:start], raw[start + len(text) :]]


def prompt_text(prompt: Conversation) -> str:
    return f"{to_transcript(prompt)}{ASSISTANT}"


def export_chain(chain: PublishedChain) -> Row:
    """The row in the published format. Raises UserError where `published` is not what import made, such as
    for other rounds.
    """
    revision, row = chain.revision, dict(chain.published)
    try:
        if row["rl_prompt"] is None:
            row["rl_prompt"] = prompt_text(revision.prompt)
        first, *others = row["initial_response"]
        row["initial_response"] = [fill(first, revision.initial[0]["content"]), *others]
        row["cst"] = [
            step_of_round(step, item) for step, item in zip(row["cst"], revision.rounds, strict=True)
        ]
    except (KeyError, TypeError, ValueError) as error:
        problem = f"revision {revision.id}: field `published`: does not fit the revision: {error}"
        raise UserError(problem, "import the published file again") from None
    return row


def step_of_round(shell: Row, item: Round) -> Row:
    value = {
        **shell["cst_value"],
        "prompt": [f"{CRITIQUE_REQUEST} {item.critique_request}{CRITIQUE}"],
        "edit_request": f"{REVISION_REQUEST} {item.revision_request}{REVISION}",
    }
    return {
        **shell,
        "cst_key": item.principle,
        "cst_value": value,
        "critique": fill(shell["critique"], item.critique),
        "revision": fill(shell["revision"], item.revision),
    }


def fill(shell: dict[str, Any], text: str) -> Row:
    before, after = shell["sample"]
    return {**shell, "sample": f"{before}{text}{after}"}


FORMATS = {
    "paper-chains": Format(
        "the paper's *_SLMADISON.jsonl", {"revisions": lambda asked: import_chains(asked.path, **asked.given)}
    )
}
