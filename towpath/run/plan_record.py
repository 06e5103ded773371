"""Plan against actual: the plan of each stage as it was before the stage began, what it took, and what is left."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from towpath.data.data_summary import DataSummary
from towpath.planning.amounts import TRUST, Amount, span, spans
from towpath.planning.run_plan import StagePlan
from towpath.recipe import Recipe
from towpath.run.fingerprint import PlannedStage
from towpath.run.record import read_current, stage_folders, stage_kind
from towpath.store.jsonl import is_number
from towpath.store.manifest import NAME as MANIFEST
from towpath.store.manifest import read_object
from towpath.store.publish import replace_file
from towpath.store.store import Store

FILE = "plan.json"
STARTED = "started"
"""In a stage's folder: when its first and its newest attempt began."""
SECONDS = "seconds"
"""Beside it: seconds of the attempts that ended."""
SILENT_SECONDS = 60.0
"""A stage that writes nothing for so long counts as stopped."""
BY_ROUND = ("sample", "label", "reward", "policy", "evaluate")
"""Stages that each round has; a plan counts all rounds together."""
PRIOR_SECONDS = 20.0
"""Of a stage that took as long as planned, which stand against what the first stages took."""
State = Literal["done", "started", "to do"]


@dataclass(frozen=True)
class StageProgress:
    """One stage."""

    name: str
    state: State
    planned: Amount | None
    """Seconds, before it began."""
    actual: float | None
    """Seconds that it took, or has taken."""
    expected: float
    """Seconds by the newest plan: labels and samples say how many pairs there are, and how long answers are."""
    left: float
    """Seconds that it will still take, by that and by what earlier stages took."""
    planned_memory: int | None
    actual_memory: int | None

    @property
    def ratio(self) -> float | None:
        """Actual over planned seconds of a stage that is done."""
        if self.state != "done" or self.planned is None or not self.planned.likely or self.actual is None:
            return None
        return self.actual / self.planned.likely


@dataclass(frozen=True)
class RunProgress:
    """A run against its plan."""

    stages: tuple[StageProgress, ...]
    factor: float
    """Actual over planned seconds of the stages that are done, with which the rest is estimated again."""

    @property
    def planned(self) -> float:
        """Seconds of all stages."""
        return sum(stage.planned.likely for stage in self.stages if stage.planned)

    @property
    def actual(self) -> float:
        """Seconds until now."""
        return sum(stage.actual or 0.0 for stage in self.stages)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return sum(stage.left for stage in self.stages)


def begin_stage(folder: Path) -> None:
    """Note that an attempt begins."""
    first, _ = _started(folder) or (time.time(), 0.0)
    (folder / STARTED).write_text(f"{first:.1f} {time.time():.1f}", encoding="ascii")


def record_plan(
    recipe: Recipe, run: Path, data: DataSummary, store: Store, stages: Sequence[PlannedStage], again: bool = False
) -> None:
    """Write the plan of each stage. One that was planned stays as it was, unless the stage is another now, or has not
    begun and was planned on assumptions. `again`: the stages are those that were planned, and more is known of them."""
    from towpath.run.run_plan import plan_run  # what only looks at a run need not load it

    before = _recorded(run)
    rows = {}
    for stage in stages:
        known = before.get(stage.name)
        has_started = stage.done or (stage.folder / STARTED).is_file()
        same = known and (again or known.get("fingerprint") == stage.fingerprint)
        if known and same and (has_started or (not again and known["seconds"]["source"] != "assumption")):
            rows[stage.name] = known | {"fingerprint": stage.fingerprint}
    if len(rows) < len(stages):
        whole = plan_run(recipe, run, data, store).run
        plan = {stage.stage: stage for stage in whole.stages}
        for stage in stages:
            if stage.name in rows or stage.done or stage.kind not in plan:
                continue
            row = _row(stage, plan[stage.kind], recipe.rounds, whole.device_share)
            if again and stage.name in before:
                row["seconds"] = before[stage.name]["seconds"]
            rows[stage.name] = row
    if rows != before:
        replace_file(run / FILE, json.dumps({"stages": rows}, indent=1))


def _row(stage: PlannedStage, planned: StagePlan, rounds: int, workers: int) -> dict[str, Any]:
    """What is planned of a stage; `workers` share the memory."""
    seconds = planned.seconds.times(1 / rounds if stage.kind in BY_ROUND else 1.0)
    memory = planned.memory
    return {
        "fingerprint": stage.fingerprint,
        "seconds": asdict(seconds),
        "expected": seconds.likely,
        "memory": {"bytes": workers * memory.total, "source": memory.source} if memory else None,
    }


