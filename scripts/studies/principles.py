"""How many principles: the article's Figure 6, and the diversity that it keeps them for and does not measure.

1, 2, 4 or 8 of the principles of principles.yaml, which all want no harm and each something besides; which ones is
drawn by the seed, the fewer within the more. Diversity is the share of requests of which two chains end in revisions
that differ in what they hold (reason, alternative, thanks, question; right, wrong or absent).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from commands import Place
from estimates import MORE, SAME, Claim, Means, by_seed, changed_by_seed, percent
from pictures import draw_lines, figure, save
from revised import mended, revise, round_means, rounds_of
from study import Found, Report, Study

from cai_cli.keys import key
from cai_cli.microworld.scores import Scored, score_samples
from cai_cli.prompting.constitution import load_constitution

CONSTITUTION = Path(__file__).with_name("principles.yaml")
COUNTS = (1, 2, 4, 8)
ROUNDS = 2
MARGIN = 0.05  # of harmlessness, within which a number of principles does not matter


def measure(place: Place) -> Found:
    names = [principle.id for principle in load_constitution(str(CONSTITUTION)).principles]
    Random(key(place.seed, "principles")).shuffle(names)
    found: Found = {"drawn": names}
    for count in COUNTS:
        chosen = [word for name in names[:count] for word in ("--principles", name)]
        file = revise(place, f"principles-{count}", "--constitution", CONSTITUTION, *chosen, rounds=ROUNDS)
        last = rounds_of(file)[-1]
        found[str(count)] = {
            "mended": mended(file, place),
            "harmless": round_means(file)[-1]["harmless"],
            "diverse": diversity(score_samples(last)),
        }
    return found


def diversity(scored: Sequence[Scored]) -> Means:
    """Of each prompt with two replies or more, the share of their pairs that differ in what they hold."""
    by_prompt: dict[str, list[Any]] = {}
    for sample in scored:
        by_prompt.setdefault(sample.prompt, []).append(sample.verdict.levels)
    return {
        prompt: fmean(float(one != other) for one, other in combinations(levels, 2))
        for prompt, levels in by_prompt.items()
        if len(levels) > 1
    }


def report(seeds: Sequence[Found], picture: Path) -> Report:
    def at(count: int, name: str) -> list[Means]:
        return [seed[str(count)][name] for seed in seeds]

    names = {
        "mended": "harmless, of all chains",
        "harmless": "of those not rejected",
        "diverse": "two revisions differ",
    }
    table = [["principles", *names.values()]]
    table += [[str(count), *(percent(by_seed(at(count, name))) for name in names)] for count in COUNTS]
    few, many = COUNTS[0], COUNTS[-1]
    claims = [
        Claim(
            f"with {many} principles as many chains end harmless as with {few}"
            f" (within {100 * MARGIN:.0f} points)",
            "Fig. 6",
            SAME,
            changed_by_seed(at(few, "mended"), at(many, "mended")),
            MARGIN,
        ),
        Claim(
            f"revisions are more diverse with {many} principles than with {few}",
            "§ 3.4",
            MORE,
            changed_by_seed(at(few, "diverse"), at(many, "diverse")),
        ),
    ]
    drawn, axes = figure()
    draw_lines(axes, {told: [(c, by_seed(at(c, name))) for c in COUNTS] for name, told in names.items()})
    axes.set(xscale="log", xlabel="principles", ylabel="%")
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes.minorticks_off()
    save(drawn, picture)
    drawn_names = ", ".join(f"{seed['drawn'][0]}" for seed in seeds)
    notes = (
        f"The single principle was, seed by seed: {drawn_names}. A chain whose revision stays as the draft was is rejected,"
        " and counts as one that did not end harmless. Each seed draws principles of its own, so intervals are by seed."
    )
    return Report(table, claims, notes)


STUDY = Study(
    "principles",
    "Number of principles",
    "Are replies more harmless with more principles, and are they more diverse?",
    measure,
    report,
)
