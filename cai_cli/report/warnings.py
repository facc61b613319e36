"""What a reader has to know before the figures are believed: what stages warned of when they ran, and what shows only
when their artifacts lie side by side. Sections add what they find while they read rows.

Words and thresholds are those of `evaluation.cautions`, `evaluation.steering` and `prompting.hygiene`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator

from cai_cli.artifacts.ancestry import is_on_hub, source_path
from cai_cli.artifacts.manifest_shape import Manifest
from cai_cli.artifacts.rejects import reasons_text
from cai_cli.console.options import flag_name
from cai_cli.evaluation.cautions import REJECTED
from cai_cli.prompting.hygiene import advice
from cai_cli.report.blocks import Warned
from cai_cli.report.find import Found
from cai_cli.report.text import named

NUMBER = re.compile(r"\d[\d.,]*")
LOOKED_FOR = (
    "unfinished artifacts",
    "files that cannot be read",
    "what each stage warned of",
    "position bias",
    "labels that say nothing",
    "low mass on the options",
    "length that pays",
    "principles that do nothing",
    "revisions that are still their draft",
    "rejected rows",
    "replies cut off",
    "KL over its limit",
    "chat templates that differ",
    "preference models no better than a coin",
    "test prompts in the lineage",
)


def of_artifacts(found: Found) -> list[Warned]:
    """All that manifests and results tell by themselves, the grave ones first."""
    warned = [Warned(name, f"cannot be read: {problem}", True) for name, problem in found.problems]
    warned += [
        Warned(
            name,
            f"not finished: `cai {stage}` was cut off, or is still at work" if stage else "not finished",
            True,
        )
        for name, stage in sorted(found.unfinished.items())
    ]
    for item in found.artifacts:
        if item.manifest:
            warned += of_manifest(item.name, item.manifest)
    for result in found.results:
        if not result.manifest:
            given = result.content.get("warnings") or result.content.get("advice")
            lines = given if isinstance(given, list) else []
            warned += [Warned(result.name, str(line)) for line in lines]
    return [*warned, *other_templates(found)]


def of_manifest(name: str, manifest: Manifest) -> Iterator[Warned]:
    lines = manifest.get("warnings")
    for line in lines if isinstance(lines, list) else []:
        yield Warned(name, str(line))
    if stopped := manifest.get("stopped"):
        yield Warned(name, f"{stopped}: the run stopped there", grave=True)
    counts = manifest.get("counts") or {}
    reasons = Counter(counts.get("rejected") or {})
    seen = max(counts.get("in", 0), counts.get("out", 0) + reasons.total())
    if seen and reasons.total() >= REJECTED * seen:
        step = advice(reasons.most_common(1)[0][0], [flag_name(option) for option in manifest["options"]])
        told = f"{reasons.total():,} of {seen:,} rows were rejected ({reasons_text(reasons)})"
        yield Warned(name, f"{told}: {step}" if step else told)


def other_templates(found: Found) -> list[Warned]:
    """Models that one command read together, or after each other, through different chat templates."""
    known = {os.path.realpath(model.path): model for model in found.models}
    warned = []
    for item in found.artifacts:
        manifest = item.manifest
        template = manifest.get("chat_template") if manifest else None
        if not manifest or not template or manifest["stage"] not in ("sample", "label", "ppo"):
            continue
        for source in manifest["models"]:
            model = None if is_on_hub(source) else known.get(os.path.realpath(source_path(item.path, source)))
            theirs = model.manifest.get("chat_template") if model else None
            if model and theirs and theirs != template and source["option"] in ("model", "pm"):
                told = f"made through another chat template ({named(template, 16)}) than {model.name} was trained with"
                warned.append(Warned(item.name, f"{told} ({named(theirs, 16)})"))
    return warned


def in_order(warned: list[Warned]) -> list[list[Warned]]:
    """Each once, the grave ones first; those that differ in numbers alone together, as of several files of replies."""
    alike: dict[tuple[bool, str], list[Warned]] = {}
    for item in sorted(dict.fromkeys(warned), key=lambda item: not item.grave):
        alike.setdefault((item.grave, NUMBER.sub("#", item.text)), []).append(item)
    return list(alike.values())
