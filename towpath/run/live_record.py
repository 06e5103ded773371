"""Live run record: a run folder followed while it is written; all viewers of a server share one.

A step is the number of steps done, 0 before the first. Files count steps from 0, so 1 is added where they are read.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import RLock
from time import monotonic, time
from typing import Any

from towpath.errors import ResourceError, TowpathError
from towpath.recipe import Recipe, load
from towpath.recipe.reader import flatten
from towpath.run.metric_columns import MetricColumns
from towpath.run.plan_record import RunProgress, read_progress
from towpath.run.record import (
    CURRENT,
    METRICS,
    TRAINING_STAGES,
    modified_at,
    read_current,
    stage_folders,
    stage_kind,
    stage_round,
)
from towpath.run.samples import Samples
from towpath.store.jsonl import JsonlTail, is_number, objects
from towpath.store.manifest import NAME as MANIFEST
from towpath.store.manifest import RESTARTS, WORKERS, read_object, read_restarts, read_workers

MIN_INTERVAL = 0.2
"""Seconds within which files are not read again."""
PLAN_INTERVAL = 5.0
"""The same for the plan against the actual time, which reads the manifests of all stages."""
ACTIVE_SECONDS = 60.0
"""Seconds since the last row within which a stage counts as running, where locks cannot be seen."""


class LiveStage:
    """A training stage: its metrics, interventions, findings and samples."""

    def __init__(self, name: str, folder: Path, evaluation: Path | None) -> None:
        self.name = name
        self.folder = folder
        self.metrics = MetricColumns(folder / METRICS)
        self.samples = Samples(folder / "samples.jsonl", evaluation / "answers.jsonl" if evaluation else None)
        self.interventions: list[dict[str, Any]] = []
        self.findings: list[dict[str, Any]] = []
        self.manifest: dict[str, Any] = {}
        self.workers: dict[str, Any] = {}
        """What its workers do: `towpath.store.manifest.WORKERS`."""
        self.restarts: list[dict[str, Any]] = []
        self._run_info: dict[str, Any] = {}
        self._interventions = JsonlTail(folder / "interventions.jsonl")
        self._file_stats: dict[str, tuple[float, int]] = {}

    @property
    def kind(self) -> str:
        """Its name without the round."""
        return stage_kind(self.name)

    @property
    def done(self) -> bool:
        """Whether it has finished."""
        return self.manifest.get("status") == "done"

    @property
    def result(self) -> dict[str, Any]:
        """Its result, empty until it has finished."""
        return self.manifest.get("result") or {}

    @property
    def steps(self) -> int | None:
        """The number of steps it takes, if that is known."""
        steps = self.result.get("steps", self._run_info.get("steps"))
        return int(steps) if is_number(steps) else None

    def refresh(self) -> None:
        """Read what was added to its files."""
        self.metrics.refresh()
        self.samples.refresh()
        data, replaced = self._interventions.read()
        new = [_from_one(row, "step") for row in objects(data) if is_number(row.get("step"))]
        self.interventions = new if replaced else self.interventions + new
        if self._is_changed(MANIFEST):
            self.manifest = read_object(self.folder / MANIFEST) or {}
        if self._is_changed("run_info.json"):
            self._run_info = read_object(self.folder / "run_info.json") or {}
        if self._is_changed(WORKERS):
            self.workers = read_workers(self.folder)
        is_restarted = self._is_changed(RESTARTS)
        if is_restarted:
            self.restarts = read_restarts(self.folder)
        if self._is_changed("findings.json") or is_restarted or (self.done and not self.findings):
            rows = [*_read_list(self.folder / "findings.json"), *(row["finding"] for row in self.restarts)]
            self.findings = _findings(rows or self.manifest.get("findings") or [])

    def _is_changed(self, name: str) -> bool:
        """Whether a file was replaced since the last call."""
        try:
            stat = (self.folder / name).stat()
        except OSError:
            return self._file_stats.pop(name, None) is not None
        before = self._file_stats.get(name)
        self._file_stats[name] = (stat.st_mtime, stat.st_ino)
        return before != self._file_stats[name]

    def facts(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe of this stage by dotted key; until it has finished, the present recipe."""
        recipe = self.manifest.get("recipe")
        return flatten(recipe) if isinstance(recipe, dict) else dict(settings)


