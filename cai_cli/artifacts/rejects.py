"""Rows that were not accepted: the side file they go to, why they are there, and the next step."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai_cli.artifacts.places import manifest_path
from cai_cli.console.groups import flags_of, flags_read, values_of
from cai_cli.console.messages import say
from cai_cli.console.options import FLAG, Part, flag_name
from cai_cli.errors import RunError
from cai_cli.processes.ranks import is_main
from cai_cli.prompting.hygiene import advice
from cai_cli.rows.jsonl import Row, read_own_rows, write_rows
from cai_cli.rows.storage import is_input

RESTART = "then --if-changed restart starts afresh, and moves what there is to .bak"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was not accepted: why, and enough to look at it."""

    id: str
    reason: str
    detail: str = ""
    row: Row | None = None

    def to_row(self) -> Row:
        return {"id": self.id, "reason": self.reason, "detail": self.detail, "row": self.row}


def with_restart(hint: str | None, options: Any) -> str | None:
    """The hint of a run that failed, so that it can be followed: where `--out` is begun, flags that would
    make another artifact need --if-changed restart.
    """
    values = values_of(options)
    if hint is None or "--if-changed" in hint or "if_changed" not in values or not is_begun(values["out"]):
        return hint
    parts = {flag_name(name): flag.part for name, flag in flags_of(type(options)).items()}
    free = (Part.RUNTIME, Part.LIMIT, Part.NOTED)
    if not any(name in parts and parts[name] not in free for name in FLAG.findall(hint)):
        return hint
    return f"{hint}; {RESTART}"


def is_begun(out: Path | None) -> bool:
    """Whether a manifest says of what lies at `out`, finished or not, how it was made."""
    if out is None or str(out) == "-":
        return False
    own = [manifest_path(out), out / "split.manifest.json"]
    return any(is_input(path) or is_input(path.with_suffix(".partial.json")) for path in own)


def why_none(reasons: Counter[str], options: Any) -> str:
    """Why none of the rows is left, and the next step for the commonest reason; nothing where none was
    rejected.
    """
    step = advice(reasons.most_common(1)[0][0], flags_read(options)) if reasons else ""
    return "; ".join(filter(None, (reasons_text(reasons), step)))


def reasons_text(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())


def counted(rejected: Iterable[Rejected]) -> dict[str, int]:
    """How many there are of each reason, as a manifest keeps it."""
    return dict(sorted(Counter(item.reason for item in rejected).items()))


def counted_among(rejects: Path, ids: Collection[str]) -> dict[str, int]:
    """How many of these items are in a file of rejected rows, by reason; a finished file may be of more items than a
    command with a lower --limit asks for.
    """
    found: dict[str, str] = {}
    for _, row in read_own_rows(rejects) if rejects.exists() else ():
        if row["id"] in ids:
            found.setdefault(row["id"], row["reason"])
    return dict(sorted(Counter(found.values()).items()))


def put_aside(rejected: list[Rejected], unit: str, file: Path) -> None:
    """Write what was rejected before a run, if anything was, and say why; the first process does."""
    if rejected and is_main():
        write_rows(file, [item.to_row() for item in rejected])
        tell_rejected(Counter(item.reason for item in rejected), unit, file)


def copy_aside(source: Path, reasons: Counter[str], unit: str, file: Path) -> None:
    """`put_aside` of a file that was written while rows were read."""
    if reasons and is_main():
        temporary = file.with_name(f".{file.name}.tmp")
        shutil.copyfile(source, temporary)
        temporary.replace(file)
        tell_rejected(reasons, unit, file)


def tell_rejected(reasons: Counter[str], unit: str, file: Path) -> None:
    say(f"{reasons.total()} {unit} rejected into {file} ({reasons_text(reasons)})")


def check_rejects(
    options: Any, out: Path, accepted: int, reasons: Counter[str], rejects: Path | None
) -> None:
    """Raise RunError where too many rows were rejected, with the next step for the commonest reason. Where all were,
    only --max-reject-rate 1 takes that.

    `rejects`: the file that they are in, None where nobody keeps them.
    """
    rejected, most = reasons.total(), options.rows.max_reject_rate
    if accepted + rejected == 0:
        raise RunError(f"{out}: there was nothing to work on", "the inputs hold no rows")
    if rejected / (accepted + rejected) <= most:
        return
    step = advice(reasons.most_common(1)[0][0], flags_read(options))
    hints = [step] if rejects is None or not step else [f"{step}, with --if-changed restart"]
    hints += [] if rejects is None else [f"look at {rejects}; what is done is kept"]
    hints += [f"--max-reject-rate raises the bar (now {most:g})"] if accepted else []
    told = f"{out}: {rejected} of {accepted + rejected} rows were rejected ({reasons_text(reasons)})"
    raise RunError(told, "; ".join(filter(None, hints)))
