"""Comparison of runs: the folders beside a run, recipe differences, final numbers, and the frontier of KL and win
rate."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from towpath.errors import TowpathError
from towpath.metrics import form, label
from towpath.recipe import load
from towpath.recipe.reader import flatten
from towpath.run.live_record import LiveRun
from towpath.run.metric_columns import MetricColumns
from towpath.run.samples import model_at
from towpath.store.jsonl import is_interval, is_number
from towpath.view.format import NONE, duration, number, percent, percents
from towpath.view.live.headline import last_value

MAX_RUNS = 8
"""Runs that can be told apart in one chart."""
MAX_LISTED = 200
HIDDEN_KEYS = ("store.url",)
"""Recipe keys that may hold a password."""
FINAL_METRICS = ("reward", "kl", "length", "finish_rate")


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """A checkpoint, or an evaluated policy, by its KL and its win rate or reward."""

    run: str
    label: str
    kl: float
    value: float
    n: int
    evaluated: bool


def sibling_runs(run: Path) -> list[str]:
    """The names of runs in the same folder: the run itself, then the newest first."""
    parent = run.resolve().parent
    own = run.resolve().name
    folders = [folder for folder in parent.iterdir() if (folder / "recipe.toml").is_file()]
    folders.sort(key=lambda folder: (folder.name != own, -folder.stat().st_mtime))
    return [folder.name for folder in folders[:MAX_LISTED]]


def settings(run: LiveRun) -> dict[str, Any]:
    """The recipe of a run by dotted key, with its overrides."""
    try:
        return flatten(load(run.run).model_dump(mode="json")) | (run.settings or {})
    except TowpathError:
        return run.settings


def differences(recipes: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Keys whose values differ between recipes, with the value in each."""
    keys = dict.fromkeys(key for recipe in recipes.values() for key in recipe if key not in HIDDEN_KEYS)
    rows = []
    for key in keys:
        values = [_value(recipe.get(key)) for recipe in recipes.values()]
        if len(set(values)) > 1:
            rows.append((key, values))
    return rows


def by_section(rows: Sequence[tuple[str, list[str]]]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Differing keys by section of the recipe."""
    sections: dict[str, list[tuple[str, list[str]]]] = {}
    for key, values in rows:
        section, _, name = key.rpartition(".")
        sections.setdefault(section, []).append((name, values))
    return list(sections.items())


def final_numbers(run: LiveRun) -> list[tuple[str, str]]:
    """Labels and values of a run's last numbers."""
    stage = run.latest_stage("policy")
    if stage is None:
        return []
    rose = stage.result.get("rose") or {}
    win = run.evaluation.get("win") or {}
    steps = stage.metrics.train.last or stage.result.get("steps")
    rows = [("state", run.state(stage.name)), ("steps", number(steps, 12))]
    rows += [(label(name), _last(stage.metrics, name)) for name in FINAL_METRICS]
    rows.append(("reward higher on", _rate(rose)))
    rows.append(("win rate over the tuned model", _rate(win)))
    rows.append(("KL at evaluation", number(run.evaluation.get("kl_per_prompt"))))
    rows.append(("time", duration(stage.manifest.get("seconds"))))
    return rows


def _last(metrics: MetricColumns, name: str) -> str:
    write: Callable[[Any], str] = percent if form(name) == "percent" else number
    value = last_value(metrics.validation, name) or last_value(metrics.train, name)
    return write(value[1] if value else None)


def _rate(result: Mapping[str, Any]) -> str:
    interval = result.get("interval")
    span = f" ({percents(interval)})" if is_interval(interval) else ""
    return f"{percent(result.get('rate'))}{span}"


def frontier(name: str, run: LiveRun, by: str) -> list[FrontierPoint]:
    """KL with win rate (or reward) of each validation, and of the evaluation."""
    stage = run.latest_stage("policy")
    if stage is None:
        return []
    validation = stage.metrics.validation
    kl_at = dict(zip(validation.steps.tolist(), validation.values("kl").tolist(), strict=True))
    if by == "reward":
        rewards = zip(validation.steps.tolist(), validation.values("reward").tolist(), strict=True)
        values = [(step, reward, 0) for step, reward in rewards if math.isfinite(reward)]
    else:
        values = stage.samples.win_rates()
    points = [
        FrontierPoint(name, model_at(step), kl_at[step], value, n, False)
        for step, value, n in values
        if math.isfinite(kl_at.get(step, math.nan))
    ]
    win = run.evaluation.get("win") or {}
    kl = run.evaluation.get("kl_per_prompt")
    if by != "reward" and is_number(win.get("rate")) and is_number(kl):
        points.append(FrontierPoint(name, "evaluated", kl, win["rate"], int(win.get("n") or 0), True))
    return points


def metric_names(runs: Iterable[LiveRun], kind: str) -> list[str]:
    """Names of the metrics that stages of a kind have in any of the runs."""
    stages = [stage for run in runs for stage in run.stages.values() if stage.kind == kind]
    names = [[*stage.metrics.train.names, *stage.metrics.validation.names] for stage in stages]
    return list(dict.fromkeys(name for of_stage in names for name in of_stage))


def selected_runs(names: Sequence[str], requested: Sequence[str]) -> list[str]:
    """The requested runs that exist; by default the run itself and the newest beside it."""
    return [name for name in dict.fromkeys(requested) if name in names][:MAX_RUNS] or list(names[:3])


def _value(value: Any) -> str:
    if value is None:
        return NONE
    return f"{value:g}" if isinstance(value, float) else str(value)
