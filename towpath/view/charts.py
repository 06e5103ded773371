"""Chart engine: SVG charts that work without a script; the page's script adds tooltips."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

from towpath.metrics import Form
from towpath.view.format import number, percent

Point = tuple[float, float]
NOTHING = Markup("")


@dataclass(frozen=True, slots=True)
class Series:
    """One line, one set of dots or one layer of a stack."""

    name: str
    points: Sequence[Point]
    style: Literal["line", "dashed", "dots", "area"] = "line"
    colour: int = 0


@dataclass(frozen=True, slots=True)
class ReferenceLine:
    """A line across the chart: a target, an alarm, the chosen checkpoint."""

    axis: Literal["x", "y"]
    at: float
    text: str
    tone: Literal["plain", "good", "bad"] = "plain"
    side: Literal["left", "right"] = "right"


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with its series, reference lines and limits."""

    title: str
    series: Sequence[Series]
    references: Sequence[ReferenceLine] = ()
    x: str = "step"
    form: Form = "number"
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Plane:
    """The mapping from data to drawing units: bounds of the data, box of the plot."""

    x0: float
    x1: float
    y0: float
    y1: float
    width: int = 380
    height: int = 214
    left: int = 44
    right: int = 10
    top: int = 18
    bottom: int = 32

    def x(self, value: float) -> float:
        """The horizontal position, from the left."""
        return round(self.left + (value - self.x0) / (self.x1 - self.x0) * (self.width - self.left - self.right), 1)

    def y(self, value: float) -> float:
        """The vertical position, from the top."""
        return round(
            self.height
            - self.bottom
            - (value - self.y0) / (self.y1 - self.y0) * (self.height - self.top - self.bottom),
            1,
        )


def draw(chart: Chart) -> Markup:
    """A chart as a figure; empty if it has no points."""
    series = _stacked([line for line in chart.series if line.points])
    if not series:
        return NOTHING
    plane = _plane(chart, series)
    body = [axes(plane, chart.x, chart.form), *(_reference_line(plane, line) for line in chart.references)]
    # Stacked layers are drawn from the highest down, so that each covers the ones above it.
    layers = sorted(enumerate(series), key=lambda item: -item[0] if item[1][0].style == "area" else item[0])
    body += [_series(plane, index, line, points) for index, (line, points) in layers]
    return figure(
        chart.title,
        Markup().join(body),
        plane,
        [line for line, _ in series],
        x=chart.x,
        form=chart.form,
        note=chart.note,
    )


def figure(
    title: str,
    body: Markup,
    plane: Plane,
    series: Sequence[Series],
    *,
    x: str,
    form: str,
    note: str = "",
    kind: str = "",
    description: str = "",
) -> Markup:
    """A drawing with its title, legend, description for screen readers, and the values for tooltips."""
    data = {
        "plane": [
            plane.x0,
            plane.x1,
            plane.left,
            plane.width - plane.right,
            plane.width,
            plane.top,
            plane.height - plane.bottom,
        ],
        "x": x,
        "form": form,
        "series": [
            {"name": line.name, "colour": line.colour, "points": [[at, round(y, 6)] for at, y in line.points]}
            for line in series
        ],
    }
    label = f"{title}. " + (description or " ".join(_description(line, form) for line in series))
    return Markup(
        '<figure class="chart {kind}" tabindex="0" data-chart="{data}"><figcaption>{title}</figcaption>{legend}'
        '<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{body}</svg>{note}</figure>'
    ).format(
        kind=kind,
        data=json.dumps(data, allow_nan=False, separators=(",", ":")),
        title=title,
        legend=_legend(series),
        width=plane.width,
        height=plane.height,
        label=label,
        body=body,
        note=Markup('<p class="note">{}</p>').format(note) if note else NOTHING,
    )


