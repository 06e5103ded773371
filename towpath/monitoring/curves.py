"""What a page draws of a stage: its charts with curves thinned to the room there is, and what is marked on the axis."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from towpath.monitoring.columns import Columns
from towpath.monitoring.layout import Chart, Line, groups
from towpath.monitoring.metrics import Metrics
from towpath.monitoring.thinning import smooth, thin

SHARE = 0.03
"""The share of the steps shown over which a smoothed line is a mean."""
SHOWN_INFINITE = 20
DIGITS = 5


def drawn(metrics: Metrics, facts: Mapping[str, Any], low: int, high: int, buckets: int, smoothed: bool = False) -> list[dict[str, Any]]:
    """Groups of charts, with the values between two steps."""
    found = []
    for group in groups(metrics.train.names, metrics.validation.names, facts):
        charts = [_chart(chart, metrics, low, high, buckets, smoothed) for chart in group.charts]
        found.append({"title": group.title, "charts": charts})
    return found


def _chart(chart: Chart, metrics: Metrics, low: int, high: int, buckets: int, smoothed: bool) -> dict[str, Any]:
    guides = [{"low": guide.low, "high": guide.high, "label": guide.label, "kind": guide.kind} for guide in chart.guides]
    lines = [curve(line, metrics.of(line.phase), low, high, buckets, smoothed) for line in chart.lines]
    return {"key": chart.key, "title": chart.title, "form": chart.form, "log": chart.log, "guides": guides, "lines": lines}


def curve(line: Line, columns: Columns, low: int, high: int, buckets: int, smoothed: bool = False) -> dict[str, Any]:
    """One curve between two steps."""
    place = columns.between(low, high)
    steps, values = columns.steps[place], columns.values(line.name)[place]
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
