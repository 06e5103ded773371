"""The sweep in report and monitor: win rate against KL of all trials, importance, trials with findings, verdict."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from towpath.recipe import Sweep
from towpath.sweep.record import SweepRecord, read_sweep
from towpath.sweep.trial_record import TrialRecord
from towpath.sweep.verdict import breaks
from towpath.view.charts import NOTHING, Chart, ReferenceLine, Series, bar, draw
from towpath.view.format import NONE, number, percent, percents
from towpath.view.report.frontier import best_of_n_curve
from towpath.view.sweep_table import shorten

MAX_KL = 4.0
"""Times the target KL that the chart shows: trials far beyond it would flatten the rest."""


def sweep_section(folder: Path) -> dict[str, Any]:
    """The content of the section for a run's folder; empty without a sweep."""
    record = read_sweep(folder)
    if record is None or not record.trials:
        return {}
    sweep = Sweep.model_validate(record.settings)
    verdict = record.verdict
    own = record.trials[0].settings
    winner = record.winner()
    return {
        "summary": (
            f"{len(record.trials)} of {record.limit} trials; {_objective(record)}, judged by {record.judge} on the "
            "validation prompts, which are held out of training and no part of the evaluation."
        ),
        "verdict": verdict.text if verdict else "",
        "outcome": verdict.outcome if verdict else "",
        "running": [
            f"trial {trial.number}: {trial.validations} validations, "
            + ", ".join(f"{key.removeprefix('policy.')} {_cell(item)}" for key, item in trial.settings.items())
            for trial in record.open_trials
        ],
        "chart": cloud(record),
        "importance": [
            {"name": key, "bar": bar(share), "value": percent(share)} for key, share in record.importance().items()
        ],
        "keys": [key.removeprefix("policy.") for key in record.space],
        "trials": [_row(record, trial, sweep) for trial in record.ranking()],
        "confirmed": [_confirmed(trial) for trial in (verdict.trials if verdict else ())],
        "winner": [
            {"key": key, "before": _cell(own.get(key)), "after": _cell(item)}
            for key, item in (winner.settings if winner else {}).items()
        ],
    }


def _objective(record: SweepRecord) -> str:
    if record.objective == "win_rate":
        return f"win rate over SFT at KL {number(record.target)}"
    return f"mean win rate over SFT up to KL {number(record.target)}"


def cloud(record: SweepRecord) -> Markup:
    """All validations of all trials; the winner's or the best trial's as a line."""
    end = MAX_KL * record.target
    best = record.winner() or next((t for t in record.ranking() if t.status == "complete"), None)
    own = record.trials[0]
    groups = {
        "recipe's own settings": [own],
        "other trials": [t for t in record.trials if t is not own and t is not best and t.status == "complete"],
        "ended early": [t for t in record.trials if t is not own and t.status != "complete"],
    }
    name = "winner" if record.winner() else "best trial"
    series = [Series("best of n, perfect judge", best_of_n_curve(end), "line", 2)]
    series += [
        Series(title, _points(trials, end), "dots", i)
        for (title, trials), i in zip(groups.items(), (1, 7, 3), strict=True)
    ]
    if best is not None and best is not own:
        series.append(Series(f"{name}: trial {best.number}", [(0.0, 0.5), *_points([best], end)], "line", 0))
    series = [one for one in series if one.points]
    if len(series) < 2:
        return NOTHING
    target = ReferenceLine("x", record.target, f"target {number(record.target)}")
    return draw(Chart("Win rate over SFT by KL, each validation", series, [target], "KL to SFT", "percent"))


def _points(trials: Sequence[TrialRecord], end: float) -> list[tuple[float, float]]:
    points = [
        (float(kl), float(win)) for trial in trials for kl, win in zip(trial.curve.kl_V, trial.curve.win_V, strict=True)
    ]
    return [point for point in points if math.isfinite(point[0]) and point[0] <= end]


def _row(record: SweepRecord, trial: TrialRecord, sweep: Sweep) -> dict[str, Any]:
    value = trial.value
    failed = trial.status == "failed"
    notes = [trial.reason or ", ".join(trial.codes), breaks(trial, sweep)]
    if not failed and not value.reached:
        notes.insert(0, "did not reach the target KL")
    return {
        "name": f"{trial.number}" + (" (recipe)" if trial.number == 0 else ""),
        "bar": NOTHING if failed else bar(value.value, value.interval),
        "value": NONE if failed else percent(value.value, 1),
        "interval": NONE if failed else percents(value.interval),
        "kl": NONE if failed else number(value.kl, 2),
        "length_controlled": NONE if failed else percent(value.length_controlled, 1),
        "settings": [_cell(trial.settings.get(key)) for key in record.space],
        "note": shorten("; ".join(note for note in notes if note)),
    }


def _confirmed(trial: Any) -> dict[str, str]:
    low, high = trial.interval
    gap = f"{100 * trial.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})" if trial.number else NONE
    return {
        "name": f"{trial.number}" + (" (recipe)" if trial.number == 0 else ""),
        "mean": percent(trial.mean, 1),
        "values": ", ".join(percent(value, 1) for value in trial.values),
        "gap": gap,
        "note": trial.note,
    }


def _cell(item: Any) -> str:
    return number(item) if isinstance(item, int | float) and not isinstance(item, bool) else str(item)
