"""The page: sections made of what was found, set by the templates. Nothing in it asks for anything outside of it.

found = find([Path("runs/demo")]); text = page(found, examples=4, seed=0)
"""

from __future__ import annotations

import time
from pathlib import Path

import jinja2

from cai_cli import __version__
from cai_cli.report import chains, evaluations, labels, rejected, replies, steps, training, warnings
from cai_cli.report.blocks import Section
from cai_cli.report.find import Found
from cai_cli.report.reading import Reading
from cai_cli.report.text import clean, counted, named
from cai_cli.rows.row_kinds import COMPARISONS, REVISIONS, SAMPLES

TEMPLATES = Path(__file__).parent / "templates"


def page(found: Found, examples: int, seed: int, now: float | None = None) -> str:
    """The HTML. `examples`: chains, prompts, comparisons and rejects of a file that are shown, drawn by `seed`."""
    reading = Reading(examples, seed, warnings.of_artifacts(found))
    sections = sections_of(found, reading)
    at_the_top = figures(found, reading)
    warned = warnings.in_order(reading.warned)
    history = steps.history(found)
    made = time.gmtime(now)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            title=named(found.base.name or str(found.base), 60),
            history=history,
            figures=at_the_top,
            warned=warned,
            looked_for=warnings.LOOKED_FOR,
            sections=sections,
            made=f"{made.tm_mday} {time.strftime('%b %Y, %H:%M', made)} UTC",
            version=__version__,
            examples=examples,
            seed=seed,
        )
    )


def environment() -> jinja2.Environment:
    """Every value is cleaned, and then escaped, whatever template shows it."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def sections_of(found: Found, reading: Reading) -> list[Section]:
    """In the order of the chain, then what was measured, then what was left out."""
    made = (
        chains.section(found, reading),
        replies.section(found, reading),
        labels.section(found, reading),
        evaluations.section(found, reading, "judge"),
        evaluations.section(found, reading, "agreement"),
        training.sft_section(found, reading),
        training.pm_section(found, reading),
        training.ppo_section(found, reading),
        evaluations.section(found, reading, "results"),
        rejected.section(found, reading),
    )
    return [section for section in made if section is not None]


def figures(found: Found, reading: Reading) -> list[training.KeyFigure]:
    """The figures at the top: rows by kind, then what was reached."""
    shown = []
    for stage, kind, told in (
        ("revise", REVISIONS, "chains"),
        ("sample", SAMPLES, "replies"),
        ("label", COMPARISONS, "labelled pairs"),
    ):
        files = [file for file in found.of_kind(kind) if file.stage == stage]
        rows = sum(((file.manifest or {}).get("counts") or {}).get("out", 0) for file in files)
        if rows:
            shown.append((f"{rows:,}", told, counted(len(files), "file") if len(files) > 1 else ""))
    return shown + training.key_figures(found, reading)
