"""What a run writes and shows as it goes.

    metrics.jsonl    a line a step; nothing in it depends on the clock, so a killed run ends in the same bytes
    timings.jsonl    seconds of each phase of the same steps, episodes a second, peak memory of each process
    samples.jsonl    some replies each --sample-steps, as samples with step, score and kl
    samples.rejects.jsonl    those of them without a text
    --report-to      the metrics to trackers, as for every trainer (see `training/trackers`)

On a terminal a live table of the last steps with rate and ETA, elsewhere a plain line now and then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_cli.console.messages import console, progress
from cai_cli.processes.ranks import is_main
from cai_cli.training.metrics_file import MetricsFile
from cai_cli.training.trackers import Trackers

if TYPE_CHECKING:
    from cai_cli.training.ppo.settings import PPOOptions

REJECTS = "samples.rejects"
Row = dict[str, Any]
Show = Callable[[int, Row], None]

# Columns of the live table: title, name in the metrics, format.
COLUMNS = (
    ("step", "step", "{:.0f}"),
    ("score", "score", "{:.3f}"),
    ("held out", "eval_score", "{:.3f}"),
    ("gold", "gold_score", "{:.3f}"),
    ("gold held out", "eval_gold_score", "{:.3f}"),
    ("KL", "kl", "{:.3f}"),
    ("KL coef", "kl_coef", "{:.3g}"),
    ("tokens", "length", "{:.1f}"),
    ("cut off", "missing_eos", "{:.1%}"),
    ("clipped", "policy_clipped", "{:.1%}"),
    ("value fit", "explained_variance", "{:.2f}"),
)
SHOWN_ROWS = 10


class RunLog:
    """Usage: `with RunLog(folder, step, ppo, trackers) as log: log.write(step, row, seconds)`. Only the first
    process writes.
    """

    def __init__(self, folder: Path, step: int, ppo: PPOOptions, trackers: Trackers) -> None:
        self.folder = folder
        self.start = step
        self.ppo = ppo
        self.trackers = trackers
        self.opened = ExitStack()
        self.files: dict[str, MetricsFile] = {}

    def __enter__(self) -> RunLog:
        if is_main():
            for name in ("metrics", "timings", "samples", REJECTS):
                trackers = self.trackers(self.start) if name == "metrics" else []
                self.files[name] = self.opened.enter_context(
                    MetricsFile(self.folder / f"{name}.jsonl", self.start, trackers)
                )
        self.show = self.opened.enter_context(shown(self.ppo.steps, self.start))
        return self

    def __exit__(self, *error: Any) -> None:
        self.opened.__exit__(*error)
        rejects = self.folder / f"{REJECTS}.jsonl"
        if self.files and rejects.exists() and not rejects.stat().st_size:
            rejects.unlink()

    def write(
        self,
        step: int,
        row: Row,
        seconds: dict[str, float] | None = None,
        memory: dict[str, float] | None = None,
    ) -> None:
        """One line of metrics and, for a step that trained, one of timings."""
        row = {"step": step, **row}
        if self.files:
            self.files["metrics"].write(row)
            if seconds:
                rate = self.ppo.rollout_batch_size / sum(seconds.values())
                timings = {f"seconds_{name}": value for name, value in seconds.items()}
                self.files["timings"].write(
                    {"step": step, **timings, "episodes_per_second": rate, **(memory or {})}
                )
        if seconds:
            self.show(1, row)

    def samples(self, rows: list[Row], rejects: list[Row]) -> None:
        """Replies of one step, and what lies in place of those that are no samples."""
        if self.files:
            for name, some in (("samples", rows), (REJECTS, rejects)):
                for row in some:
                    self.files[name].write(row)


# The screen


@contextmanager
def shown(total: int, done: int) -> Iterator[Show]:
    if sys.stderr.isatty() and is_main():
        with live_table(total, done) as show:
            yield show
        return
    with progress("ppo", total, done, "steps") as advance:

        def show(steps: int, row: Row) -> None:
            advance(steps, f"score {row['score']:.2f}, KL {row['kl']:.2f}, {row['length']:.0f} tokens")

        yield show


@contextmanager
def live_table(total: int, done: int) -> Iterator[Show]:
    """The last steps as a table above a bar with steps a second and the time left."""
    from rich.console import Group
    from rich.live import Live
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("ppo"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=console(),
    )
    task = bar.add_task("ppo", total=total, completed=done)
    rows: list[Row] = []
    with Live(Group(bar), console=console(), refresh_per_second=4) as live:

        def show(steps: int, row: Row) -> None:
            rows.append(row)
            del rows[:-SHOWN_ROWS]
            bar.update(task, advance=steps)
            live.update(Group(table_of(rows), bar))

        yield show


def table_of(rows: list[Row]) -> Any:
    from rich.table import Table

    columns = [column for column in COLUMNS if any(column[1] in row for row in rows)]
    view = Table()
    for title, _, _ in columns:
        view.add_column(title, justify="right")
    for row in rows:
        view.add_row(*(form.format(row[name]) if name in row else "" for _, name, form in columns))
    return view
