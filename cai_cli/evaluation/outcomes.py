"""Judged games as they are read, and the tables of what came of them. No torch, no numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cai_cli.console.messages import table

# The kind of a prompt -> what is measured on it
AXES = {"helpful": "helpfulness", "harmful": "harmlessness"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One judged game. `won`: the probability that the first model's reply is the better one, 0.5 for a tie;
    `lengths`: characters of the two replies, where they are known; `same_position`: whether a judge that was
    asked in both orders took the same option in both.
    """

    models: tuple[str, str]
    won: float
    prompt_id: str
    kind: str
    lengths: tuple[int, int] | None = None
    same_position: bool | None = None


def same_position_rate(games: Sequence[Outcome]) -> float | None:
    told = [game.same_position for game in games if game.same_position is not None]
    return fmean(told) if told else None


def show(
    models: Sequence[dict[str, Any]], win_rates: dict[str, list[dict[str, Any]]], anchor: str, told: str
) -> None:
    """The tables at the end, from the rows of the results."""
    heads = ["model", *(f"{axis} Elo\n(95 %)" for axis in AXES.values()), "games"]
    rows = [
        [
            model["name"],
            *(elo_text(model[axis]) for axis in AXES.values()),
            str(sum((model[axis] or {"games": 0})["games"] for axis in AXES.values())),
        ]
        for model in models
    ]
    table(f"{told}; {anchor} is at 0", heads, rows)
    for axis, pairs in win_rates.items():
        if not pairs:
            continue
        cells = [
            [
                f"{row['a']} – {row['b']}",
                f"{row['win']:.1%} ({row['low']:.1%}–{row['high']:.1%})",
                "–" if row["length_controlled"] is None else f"{row['length_controlled']:.1%}",
                "–" if "position_bias" not in row else f"{row['position_bias']:.0%}",
                str(row["games"]),
            ]
            for row in pairs
        ]
        columns = ["", "the first wins\n(95 %)", "at equal\nlengths", "same option\nin both orders", "games"]
        table(f"{axis}: win rates", columns, cells)


def elo_text(rating: dict[str, Any] | None) -> str:
    """`120 (80 to 160)`; an open end is `…`."""
    if rating is None:
        return "–"
    low, high = ("…" if rating[end] is None else f"{rating[end]:.0f}" for end in ("low", "high"))
    return f"{rating['elo']:.0f} ({low} to {high})"
