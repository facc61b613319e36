"""Plots as SVG that stands in the page: curves, points with intervals, columns, small bars for cells of tables.

Every number that comes in is finite or left out; every text is escaped. Colours are the page's CSS variables, so that
a plot is dark where the page is. Drawn 340 units wide: about a phone's width, and several side by side on a screen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup, escape

from cai_cli.report.text import clean

WIDTH, HEIGHT = 340, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 36
MOST_POINTS = 240  # of a curve; longer ones are drawn as the means of so many stretches
SMOOTHED_FROM = 40  # points; then the mean of neighbours is drawn over them
COLOURS = 6
SLACK = 0.02  # of a step that a number may lie outside of the ticks
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    name: str
    points: Sequence[Point]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """A point with its intervals, where they are known; `line`: dots of one name are joined in their order."""

    name: str
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None
    line: str = ""


@dataclass(slots=True)
class Frame:
    """Axes over the range of the numbers, rounded to ticks."""

    xs: tuple[float, float]
    ys: tuple[float, float]
    height: int = HEIGHT
    parts: list[str] = field(default_factory=list)

    def x(self, value: float) -> float:
        low, high = self.xs
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.ys
        return self.height - BOTTOM - (value - low) / (high - low) * (self.height - TOP - BOTTOM)

    def axes(self, x: str, y: str, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> None:
        bottom = self.height - BOTTOM
        for tick in y_ticks:
            at = self.y(tick)
            self.parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
            self.parts.append(
                f'<text x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{label(tick)}</text>'
            )
        for tick in x_ticks:
            at = self.x(tick)
            self.parts.append(
                f'<text x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{label(tick)}</text>'
            )
        self.parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        self.parts.append(
            f'<text class="name" x="{middle}" y="{self.height - 4}" text-anchor="middle">{safe(x)}</text>'
        )
        if y:
            at = (TOP + bottom) / 2
            self.parts.append(
                f'<text class="name" x="11" y="{at}" text-anchor="middle" transform="rotate(-90 11 {at})">{safe(y)}</text>'
            )

    def drawn(self, title: str) -> Markup:
        return drawing(WIDTH, self.height, title, self.parts)


def drawing(width: int, height: int, title: str, parts: Iterable[str], kind: str = "plot") -> Markup:
    body = "".join(parts)
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{safe(title)}">'
        f"<title>{safe(title)}</title>{body}</svg>"
    )


def safe(text: str) -> str:
    return str(escape(clean(text)))


def label(value: float) -> str:
    """A tick: 0.25, 1,200."""
    return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:.3g}"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that cover the range."""
    if not high > low:
        low, high = (min(0.0, 2 * low), max(0.0, 2 * low)) if low else (0.0, 1.0)
    raw = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * size for size in (1, 2, 2.5, 5, 10) if unit * size >= raw * 0.999)
    first = math.floor(low / step + SLACK)
    found = [round(first * step, 12)]
    while found[-1] < high - SLACK * step:
        found.append(round((first + len(found)) * step, 12))
    return found