def axes(plane: Plane, x: str, form: str, y: str = "") -> Markup:
    """Grid lines, ticks and axis titles."""
    bottom = plane.height - plane.bottom
    right = plane.width - plane.right
    rows = ticks(plane.y0, plane.y1, 4)
    columns = ticks(plane.x0, plane.x1, 5)
    places = 1 if any(abs(at * 100 - round(at * 100)) > 1e-6 for at in rows) else 0
    lines = [
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text x="{}" y="{}" text-anchor="end" '
            'dy=".32em">{}</text>'
        ).format(
            plane.left,
            right,
            plane.y(at),
            plane.y(at),
            plane.left - 6,
            plane.y(at),
            percent(at, places) if form == "percent" else number(at),
        )
        for at in rows
    ]
    lines += [
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(plane.x(at), bottom + 14, number(at))
        for at in columns
    ]
    lines.append(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>').format(right, plane.height - 3, x)
    )
    if y:
        lines.append(Markup('<text class="axis" x="{}" y="{}">{}</text>').format(4, 11, y))
    lines.append(
        Markup('<line class="edge" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(plane.left, right, bottom, bottom)
    )
    return Markup().join(lines)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between two ends, about that many."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    return [
        round(count * step, 10) for count in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def bar(
    value: float | None,
    interval: Any = None,
    threshold: float | None = None,
    low: float = 0.0,
    high: float = 1.0,
    tone: str = "",
) -> Markup:
    """A value on a scale, with its interval and its threshold; as wide as its column."""
    if value is None:
        return NOTHING

    def at(number: float) -> str:
        return f"{100 * min(max((number - low) / (high - low), 0.0), 1.0):.2f}%"

    def width(start: float, end: float) -> str:
        return f"{max(float(at(end)[:-1]) - float(at(start)[:-1]), 0.0):.2f}%"

    start = min(0.0, value) if low < 0 else low
    end = max(0.0, value) if low < 0 else value
    parts = [Markup('<rect class="track" width="100%" y="5" height="6" rx="3"/>')]
    parts.append(
        Markup('<rect class="fill" x="{}" width="{}" y="5" height="6" rx="3"/>').format(at(start), width(start, end))
    )
    if low < 0 < high:
        parts.append(Markup('<line class="zero" x1="{}" x2="{}" y1="2" y2="14"/>').format(at(0.0), at(0.0)))
    if interval:
        ends = (at(interval[0]), at(interval[1]))
        parts.append(Markup('<line class="whisker" x1="{}" x2="{}" y1="8" y2="8"/>').format(*ends))
        parts += [Markup('<line class="whisker" x1="{}" x2="{}" y1="4" y2="12"/>').format(end, end) for end in ends]
    parts.append(Markup('<circle class="dot" cx="{}" cy="8" r="3.5"/>').format(at(value)))
    if threshold is not None:
        parts.append(
            Markup('<line class="threshold" x1="{}" x2="{}" y1="0" y2="16"/>').format(at(threshold), at(threshold))
        )
    return Markup('<svg class="bar {}" height="16" aria-hidden="true">{}</svg>').format(tone, Markup().join(parts))


def _stacked(series: Sequence[Series]) -> list[tuple[Series, Sequence[Point]]]:
    """Each series with the points where it is drawn: stacked layers start on the layers before them."""
    base: dict[float, float] = {}
    stacked: list[tuple[Series, Sequence[Point]]] = []
    for line in series:
        if line.style == "area":
            points = [(x, base.get(x, 0.0) + y) for x, y in line.points]
            base |= dict(points)
            stacked.append((line, points))
        else:
            stacked.append((line, line.points))
    return stacked


def _plane(chart: Chart, series: Iterable[tuple[Series, Sequence[Point]]]) -> Plane:
    points = [point for _, drawn_at in series for point in drawn_at]
    xs = [x for x, _ in points] + [line.at for line in chart.references if line.axis == "x"]
    ys = [y for _, y in points] + [line.at for line in chart.references if line.axis == "y"]
    low = min(ys) if chart.low is None else min(chart.low, *ys)
    high = max(ys) if chart.high is None else max(chart.high, *ys)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    y0 = low if low == chart.low else low - margin
    y1 = high if high == chart.high else high + margin
    return Plane(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1.0, y0, y1)


def _series(plane: Plane, index: int, line: Series, points: Sequence[Point]) -> Markup:
    positions = [(plane.x(x), plane.y(y)) for x, y in points]
    path = "M" + "L".join(f"{x} {y}" for x, y in positions)
    group = Markup('<g class="series c{} {}" data-series="{}">{}</g>')
    if line.style == "area" and len(positions) > 1:
        floor = plane.y(max(plane.y0, 0.0))
        body = Markup('<path class="layer" d="{}L{} {}L{} {}Z"/>').format(
            path, positions[-1][0], floor, positions[0][0], floor
        )
    elif line.style == "dots" or len(positions) == 1:
        body = Markup().join(Markup('<circle cx="{}" cy="{}" r="3.5"/>').format(x, y) for x, y in positions)
    else:
        dots = (
            Markup().join(Markup('<circle cx="{}" cy="{}" r="2.6"/>').format(x, y) for x, y in positions)
            if line.style == "dashed"
            else NOTHING
        )
        body = Markup('<path d="{}"/>{}').format(path, dots)
    return group.format(line.colour, line.style, index, body)


def _reference_line(plane: Plane, line: ReferenceLine) -> Markup:
    bottom = plane.height - plane.bottom
    right = plane.width - plane.right
    if line.axis == "y":
        at = plane.y(line.at)
        text, anchor = (right - 2, "end") if line.side == "right" else (plane.left + 2, "start")
        shape = Markup('<line x1="{}" x2="{}" y1="{}" y2="{}"/><text x="{}" y="{}" text-anchor="{}">{}</text>')
        return Markup('<g class="mark {}">{}</g>').format(
            line.tone, shape.format(plane.left, right, at, at, text, at - 4, anchor, line.text)
        )
    at = plane.x(line.at)
    anchor = "end" if at > (plane.left + right) / 2 else "start"
    shape = Markup('<line x1="{}" x2="{}" y1="{}" y2="{}"/><text x="{}" y="{}" text-anchor="{}">{}</text>')
    text = at + (4 if anchor == "end" else -4)
    return Markup('<g class="mark {}">{}</g>').format(
        line.tone, shape.format(at, at, plane.top - 5, bottom, text, plane.top - 8, anchor, line.text)
    )


def _legend(series: Sequence[Series]) -> Markup:
    if len(series) < 2:
        return NOTHING
    key = Markup('<button type="button" class="key c{} {}" data-series="{}" aria-pressed="true">{}</button>')
    keys = (key.format(line.colour, line.style, index, line.name) for index, line in enumerate(series))
    return Markup('<div class="legend">{}</div>').format(Markup().join(keys))


def _description(line: Series, form: str) -> str:
    write = percent if form == "percent" else number
    first = line.points[0]
    last = line.points[-1]
    return f"{line.name}: {write(first[1])} at {number(first[0])}, {write(last[1])} at {number(last[0])}."
