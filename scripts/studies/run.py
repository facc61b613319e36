"""All studies, or some: `python scripts/studies/run.py --out runs/studies --jobs 2`.

    OUT/seed-N/<study>.json    what each measured with each seed; what is there is not measured again
    OUT/page/RESULTS.md        the page, with its pictures (`--page scripts/studies` writes the one of this folder)

Two at a time with one thread each (`--jobs`): a study of one seed each; what two of them share is made once. The same
command goes on after a kill. A study that fails is told at the end, and the others go on.
"""

from __future__ import annotations

import argparse
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import critique
import frontier
import labels
import orders
import overoptimisation
import pmp
import principles
import revisions
from commands import CommandError, Place, note_cpu, one_thread
from page import write_page
from study import Study, carry_out

STUDIES: tuple[Study, ...] = tuple(
    module.STUDY
    for module in (revisions, critique, principles, labels, orders, pmp, overoptimisation, frontier)
)
# Those that need least of the chain first, so that a short run has something to show.
FIRST = ("critique", "principles", "orders", "pmp", "revisions", "overoptimisation", "frontier", "labels")


def run(studies: list[Study], places: list[Place], jobs: int) -> list[str]:
    """Measure; returns one line for each that failed."""
    failed = []
    with ThreadPoolExecutor(jobs) as pool:
        work = {pool.submit(carry_out, study, place): (study, place) for study in studies for place in places}
        for future in as_completed(work):
            study, place = work[future]
            try:
                future.result()
            except Exception as error:
                if not isinstance(error, CommandError):
                    traceback.print_exc()
                failed.append(f"{study.name}, seed {place.seed}: {error}")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/studies"))
    parser.add_argument("--page", type=Path, help="folder of the page; OUT/page if not given")
    parser.add_argument("--studies", nargs="+", choices=[study.name for study in STUDIES], default=FIRST)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=256, help="test prompts of each kind, at most 256")
    arguments = parser.parse_args()
    one_thread()
    arguments.out.mkdir(parents=True, exist_ok=True)
    places = [Place(arguments.out.resolve(), seed, arguments.prompts) for seed in arguments.seeds]
    wanted = sorted((s for s in STUDIES if s.name in arguments.studies), key=lambda s: FIRST.index(s.name))
    failed = run(wanted, places, arguments.jobs)
    note_cpu("run.py itself", arguments.out / "cpu.jsonl")
    page = arguments.page or arguments.out / "page"
    missing = write_page(STUDIES, arguments.out, page)
    print(f"{page / 'RESULTS.md'}" + (f"; not measured yet: {', '.join(missing)}" if missing else ""))
    for line in failed:
        print(f"failed: {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
