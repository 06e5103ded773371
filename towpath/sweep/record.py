"""Record of a sweep: the only reader of RUN/sweep, for the terminal, the report and the monitor. It needs no Optuna."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from towpath.store.manifest import read_object
from towpath.sweep.importance import importance
from towpath.sweep.objective import Objective
from towpath.sweep.space import SearchRange, Settings
from towpath.sweep.trial_record import TrialRecord, from_row
from towpath.sweep.verdict import SweepVerdict
from towpath.sweep.verdict import from_row as verdict_of
from towpath.sweep.verdict import to_row as verdict_row

CURRENT = "current.json"
STUDY = "study.json"
CONFIRMATION = "confirmation.json"
VERDICT = "verdict.json"
RESULT = "result.json"


@dataclass(frozen=True)
class OpenTrial:
    """A trial that is being trained, or was interrupted."""

    number: int
    settings: Settings
    validations: int


@dataclass(frozen=True)
class SweepRecord:
    """One study, read once."""

    folder: Path
    study: str
    algorithm: str
    judge: str
    objective: Objective
    target: float
    space: dict[str, Any]
    """Ranges by key, as the recipe has them."""
    settings: dict[str, Any]
    """The other keys of `[sweep]`."""
    trials: Sequence[TrialRecord]
    open_trials: Sequence[OpenTrial]
    confirmations: Sequence[TrialRecord]
    verdict: SweepVerdict | None

    @property
    def limit(self) -> int:
        """The number of trials that the sweep will have."""
        return int(self.settings["trials"])

    @property
    def dollars(self) -> float:
        """Cost of the judge."""
        return sum(record.dollars for record in (*self.trials, *self.confirmations))

    @property
    def seconds(self) -> float:
        """Seconds of all trials together."""
        return sum(record.seconds for record in (*self.trials, *self.confirmations))

    def ranking(self) -> list[TrialRecord]:
        """Trials by value, the best first."""
        return sorted(self.trials, key=lambda record: (-record.value.value, record.number))

    def importance(self) -> dict[str, float]:
        """The share of the variance of values that each key explains alone."""
        space = {key: SearchRange(key, **_range_fields(row)) for key, row in self.space.items()}
        return importance(space, [(t.settings, t.value.value) for t in self.trials if t.status != "failed"])

    def winner(self) -> TrialRecord | None:
        """The trial whose settings are better than the recipe's own."""
        number = self.verdict.winner if self.verdict else None
        return next((record for record in self.trials if record.number == number), None)


def sweep_folder(run: Path) -> Path:
    """The folder of a run's sweeps."""
    return run / "sweep"


def read_sweep(run: Path, study: str = "") -> SweepRecord | None:
    """The present study of a run, or another one; None if there is none."""
    root = sweep_folder(run)
    name = study or (read_object(root / CURRENT) or {}).get("study")
    content = read_object(root / str(name) / STUDY) if name else None
    if not content:
        return None
    folder = root / str(name)
    outcome = read_object(folder / VERDICT)
    confirmation = read_object(folder / CONFIRMATION) or {}
    trials = _read_trials(folder / "trials")
    ended = {record.number for record in trials}
    return SweepRecord(
        folder,
        str(name),
        content["algorithm"],
        content["judge"],
        content["sweep"]["objective"],
        float(content["target_kl"]),
        content["identity"]["space"],
        content["sweep"],
        trials,
        [trial for trial in _read_open_trials(folder / "trials") if trial.number not in ended],
        _read_trials(folder / str(confirmation.get("folder"))) if confirmation else [],
        verdict_of(outcome) if outcome else None,
    )


def _read_trials(folder: Path) -> list[TrialRecord]:
    rows = [read_object(path) for path in folder.glob(f"*/{RESULT}")]
    return sorted((from_row(row) for row in rows if row), key=lambda record: record.number)


def _read_open_trials(folder: Path) -> list[OpenTrial]:
    trials = []
    for path in folder.glob("*/settings.json"):
        row = read_object(path)
        if row:
            curve = read_object(path.with_name("curve.json")) or {}
            trials.append(OpenTrial(int(row["number"]), row["settings"], len(curve.get("validations", []))))
    return sorted(trials, key=lambda trial: trial.number)


def _range_fields(row: dict[str, Any]) -> dict[str, Any]:
    return row | ({"choices": tuple(row["choices"])} if "choices" in row else {})


def as_json(record: SweepRecord) -> dict[str, Any]:
    """What `towpath sweep RUN --json` prints."""

    def trial_row(trial: TrialRecord) -> dict[str, Any]:
        curve = trial.curve
        points = [
            {"step": step + 1, "kl": float(kl), "win_rate": float(win)}
            for step, kl, win in zip(curve.steps, curve.kl_V, curve.win_V, strict=True)
        ]
        return {
            "number": trial.number,
            "seed": trial.seed,
            "settings": trial.settings,
            "status": trial.status,
            "reason": trial.reason,
            "steps": trial.steps,
            "value": trial.value.value,
            "interval": list(trial.value.interval),
            "kl": trial.value.kl,
            "reached_target": trial.value.reached,
            "length_controlled": trial.value.length_controlled,
            "safety_rise": trial.value.safety_rise,
            "findings": list(trial.codes),
            "curve": points,
            "seconds": trial.seconds,
            "dollars": trial.dollars,
        }

    return {
        "study": record.study,
        "objective": record.objective,
        "target_kl": record.target,
        "judge": record.judge,
        "space": record.space,
        "trials": [trial_row(trial) for trial in record.trials],
        "confirmations": [trial_row(trial) for trial in record.confirmations],
        "importance": record.importance(),
        "verdict": verdict_row(record.verdict) if record.verdict else None,
        "seconds": record.seconds,
        "dollars": record.dollars,
    }
