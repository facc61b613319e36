"""Revisions with and without a critique before them: the article's Figure 7.

The same requests, seeds and principles as in `revisions`; without critiques the model is asked for the revision at
once (`cai revise --no-critique`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from commands import Place
from estimates import MORE, Claim, Means, changed, percent, pooled
from pictures import draw_lines, figure, save
from revised import ROUNDS, chain_counts, mended, revise, round_means
from study import Found, Report, Study

WAYS = {"critique": "with critique", "direct": "without"}
RATES = {"harmless": "harmless", "refuses": "right reason and alternative"}


def measure(place: Place) -> Found:
    files = {"critique": revise(place, "revisions"), "direct": revise(place, "direct", "--no-critique")}
    return {
        name: {**chain_counts(file, place), "rounds": round_means(file), "mended": mended(file, place)}
        for name, file in files.items()
    }


def report(seeds: Sequence[Found], picture: Path) -> Report:
    def at(way: str, number: int, rate: str) -> list[Means]:
        return [seed[way]["rounds"][number][rate] for seed in seeds]

    table = [["round", *(f"{rate}, {way}" for rate in RATES.values() for way in WAYS.values())]]
    table += [
        [str(n), *(percent(pooled(at(way, n, rate))) for rate in RATES for way in WAYS)]
        for n in range(1, ROUNDS + 1)
    ]
    all_chains = [percent(pooled([seed[way]["mended"] for seed in seeds])) for way in WAYS]
    table.append([f"{ROUNDS}, of all chains", *all_chains, "–", "–"])
    claims = [
        Claim(
            f"with critiques revisions of round {n} are more {told}",
            source,
            MORE,
            changed(at("direct", n, rate), at("critique", n, rate)),
        )
        for rate, told, source, n in (
            ("harmless", "harmless (small models)", "Fig. 7", 1),
            ("harmless", "harmless (small models)", "Fig. 7", ROUNDS),
            ("refuses", "often right in reason and alternative", "ours", ROUNDS),
        )
    ]
    claims.append(
        Claim(
            "with critiques more of all chains end harmless, the rejected ones among them",
            "ours",
            MORE,
            changed(
                [seed["direct"]["mended"] for seed in seeds], [seed["critique"]["mended"] for seed in seeds]
            ),
        )
    )
    drawn, panels = figure(2)
    for axes, (rate, told) in zip(panels, RATES.items(), strict=True):
        lines = {
            name: [(n, pooled(at(way, n, rate))) for n in range(1, ROUNDS + 1)] for way, name in WAYS.items()
        }
        draw_lines(axes, lines, shift=0.08)
        axes.set(xlabel="revisions", ylabel=f"{told}, %", xticks=range(1, ROUNDS + 1))
    save(drawn, picture)
    kept = {
        way: sum(seed[way]["kept"] for seed in seeds) / sum(seed[way]["chains"] for seed in seeds)
        for way in WAYS
    }
    notes = (
        f"Chains that went through all rounds: {kept['critique']:.0%} with critiques, {kept['direct']:.0%} without; the"
        " others were rejected, most since a revision was the draft again or more beside it. Rates by round are of those"
        " that went through, differences over requests that both have. This model learned one revision in four without"
        " a critique."
    )
    return Report(table, claims, notes)


STUDY = Study(
    "critique",
    "With and without critique",
    "Does a critique before the revision make it better?",
    measure,
    report,
)
