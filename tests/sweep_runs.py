"""Sweeps of the tiny recipe for tests: settings, a copy of the finished run, what must be the same in two sweeps."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command import SETTINGS

from towpath import recipe
from towpath.sweep.record import SweepRecord, read_sweep
from towpath.sweep.run import run_sweep
from towpath.sweep.trial_record import TrialRecord

SPACE = '{ "policy.learning_rate" = { low = 3e-3, high = 3e-2, log = true }, "policy.epochs" = { choices = [1, 2] } }'
SWEEP = [
    "sweep.trials=3",
    "sweep.confirm=1",
    "sweep.seeds=1",
    "sweep.target_kl=0.02",
    "policy.lora.alpha=256",
    f"sweep.space={SPACE}",
]
OVERRIDES = [*SETTINGS[1::2], *SWEEP]
SHORT = ["sweep.trials=2", "sweep.confirm=0"]
"""The first two trials alone."""
OPTIONS = [part for value in OVERRIDES for part in ("--set", value)]


def copy_run(finished: Path, target: Path) -> Path:
    """A copy of a finished run."""
    shutil.copytree(finished, target, symlinks=True)
    return target


def sweep(run: Path, *overrides: str) -> tuple[SweepRecord, list[str]]:
    """The sweep of a run in this process, and what it said."""
    lines: list[str] = []
    assignments = [*OVERRIDES, *overrides]
    run_sweep(recipe.load(run, assignments), run, lambda line: lines.append(str(line)), assignments)
    record = read_sweep(run)
    assert record is not None
    return record, lines


def essence(record: SweepRecord) -> list[Any]:
    """What two sweeps with equal trials have in common, to the last bit."""
    return [record.study, record.verdict, rows(record.trials), rows(record.confirmations)]


def first_trials(record: SweepRecord | None) -> list[Any]:
    """The same of the first two trials."""
    assert record is not None
    return [record.study, rows(record.trials[:2])]


def rows(trials: Sequence[TrialRecord]) -> list[Any]:
    """All that is random or measured in trials."""
    return [
        [t.number, t.settings, t.seed, t.status, t.reason, t.steps, t.value, t.curve.kl_VP.tolist(), list(t.codes)]
        for t in trials
    ]
