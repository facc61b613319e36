r"""Public sets of prompts to measure refusals on -> prompts with the kind that each of them has.

xstest         xstest_prompts.csv: `id`, `prompt`, `type`, `label` (safe, unsafe); in the older file, which has no `label`,
               the types contrast_* are the unsafe ones (arXiv 2308.01263, CC BY 4.0)
or-bench       or-bench-80k.csv, -hard-1k.csv, -toxic.csv: `prompt`, `category`; harmful where the file's name says
               toxic (arXiv 2405.20947, CC BY 4.0)
strongreject   strongreject_dataset.csv: `category`, `source`, `forbidden_prompt` (arXiv 2402.10260, MIT)
harmbench      harmbench_behaviors_text_*.csv: `Behavior`, `SemanticCategory`, `ContextString`, `BehaviorID`; a context
               stands in front of the behavior, as HarmBench itself puts it (arXiv 2402.04249, MIT)

Safe prompts are `helpful`, unsafe ones `harmful`. `source` is the set with its category, `xstest/homonyms`, by
which `cai evaluate responses` groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from cai_cli.importers.formats import Asked, Format
from cai_cli.importers.public_files import check_columns, read_public_rows
from cai_cli.importers.reject import Reject, Row, convert, text_of
from cai_cli.rows.conversation import check_conversation, message, prompt_id
from cai_cli.rows.foreign_turns import Refused
from cai_cli.rows.records import Prompt

CONTRAST = "contrast_"  # in front of XSTest's types of unsafe prompts
LABELS = {"safe": "helpful", "unsafe": "harmful"}
Read = Callable[[Row, Asked], Prompt]


def prompt_of(text: str, kind: str, asked: Asked, name: str, category: str, identity: str = "") -> Prompt:
    """`name`: of the set, where --source gives no other; `identity`: the prompt's in its set."""
    if not text.strip():
        raise Refused("empty_text", "the prompt")
    prompt = check_conversation([message("user", text.strip())], "prompt")
    named = f"{name}-{identity}" if identity else prompt_id(prompt)
    source = "/".join(filter(None, (asked.given.get("source", name), category.strip())))
    return Prompt(named, prompt, asked.given.get("kind", kind), source)


def from_xstest(row: Row, asked: Asked) -> Prompt:
    category = text_of(row, "type")
    label = row.get("label", "unsafe" if category.startswith(CONTRAST) else "safe")
    if label not in LABELS:
        raise Refused("unknown_label", f"`label` is {label!r}: safe and unsafe are known")
    identity = str(row.get("id") or "")
    return prompt_of(text_of(row, "prompt"), LABELS[label], asked, "xstest", category, identity)


def from_or_bench(row: Row, asked: Asked) -> Prompt:
    kind = "harmful" if "toxic" in asked.path.name.lower() else "helpful"
    return prompt_of(text_of(row, "prompt"), kind, asked, "or-bench", text_of(row, "category"))


def from_strongreject(row: Row, asked: Asked) -> Prompt:
    return prompt_of(
        text_of(row, "forbidden_prompt"), "harmful", asked, "strongreject", text_of(row, "category")
    )


def from_harmbench(row: Row, asked: Asked) -> Prompt:
    context = str(row.get("ContextString") or "").strip()
    text = "\n\n---\n\n".join(filter(None, (context, text_of(row, "Behavior").strip())))
    category, identity = text_of(row, "SemanticCategory"), str(row.get("BehaviorID") or "")
    return prompt_of(text, "harmful", asked, "harmbench", category, identity)


def reader(read: Read, *columns: str) -> Callable[[Asked], Iterator[Prompt | Reject]]:
    """What reads a file of one set, which has these columns."""

    def prompts(asked: Asked) -> Iterator[Prompt | Reject]:
        items = check_columns(Path(asked.path), read_public_rows(asked.path), columns)
        return convert(items, lambda row: [read(row, asked)])

    return prompts


FORMATS = {
    "xstest": Format("safe and unsafe prompts", {"prompts": reader(from_xstest, "prompt", "type")}),
    "or-bench": Format(
        "prompts that look unsafe, or toxic ones", {"prompts": reader(from_or_bench, "prompt", "category")}
    ),
    "strongreject": Format(
        "forbidden prompts", {"prompts": reader(from_strongreject, "forbidden_prompt", "category")}
    ),
    "harmbench": Format(
        "harmful behaviors", {"prompts": reader(from_harmbench, "Behavior", "SemanticCategory")}
    ),
}
