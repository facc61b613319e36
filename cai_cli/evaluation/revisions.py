"""What a revisions file looks like as a whole: lengths, nearness to the draft and phrases by round, and what
hygiene did where.

In: the rows and the rejects of `cai revise`, so a resumed or merged run has the same summary as an
uninterrupted one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai_cli.console.messages import say, table
from cai_cli.evaluation.refusals import is_refusal
from cai_cli.evaluation.repetition import MOST_TEXTS, phrase_rates
from cai_cli.prompting.hygiene import RULES, share_kept
from cai_cli.rows.jsonl import read_own_rows
from cai_cli.rows.records import Event, Revision, events_field


@dataclass
class RoundSums:
    """Sums over the texts of one round."""

    name: str
    texts: int = 0
    characters: int = 0
    unchanged: int = 0
    refusals: int = 0
    kept: list[float] = field(default_factory=list)  # of the draft's words, by each text
    first: list[str] = field(default_factory=list)

    def add(self, text: str, before: str | None, draft: str) -> None:
        self.texts += 1
        self.characters += len(text)
        self.unchanged += text == before
        self.refusals += is_refusal(text)
        self.kept.append(share_kept(text, draft))
        if len(self.first) < MOST_TEXTS:
            self.first.append(text)

    def to_row(self) -> dict[str, Any]:
        rates = phrase_rates(self.first)
        return {
            "name": self.name,
            "texts": self.texts,
            "mean_characters": round(self.characters / self.texts, 1),
            "unchanged": round(self.unchanged / self.texts, 4),
            "draft_kept": round(sum(self.kept) / self.texts, 4),
            "draft_kept_90": round(sorted(self.kept)[int(0.9 * (self.texts - 1))], 4),
            "refusal_phrases": round(self.refusals / self.texts, 4),
            "repeated_phrases": round(rates.recurring, 4),
            "looping": round(rates.looping, 4),
            "commonest_phrase": rates.commonest,
        }


def summarise(rows: Path, rejects: Path) -> dict[str, Any]:
    """Rates by round over the accepted chains, and how often each hygiene rule applied to each segment,
    rejects included.
    """
    sums = [RoundSums("draft")]
    hygiene: dict[str, Counter[str]] = {}
    chains = 0
    for _, row in read_own_rows(rows):
        revision = Revision.from_row(row)
        chains += 1
        before = draft = revision.initial[0]["content"]
        sums[0].add(draft, None, draft)
        for number, step in enumerate(revision.rounds, start=1):
            if number == len(sums):
                sums.append(RoundSums(f"revision {number}"))
            sums[number].add(step.revision, before, draft)
            before = step.revision
        count_events(hygiene, revision.hygiene)
    for _, row in read_own_rows(rejects) if rejects.exists() else ():
        count_events(hygiene, events_field(row["row"] or {}))
    counted = {rule: dict(hygiene[rule]) for rule in RULES if rule in hygiene}
    return {"chains": chains, "rounds": [item.to_row() for item in sums], "hygiene": counted}


def count_events(hygiene: dict[str, Counter[str]], events: list[Event]) -> None:
    for rule, segment in events:
        hygiene.setdefault(rule, Counter())[segment] += 1


def show(manifest: dict[str, Any]) -> None:
    """The tables at the end of a run."""
    summary = manifest["summary"]
    rows = []
    for item in summary["rounds"]:
        near = [f"{item['unchanged']:.1%}", f"{item['draft_kept']:.0%}", f"{item['draft_kept_90']:.0%}"]
        near = [""] * 3 if item["name"] == "draft" else near
        shares = [f"{item[name]:.1%}" for name in ("refusal_phrases", "repeated_phrases", "looping")]
        rows.append([item["name"], f"{item['mean_characters']:.0f}", *near, *shares])
    columns = [
        "",
        "mean\nlength",
        "un-\nchanged",
        "draft\nkept",
        "90 % keep\nless than",
        "refusal\nphrase",
        "repeated\nphrase",
        "looping",
    ]
    table(f"revise: {summary['chains']} chains", columns, rows)
    if phrase := summary["rounds"][-1]["commonest_phrase"]:
        say(f'commonest phrase of the last round: "{phrase}"')
    if hygiene := summary["hygiene"]:
        segments = segment_names(len(summary["rounds"]) - 1)
        used = [name for name in segments if any(name in counts for counts in hygiene.values())]
        rows = [[rule, *(str(counts.get(name, "")) for name in used)] for rule, counts in hygiene.items()]
        table(
            "hygiene: texts trimmed, or drawn again",
            ["rule", *(name.replace(" ", "\n") for name in used)],
            rows,
        )
    speed = manifest["tokens"] / max(manifest["generation_seconds"], 1e-9)
    say(f"{manifest['tokens']} tokens in this run, {speed:.0f} tokens/s")


def segment_names(rounds: int) -> list[str]:
    """The segments of a chain, in their order."""
    return [
        "draft",
        *(f"{kind} {number}" for number in range(1, rounds + 1) for kind in ("critique", "revision")),
    ]
