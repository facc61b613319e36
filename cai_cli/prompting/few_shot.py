r"""Few-shot demonstrations in front of critique-revision transcripts (for those of comparisons see
`solved_questions`).

In: a shipped set (`default`), `none`, or a file: our YAML (cai_cli/prompting/demonstrations) or the paper's
JSON as published (CritiqueRevisionFewShotPrompts.json). Out: transcript texts, ready to be put in front.
Errors: UserError that names the file, the demonstration and the field.
Source: Constitutional AI (arXiv 2212.08073), section 3.1 (the model mixes up critique and revision without
examples).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai_cli.errors import RecordError, UserError
from cai_cli.prompting.prompts import (
    CRITIQUE,
    CRITIQUE_REQUEST,
    REVISION,
    REVISION_REQUEST,
    revision_prompt,
)
from cai_cli.rows.conversation import (
    ASSISTANT,
    HUMAN,
    Conversation,
    TranscriptError,
    check_conversation,
    from_transcript,
    message,
    unix_lines,
)
from cai_cli.rows.json_text import JsonError, load_json
from cai_cli.rows.jsonl import ENCODING_ADVICE, read_whole
from cai_cli.rows.storage import is_input
from cai_cli.rows.yaml_text import load_yaml

NONE = "none"
DEFAULT = "default"
AUTO = "auto"
CRITIQUE_SET = "critique_revision"
CRITIQUE_FIELDS = ("response", "critique_request", "critique", "revision_request", "revision")


def load_critique_demonstrations(name_or_path: str = DEFAULT) -> list[str]:
    r"""Transcripts that start with `\n\nHuman:` and end with a revision; "none" gives no demonstrations.

    The paper's file is a list of such strings, most with a dangling `\n\nHuman:` at the end, which is cut
    off.
    """
    if name_or_path == NONE:
        return []
    path = find_demonstrations(name_or_path, CRITIQUE_SET)
    return [
        checked_transcript(item, place)
        if isinstance(item, str)
        else render_critique_demonstration(item, place)
        for place, item in numbered(path)
    ]


def few_shot_prefix(demonstrations: Sequence[str]) -> str:
    r"""The demonstrations in one string. Each starts with `\n\nHuman:`, so they join without a separator."""
    return "".join(demonstrations)


def demonstration_turns(demonstration: str) -> Conversation:
    """The same demonstration as the turns of a chat: critique and revision are asked for by the user."""
    rest, _, revision = demonstration.rpartition(REVISION)
    rest, _, revision_request = rest.rpartition(REVISION_REQUEST)
    asked = [message("user", revision_request.strip()), message("assistant", revision.strip())]
    if CRITIQUE_REQUEST in rest:
        rest, _, critique = rest.rpartition(CRITIQUE)
        rest, _, critique_request = rest.rpartition(CRITIQUE_REQUEST)
        asked = [message("user", critique_request.strip()), message("assistant", critique.strip()), *asked]
    return [*from_transcript(rest), *asked]


def without_critique(demonstration: str) -> str:
    """The same demonstration for direct revision (paper section 3.5): critique request and critique are left
    out.
    """
    start, end = demonstration.rfind(CRITIQUE_REQUEST), demonstration.rfind(REVISION_REQUEST)
    return demonstration[:start] + demonstration[end:] if 0 <= start < end else demonstration


def shipped_demonstrations() -> Path:
    return Path(__file__).parent / "demonstrations"


def find_demonstrations(name_or_path: str, default: str) -> Path:
    path = Path(name_or_path)
    if is_input(path):
        return path
    shipped = shipped_demonstrations() / f"{default if name_or_path == DEFAULT else name_or_path}.yaml"
    if is_input(shipped):
        return shipped
    raise UserError(
        f"no demonstrations {name_or_path!r}", f"give a YAML or JSON file, `{DEFAULT}` or `{NONE}`"
    )


def numbered(path: Path) -> list[tuple[str, Any]]:
    """The demonstrations of a file, each with its place for errors."""
    try:
        text = read_whole(path).decode("utf-8-sig")
        # JSON apart from YAML: a JSON text may hold what YAML forbids, and its errors name the line just as
        # well.
        data = load_json(text) if path.suffix == ".json" else load_yaml(text, path)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text", ENCODING_ADVICE) from None
    except JsonError as error:
        raise UserError(f"{path}:{error.line}: not valid JSON: {error.message}", "correct it there") from None
    items = data.get("demonstrations") if isinstance(data, dict) else data
    if not isinstance(items, list) or not items:
        raise UserError(
            f"{path}: field `demonstrations`: expected a non-empty list", f"`{NONE}` means none at all"
        )
    return [(f"{path}: demonstrations[{n}]", item) for n, item in enumerate(items)]


def checked_transcript(text: str, place: str) -> str:
    """A demonstration given as one string: its dangling next turn cut off, its parts there and in order."""
    text = text.rstrip()
    while text.endswith((HUMAN, ASSISTANT)):
        text = text[: text.rfind("\n\n")].rstrip()
    if not text.startswith(HUMAN):
        text = f"\n\n{text.lstrip()}"
    ends = [text.rfind(marker) for marker in (HUMAN, ASSISTANT, REVISION_REQUEST, REVISION)]
    if (
        not text.startswith(HUMAN)
        or ends != sorted(ends)
        or -1 in ends
        or not text[ends[-1] + len(REVISION) :].strip()
    ):
        raise UserError(
            f"{place}: not a demonstration of critique and revision",
            "expected Human, Assistant, CritiqueRequest, Critique, RevisionRequest and Revision, in this order",
        )
    if text.count(CRITIQUE_REQUEST) != text.count(CRITIQUE):
        raise UserError(f"{place}: a CritiqueRequest without its Critique")
    return text


def render_critique_demonstration(item: Any, place: str) -> str:
    if not isinstance(item, dict):
        raise UserError(f"{place}: expected the fields prompt, {', '.join(CRITIQUE_FIELDS)}")
    prompt = read_prompt(item.get("prompt"), place)
    texts = {name: read_text(item, name, place) for name in CRITIQUE_FIELDS}
    revision = texts.pop("revision")
    return f"{revision_prompt(prompt, **texts)} {revision}"


def read_text(item: dict[str, Any], name: str, place: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: field `{name}`: missing or empty")
    return value.strip()


def read_prompt(value: Any, place: str) -> Conversation:
    r"""A prompt given as one human turn, as a list of turns, or as a transcript (a cue `\n\nAssistant:` is
    cut off).
    """
    try:
        value = unix_lines(value) if isinstance(value, str) else value
        if isinstance(value, str) and value.startswith(HUMAN):
            value = from_transcript(value.rstrip().removesuffix(ASSISTANT))
        elif isinstance(value, str):
            value = [message("user", value.strip())]
        return check_conversation(value, "prompt", ends_with="user")
    except TranscriptError as error:
        raise RecordError("prompt", str(error), place=place) from None
    except RecordError as error:
        raise error.at(place) from None
