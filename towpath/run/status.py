"""Status of a run: the state of each stage, gate verdicts, findings, and what the run waits for."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from towpath.data.data_summary import UNREAD, DataSummary
from towpath.errors import TowpathError
from towpath.evals.no_judge import NO_JUDGE_CODE
from towpath.judges.selection import select_judges
from towpath.recipe import Recipe
from towpath.records import Verdict
from towpath.run import gates
from towpath.run.fingerprint import PlannedStage, plan_stages
from towpath.run.loading import recorded_summary
from towpath.run.plan_record import RunProgress, progress_line, read_progress, stage_note
from towpath.run.record import Current, read_current, stage_round
from towpath.store import location, manifest
from towpath.store.publish import lock_folder
from towpath.store.store import Store


@dataclass
class RunStatus:
    """What `towpath status --json` prints."""

    stages: list[dict[str, Any]]
    waiting_for: str
    findings: list[dict[str, Any]]
    evaluation_judge: str | None
    """The entry of `evaluate.judges` that decides the gates `sft` and `evaluate`; None if no judge fits the data."""
    evaluation_judges: list[str]
    """All judges of win rates; the others are compared with the first."""
    progress: RunProgress | None = None
    """Plan against actual time; None where nothing was planned."""
    data_note: str = ""
    """Whether the data changed since it was read, or was never read: then the stages are those of the last run."""


def read_status(recipe: Recipe, folder: Path) -> RunStatus:
    """The status of a run."""
    with Store.open(location.ledger_location(folder, recipe.store.url)) as store:
        data = recorded_summary(recipe, folder)
        stages = _known_stages(recipe, folder, data, store)
    verdicts = {verdict.gate: verdict for verdict in stage_verdicts(recipe, stages)}
    current = read_current(folder)
    running = is_running(folder)
    rows = []
    next_stage = next((stage for stage in stages if not stage.done), None)
    for stage in stages:
        state = "done" if stage.done else "to do"
        if stage is next_stage:
            state = _next_state(stage, current, running)
        names = gates.GATES_AFTER.get(stage.kind, ()) if stage.done else ()
        workers = manifest.read_workers(stage.folder)
        stage_gates = [asdict(verdicts[name]) for name in names if name in verdicts]
        rows.append(
            {
                "name": stage.name,
                "state": state,
                "fingerprint": stage.fingerprint,
                "gate": stage_gates[0] if stage_gates else None,
                "gates": stage_gates,
                "workers": workers if state == "running" else {},
                "restarts": manifest.read_restarts(stage.folder),
            }
        )
    waiting = any(row["state"] == "waiting" for row in rows)
    judges = list(select_judges(recipe.evaluate, recipe.preferences.raters, data))
    first = judges[0] if judges else None
    waiting_for = current.waiting_for if waiting else ""
    findings = list(current.findings)
    return RunStatus(rows, waiting_for, findings, first, judges, read_progress(folder), data.note)


def _next_state(stage: PlannedStage, current: Current, running: bool) -> str:
    """The state of the first stage that is not done."""
    if running:
        return "running"
    if current.waiting_for:
        return "waiting"
    return "interrupted" if stage.folder.exists() else "to do"


def is_running(folder: Path) -> bool:
    """Whether a process runs this run now."""
    if not (folder / ".lock").is_file():
        return False
    try:
        with lock_folder(folder):
            return False
    except TowpathError:
        return True


def stage_verdicts(recipe: Recipe, stages: list[PlannedStage]) -> list[Verdict]:
    """The gate verdicts on the stages that are done."""
    return gates.verdicts(recipe, {stage.name: stage.result() for stage in stages if stage.done})


def run_verdicts(recipe: Recipe, folder: Path) -> list[Verdict]:
    """The gate verdicts of a run."""
    with Store.open(location.ledger_location(folder, recipe.store.url)) as store:
        return stage_verdicts(recipe, _known_stages(recipe, folder, recorded_summary(recipe, folder), store))


def _known_stages(recipe: Recipe, folder: Path, data: DataSummary, store: Store) -> list[PlannedStage]:
    """The stages of the recipe; where the data has not been read, those of the last run."""
    current = read_current(folder, quiet=True)
    if data.note != UNREAD or not current.stages:
        return plan_stages(recipe, folder, data, store)
    return [
        PlannedStage(name, {}, (), fingerprint, folder / "stages" / name / fingerprint, stage_round(name))
        for name, fingerprint in current.stages.items()
    ]


def status_lines(status: RunStatus) -> list[str]:
    """The status for a terminal: a line for each stage, what the run waits for, and findings."""
    lines = [f"note: {status.data_note}"] if status.data_note else []
    if not status.evaluation_judge and status.data_note != UNREAD:
        lines.append("No evaluation judge fits this data: the gates sft and evaluate are UNDECIDED.")
    planned = {row.name: stage_note(row) for row in status.progress.stages} if status.progress else {}
    for row in status.stages:
        verdicts = "; ".join(_gate_summary(gate) for gate in row["gates"])
        notes = "; ".join(note for note in (*_worker_notes(row), verdicts, planned.get(row["name"], "")) if note)
        lines.append(f"{row['name']:<12} {row['state']:<12} {notes}".rstrip())
    if status.progress:
        lines.append(progress_line(status.progress))
    if status.waiting_for:
        lines.append(f"waiting for: {status.waiting_for}")
    for finding in status.findings:
        if finding["code"] != NO_JUDGE_CODE:  # the first line reports it
            lines.append(f"{finding['severity']}: {finding['code']}: {finding['evidence']}")
    return lines


def _worker_notes(row: dict[str, Any]) -> list[str]:
    """How many workers a running stage has, and how often it was restarted."""
    notes = []
    workers = row["workers"].get("workers", [])
    if len(workers) > 1:
        notes.append(f"{len(workers)} workers")
    if row["restarts"]:
        last = row["restarts"][-1]["finding"]["evidence"]
        notes.append(f"restarted {len(row['restarts'])} times, last: {last}")
    return notes


def _gate_summary(gate: dict[str, Any]) -> str:
    value = f"({gate['note']})" if gate["value"] is None else f"{gate['value']:.3f} (threshold {gate['threshold']})"
    return f"gate {gate['gate']}: {gate['verdict']} {value}{_by(gate['judge'])}"


def _by(judge: str) -> str:
    return f", by {judge}" if judge else ""


def verdict_line(verdict: Verdict) -> str:
    """A verdict with its value and confidence interval, or with the reason why there are none."""
    if verdict.value is None or verdict.interval is None:
        return f"gate {verdict.gate}: {verdict.verdict}  {verdict.note}{_by(verdict.judge)}"
    low, high = verdict.interval
    value = f"{verdict.value:.3f} [{low:.3f}, {high:.3f}]"
    line = f"gate {verdict.gate}: {verdict.verdict}  {value}  threshold {verdict.threshold}  n {verdict.n}"
    return f"{line}{_by(verdict.judge)}  {verdict.note}".rstrip()
