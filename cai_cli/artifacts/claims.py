"""What a command is to do with what lies at its --out already: nothing, go on from it, or start, afresh where
it was asked to.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

from cai_cli.artifacts.identity import differences, noted_changes
from cai_cli.artifacts.locks import give_back
from cai_cli.artifacts.manifest import read_manifest
from cai_cli.artifacts.manifest_shape import Manifest
from cai_cli.artifacts.places import FILE_ENDINGS, MODEL_MANIFEST, manifest_path, unfinished
from cai_cli.artifacts.shards import rank_files
from cai_cli.console.messages import say, warn
from cai_cli.errors import UserError
from cai_cli.processes.ranks import is_main


class Claim(Enum):
    """NEW: nothing is there. CONTINUE: what the same command has begun. DONE: what it has made. RESTART: what
    another one has.
    """

    NEW = "new"
    CONTINUE = "continue"
    DONE = "done"
    RESTART = "restart"


def claim(
    options: Any,
    new: Manifest,
    old: Manifest | None,
    there: Path | None,
    finished: Callable[[Manifest], bool],
    tidy: Callable[[], None] = lambda: None,
) -> Claim:
    """What to do at the --out of `options`, which this process holds. Raises UserError where it is another
    artifact, or nobody's.

    `new`: the manifest of the command; `old`: that of what is there; `there`: the file or folder that is,
    None where there is none; `finished(old)`: whether it is whole, asked where it is the same artifact;
    `tidy`: removes what a kill between the last two steps may have left. What is done is given back. Nothing
    is moved here: what is on disk stays until the new work starts, so that a mistake found before then costs
    nothing.
    """
    out = options.output.out
    check_alone(out, there)
    if there is None:
        return Claim.NEW
    if old is None:
        raise UserError(f"{there} exists and has no manifest", "move it away, or choose another --out")
    if found := differences(old, new, type(options)):
        if options.output.if_changed != "restart":
            hint = "choose another --out, or pass --if-changed restart to move it to .bak and start afresh"
            raise UserError(f"{out} was made differently: {'; '.join(found)}", hint)
        say(f"{out}: {'; '.join(found)}: the old one goes to .bak, starting afresh")
        return Claim.RESTART
    for change in noted_changes(old, new, type(options)):
        warn(f"{out}: {change}; rows made before keep what they have")
    if not finished(old):
        return Claim.CONTINUE
    if is_main() and not options.output.dry_run:
        tidy()
    give_back(out)
    say(f"{out}: already done{rows_told(old)}; nothing to do")
    return Claim.DONE


def check_alone(out: Path, there: Path | None, step: str = "choose another --out") -> None:
    """Raise UserError where the manifest at the place of `out`'s own, finished or not, is that of another file of its
    stem, as x.json and x.jsonl have one place for theirs (and for a picture): it would be lost.

    `there`: as for `claim`. A file may have been renamed with its manifest, so one that names a file which is gone is
    taken for the manifest of what is there.
    """
    own = manifest_path(out)
    if own.name == MODEL_MANIFEST:
        return
    stem = own.name.removesuffix(".manifest.json")
    others = [file for ending in FILE_ENDINGS if (file := own.with_name(stem + ending)).name != out.name]
    others = [file for file in others if any(map(Path.exists, (file, unfinished(file), *rank_files(file))))]
    for place in (own, own.with_suffix(".partial.json")) if others else ():
        if (manifest := read_manifest(place)) is None:
            continue
        named = Path(str(manifest["options"].get("out"))).name
        owner = next((file for file in others if file.name == named), None)
        if owner is None and there is None and named != out.name:
            owner = others[0]
        if owner is not None:
            raise UserError(f"{place} is that of {owner}, and would be overwritten", step)


def rows_told(manifest: Manifest) -> str:
    """How many rows a finished artifact holds, for a line of talk; nothing where its manifest does not say."""
    counts = manifest.get("counts") or {}
    return f" ({counts['out']} rows)" if "out" in counts else ""