def finite(points: Iterable[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and max(abs(x), abs(y)) < 1e15]


def thinned(points: list[Point]) -> list[Point]:
    """The means of stretches, where there are more points than a plot shows."""
    if len(points) <= MOST_POINTS:
        return points
    edges = [round(n * len(points) / MOST_POINTS) for n in range(MOST_POINTS + 1)]
    return [mean(points[low:high]) for low, high in pairwise(edges)]


def smoothed(points: list[Point]) -> list[Point]:
    """Each point with the mean of its neighbours, a twentieth of all on either side."""
    reach = len(points) // 20
    return [(points[n][0], mean(points[max(0, n - reach) : n + reach + 1])[1]) for n in range(len(points))]


def mean(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def path(frame: Frame, points: Iterable[Point]) -> str:
    return "M" + "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in points)


def curves(
    series: Sequence[Series], x: str, y: str, title: str, marked: float | None = None
) -> Markup | None:
    """Curves over one axis; `marked`: a value that a line across stands for. None without any point."""
    kept = [(item, thinned(finite(item.points))) for item in series]
    kept = [(item, points) for item, points in kept if points]
    if not kept:
        return None
    xs = [px for _, points in kept for px, _ in points]
    ys = [py for _, points in kept for _, py in points] + ([] if marked is None else [marked])
    y_ticks = ticks(min(ys), max(ys))
    frame = Frame((min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1), (y_ticks[0], y_ticks[-1]))
    inside = [tick for tick in ticks(*frame.xs) if frame.xs[0] <= tick <= frame.xs[1]]
    frame.axes(x, y, inside, y_ticks)
    if marked is not None:
        frame.parts.append(f'<path class="mark" d="M{LEFT} {frame.y(marked):.1f}H{WIDTH - RIGHT}"/>')
    for place, (item, points) in enumerate(kept):
        kind = f"line c{place % COLOURS}" + (" dashed" if item.dashed else "")
        if len(points) == 1:
            frame.parts.append(spot(frame, *points[0], place))
        elif len(points) >= SMOOTHED_FROM:
            frame.parts.append(f'<path class="{kind} faint" d="{path(frame, points)}"/>')
            frame.parts.append(f'<path class="{kind}" d="{path(frame, smoothed(points))}"/>')
        else:
            frame.parts.append(f'<path class="{kind}" d="{path(frame, points)}"/>')
    return frame.drawn(title)


def spot(frame: Frame, x: float, y: float, colour: int) -> str:
    return f'<circle class="dot c{colour % COLOURS}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="4.5"/>'


def dots(items: Sequence[Dot], x: str, y: str, title: str, height: int = 300) -> Markup | None:
    """Points in a plane with their intervals, names beside them; those of a line are joined."""
    items = [dot for dot in items if finite([(dot.x, dot.y)])]
    if not items:
        return None
    xs = [value for dot in items for value in (dot.x, *(dot.x_interval or ()))]
    ys = [value for dot in items for value in (dot.y, *(dot.y_interval or ()))]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    frame = Frame((x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]), height)
    frame.axes(x, y, x_ticks, y_ticks)
    lines = list(dict.fromkeys(dot.line for dot in items if dot.line))
    for line in lines:
        points = [(dot.x, dot.y) for dot in items if dot.line == line]
        frame.parts.append(f'<path class="line c{lines.index(line) % COLOURS}" d="{path(frame, points)}"/>')
    for place, dot in enumerate(items):
        colour = lines.index(dot.line) if dot.line else (len(lines) + place)
        at_x, at_y = frame.x(dot.x), frame.y(dot.y)
        for interval, form in ((dot.x_interval, "M{} {at_y:.1f}H{}"), (dot.y_interval, "M{at_x:.1f} {}V{}")):
            if interval:
                scale = frame.x if interval is dot.x_interval else frame.y
                ends = [f"{scale(end):.1f}" for end in interval]
                drawn = form.format(*ends, at_x=at_x, at_y=at_y)
                frame.parts.append(f'<path class="whisker c{colour % COLOURS}" d="{drawn}"/>')
        frame.parts.append(spot(frame, dot.x, dot.y, colour))
        end = at_x > WIDTH * 0.66
        frame.parts.append(
            f'<text class="told" x="{at_x + (-8 if end else 8):.1f}" y="{at_y - 8:.1f}"'
            f' text-anchor="{"end" if end else "start"}">{safe(dot.name[:24])}</text>'
        )
    return frame.drawn(title)


def reliability(groups: dict[str, list[Dot]], low: float, title: str) -> Markup | None:
    """What was said against what is so, from `low` to 1 on both axes, with the line on which a judge is right."""
    if not any(groups.values()):
        return None
    marks = [low + n * (1 - low) / 5 for n in range(6)]
    frame = Frame((low, 1.0), (min(0.0, low) if low < 0.5 else 0.0, 1.0), 240)
    frame.axes("said", "so", marks, [n / 5 for n in range(6)])
    frame.parts.append(f'<path class="mark" d="{path(frame, [(low, low), (1, 1)])}"/>')
    for place, bins in enumerate(groups.values()):
        for dot in bins:
            ends = [f"{frame.y(end):.1f}" for end in dot.y_interval or (dot.y, dot.y)]
            drawn = f"M{frame.x(dot.x):.1f} {ends[0]}V{ends[1]}"
            frame.parts.append(f'<path class="whisker c{place % COLOURS}" d="{drawn}"/>')
            frame.parts.append(spot(frame, dot.x, dot.y, place))
    return frame.drawn(title)


def columns(counts: dict[str, int], x: str, title: str) -> Markup | None:
    """A histogram whose bins have names."""
    if not counts or not sum(counts.values()):
        return None
    most = max(counts.values())
    y_ticks = [tick for tick in ticks(0, most, 4) if tick == int(tick)]
    frame = Frame((0, len(counts)), (0, max(most, y_ticks[-1])))
    frame.axes(x, "", [], y_ticks)
    wide = (WIDTH - LEFT - RIGHT) / len(counts)
    every = math.ceil(34 / wide)
    for place, (name, value) in enumerate(counts.items()):
        left, top = LEFT + place * wide, frame.y(value)
        frame.parts.append(
            f'<rect class="bar" x="{left + 2:.1f}" y="{top:.1f}" width="{wide - 4:.1f}"'
            f' height="{frame.height - BOTTOM - top:.1f}" rx="2"><title>{safe(name)}: {value:,}</title></rect>'
        )
        if place % every == 0:
            middle = left + wide / 2
            frame.parts.append(
                f'<text x="{middle:.1f}" y="{frame.height - BOTTOM + 15}" text-anchor="middle">{safe(name)}</text>'
            )
    return frame.drawn(title)


def meter(
    value: float | None, interval: Sequence[float] | None = None, colour: int = 0, most: float = 1.0
) -> Markup:
    """A small bar from 0 to `most` with its interval, for a table's cell."""
    if value is None or not math.isfinite(value):
        return Markup("")
    wide = 110

    def at(number: float) -> float:
        return max(0.0, min(1.0, number / most)) * wide

    parts = [f'<rect class="track" width="{wide}" height="10" rx="3"/>']
    parts.append(f'<rect class="bar c{colour % COLOURS}" width="{at(value):.1f}" height="10" rx="3"/>')
    if interval:
        low, high = (at(end) for end in interval)
        parts.append(f'<path class="whisker" d="M{low:.1f} 5H{high:.1f}M{low:.1f} 2V8M{high:.1f} 2V8"/>')
    return drawing(wide, 10, f"{value:.3g}", parts, "meter")
