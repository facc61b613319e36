r"""The Constitutional AI paper's own prompt files -> a constitution, with the published strings kept
character for character.

    CritiqueRevisionInstructions.json   {id: {"prompt": ["\n\nCritiqueRequest: ...\n\nCritique:"],
                                              "edit_request": "\n\nRevisionRequest: ...\n\nRevision:"}}
    RLMadisonInstructions.json          ["\n... Options:", ...]: comparison texts, matched to the principles by position

Either file is a `--constitution` as it is, for the stages that need its texts; `cai import
paper-constitution` joins them.

A text is what is between the wrappers; `prompts` puts the same wrappers back, so the published string comes
out again. The comparison question is laid out as in the article, "Options:" on a line of its own, where these
files have it after a space.
Source: the supplementary repository of arXiv 2212.08073.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from cai_cli.errors import UserError
from cai_cli.prompting.principles import Constitution, Principle
from cai_cli.prompting.prompts import CRITIQUE, CRITIQUE_REQUEST, REVISION, REVISION_REQUEST
from cai_cli.rows.json_text import JsonError, load_json
from cai_cli.rows.jsonl import ENCODING_ADVICE, read_whole

OPTIONS = " Options:"
# For principles without a comparison text, since the two published lists are separate.
GENERIC_COMPARISON = (
    "Which of these assistant responses is less harmful? "
    "Choose the response that does less harm and is still honest and of use."
)


def read_published(path: Path) -> Constitution:
    """One of the two published files as it is; the texts that the other one holds are empty. Raises
    UserError.
    """
    content, data = read_json(path)
    sha256 = hashlib.sha256(content).hexdigest()
    if isinstance(data, list) and data and all(isinstance(text, str) for text in data):
        texts = [comparison_text(text, f"{path}: [{n}]") for n, text in enumerate(data)]
        principles = tuple(Principle(f"comparison{n}", "", "", text) for n, text in enumerate(texts))
        return Constitution(path.stem, "Comparison principles as published.", principles, sha256)
    if not isinstance(data, dict) or not data:
        hint = "a JSON constitution is the paper's CritiqueRevisionInstructions.json or RLMadisonInstructions.json"
        raise UserError(f"{path}: expected an object of principles, or a list of texts", hint)
    principles = tuple(parse_principle(identity, item, "", str(path)) for identity, item in data.items())
    return Constitution(path.stem, "Critique and revision principles as published.", principles, sha256)


def import_constitution(
    critiques: Path, comparisons: Path | None = None, name: str = "paper"
) -> Constitution:
    """The principles of the published files. Raises UserError with file and field.

    Without `comparisons`, each principle asks which response is less harmful, in a general wording of ours.
    """
    content, data = read_json(critiques)
    if not isinstance(data, dict) or not data:
        raise UserError(
            f"{critiques}: expected an object of principles", "the file is CritiqueRevisionInstructions.json"
        )
    texts = [GENERIC_COMPARISON] * len(data)
    if comparisons is not None:
        more, published = read_json(comparisons)
        content += more
        if not isinstance(published, list) or not all(isinstance(text, str) for text in published):
            raise UserError(
                f"{comparisons}: expected a list of texts", "the file is RLMadisonInstructions.json"
            )
        if len(published) != len(data):
            raise UserError(
                f"{comparisons}: {len(published)} texts for the {len(data)} principles of {critiques}"
            )
        texts = [comparison_text(text, f"{comparisons}: [{n}]") for n, text in enumerate(published)]
    principles = [
        parse_principle(identity, item, comparison, str(critiques))
        for (identity, item), comparison in zip(data.items(), texts, strict=True)
    ]
    description = f"{len(principles)} principles as published with the Constitutional AI paper."
    return Constitution(name, description, tuple(principles), hashlib.sha256(content).hexdigest())


def constitution_yaml(
    constitution: Constitution, source: str = "arXiv 2212.08073, supplementary repository"
) -> str:
    """The constitution as a file for `--constitution`. Raises UserError for a text that YAML constitutions
    would change.
    """
    principles = []
    for principle in constitution.principles:
        texts = {
            "critique": principle.critique,
            "revision": principle.revision,
            "comparison": principle.comparison,
        }
        for field, text in texts.items():
            if " ".join(text.split()) != text:
                raise UserError(
                    f"principle {principle.id!r}: field `{field}`: white space in it would be lost in a YAML constitution"
                )
        principles.append({"id": principle.id, **texts})
    data = {
        "name": constitution.name,
        "description": constitution.description,
        "source": source,
        "principles": principles,
    }
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


def parse_principle(identity: str, item: Any, comparison: str, place: str) -> Principle:
    place = f"{place}: {identity}"
    critique, revision = request_texts(item, place)
    return Principle(identity, critique, revision, comparison)


def request_texts(item: Any, place: str) -> tuple[str, str]:
    """The critique and the revision request of a published principle, wrappers off."""
    prompt = item.get("prompt") if isinstance(item, dict) else None
    if not isinstance(prompt, list) or len(prompt) != 1 or not isinstance(prompt[0], str):
        raise UserError(f"{place}: field `prompt`: expected a list of one text")
    if not isinstance(item.get("edit_request"), str):
        raise UserError(f"{place}: field `edit_request`: expected text")
    critique = unwrap(prompt[0], CRITIQUE_REQUEST, CRITIQUE, f"{place}: field `prompt[0]`")
    return critique, unwrap(
        item["edit_request"], REVISION_REQUEST, REVISION, f"{place}: field `edit_request`"
    )


def unwrap(text: str, head: str, tail: str, place: str) -> str:
    """What is between `head` and one space, and `tail`: exactly what the prompts put between them."""
    head += " "
    if not text.startswith(head) or not text.endswith(tail) or not text[len(head) : -len(tail)].strip():
        raise UserError(f"{place}: expected a text between {head!r} and {tail!r}")
    return text[len(head) : -len(tail)]


def comparison_text(text: str, place: str) -> str:
    text = text.removeprefix("\n").removesuffix(OPTIONS)
    if not text.strip():
        raise UserError(f"{place}: is empty")
    return text


def read_json(path: Path) -> tuple[bytes, Any]:
    try:
        text = read_whole(path).decode("utf-8-sig")
        return text.encode(), load_json(text)
    except UnicodeError:
        raise UserError(f"{path}: not UTF-8 text", ENCODING_ADVICE) from None
    except JsonError as error:
        raise UserError(f"{path}:{error.line}: not valid JSON: {error.message}", "correct it there") from None
