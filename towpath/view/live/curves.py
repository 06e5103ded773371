"""What a page draws of a stage: its charts with curves thinned to the room there is, and what is marked on the axis."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from towpath.view.downsample import smooth, thin
from towpath.view.live.columns import Columns
from towpath.view.live.layout import Chart, Line, groups
from towpath.view.live.series import Metrics

SHARE = 0.03
"""The share of the steps shown over which a smoothed line is a mean."""
SHOWN_INFINITE = 20
DIGITS = 5
FEWEST = 5
"""Values below which a curve is not called constant."""
EQUAL = 1e-9
"""Relative spread up to which values count as the same."""


def drawn(
    metrics: Metrics, facts: Mapping[str, Any], low: int, high: int, buckets: int, smoothed: bool = False
) -> list[dict[str, Any]]:
    """Groups of charts, with the values between two steps."""
    found = []
    for group in groups(metrics.train.names, metrics.validation.names, facts):
        charts = [_chart(chart, metrics, low, high, buckets, smoothed) for chart in group.charts]
        found.append({"title": group.title, "charts": charts})
    return found


def _chart(chart: Chart, metrics: Metrics, low: int, high: int, buckets: int, smoothed: bool) -> dict[str, Any]:
    guides = [
        {"low": guide.low, "high": guide.high, "label": guide.label, "kind": guide.kind} for guide in chart.guides
    ]
    lines = [curve(line, metrics.of(line.phase), low, high, buckets, smoothed) for line in chart.lines]
    flat = all(_is_flat(metrics.of(line.phase).values(line.name)) for line in chart.lines)
    return {
        "key": chart.key,
        "title": chart.title,
        "form": chart.form,
        "log": chart.log,
        "guides": guides,
        "lines": lines,
        "flat": flat,
    }


def _is_flat(values: np.ndarray) -> bool:
    """Whether a curve tells nothing: no value at all, or one and the same over all steps. A few values are no curve
    yet, and are shown."""
    if len(values) and abs(values[0] - values[-1]) > EQUAL * abs(values[0]):
        return False  # most curves end elsewhere than they began: no need to go through all values
    told = values[~np.isnan(values)]
    if not len(told):
        return True
    return (
        len(told) >= FEWEST
        and bool(np.isfinite(told).all())
        and float(np.ptp(told)) <= EQUAL * float(np.abs(told).max())
    )


def curve(line: Line, columns: Columns, low: int, high: int, buckets: int, smoothed: bool = False) -> dict[str, Any]:
    """One curve between two steps."""
    place = columns.between(low, high)
    steps = columns.steps[place]
    values = columns.values(line.name)[place]
    kept = thin(steps, values, buckets)
    told = {"name": line.name, "label": line.label, "phase": line.phase, "tone": line.tone}
    told |= {"steps": steps[kept].tolist(), "values": _short(values[kept])}
    endless = steps[np.isinf(values)]
    if len(endless):
        told["endless"] = endless[:: -(-len(endless) // SHOWN_INFINITE)].tolist()
    if smoothed and line.phase == "train" and (window := int(np.isfinite(values).sum() * SHARE)) > 1:
        mean = smooth(values, window)
        kept = thin(steps, mean, buckets)
        told |= {"smooth_steps": steps[kept].tolist(), "smooth_values": _short(mean[kept])}
    return told


def _short(values: np.ndarray) -> list[float]:
    """Values with as many digits as a picture can show."""
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]