class LiveRun:
    """A run and its training stages, read again when someone looks."""

    def __init__(self, run: Path, assignments: Sequence[str] = ()) -> None:
        if not (run / "recipe.toml").is_file():
            raise ResourceError(f"{run}: no run", "a run is a folder that `towpath new` made", "fix the path")
        self.run = run
        self.assignments = list(assignments)
        """Settings of the command line, key=value."""
        self.stages: dict[str, LiveStage] = {}
        self.settings: dict[str, Any] = {}
        self.findings: list[dict[str, Any]] = []
        self.waiting_for = ""
        self.lock = RLock()
        self.progress: RunProgress | None = None
        """Plan against actual time."""
        self._read_at = -MIN_INTERVAL
        self._planned_at = -PLAN_INTERVAL
        self._modified: tuple[float, ...] = ()
        self._evaluation: Path | None = None
        self._refresh_stages()

    def refresh(self, wait: bool = True) -> None:
        """Read what was added; concurrent callers read once. Without `wait`, return at once while another reads."""
        if not self.lock.acquire(blocking=wait):
            return
        try:
            if monotonic() - self._read_at < MIN_INTERVAL:
                return
            self._refresh_stages()
            for stage in self.stages.values():
                stage.refresh()
            if monotonic() - self._planned_at >= PLAN_INTERVAL:
                self.progress = read_progress(self.run)
                self._planned_at = monotonic()
            self._read_at = monotonic()
        finally:
            self.lock.release()

    def _refresh_stages(self) -> None:
        modified = tuple(modified_at(self.run / name) for name in ("recipe.toml", CURRENT))
        if modified == self._modified and modified[1]:
            return
        self._modified = modified
        try:
            self.settings = flatten(load(self.run, self.assignments).model_dump(mode="json"))
        except TowpathError:  # the recipe is being edited
            self.settings = self.settings or flatten(Recipe().model_dump(mode="json"))
        current = read_current(self.run, quiet=True)
        self.waiting_for = current.waiting_for
        self.findings = _findings(current.findings)
        folders = stage_folders(self.run, current)
        stages = {}
        for name, folder in folders.items():
            if stage_kind(name) in TRAINING_STAGES:
                before = self.stages.get(name)
                unchanged = before is not None and before.folder == folder
                stages[name] = before if unchanged else LiveStage(name, folder, _evaluation_of(name, folders))
        self.stages = stages
        evaluations = [folder for name, folder in folders.items() if stage_kind(name) == "evaluate"]
        done = [folder for folder in evaluations if (folder / MANIFEST).is_file()]
        self._evaluation = done[-1] if done else None

    @property
    def evaluation(self) -> dict[str, Any]:
        """The result of the newest evaluation, empty if there is none."""
        manifest = read_object(self._evaluation / MANIFEST) if self._evaluation else None
        return (manifest or {}).get("result") or {}

    def current_stage(self) -> str:
        """The last stage that has written metrics, or else the first."""
        started = [name for name, stage in self.stages.items() if (stage.folder / METRICS).is_file()]
        return started[-1] if started else next(iter(self.stages), "")

    def latest_stage(self, kind: str) -> LiveStage | None:
        """The newest stage of a kind that has metrics, or else the newest."""
        stages = [stage for stage in self.stages.values() if stage.kind == kind]
        started = [stage for stage in stages if stage.metrics.train.count or stage.done]
        return (started or stages or [None])[-1]

    def state(self, name: str) -> str:
        """done, running, stopped, or not started."""
        stage = self.stages[name]
        if stage.done:
            return "done"
        if not stage.folder.is_dir():
            return "not started"
        locked = is_locked(self.run)
        running = locked if locked is not None else time() - modified_at(stage.folder / METRICS) < ACTIVE_SECONDS
        names = list(self.stages)
        later = names[names.index(name) + 1 :]
        is_last = not any(self.stages[other].metrics.train.count for other in later)
        return "running" if running and is_last else "stopped"


def is_locked(run: Path) -> bool | None:
    """Whether a process holds the run's lock; None where locks cannot be seen. Trying the lock would disturb a run
    that starts."""
    try:
        inode = (run / ".lock").stat().st_ino
        locks = Path("/proc/locks").read_text()
    except OSError:
        return None
    fields = [line.split() for line in locks.splitlines()]
    return any(len(row) > 5 and row[1] == "FLOCK" and row[5].endswith(f":{inode}") for row in fields)


def _evaluation_of(name: str, folders: Mapping[str, Path]) -> Path | None:
    """The evaluation of a policy stage, in the same round."""
    if stage_kind(name) != "policy":
        return None
    number = stage_round(name)
    return folders.get("evaluate" if number == 1 else f"evaluate@{number}")


def _read_list(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return content if isinstance(content, list) else []


def _findings(rows: Any) -> list[dict[str, Any]]:
    return [_from_one(row, "first_step") for row in rows if isinstance(row, dict)]


def _from_one(row: dict[str, Any], key: str) -> dict[str, Any]:
    """A row with its step counted from 1."""
    return row | {key: row[key] + 1} if is_number(row.get(key)) else row
