"""A trial as it is stored: settings, curve prompt by prompt, value, findings and why it ended."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from towpath.records import Finding, finding_of
from towpath.sweep.objective import TrialCurve, TrialValue
from towpath.sweep.space import Settings

Status = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class TrialRecord:
    """A trial that has ended: one training of the policy with its settings."""

    number: int
    settings: Settings
    seed: int
    status: Status
    reason: str
    """Why it ended before its last step; empty if it did not."""
    steps: int
    """Training steps that were made."""
    curve: TrialCurve
    value: TrialValue
    findings: tuple[Finding, ...] = ()
    judge: str = ""
    dollars: float = 0.0
    seconds: float = 0.0
    rewards: Sequence[float] = field(default_factory=tuple)
    """Mean validation reward, by validation; empty without a reward."""
    share: float = 1.0
    """Of its training, how much was made before it ended."""

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of its findings, critical ones first."""
        ordered = sorted(self.findings, key=lambda finding: finding.severity != "critical")
        return tuple(dict.fromkeys(finding.code for finding in ordered))


def empty_curve() -> TrialCurve:
    """The curve of a trial before its first validation."""
    none = np.zeros((0, 0))
    return TrialCurve((), none, none, none, np.zeros(0))


def to_row(record: TrialRecord) -> dict[str, Any]:
    """A trial as JSON."""
    value = asdict(record.value) | {"interval": list(record.value.interval)}
    row = {
        name: getattr(record, name)
        for name in ("number", "settings", "seed", "status", "reason", "steps", "judge", "dollars", "seconds", "share")
    }
    return row | {
        "value": value,
        "curve": curve_rows(record.curve),
        "rewards": list(record.rewards),
        "findings": [asdict(finding) for finding in record.findings],
    }


def from_row(row: Mapping[str, Any]) -> TrialRecord:
    """A trial from JSON."""
    value = dict(row["value"])
    low, high = value.pop("interval")
    return TrialRecord(
        int(row["number"]),
        dict(row["settings"]),
        int(row["seed"]),
        row["status"],
        row["reason"],
        int(row["steps"]),
        curve_of(row["curve"]),
        TrialValue(interval=(low, high), **value),
        tuple(finding_of(finding) for finding in row["findings"]),
        row["judge"],
        float(row["dollars"]),
        float(row["seconds"]),
        tuple(row["rewards"]),
        float(row.get("share", 1.0)),
    )


def curve_rows(curve: TrialCurve) -> list[dict[str, Any]]:
    """The validations of a curve, one row each; null for an unjudged prompt."""
    return [
        {
            "step": step,
            "kl": _numbers(curve.kl_VP[i]),
            "win": _numbers(curve.win_VP[i]),
            "length_gap": [int(x) for x in curve.length_gap_VP[i]],
            "safety_rise": _numbers(curve.safety_rise_V[i : i + 1])[0],
        }
        for i, step in enumerate(curve.steps)
    ]


def curve_of(rows: Sequence[Mapping[str, Any]]) -> TrialCurve:
    """A curve from its rows."""
    if not rows:
        return empty_curve()
    return TrialCurve(
        tuple(int(row["step"]) for row in rows),
        np.array([_floats(row["kl"]) for row in rows]),
        np.array([_floats(row["win"]) for row in rows]),
        np.array([_floats(row["length_gap"]) for row in rows]),
        np.array(_floats([row["safety_rise"] for row in rows])),
    )


def _numbers(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(x) else round(float(x), 6) for x in values]


def _floats(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if x is None else float(x) for x in values]
