r"""Anthropic's hh-rlhf (`{"chosen": transcript, "rejected": transcript}`, .jsonl or .jsonl.gz) -> prompts or
comparisons.

The last reply is what follows the last `\n\nAssistant:`; what is before it is the prompt, parsed by
`from_transcript`. Each row is imported or rejected:

- rejected: text that is no transcript or starts with the assistant, an empty turn before the last reply;
- rejected as comparisons only, where the label would be wrong or say nothing: pairs that do not share their prompt, an empty
  reply, identical replies, a transcript that ends in a human turn, a prompt that ends in an assistant turn (which of the two
  replies in a row was judged is not known). As prompts these rows do no harm, since the reply is not used;
- accepted: repeated roles further up (the text stays in the turn that is going on) and markers that start no turn.

Source: https://github.com/anthropics/hh-rlhf and arXiv 2204.05862.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cai_cli.importers.formats import Asked, Format
from cai_cli.importers.public_files import expect_fields, read_public_rows
from cai_cli.importers.reject import Reject, Row, convert, number_comparisons, text_of
from cai_cli.importers.transcript import prompts_of_turns
from cai_cli.rows.conversation import ASSISTANT, HUMAN, Conversation, message, prompt_id, unix_lines
from cai_cli.rows.foreign_turns import Refused, parse_transcript
from cai_cli.rows.records import Comparison, Prompt

SOURCE = "hh-rlhf"


def import_prompts(
    path: Path, *, every_turn: bool = False, kind: str | None = None, source: str = SOURCE
) -> Iterator[Prompt | Reject]:
    """One prompt a row, that of the last reply, or with `every_turn` one per human turn (paper section 3.2).

    Rows often share prompts: see `Tally.merge_identical`.
    """
    parse = partial(prompts_of_row, every_turn=every_turn, kind=kind, source=source)
    return convert(expect_fields(path, read_public_rows(path), "chosen"), parse)


def import_comparisons(
    path: Path, *, kind: str | None = None, source: str = SOURCE
) -> Iterator[Comparison | Reject]:
    """One comparison a row, labelled by a human: origin "human", probability 1."""
    parse = partial(comparison_of_row, kind=kind, source=source)
    return number_comparisons(
        convert(expect_fields(path, read_public_rows(path), "chosen"), lambda row: [parse(row)])
    )


def kind_of_path(path: Path) -> str | None:
    """What the published folders say: harmless-* and red-team-* hold harmful prompts, helpful-* helpful ones."""
    for part in reversed(path.parts):
        if part.startswith(("harmless", "red-team", "red_team")):
            return "harmful"
        if part.startswith("helpful"):
            return "helpful"
    return None


def prompts_of_row(row: Row, *, every_turn: bool, kind: str | None, source: str) -> list[Prompt]:
    """The prompts of the chosen transcript. Raises Refused."""
    return prompts_of_turns(parse_transcript(text_of(row, "chosen")), every_turn, kind, source)


def comparison_of_row(row: Row, *, kind: str | None, source: str) -> Comparison:
    """The comparison of a row, its id still that of the prompt. Raises Refused."""
    prompt, chosen = split_last_reply(text_of(row, "chosen"))
    other_prompt, rejected = split_last_reply(text_of(row, "rejected"))
    if prompt != other_prompt:  # the label may be about an earlier turn, or a reply runs on into the next one
        raise Refused(
            "prompts_differ", f"chosen has {len(prompt)} turns before the reply, rejected {len(other_prompt)}"
        )
    for name, reply in (("chosen", chosen), ("rejected", rejected)):
        if not reply:
            raise Refused("empty_reply", name)
    if chosen == rejected:
        raise Refused("identical", chosen[:200])
    if prompt[-1]["role"] != "user":
        raise Refused("two_replies_in_a_row")
    identity = prompt_id(prompt)
    replies = ([message("assistant", chosen)], [message("assistant", rejected)])
    return Comparison(identity, identity, prompt, *replies, 1.0, "human", kind, source)


def split_last_reply(text: str) -> tuple[Conversation, str]:
    """The prompt and the last reply, which may be empty. Raises Refused."""
    text = unix_lines(text)
    at = text.rfind(ASSISTANT)
    if at < 0:
        raise Refused("no_reply", "no 'Assistant:' in it")
    reply = text[at + len(ASSISTANT) :]
    if HUMAN in reply:
        raise Refused("ends_in_human_turn")
    return parse_transcript(text[:at]), reply.strip()


def prompts_asked(asked: Asked) -> Iterator[Prompt | Reject]:
    return import_prompts(asked.path, every_turn=asked.every_turn, kind=asked.kind, **asked.source)


def comparisons_asked(asked: Asked) -> Iterator[Comparison | Reject]:
    return import_comparisons(asked.path, kind=asked.kind, **asked.source)


FORMATS = {
    "hh-rlhf": Format(
        "Anthropic's transcripts",
        {"prompts": prompts_asked, "comparisons": comparisons_asked},
        every_turn=True,
    )
}
