"""AI labels against human ones: which pairs are shared, how often they agree, by confidence and by kind. No
torch.

A pair is known by its prompt and its two replies, whichever was chosen, but for white space; where prompts
were written in another way, by its id and the two replies. A pair that a file labels several times counts
once, with the mean.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from cai_cli.evaluation.calibration import accuracy, brier, calibration_error, wilson
from cai_cli.rows.conversation import Conversation
from cai_cli.rows.records import Comparison

CONFIDENCE_EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
NO_KIND = "–"


@dataclass(frozen=True, slots=True)
class SharedPair:
    """Probability that the reply the AI chose is preferred, by the AI (at least 0.5) and by the humans (0 to
    1).
    """

    ai: float
    human: float
    kind: str

    @property
    def agrees(self) -> float:
        """0.5 where the AI has no preference."""
        return 0.5 if self.ai == 0.5 else float(self.human > 0.5)


def shared_pairs(
    ai: Iterable[Comparison], human: Iterable[Comparison]
) -> tuple[list[SharedPair], dict[str, int]]:
    """The pairs that both have labelled, and counts of rows and pairs of each side."""
    theirs: dict[Hashable, list[float]] = defaultdict(list)
    counts = {"ai_rows": 0, "human_rows": 0, "human_pairs": 0}
    for comparison in human:
        counts["human_rows"] += 1
        counts["human_pairs"] += by_content(comparison) not in theirs
        for key in (by_content(comparison), by_id(comparison)):
            theirs[key].append(probability_of_lesser(comparison))
    ours: dict[Hashable, list[Comparison]] = defaultdict(list)
    for comparison in ai:
        counts["ai_rows"] += 1
        ours[by_content(comparison)].append(comparison)
    pairs = []
    for comparisons in ours.values():
        known = (key(comparisons[0]) for key in (by_content, by_id))
        found = next((key for key in known if key in theirs), None)
        if found is not None:
            pairs.append(shared_pair(comparisons, fmean(theirs[found])))
    return pairs, {**counts, "ai_pairs": len(ours), "shared": len(pairs)}


def shared_pair(ai: list[Comparison], human: float) -> SharedPair:
    """`human`: probability of the lesser of the two texts."""
    probability = fmean(map(probability_of_lesser, ai))
    kind = ai[0].kind or NO_KIND
    return (
        SharedPair(probability, human, kind)
        if probability >= 0.5
        else SharedPair(1 - probability, 1 - human, kind)
    )


def squeezed(text: str) -> str:
    return " ".join(text.split())


def replies_of(comparison: Comparison) -> tuple[str, str]:
    """The two replies, the lesser text first, so that both files mean the same one."""
    first, second = sorted(
        squeezed(reply[0]["content"]) for reply in (comparison.chosen, comparison.rejected)
    )
    return first, second


def by_content(comparison: Comparison) -> Hashable:
    return (
        *((turn["role"], squeezed(turn["content"])) for turn in comparison.prompt),
        *replies_of(comparison),
    )


def by_id(comparison: Comparison) -> Hashable:
    return ("id", comparison.id, *replies_of(comparison))


def probability_of_lesser(comparison: Comparison) -> float:
    chosen = squeezed(text_of(comparison.chosen))
    return comparison.probability if chosen == replies_of(comparison)[0] else 1 - comparison.probability


def text_of(reply: Conversation) -> str:
    return reply[0]["content"]


def measure(pairs: list[SharedPair]) -> dict[str, Any]:
    """Agreement with its 95 % interval and calibration, over pairs on which the humans have a preference;
    ties are counted.
    """
    decided = [pair for pair in pairs if pair.human != 0.5]
    facts: dict[str, Any] = {"pairs": len(pairs), "human_ties": len(pairs) - len(decided)}
    if not decided:
        return facts
    predicted, target = [pair.ai for pair in decided], [pair.human for pair in decided]
    return facts | {
        "ai_ties": sum(pair.ai == 0.5 for pair in decided),
        "agreement": accuracy(predicted, target),
        "interval": wilson(sum(pair.agrees for pair in decided), len(decided)),
        "mean_probability": fmean(predicted),
        "brier": brier(predicted, target),
        "calibration_error": calibration_error(predicted, target),
    }


def by_confidence(pairs: list[SharedPair]) -> dict[str, dict[str, Any]]:
    """What `measure` says of the pairs in each bin of the AI's probability; a value on an edge counts above
    it.
    """
    edges = [*CONFIDENCE_EDGES, 1.0]
    groups: dict[str, list[SharedPair]] = {f"{low:g}–{high:g}": [] for low, high in pairwise(edges)}
    names = list(groups)
    for pair in pairs:
        groups[names[sum(pair.ai >= edge for edge in CONFIDENCE_EDGES) - 1]].append(pair)
    return {name: measure(group) for name, group in groups.items()}


def by_kind(pairs: list[SharedPair]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[SharedPair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.kind].append(pair)
    return {name: measure(group) for name, group in sorted(groups.items())}