def read_progress(run: Path) -> RunProgress | None:
    """The run against its plan; None where nothing was planned."""
    recorded = _recorded(run)
    folders = stage_folders(run, read_current(run, quiet=True))
    if not recorded:
        return None
    rows = {name: _measured(name, folder, recorded.get(name, {})) for name, folder in folders.items()}
    done = [
        row for row in rows.values() if row.ratio is not None and row.planned and row.planned.source != "assumption"
    ]
    actual = sum(row.actual or 0.0 for row in done)
    planned = sum(row.planned.likely for row in done if row.planned)
    factor = (actual + PRIOR_SECONDS) / (planned + PRIOR_SECONDS)
    return RunProgress(tuple(_with_left(row, factor) for row in rows.values()), factor)


def _measured(name: str, folder: Path, recorded: Mapping[str, Any]) -> StageProgress:
    planned = memory = None
    expected = 0.0
    if recorded.get("fingerprint") == folder.name:
        planned = Amount(**recorded["seconds"])
        expected = float(recorded["expected"])
        memory = int(recorded["memory"]["bytes"]) if recorded["memory"] else None
    manifest = read_object(folder / MANIFEST) or {}
    if manifest.get("status") == "done":
        peak = manifest.get("peak_device_bytes") or manifest.get("peak_memory_bytes")
        seconds = _seconds_taken(name, folder, manifest)
        return StageProgress(
            name, "done", planned, seconds, expected, 0.0, memory, int(peak) if is_number(peak) else None
        )
    started = _started(folder)
    if started is None:
        return StageProgress(name, "to do", planned, None, expected, 0.0, memory, None)
    return StageProgress(name, "started", planned, _elapsed(name, folder, *started), expected, 0.0, memory, None)


def _elapsed(name: str, folder: Path, first: float, newest: float) -> float:
    """Seconds that a stage without a result has taken: those of attempts that ended, and of the present one until the
    last sign of it."""
    if stage_kind(name) == "label":
        return max(0.0, time.time() - first)
    earlier = 0.0
    with suppress(OSError, ValueError):
        earlier = float((folder / SECONDS).read_text(encoding="ascii"))
        if (folder / SECONDS).stat().st_mtime >= newest:
            return earlier
    signs = [path.stat().st_mtime for path in (folder, *folder.iterdir()) if path.exists()]
    return earlier + max(0.0, min(time.time(), max(signs) + SILENT_SECONDS) - newest)


def _seconds_taken(name: str, folder: Path, manifest: Mapping[str, Any]) -> float | None:
    """Seconds of computation; of labels from the first attempt to the end, since people work meanwhile."""
    started = _started(folder)
    if stage_kind(name) == "label" and started:
        with suppress(TypeError, ValueError):
            return max(0.0, datetime.fromisoformat(str(manifest["finished_at"])).timestamp() - started[0])
    seconds = manifest.get("seconds")
    return float(seconds) if is_number(seconds) else None


def _with_left(row: StageProgress, factor: float) -> StageProgress:
    if row.state == "done" or row.planned is None:
        return row
    expected = factor * row.expected
    left = max(expected - (row.actual or 0.0), 0.05 * expected)
    return replace(row, left=left)


def _started(folder: Path) -> tuple[float, float] | None:
    try:
        first, newest = map(float, (folder / STARTED).read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return None
    return first, newest


def _recorded(run: Path) -> dict[str, dict[str, Any]]:
    content = read_object(run / FILE) or {}
    stages = content.get("stages")
    if not isinstance(stages, dict):
        return {}
    return {name: row for name, row in stages.items() if _is_valid(row)}


def _is_valid(row: Any) -> bool:
    """Whether a row is as this module writes it; a damaged one counts as not planned."""
    if not isinstance(row, dict) or not is_number(row.get("expected")):
        return False
    seconds, memory = row.get("seconds"), row.get("memory")
    if not isinstance(seconds, dict) or set(seconds) != {field.name for field in fields(Amount)}:
        return False
    if memory is not None and not (isinstance(memory, dict) and is_number(memory.get("bytes"))):
        return False
    return all(is_number(seconds[name]) for name in ("low", "likely", "high")) and seconds["source"] in TRUST


def progress_line(progress: RunProgress) -> str:
    """`time: 5.1 min until now, about 3.2 min left; 8.2 min were planned`."""
    if not progress.left:
        return f"time: {span(progress.actual)} in all; {span(progress.planned)} were planned"
    before = f"{span(progress.actual)} until now, " if progress.actual else ""
    return f"time: {before}about {span(progress.left)} left; {span(progress.planned)} were planned"


def stage_note(row: StageProgress) -> str:
    """`84 s of 80 s planned (72 to 97)`, or what is left."""
    if row.planned is None or not row.planned.high:
        return f"took {span(row.actual)}" if row.state == "done" and row.actual is not None else ""
    planned = f"{spans(row.planned)} planned"
    if row.state == "done" and row.actual is not None:
        return f"took {span(row.actual)}, {planned}"
    left = f"about {span(row.left)} left"
    return f"{left}, {planned}" if row.state == "started" else f"about {span(row.left)}, {planned}"
