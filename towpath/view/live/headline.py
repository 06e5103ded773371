"""Headline of a stage: steps, reward or loss, KL, finish rate, and the time left."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from towpath.metrics import form, label
from towpath.run.live_record import LiveRun
from towpath.run.metric_columns import Columns, MetricColumns
from towpath.view.format import duration, number, percent

RECENT_SHARE = 0.05
"""The share of values that a recent mean takes, at most `MAX_RECENT` of them."""
MAX_RECENT = 20
PHASE_SECONDS = ("seconds_generate", "seconds_score", "seconds_optimise")


@dataclass(frozen=True, slots=True)
class Number:
    """A headline number with its label, a note, and its tone: good, doubt, bad, or none."""

    label: str
    value: str
    note: str = ""
    tone: str = ""
    share: float | None = None


def stage_headline(run: LiveRun, name: str) -> list[Number]:
    """The headline of a stage; numbers without a metric are left out."""
    stage = run.stages[name]
    return headline(stage.metrics, stage.facts(run.settings), stage.steps, run.state(name))


def headline(metrics: MetricColumns, facts: Mapping[str, Any], steps: int | None, state: str) -> list[Number]:
    """The headline for these metrics."""
    train = metrics.train
    names = {*train.names, *metrics.validation.names}
    numbers = [_steps(train, steps, state)]
    if "reward" in names:
        numbers.append(_reward(metrics))
    elif "loss" in train.names:
        numbers.append(_plain("loss", metrics))
    elif "pairs_loss" in metrics.validation.names:
        numbers.append(_plain("pairs_loss", metrics, "loss"))
    if "kl" in names:
        numbers.append(_kl(metrics, facts))
    accuracy = next((name for name in ("accuracy", "pairs_accuracy") if name in names), None)
    if accuracy:
        numbers.append(_plain(accuracy, metrics))
    if "finish_rate" in names:
        numbers.append(_finish_rate(metrics))
    if state != "done":
        numbers.append(_time_left(train, steps))
    return numbers


def recent_mean(columns: Columns, name: str) -> float | None:
    """The mean of the last values of a metric."""
    values = columns.values(name)
    values = values[np.isfinite(values)]
    return float(values[-_window(values) :].mean()) if len(values) else None


def _window(values: np.ndarray) -> int:
    return int(min(MAX_RECENT, max(1, round(len(values) * RECENT_SHARE))))


def last_value(columns: Columns, name: str) -> tuple[int, float] | None:
    """The last step at which a metric has a value, and the value."""
    values = columns.values(name)
    positions = np.flatnonzero(np.isfinite(values))
    if not len(positions):
        return None
    return int(columns.steps[positions[-1]]), float(values[positions[-1]])


def seconds_left(train: Columns, steps: int | None) -> float | None:
    """The seconds that the remaining steps will take at the pace of the last ones."""
    names = [name for name in PHASE_SECONDS if name in train.names]
    if steps is None or not names or not train.count:
        return None
    seconds = np.nansum([train.values(name)[-MAX_RECENT:] for name in names], axis=0)
    return float(np.median(seconds)) * max(steps - train.last, 0)


def _steps(train: Columns, steps: int | None, state: str) -> Number:
    value = f"{number(train.last, 12)} of {number(steps, 12)}" if steps else number(train.last, 12)
    return Number("steps", value, state, "", min(train.last / steps, 1.0) if steps else None)


def _reward(metrics: MetricColumns) -> Number:
    value = recent_mean(metrics.train, "reward")
    notes = []
    values = metrics.train.values("reward")
    values = values[np.isfinite(values)]
    if value is not None and len(values) > 1:
        gain = value - float(values[: _window(values)].mean())
        notes.append(f"{'+' if gain >= 0 else ''}{number(gain, 2)} since the start")
    held_out = last_value(metrics.validation, "reward")
    if held_out:
        notes.append(f"held out {number(held_out[1])} at step {held_out[0]}")
        value = held_out[1] if value is None else value
    return Number("reward", number(value), "; ".join(notes))


def _kl(metrics: MetricColumns, facts: Mapping[str, Any]) -> Number:
    value = recent_mean(metrics.train, "kl")
    held_out = last_value(metrics.validation, "kl")
    if value is None and held_out:
        value = held_out[1]
    target = facts.get("policy.kl.target") or 0.0
    alarm = facts.get("policy.kl.alarm")
    tone = "good"
    if value is not None and alarm and value > alarm:
        tone = "bad"
    elif value is not None and target and value > 2 * target:
        tone = "doubt"
    notes = [f"target {target:g}"] if target else []
    notes += [f"alarm {alarm:g}"] if alarm else []
    return Number(label("kl"), number(value), ", ".join(notes), tone if notes else "")


def _finish_rate(metrics: MetricColumns) -> Number:
    columns = metrics.train if "finish_rate" in metrics.train.names else metrics.validation
    value = recent_mean(columns, "finish_rate")
    length = recent_mean(columns, "length")
    tone = ""
    if value is not None and value < 0.8:
        tone = "bad" if value < 0.5 else "doubt"
    note = f"mean length {number(length, 2)} tokens" if length is not None else ""
    return Number(label("finish_rate"), percent(value), note, tone)


def _plain(name: str, metrics: MetricColumns, title: str = "") -> Number:
    write = percent if form(name) == "percent" else number
    value = recent_mean(metrics.train, name)
    held_out = last_value(metrics.validation, name)
    note = ""
    if held_out and value is not None:
        note = f"held out {write(held_out[1])} at step {held_out[0]}"
    elif held_out:
        value = held_out[1]
    return Number(title or label(name), write(value), note)


def _time_left(train: Columns, steps: int | None) -> Number:
    speed = recent_mean(train, "tokens_per_second")
    note = f"{number(speed, 3)} tokens/s" if speed is not None else ""
    return Number("time left", duration(seconds_left(train, steps), brief=True), note)
