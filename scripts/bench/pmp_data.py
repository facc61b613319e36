"""Rate and memory of Stack Exchange reading beside a bare lxml.iterparse, each in a process of its own.

    python scripts/bench/pmp_data.py beer.Posts.xml [--megabytes 200] [--rounds 3] [--keep DIR]

Makes a dump of the wanted size from the rows of the given one (ids shifted, so that answers keep their
questions), and one of a tenth of it. Prints MB of XML per second of processor time and of wall time (medians
of the rounds, the readers taking turns, so that other work on the machine meets all alike), the ratios to the
bare parse, and the peak memory at both sizes. "bare" clears each element, no more.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READERS = ("bare", "html", "text")
BARS = {"html": 0.3, "text": 0.1}
GROWTH_BAR = 0.2
IDS = re.compile(r' (Id|ParentId|AcceptedAnswerId)="(\d+)"')


def make_dump(source: Path, target: Path, size: int) -> None:
    """Write rows of `source` over and over, ids shifted each time, until `target` has `size` bytes."""
    text = source.read_text(encoding="utf-8-sig")
    head, *rows = re.split(r"^\s*(?=<row )", text.replace("</posts>", ""), flags=re.MULTILINE)
    ids = [int(number) for row in rows for name, number in IDS.findall(row) if name == "Id"]
    step = max(ids)
    written = shift = 0
    with target.open("w", encoding="utf-8") as out:
        out.write(head)
        while written < size:
            for row in rows:
                shifted = IDS.sub(lambda match: f' {match[1]}="{int(match[2]) + shift}"', row.rstrip())  # noqa: B023
                written += out.write(f"  {shifted}\n")
                if written >= size:
                    break
            shift += step
        out.write("</posts>\n")


def measure(reader: str, dump: Path, workdir: Path) -> dict[str, float]:
    """Read the dump once in this process: seconds of wall and processor, peak memory in MB, items that came
    out.
    """
    wall, start = time.perf_counter(), time.process_time()
    items = 0
    if reader == "bare":
        from lxml import etree

        start, wall = time.process_time(), time.perf_counter()
        for _, element in etree.iterparse(str(dump), events=("end",)):
            element.clear()
            items += 1
    else:
        from cai_cli.importers.stack_exchange import PairOptions, make_pairs

        start, wall = time.process_time(), time.perf_counter()
        for _ in make_pairs([dump], PairOptions(seed=0, keep_html=reader == "html"), workdir):
            items += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1024 if sys.platform != "darwin" else 1 << 20
    )
    return {
        "seconds": time.process_time() - start,
        "wall": time.perf_counter() - wall,
        "peak": peak,
        "items": items,
    }


def run(reader: str, dump: Path, workdir: Path) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, str(dump), "--measure", reader, "--keep", str(workdir)]
    # A checkout need not be installed
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    return json.loads(done.stdout)


def compare(source: Path, size: int, rounds: int, workdir: Path) -> bool:
    """Print the table; True when every bar is reached."""
    large, small = workdir / "large.Posts.xml", workdir / "small.Posts.xml"
    make_dump(source, large, size)
    make_dump(source, small, size // 10)
    megabytes = large.stat().st_size / 1e6
    results = {reader: [] for reader in READERS}
    for _ in range(rounds):
        for reader in READERS:
            results[reader].append(run(reader, large, workdir))
    rates = {
        reader: megabytes / statistics.median(one["seconds"] for one in results[reader]) for reader in READERS
    }
    walls = {
        reader: megabytes / statistics.median(one["wall"] for one in results[reader]) for reader in READERS
    }
    reached = True
    print(f"dump of {megabytes:.0f} MB, {rounds} rounds")
    heads = ("MB/s", "ratio", "bar", "MB/s wall", "ratio", "items", "peak MB", "at 1/10", "growth")
    print("reader  " + "".join(f"{head:>10}" for head in heads))
    for reader in READERS:
        peak, tenth = results[reader][0]["peak"], run(reader, small, workdir)["peak"]
        ratio, growth = rates[reader] / rates["bare"], peak / tenth - 1
        bar = BARS.get(reader)
        rate = f"{rates[reader]:10.1f}{ratio:10.3f}{bar or '':>10}{walls[reader]:10.1f}{walls[reader] / walls['bare']:10.3f}"
        print(f"{reader:8}{rate}{results[reader][0]['items']:10.0f}{peak:10.1f}{tenth:10.1f}{growth:10.1%}")
        if bar:
            reached = reached and ratio >= bar and growth < GROWTH_BAR
    print(f"bars (ratio to bare; memory growth below {GROWTH_BAR:.0%}): {'reached' if reached else 'MISSED'}")
    return reached


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("posts", type=Path, help="a Posts.xml to take rows from")
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--keep", type=Path, help="work here and leave the dumps; otherwise a temporary directory"
    )
    parser.add_argument("--measure", choices=READERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.posts, options.keep)))
        return 0
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        return 0 if compare(options.posts, options.megabytes * 1_000_000, options.rounds, options.keep) else 1
    with tempfile.TemporaryDirectory() as folder:
        return 0 if compare(options.posts, options.megabytes * 1_000_000, options.rounds, Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
