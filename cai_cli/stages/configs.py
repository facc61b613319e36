"""`cai configs`, `cai configs copy`: the example configurations that come with the package, one YAML file a
stage and machine.

    cai configs                     lists them by name: one-gpu/ppo, eight-gpus/ppo ...
    cai configs copy one-gpu        -> configs/one-gpu/*.yaml, to be edited and given to --config

A file that is there already is never written over.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from cai_cli.console.messages import say, show_text
from cai_cli.console.options import flag
from cai_cli.errors import UserError
from cai_cli.rows.jsonl import write_atomically
from cai_cli.rows.shipped import shipped_folder
from cai_cli.rows.storage import read_input


@dataclass(frozen=True, kw_only=True)
class Options:
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Files, or whole machines: one-gpu/ppo, one-gpu. `cai configs` lists them."),
    ] = field(default=None)
    everything: Annotated[bool, flag("Data", "All of them.", "--all")] = False
    out: Annotated[Path, flag("Output", "Directory that gets a folder for each machine.")] = Path("configs")


def shipped() -> dict[str, Path]:
    """The files by name, `machine/stage`."""
    folder = shipped_folder("configs", "scripts/configs")
    return {f"{path.parent.name}/{path.stem}": path for path in sorted(folder.glob("*/*.yaml"))}


def show() -> None:
    """Print each name and the first line of its file: the model, the machine, the command."""
    found = shipped()
    width = max(map(len, found), default=0)
    for name, path in found.items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        show_text(f"{name:{width}}  {first.lstrip('# ')}")


def copy(options: Options) -> None:
    """Copy example configurations, to be edited and given to --config. Files that are there are never written
    over.

    Example: cai configs copy one-gpu
    """
    targets = {options.out / f"{name}.yaml": path.read_bytes() for name, path in chosen(options).items()}
    there = {target for target in targets if os.path.lexists(target)}
    for target in sorted(there):
        if read_input(target, "remove it, or choose another --out") != targets[target]:
            raise UserError(
                f"{target}: there already, with other content", "remove it, or choose another --out"
            )
    for target, content in targets.items():
        if target in there:
            say(f"{target}: already there")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content.decode("utf-8"))
        say(f"{target}: written")


def chosen(options: Options) -> dict[str, Path]:
    """The files that the names and --all stand for. Raises UserError for a name that stands for none."""
    found = shipped()
    names = options.names or []
    if bool(names) == options.everything:
        raise UserError("give either names or --all", "`cai configs` lists the names")
    if options.everything:
        return found
    picked: dict[str, Path] = {}
    for name in names:
        asked = name.removesuffix(".yaml").rstrip("/")
        of_it = {full: path for full, path in found.items() if asked in (full, full.partition("/")[0])}
        if not of_it:
            raise UserError(f"no example configuration {name!r}", "`cai configs` lists the names")
        picked |= of_it
    return picked
