"""Frontier of win rate and KL to SFT, beside best of n."""

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from towpath.store.jsonl import is_interval, is_number
from towpath.view.charts import NOTHING, Plane, Series, axes, figure
from towpath.view.format import number, percent


def best_of_n(n: float) -> tuple[float, float]:
    """(KL in nats, win rate over one draw) of the best of n answers under a perfect judge (arXiv 2204.05862)."""
    return math.log(n) - (n - 1) / n, n / (n + 1)


def draw(result: dict[str, Any], threshold: float | None) -> Markup:
    """The frontier with the policy, its length-controlled win rate, and best of n."""
    win = result.get("win") or {}
    kl = result.get("kl_per_prompt")
    rate = win.get("rate")
    equal_length = (win.get("length_controlled") or {}).get("rate")
    if not is_number(rate) or not is_number(kl):
        return NOTHING
    kl_interval = result["kl_interval"] if is_interval(result.get("kl_interval")) else (kl, kl)
    rate_interval = win["interval"] if is_interval(win.get("interval")) else (rate, rate)
    low = min(0.5, rate - 0.05, rate_interval[0] - 0.03, equal_length - 0.05 if is_number(equal_length) else 0.5)
    plane = Plane(
        min(0.0, kl_interval[0]),
        max(1.6, kl_interval[1] * 1.2),
        max(low, 0.0),
        1.0,
        width=460,
        height=330,
        left=42,
        top=26,
        bottom=34,
    )
    curve = best_of_n_curve(plane.x1)
    measured = _measured_best_of_n(result.get("best_of_n") or {}, plane.x1)
    series = [Series("best of n, perfect judge", curve, "line", 2), Series("policy", [(kl, rate)], "dots", 0)]
    body = [
        axes(plane, "KL to SFT, nats per prompt", "percent", "win rate over SFT"),
        _gate(plane, threshold),
        _reference(plane, curve),
    ]
    if is_number(equal_length):
        series.append(Series("policy at equal length", [(kl, equal_length)], "dots", 1))
        body.append(_equal_length(plane, kl, rate, equal_length))
    if measured:
        series.append(Series(f"best of n = {number(result['best_of_n'].get('n'), 2)}", measured, "dots", 2))
        body.append(
            Markup('<circle class="ring c2" cx="{}" cy="{}" r="5"/>').format(
                plane.x(measured[0][0]), plane.y(measured[0][1])
            )
        )
    body.append(_policy(plane, (kl, rate), kl_interval, rate_interval))
    return figure(
        "Win rate over SFT against KL to SFT",
        Markup().join(body),
        plane,
        series,
        x="KL",
        form="percent",
        kind="frontier",
        description=_description(kl, rate, equal_length),
    )


def best_of_n_curve(end: float) -> list[tuple[float, float]]:
    """Best of n from n = 1 to a KL of `end` nats, in steps small enough to look smooth."""
    points = [best_of_n(math.exp(step / 40)) for step in range(400)]
    return [point for point in points if point[0] <= end]


def _measured_best_of_n(best: dict[str, Any], end: float) -> list[tuple[float, float]]:
    kl = best.get("kl")
    rate = best.get("rate")
    return [(kl, rate)] if is_number(kl) and is_number(rate) and 0 <= kl <= end else []


def _reference(plane: Plane, curve: Sequence[tuple[float, float]]) -> Markup:
    path = "M" + "L".join(f"{plane.x(x)} {plane.y(y)}" for x, y in curve)
    parts = [Markup('<g class="series c2 line"><path d="{}"/></g>').format(path)]
    for n in (2, 4, 8, 16, 32, 64):
        x, y = best_of_n(n)
        if x <= plane.x1 * 0.97:
            parts.append(
                Markup(
                    '<circle class="small c2" cx="{}" cy="{}" r="3"/><text class="on c2" x="{}" y="{}" '
                    'text-anchor="middle">n={}</text>'
                ).format(plane.x(x), plane.y(y), plane.x(x), plane.y(y) - 8, n)
            )
    return Markup().join(parts)


def _gate(plane: Plane, threshold: float | None) -> Markup:
    if threshold is None or not plane.y0 < threshold < plane.y1:
        return NOTHING
    y = plane.y(threshold)
    right = plane.width - plane.right
    text = f"gate {percent(threshold)}"
    return Markup(
        '<g class="mark"><line x1="{}" x2="{}" y1="{}" y2="{}"/><text x="{}" y="{}" text-anchor="end">{}</text></g>'
    ).format(plane.left, right, y, y, right - 2, y + 12, text)


def _equal_length(plane: Plane, kl: float, rate: float, equal_length: float) -> Markup:
    x = plane.x(kl)
    return Markup(
        '<line class="tie c1" x1="{}" x2="{}" y1="{}" y2="{}"/><circle class="ring c1" cx="{}" cy="{}" r="5"/>'
    ).format(x, x, plane.y(rate), plane.y(equal_length), x, plane.y(equal_length))


def _policy(
    plane: Plane, at: tuple[float, float], kl_interval: Sequence[float], rate_interval: Sequence[float]
) -> Markup:
    x = plane.x(at[0])
    y = plane.y(at[1])
    arms = Markup('<line x1="{}" x2="{}" y1="{}" y2="{}"/><line x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
        plane.x(kl_interval[0]),
        plane.x(kl_interval[1]),
        y,
        y,
        x,
        x,
        plane.y(rate_interval[0]),
        plane.y(rate_interval[1]),
    )
    return Markup('<g class="errors c0">{}<circle cx="{}" cy="{}" r="6"/></g>').format(arms, x, y)


def _description(kl: float, rate: float, equal_length: Any) -> str:
    ideal = next(
        (best_of_n(math.exp(step / 200)) for step in range(4000) if best_of_n(math.exp(step / 200))[0] >= kl), (kl, 1.0)
    )[1]
    controlled = f", {percent(equal_length)} at equal length" if is_number(equal_length) else ""
    return (
        f"The policy wins {percent(rate)}{controlled} at {number(kl)} nats per prompt; best of n would win "
        f"{percent(ideal)} there."
    )
