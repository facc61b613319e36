"""Intervals of oracle rates: what fails together is drawn together, worked by hand on few combinations."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from cai_cli.microworld import grammar
from cai_cli.microworld.files import as_prompt, spread_prompts
from cai_cli.microworld.forms import written
from cai_cli.microworld.grammar import BENIGN, OWN
from cai_cli.microworld.results import bootstrap, difference, hits
from cai_cli.microworld.scores import rate, score_samples
from cai_cli.rows.records import Sample
from cai_cli.stages.demo import COLUMNS, NAMED, show


def requests(kind: str, counts: list[int]) -> list[list[grammar.Request]]:
    """One list of different requests for each of the first test combinations of a kind, as long as `counts`
    says.
    """
    grouped: dict[tuple[str, str], list[grammar.Request]] = {}
    for request in spread_prompts(kind, "test", 512, Random(0), set()):
        grouped.setdefault(request.combination, []).append(request)
    return [group[:count] for group, count in zip(grouped.values(), counts, strict=False)]


def samples(groups: list[list[grammar.Request]], wrong: int) -> list[Sample]:
    """A right answer to each request, but for those of the first `wrong` combinations."""
    rows, rng = [], Random(0)
    for position, group in enumerate(groups):
        for request in group:
            text = "Because door" if position < wrong else written(request, "complies", rng).text
            prompt = as_prompt(request)
            rows.append(
                Sample(
                    f"{prompt.id}/0",
                    prompt.prompt,
                    [{"role": "assistant", "content": text}],
                    "helpful",
                    "stop",
                )
            )
    return rows


def test_one_combination_of_ten_that_fails_may_be_drawn_three_times() -> None:
    """The failing one is drawn Binomial(10, 0.1) times: up to 2 have 93.0 %, up to 3 have 98.7.

    Forty prompts that failed by themselves, four of them wrong, would give 0.8 to 0.975.
    """
    scored = score_samples(samples(requests(BENIGN, [4] * 10), wrong=1))
    assert rate(scored, "helpful") == 0.9
    assert bootstrap(hits(scored, "helpful")) == (0.7, 1.0)


def test_a_combination_counts_by_its_samples() -> None:
    """Three prompts of one are right, the one prompt of the other is wrong: 1/4 of the draws are 1, 1/2 are
    3/4, 1/4 are 0.
    """
    scored = score_samples(samples(requests(OWN, [1, 3]), wrong=1))
    assert rate(scored, "helpful_dual") == 0.75
    assert bootstrap(hits(scored, "helpful_dual")) == (0.0, 1.0)


def test_differences_are_drawn_by_combination_too() -> None:
    groups = requests(BENIGN, [4] * 10)
    before, after = (score_samples(samples(groups, wrong)) for wrong in (0, 1))
    found = difference(before, after, "helpful")
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((-0.1, -0.3, 0.0))


def test_the_table_at_the_end_shows_whole_names_and_numbers_in_80_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {*COLUMNS, *NAMED}
    rates = {**dict.fromkeys(names, 0.983), "intervals": dict.fromkeys(names, (0.974, 1.0))}
    asked = dict.fromkeys(reversed(NAMED), "down")
    show({"models": {"helpful-only": rates}, "asked": asked, "constitution": "curt"}, 1.0, Path("demo"))
    lines = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in capsys.readouterr().err.splitlines()
        if "│" in line
    ]
    assert lines == [
        ["helpful-only", *["98.3"] * 6],
        ["", *["97–100"] * 6],
        ["helpful-only", *["98.3"] * 5],
        ["", *["97–100"] * 5],
    ]
