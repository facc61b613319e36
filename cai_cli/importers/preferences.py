"""Preference data of the Hugging Face hub -> comparisons and revisions.

HuggingFaceH4/ultrafeedback_binarized, and HuggingFaceH4/cai-conversation-harmless (and its -old copy, whose
texts are {role, content} objects). `dropped` counts what is left out of rows that are taken.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

from cai_cli.importers.formats import Asked, Format
from cai_cli.importers.public_files import expect_fields, read_public_rows
from cai_cli.importers.reject import Item, Reject, Row, convert, text_of
from cai_cli.importers.tables import Columns, import_comparisons
from cai_cli.rows.conversation import message, prompt_id
from cai_cli.rows.foreign_turns import Refused
from cai_cli.rows.records import Comparison, Revision, Round

ULTRAFEEDBACK = Columns(
    prompt=None, id="prompt_id", score_chosen="score_chosen", score_rejected="score_rejected"
)
CAI_HARMLESS = Columns(prompt=None)


def import_ultrafeedback(
    items: Iterable[Item],
    kind: str = "helpful",
    source: str = "ultrafeedback",
    dropped: Counter[str] | None = None,
) -> Iterator[Comparison | Reject]:
    """ultrafeedback_binarized: labelled by a model, so origin "ai"; which pair was better by how much is not
    used.
    """
    return import_comparisons(items, ULTRAFEEDBACK, kind=kind, origin="ai", source=source, dropped=dropped)


def import_cai_comparisons(
    items: Iterable[Item],
    kind: str = "harmful",
    source: str = "cai-conversation-harmless",
    dropped: Counter[str] | None = None,
) -> Iterator[Comparison | Reject]:
    """cai-conversation-harmless: chosen is the revision, rejected the initial response; no judge was asked."""
    return import_comparisons(items, CAI_HARMLESS, kind=kind, origin="ai", source=source, dropped=dropped)


def import_cai_revisions(items: Iterable[Item], kind: str = "harmful") -> Iterator[Revision | Reject]:
    """cai-conversation-harmless: the one critique and revision behind each pair.

    The data does not name its principles: equal critique requests get the same id, made from their text.
    """

    counts: Counter[str] = Counter()

    def parse(row: Row) -> list[Revision]:
        names = (
            "init_prompt",
            "init_response",
            "critic_prompt",
            "critic_response",
            "revision_prompt",
            "revision_response",
        )
        texts = [plain_text(row, name) for name in names]
        prompt = [message("user", texts[0])]
        principle = f"critique-{hashlib.sha256(texts[2].encode()).hexdigest()[:8]}"
        step = Round(principle, *texts[2:])
        initial, final = [message("assistant", texts[1])], [message("assistant", texts[5])]
        identity = prompt_id(prompt)
        counts[identity] += 1
        return [Revision(f"{identity}/{counts[identity] - 1}", prompt, final, initial, [step], kind)]

    return convert(items, parse)


def plain_text(row: Row, name: str) -> str:
    """A text field that is not empty; in the -old copy it is an object with the text in `content`."""
    value = row.get(name)
    text = text_of(value if isinstance(value, dict) else {"content": value}, "content").strip()
    if not text:
        raise Refused("empty_text", f"field `{name}`")
    return text


def pairs(asked: Asked) -> Iterator[Item]:
    return expect_fields(asked.path, read_public_rows(asked.path), "chosen", "rejected")


def chains(asked: Asked) -> Iterator[Item]:
    return expect_fields(asked.path, read_public_rows(asked.path), "init_prompt")


FORMATS = {
    "cai-conversation": Format(
        "of HuggingFaceH4",
        {
            "revisions": lambda asked: import_cai_revisions(chains(asked), **asked.given),
            "comparisons": lambda asked: import_cai_comparisons(
                pairs(asked), **asked.given, dropped=asked.dropped
            ),
        },
    ),
    "ultrafeedback": Format(
        "of HuggingFaceH4",
        {
            "comparisons": lambda asked: import_ultrafeedback(
                pairs(asked), **asked.given, dropped=asked.dropped
            )
        },
    ),
}
