"""Marks on the step axis of the monitor: interventions, findings, and the selected checkpoint."""

from collections.abc import Mapping
from typing import Any

from towpath.run.live_record import LiveStage
from towpath.store.jsonl import is_number


def stage_marks(stage: LiveStage) -> list[dict[str, Any]]:
    """The marks of a stage in the order of their steps."""
    marks = [
        _axis_mark(
            row["step"],
            "intervention",
            intervention_label(row),
            str(row.get("reason") or ""),
            str(row.get("finding") or ""),
        )
        for row in stage.interventions
    ]
    for row in stage.findings:
        if is_number(row.get("first_step")):
            reason = " ".join(_sentence(str(row[key])) for key in ("evidence", "cause") if row.get(key))
            marks.append(
                _axis_mark(row["first_step"], str(row.get("severity") or "info"), str(row.get("code")), reason)
            )
    best = stage.result.get("best_step")
    if is_number(best) and best > 0:
        marks.append(_axis_mark(best, "checkpoint", "checkpoint", "The stage exports the weights after this step."))
    return sorted(marks, key=lambda row: row["step"])


def _axis_mark(step: float, kind: str, label: str, reason: str, finding: str = "") -> dict[str, Any]:
    return {"step": int(step), "kind": kind, "label": label, "reason": reason, "finding": finding}


def intervention_label(row: Mapping[str, Any]) -> str:
    """What an intervention did: the knob and its values, or that training stopped."""
    if row.get("stop"):
        return "training stopped"
    return f"{row.get('knob')}: {_value(row.get('from'))} → {_value(row.get('to'))}"


def _value(value: Any) -> str:
    return f"{value:.4g}" if is_number(value) else str(value)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
