"""Plots of the report: where numbers stand, and that no number or name breaks one."""

from __future__ import annotations

import math

import pytest
from lxml import etree

from cai_cli.report import svg


def parsed(drawn: object) -> etree._Element:
    return etree.fromstring(str(drawn))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.31, 0.92, [0.2, 0.4, 0.6, 0.8, 1.0]),
        (-120.0, 240.0, [-200, -100, 0, 100, 200, 300]),
        (5.0, 5.0, [0, 2, 4, 6, 8, 10]),
        (0.0, 0.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.0001, 0.5, [0, 0.1, 0.2, 0.3, 0.4, 0.5]),
    ],
)
def test_ticks_are_round_and_cover(low, high, ticks) -> None:
    found = svg.ticks(low, high)
    assert found == pytest.approx(ticks)


def test_a_curve_goes_where_its_numbers_say() -> None:
    drawn = parsed(svg.curves([svg.Series("a", [(0, 0.0), (10, 1.0)])], "step", "", "Title <b>"))
    (line,) = [path.get("d") for path in drawn if "line" in path.get("class", "")]
    assert line == f"M{svg.LEFT:.1f} {svg.HEIGHT - svg.BOTTOM:.1f}L{svg.WIDTH - svg.RIGHT:.1f} {svg.TOP:.1f}"
    assert drawn.get("aria-label") == "Title <b>" and drawn[0].text == "Title <b>"


def test_long_curves_are_drawn_as_means_and_odd_numbers_left_out() -> None:
    points = [(n, float(n)) for n in range(10_000)]
    assert len(svg.thinned(points)) == svg.MOST_POINTS
    assert svg.thinned(points)[0][1] == pytest.approx(sum(range(42)) / 42)
    odd = [(0, math.nan), (1, math.inf), (2, 1e300)]
    assert svg.curves([svg.Series("a", odd)], "x", "y", "t") is None
    assert len(str(svg.curves([svg.Series("a", points)], "x", "y", "t"))) < 12_000


def test_smoothing_is_the_mean_of_neighbours() -> None:
    points = [(float(n), float(n % 2)) for n in range(40)]  # two neighbours on either side
    assert svg.smoothed(points)[10] == (10.0, pytest.approx(2 / 5))


def test_a_meter_shows_value_and_interval() -> None:
    drawn = parsed(svg.meter(0.5, (0.25, 0.75)))
    bar, whisker = [item for item in drawn if item.get("class", "").startswith(("bar", "whisker"))]
    assert bar.get("width") == "55.0" and whisker.get("d").startswith("M27.5 5H82.5")
    assert svg.meter(None) == "" and svg.meter(math.nan) == ""


def test_dots_join_what_is_of_one_run_and_escape_names() -> None:
    items = [
        svg.Dot("<a>", 0, 0, (-1, 1), (-2, 2), "run"),
        svg.Dot("b", 1, 2, line="run"),
        svg.Dot("c", 2, 0),
    ]
    drawn = parsed(svg.dots(items, "x", "y", "t"))
    kinds = [item.get("class", "").split()[0] for item in drawn if item.get("class")]
    assert kinds.count("dot") == 3 and kinds.count("line") == 1 and kinds.count("whisker") == 2
    assert [text.text for text in drawn if text.get("class") == "told"] == ["<a>", "b", "c"]


def test_columns_are_as_high_as_their_counts() -> None:
    drawn = parsed(svg.columns({"0–1": 10, "1–2": 5, "2–3": 0}, "x", "t"))
    heights = [float(item.get("height")) for item in drawn if item.get("class") == "bar"]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.11) and heights[2] == 0
    assert svg.columns({"a": 0}, "x", "t") is None
