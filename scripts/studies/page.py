"""Write the studies' page from what is measured: `python scripts/studies/page.py --out runs/studies --page DIR`.

DIR/RESULTS.md, DIR/<study>.png     a study with fewer than two seeds is named as missing
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from commands import CPU
from estimates import REVERSED, SHOWS, SHOWS_NOT, Claim, verdict
from study import Report, Study, results

from cai_cli.rows.jsonl import write_atomically

HERE = Path(__file__).parent
HEAD = """# Studies: what of the article shows in this world

`make studies` runs each of these on the embedded micro-world with the ordinary commands, and writes this page. Requests
are of the test split, whose combinations of action and thing no model has seen; settings are the demo's, or were chosen
on validation requests before; the audit split is not touched. A claim *shows* where its 95 % interval lies on the
article's side of 0 (within the margin stated, where nothing is to differ), is *is reversed* where it lies on the other one
(beyond that margin), and else *does not show*. "By seed" is Student's t over the seeds, each with a world, a training
and replies of its own; where only texts of the shipped models are compared, intervals are bootstrapped over
combinations. A world of 0.9 M parameters says what the method does here, not what it does at 52 B. What was changed after
its test figures were first seen: `orders` is held against the principle that was asked about, no longer against `kind`
on requests of which that says nothing; `critique` and `principles` count rejected chains too.
"""


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in body)])


def told(claim: Claim) -> str:
    """`+3.1 points (+1.0 to +5.2)`"""
    digits = 1 if claim.scale > 1 else 3
    mean, low, high = (claim.scale * value for value in (claim.found.mean, claim.found.low, claim.found.high))
    unit = f" {claim.unit}" if claim.unit else ""
    return f"{mean:+.{digits}f}{unit} ({low:+.{digits}f} to {high:+.{digits}f})"


def each(claim: Claim) -> str:
    return " ".join(f"{claim.scale * value:+.{1 if claim.scale > 1 else 2}f}" for value in claim.found.seeds)


def claim_rows(claims: Sequence[Claim]) -> list[list[str]]:
    return [[claim.text, claim.source, told(claim), each(claim), f"**{verdict(claim)}**"] for claim in claims]


def counted(verdicts: Sequence[str]) -> str:
    """`5 show, 1 does not, 0 are reversed`"""
    shows, shows_not, other = (verdicts.count(name) for name in (SHOWS, SHOWS_NOT, REVERSED))
    words = [f"{shows} {'shows' if shows == 1 else 'show'}"]
    words += [f"{shows_not} {'does' if shows_not == 1 else 'do'} not"]
    words += [f"{other} {'is' if other == 1 else 'are'} reversed"]
    return ", ".join(words)


def section(study: Study, report: Report, seeds: Sequence[int]) -> str:
    rows = [["claim", "source", "difference (95 %)", "by seed", "verdict"], *claim_rows(report.claims)]
    main, verdicts = report.claims[0], [verdict(claim) for claim in report.claims]
    parts = [
        f"## {study.title}",
        f"{study.asks} Seeds {', '.join(map(str, seeds))}.",
        markdown_table(report.table),
        f"![{study.title}]({study.name}.png)",
        markdown_table(rows),
        f"**Verdict:** that {main.text} **{verdict(main)}**; of all claims {counted(verdicts)}.",
        report.notes,
    ]
    return "\n\n".join(parts)


def write_page(studies: Sequence[Study], out: Path, page: Path) -> list[str]:
    """The page and its pictures; returns the names of studies that are not on it."""
    page.mkdir(parents=True, exist_ok=True)
    sections, missing, verdicts = [], [], []
    overview = [["study", "claim", "difference (95 %)", "verdict"]]
    for study in studies:
        found = results(study, out)
        if len(found) < 2:
            missing.append(study.name)
            continue
        report = study.report(list(found.values()), page / f"{study.name}.png")
        sections.append(section(study, report, list(found)))
        for number, claim in enumerate(report.claims):
            verdicts.append(verdict(claim))
            overview.append(["" if number else study.title, claim.text, told(claim), verdicts[-1]])
    parts = [HEAD.rstrip()]
    if missing:
        parts.append(f"Not measured yet with two seeds: {', '.join(missing)}.")
    if verdicts:
        parts.append(f"Of {len(verdicts)} claims {counted(verdicts)}:")
    parts += [markdown_table(overview), *sections, cost(out)]
    write_atomically(page / "RESULTS.md", "\n\n".join(filter(None, parts)) + "\n")
    return missing


def cost(out: Path) -> str:
    """What it took; commands that a kill ended early are not in it."""
    file = out / CPU
    if not file.exists():
        return ""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    minutes = sum(row["cpu"] for row in rows) / 60
    return f"## What it took\n\n{len(rows)} commands, {minutes:.0f} minutes of CPU, one thread each."


def main() -> None:
    from run import STUDIES

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/studies"), help="where run.py has measured")
    parser.add_argument("--page", type=Path, default=HERE, help="folder of RESULTS.md and the pictures")
    arguments = parser.parse_args()
    missing = write_page(STUDIES, arguments.out, arguments.page)
    print(f"{arguments.page / 'RESULTS.md'}" + (f"; missing: {', '.join(missing)}" if missing else ""))


if __name__ == "__main__":
    main()
