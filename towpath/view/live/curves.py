"""Curves of the monitor: the charts of a stage with the values between two steps, downsampled."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from towpath.run.metric_columns import Columns, MetricColumns
from towpath.view.downsample import downsample, moving_average
from towpath.view.live.layout import ChartLayout, Line, chart_groups

SMOOTHING_SHARE = 0.03
"""The share of the visible steps that a smoothed line averages."""
MAX_NOT_FINITE = 20
DIGITS = 5
MIN_FLAT_VALUES = 5
"""Values from which a curve counts as constant."""
EQUAL = 1e-9
"""Relative range up to which values count as equal."""


def stage_charts(
    metrics: MetricColumns, facts: Mapping[str, Any], low: int, high: int, buckets: int, smoothed: bool = False
) -> list[dict[str, Any]]:
    """Groups of charts, with the values between two steps."""
    groups = []
    for group in chart_groups(metrics.train.names, metrics.validation.names, facts):
        charts = [_chart(chart, metrics, low, high, buckets, smoothed) for chart in group.charts]
        groups.append({"title": group.title, "charts": charts})
    return groups


def _chart(
    chart: ChartLayout, metrics: MetricColumns, low: int, high: int, buckets: int, smoothed: bool
) -> dict[str, Any]:
    return {
        "key": chart.key,
        "title": chart.title,
        "form": chart.form,
        "log": chart.log,
        "guides": [{"low": g.low, "high": g.high, "label": g.label, "kind": g.kind} for g in chart.guides],
        "lines": [curve(line, metrics.of_phase(line.phase), low, high, buckets, smoothed) for line in chart.lines],
        "flat": all(_is_flat(metrics.of_phase(line.phase).values(line.name)) for line in chart.lines),
    }


def _is_flat(values: np.ndarray) -> bool:
    """Whether a curve has no value, or the same value at all steps."""
    if len(values) and abs(values[0] - values[-1]) > EQUAL * abs(values[0]):
        return False  # true of most curves, and faster than comparing all values
    values = values[~np.isnan(values)]
    if not len(values):
        return True
    if len(values) < MIN_FLAT_VALUES or not np.isfinite(values).all():
        return False
    return float(np.ptp(values)) <= EQUAL * float(np.abs(values).max())


def curve(line: Line, columns: Columns, low: int, high: int, buckets: int, smoothed: bool = False) -> dict[str, Any]:
    """One curve between two steps."""
    visible = columns.between(low, high)
    steps = columns.steps[visible]
    values = columns.values(line.name)[visible]
    chosen = downsample(steps, values, buckets)
    content: dict[str, Any] = {"name": line.name, "label": line.label, "phase": line.phase, "tone": line.tone}
    content |= {"steps": steps[chosen].tolist(), "values": _rounded(values[chosen])}
    not_finite = steps[np.isinf(values)]
    if len(not_finite):
        content["endless"] = not_finite[:: -(-len(not_finite) // MAX_NOT_FINITE)].tolist()
    window = int(np.isfinite(values).sum() * SMOOTHING_SHARE)
    if smoothed and line.phase == "train" and window > 1:
        mean = moving_average(values, window)
        chosen = downsample(steps, mean, buckets)
        content |= {"smooth_steps": steps[chosen].tolist(), "smooth_values": _rounded(mean[chosen])}
    return content


def _rounded(values: np.ndarray) -> list[float]:
    """Values with the digits that a chart can show."""
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]
