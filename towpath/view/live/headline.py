"""The few numbers at the top: where a stage stands."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from towpath.view.format import duration, number, percent
from towpath.view.live.columns import Columns
from towpath.view.live.series import Metrics

LATELY = 0.05
"""The share of the steps so far that count as lately; at most `MOST` steps."""
MOST = 20
TOKENS = ("tokens_per_second",)
PHASES = ("seconds_generate", "seconds_score", "seconds_optimise")


@dataclass(frozen=True, slots=True)
class Number:
    """One number with its name, a note, and how it is to be taken: good, doubt, bad, or nothing said."""

    label: str
    value: str
    note: str = ""
    tone: str = ""
    share: float | None = None


def headline(metrics: Metrics, facts: Mapping[str, Any], steps: int | None, state: str) -> list[Number]:
    """Step x of y, then what matters for the stage, then time; only what was told."""
    train = metrics.train
    look = metrics.validation
    found = [_steps(train, steps, state)]
    if "reward" in train.names or "reward" in look.names:
        found.append(_reward(train, look))
    elif "loss" in train.names or "pairs_loss" in look.names:
        found.append(_plain("Loss", "loss" if "loss" in train.names else "pairs_loss", train, look))
    if "kl" in train.names or "kl" in look.names:
        found.append(_kl(train, look, facts))
    for name in ("accuracy", "pairs_accuracy"):
        if name in train.names or name in look.names:
            found.append(_plain("Accuracy", name, train, look, share=True))
            break
    if "finish_rate" in train.names or "finish_rate" in look.names:
        found.append(_finish(train, look))
    if state != "done":
        found.append(_left(train, steps))
    return found


def lately(columns: Columns, name: str) -> float | None:
    """The mean of the last values of a name."""
    values = columns.values(name)
    values = values[np.isfinite(values)]
    count = int(min(MOST, max(1, round(len(values) * LATELY))))
    return float(values[-count:].mean()) if len(values) else None


def last(columns: Columns, name: str) -> tuple[int, float] | None:
    """The last step at which a name was told, and its value."""
    values = columns.values(name)
    told = np.flatnonzero(np.isfinite(values))
    return (int(columns.steps[told[-1]]), float(values[told[-1]])) if len(told) else None


def seconds_left(train: Columns, steps: int | None) -> float | None:
    """What the steps to come will take, at the pace of the last ones."""
    names = [name for name in PHASES if name in train.names]
    if steps is None or not names or not train.count:
        return None
    spent = np.nansum([train.values(name)[-MOST:] for name in names], axis=0)
    return float(np.median(spent)) * max(steps - train.last, 0)


def _steps(train: Columns, steps: int | None, state: str) -> Number:
    value = f"{number(train.last, 12)} of {number(steps, 12)}" if steps else number(train.last, 12)
    return Number("steps", value, state, "", min(train.last / steps, 1.0) if steps else None)


def _reward(train: Columns, look: Columns) -> Number:
    value = lately(train, "reward")
    notes = []
    first = train.values("reward")
    first = first[np.isfinite(first)]
    if value is not None and len(first) > 1:
        gain = value - float(first[: max(1, min(MOST, round(len(first) * LATELY)))].mean())
        notes.append(f"{'+' if gain >= 0 else ''}{number(gain, 2)} since the beginning")
    if seen := last(look, "reward"):
        notes.append(f"held out {number(seen[1])} at step {seen[0]}")
    return Number("reward", number(value if value is not None else seen[1] if seen else None), "; ".join(notes))


def _kl(train: Columns, look: Columns, facts: Mapping[str, Any]) -> Number:
    value = lately(train, "kl")
    if value is None and (seen := last(look, "kl")):
        value = seen[1]
    target = facts.get("policy.kl.target") or 0.0
    alarm = facts.get("policy.kl.alarm")
    tone = (
        "bad"
        if value is not None and alarm and value > alarm
        else "doubt"
        if value is not None and target and value > 2 * target
        else "good"
    )
    notes = [f"target {target:g}"] if target else []
    notes += [f"alarm {alarm:g}"] if alarm else []
    return Number("KL, nats per prompt", number(value), ", ".join(notes), tone if notes else "")


def _finish(train: Columns, look: Columns) -> Number:
    where = train if "finish_rate" in train.names else look
    value = lately(where, "finish_rate")
    length = lately(where, "length")
    tone = "" if value is None else "bad" if value < 0.5 else "doubt" if value < 0.8 else ""
    return Number(
        "end by themselves", percent(value), f"{number(length, 2)} tokens long" if length is not None else "", tone
    )


def _plain(label: str, name: str, train: Columns, look: Columns, share: bool = False) -> Number:
    told = percent if share else number
    value = lately(train, name)
    seen = last(look, name)
    note = f"held out {told(seen[1])} at step {seen[0]}" if seen and value is not None else ""
    return Number(label.lower(), told(value if value is not None else seen[1] if seen else None), note)


def _left(train: Columns, steps: int | None) -> Number:
    pace = lately(train, "tokens_per_second")
    note = f"{number(pace, 3)} tokens a second" if pace is not None else ""
    return Number("left", duration(seconds_left(train, steps), brief=True), note)
