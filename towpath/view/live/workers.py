"""The workers of a stage as views show them: seconds by phase, throughput, memory, heartbeat."""

from collections.abc import Mapping
from dataclasses import dataclass
from time import time
from typing import Any

from towpath.run.live_record import LiveStage
from towpath.store.jsonl import is_number
from towpath.view.format import duration, number, size

PHASES = (
    ("sample", "sampling"),
    ("score", "scoring"),
    ("train", "training"),
    ("sync", "weight sync"),
    ("other", "other"),
    ("waiting", "waiting"),
)
"""Phases of workers.json with their names."""
STALE_SHARE = 0.25
"""Share of its limit from which a heartbeat counts as late; healthy workers send two a second."""


@dataclass(frozen=True, slots=True)
class PhaseSeconds:
    """Seconds of a worker in one phase, and their share of all of its seconds."""

    name: str
    share: float
    seconds: str


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One worker in words and numbers."""

    name: str
    location: str
    """Host and device."""
    process: str
    verb: str
    """What it computes now."""
    phases: tuple[PhaseSeconds, ...]
    sampled: str
    """Tokens a second while it samples, and while it trains."""
    trained: str
    memory: str
    heartbeat: str
    tone: str = ""
    """`bad` where the heartbeat is late."""


@dataclass(frozen=True, slots=True)
class WorkersPanel:
    """All workers of a stage, and what happened to them."""

    rows: tuple[WorkerRow, ...]
    note: str
    tone: str = ""


def workers_panel(stage: LiveStage, state: str) -> WorkersPanel | None:
    """The workers of a stage in a state such as `running`; None where one process does the work."""
    content = stage.workers
    rows = content.get("workers") or []
    if len(rows) < 2:
        return None
    running = state == "running"
    limit = float(content.get("timeout") or 0.0)
    notes = [_written(content) if running else "as they were last seen"]
    if stage.restarts:
        notes.append(f"{len(stage.restarts)} restart{'s' * (len(stage.restarts) > 1)}")
    lost = str(content.get("lost") or "")
    if lost:
        notes.append(f"lost: {lost}")
    return WorkersPanel(tuple(_row(row, running, limit) for row in rows), "; ".join(notes), "bad" if lost else "")


def _written(content: Mapping[str, Any]) -> str:
    """How old the file is: it is written while the controller waits for workers."""
    age = time() - float(content.get("written_at") or 0.0)
    return "now" if age < 5 else f"as of {duration(age)} ago, when this run last waited for its workers"


def _row(row: Mapping[str, Any], running: bool, limit: float) -> WorkerRow:
    seconds = row.get("seconds") or {}
    total = sum(value for value in seconds.values() if is_number(value)) or 1.0
    throughput = row.get("tokens_per_second") or {}
    heartbeat, tone = _heartbeat(row, limit) if running else ("", "")
    return WorkerRow(
        name=f"worker {int(row.get('rank') or 0) + 1}",
        location=f"{row.get('host')}, {row.get('device')}",
        process=str(row.get("pid") or ""),
        verb=str(row.get("verb") or "") if running else "",
        phases=tuple(
            PhaseSeconds(title, float(seconds[name]) / total, duration(seconds[name], brief=True))
            for name, title in PHASES
            if is_number(seconds.get(name)) and seconds[name] > 0
        ),
        sampled=number(throughput.get("sample") or None),
        trained=number(throughput.get("train") or None),
        memory=size(row.get("memory_bytes") or None),
        heartbeat=heartbeat,
        tone=tone,
    )


def _heartbeat(row: Mapping[str, Any], limit: float) -> tuple[str, str]:
    """The age of the last heartbeat of a worker that computes something, and whether it is late."""
    if not row.get("verb"):
        return "idle", ""
    age = float(row.get("heartbeat_age") or 0.0)
    if age > STALE_SHARE * limit:
        return f"{duration(age)}, limit {duration(limit)}", "bad"
    return duration(age), ""
