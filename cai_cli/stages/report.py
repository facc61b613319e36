"""`cai report DIR|FILES --out report.html`: one page of what was run, what to be warned of, and what came of it.

    cai report runs/demo --out report.html                     all that lies in it
    cai report revisions.jsonl pm/ elo.json --out report.html  these

Self-contained: no script, no font, no request, so it can be mailed; it reads on a phone, in the dark and on paper.
Whatever part of a run is there is shown. Examples are drawn by --seed; model text is shown as text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cai_cli.console.messages import say
from cai_cli.console.options import RUNTIME, flag
from cai_cli.errors import UserError
from cai_cli.processes.ranks import check_one_process
from cai_cli.rows.jsonl import write_atomically
from cai_cli.rows.storage import check_writable

SUFFIXES = (".html", ".htm")


@dataclass(frozen=True, kw_only=True)
class Options:
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Directories of runs, model directories, files of rows or results.", metavar="DIR|FILES"
        ),
    ]
    out: Annotated[Path, flag("Output", "The page to write, .html; one that is there is replaced."), RUNTIME]
    examples: Annotated[
        int, flag("Output", "Chains, prompts, labels and rejects shown of a file.", min=0, max=200)
    ] = 4
    seed: Annotated[int, flag("Output", "Draws the examples.")] = 0


def run(options: Options) -> None:
    """Write one self-contained page about a run: lineage, warnings, examples, diagnostics, curves, results.

    What was run and on what; what to be warned of; chains with every change marked; replies of the models to the same
    prompts side by side; labels, preference models, PPO, Elo, responses; what was rejected. Of a run that is under way,
    or of single files, it shows what there is.

    Example: cai report runs/demo --out report.html

    Example: cai report revisions.jsonl pm/ elo.json --out report.html --examples 10
    """
    check_one_process("a page is written")
    if options.out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {options.out}: the page is written as .html", "name a .html file")
    check_writable(options.out, options.out.parent, options.out.stem)

    from cai_cli.report.find import find
    from cai_cli.report.page import page

    text = page(find(options.paths), options.examples, options.seed)
    write_atomically(options.out, text)
    say(f"{options.out}: {len(text.encode()) / 1000:,.0f} kB, to be opened in any browser")
