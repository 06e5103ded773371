"""What the workers of a run do, and the file by which the monitor shows it while a stage runs."""

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

PHASE_OF = {
    "generate_here": "sample",
    "score": "score",
    "forward": "score",
    "score_here": "score",
    "cache_frozen_prefix": "score",
    "read_features": "score",
    "forward_backward": "train",
    "step": "train",
    "fit": "train",
    "publish_here": "sync",
    "send_here": "sync",
    "receive_here": "sync",
}
"""Phase of a step that a verb belongs to; all others, such as loading and saving, are `other`."""
PHASES = ("sample", "score", "train", "sync", "other")
INTERVAL = 1.0
"""Seconds between two writings of the file."""


@dataclass
class Usage:
    """What a process has done and moved since it began; all of it only grows."""

    sampled_tokens: int = 0
    scored_tokens: int = 0
    trained_tokens: int = 0
    collective_bytes: int = 0
    """Of tensors that this process added up, gathered or broadcast with others, such as gradients."""
    sync_bytes: int = 0
    """Of weights given to this process's engine."""
    sync_seconds: float = 0.0

    def copy(self) -> "Usage":
        """As it is now."""
        return replace(self)

    def since(self, earlier: "Usage") -> "Usage":
        """What was added after an earlier copy."""
        return Usage(*(getattr(self, one.name) - getattr(earlier, one.name) for one in fields(self)))


@dataclass
class WorkerState:
    """One worker, as the monitor shows it."""

    rank: int
    pid: int = 0
    host: str = ""
    device: str = "cpu"
    verb: str = ""
    """The method or function that it computes, empty between two of them."""
    memory_bytes: float = 0.0
    peak_memory_bytes: float = 0.0
    """The most that was seen since the stage began."""
    started: float = 0.0
    last_heard: float = 0.0
    progressed: float = 0.0
    stack: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """By verb, without the one that it computes now."""
    usage: Usage = field(default_factory=Usage)


class WorkersFile:
    """A file with the state of all workers, counted from the moment when it is begun. Its loss costs nothing, so it is
    not synced to the disk, and an error of the disk is left to what must be written."""

    def __init__(self, path: Path, states: Sequence[WorkerState], timeout: float) -> None:
        self.path = path
        self._timeout = timeout
        self._since = time.monotonic()
        self._written = -INTERVAL
        for state in states:
            state.peak_memory_bytes = state.memory_bytes
        self._before = [replace(state, seconds=dict(state.seconds), usage=state.usage.copy()) for state in states]

    def write(self, states: Sequence[WorkerState], lost: str = "", last: bool = False) -> None:
        """Write the file, unless it was written less than a second ago; a loss and the last state always are."""
        now = time.monotonic()
        if now - self._written < INTERVAL and not lost and not last:
            return
        self._written = now
        rows = [
            self._row(rank, state, before, now)
            for rank, (state, before) in enumerate(zip(states, self._before, strict=True))
        ]
        content = {"written_at": time.time(), "timeout": self._timeout, "lost": lost, "workers": rows}
        temporary = self.path.with_name(f"{self.path.name}.tmp-{os.getpid():08x}")
        with suppress(OSError):
            temporary.write_text(json.dumps(content), encoding="utf-8")
            temporary.replace(self.path)

    def _row(self, rank: int, state: WorkerState, before: WorkerState, now: float) -> dict[str, Any]:
        used = state.usage.since(before.usage)
        seconds = self._seconds(state, before, now)
        throughput = {
            "sample": used.sampled_tokens / seconds["sample"] if seconds["sample"] else 0.0,
            "train": used.trained_tokens / seconds["train"] if seconds["train"] else 0.0,
        }
        return {
            "rank": rank,
            "host": state.host,
            "device": state.device,
            "pid": state.pid,
            "verb": state.verb,
            "heartbeat_age": now - state.last_heard if state.verb else 0.0,
            "memory_bytes": state.memory_bytes,
            "peak_memory_bytes": state.peak_memory_bytes,
            "seconds": seconds,
            "tokens_per_second": throughput,
            "collective_bytes": used.collective_bytes,
            "sync_bytes": used.sync_bytes,
        }

    def _seconds(self, state: WorkerState, before: WorkerState, now: float) -> dict[str, float]:
        """Seconds by phase; those in which a worker computes nothing are `waiting`."""
        phases: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        for verb, total in state.seconds.items():
            phases[PHASE_OF.get(verb, "other")] += total - before.seconds.get(verb, 0.0)
        if state.verb:
            phases[PHASE_OF.get(state.verb, "other")] += now - max(state.started, self._since)
        phases["waiting"] = max(0.0, now - self._since - sum(phases.values()))
        return phases
