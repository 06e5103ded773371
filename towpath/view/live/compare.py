"""Runs side by side: the folders beside a run, what their recipes say differently, how they ended, and what their
nats bought."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from towpath.errors import TowpathError
from towpath.recipe import load
from towpath.recipe.reader import flat
from towpath.store.jsonl import is_interval, is_number
from towpath.view.format import duration, number, percent, percents
from towpath.view.live.columns import Columns
from towpath.view.live.headline import last
from towpath.view.live.live_run import Training, Watched
from towpath.view.live.samples import model_at
from towpath.view.report.frontier import best_of_n

MOST = 8
"""Runs that can be told apart in one picture."""
LISTED = 200
HIDDEN = ("store.url",)
"""Keys that are not shown: what they say may hold a password."""


@dataclass(frozen=True, slots=True)
class Point:
    """A checkpoint, or a run's end, on the plane of distance and gain."""

    run: str
    label: str
    kl: float
    value: float
    n: int
    evaluated: bool


def beside(run: Path) -> list[str]:
    """The names of runs in the same folder, the run itself first, then the newest first."""
    parent = run.resolve().parent
    own = run.resolve().name
    found = [folder for folder in parent.iterdir() if (folder / "recipe.toml").is_file()]
    found.sort(key=lambda folder: (folder.name != own, -folder.stat().st_mtime))
    return [folder.name for folder in found[:LISTED]]


def settings(watched: Watched) -> dict[str, Any]:
    """The recipe of a run with dots; as it was laid over where it is the run itself."""
    try:
        return flat(load(watched.run).model_dump(mode="json")) | (watched.settings or {})
    except TowpathError:
        return watched.settings


def differing(recipes: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Keys that have not the same value in every recipe, with the value in each."""
    keys = dict.fromkeys(key for recipe in recipes.values() for key in recipe)
    rows = []
    for key in (key for key in keys if key not in HIDDEN):
        told = [_told(recipe.get(key)) for recipe in recipes.values()]
        if len(set(told)) > 1:
            rows.append((key, told))
    return rows


def by_section(rows: Sequence[tuple[str, list[str]]]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Differing keys under the recipe's sections, as its file has them."""
    sections: dict[str, list[tuple[str, list[str]]]] = {}
    for key, values in rows:
        section, _, name = key.rpartition(".")
        sections.setdefault(section, []).append((name, values))
    return list(sections.items())


def policy_of(watched: Watched) -> Training | None:
    """The newest policy stage that has begun."""
    found = [training for training in watched.trainings.values() if training.kind == "policy"]
    begun = [training for training in found if training.metrics.train.count or training.done]
    return (begun or found or [None])[-1]


def ending(watched: Watched) -> list[tuple[str, str]]:
    """How a run ended, or stands: names of numbers with their values."""
    training = policy_of(watched)
    if training is None:
        return []
    train = training.metrics.train
    look = training.metrics.validation
    result = training.manifest.get("result") or {}
    evaluation = watched.evaluation
    rose = result.get("rose") or {}
    win = evaluation.get("win") or {}
    found = [("state", watched.state(training.name)), ("steps", number(train.last or result.get("steps"), 12))]
    found += [(label, _last(look, train, name, form)) for label, name, form in ENDS]
    found.append(("reward rose on", f"{percent(rose.get('rate'))} {_span(rose.get('interval'))}".strip()))
    found.append(("wins over the tuned model", f"{percent(win.get('rate'))} {_span(win.get('interval'))}".strip()))
    found.append(("KL when evaluated", number(evaluation.get("kl_per_prompt"))))
    found.append(("time", duration(training.manifest.get("seconds"))))
    return found


ENDS = (
    ("reward", "reward", number),
    ("KL, nats per prompt", "kl", number),
    ("length, tokens", "length", number),
    ("end by themselves", "finish_rate", percent),
)


def _last(look: Columns, train: Columns, name: str, form: Any) -> str:
    told = last(look, name) or last(train, name)
    return form(told[1] if told else None)


def _span(interval: Any) -> str:
    return f"({percents(interval)})" if is_interval(interval) else ""


def frontier(name: str, watched: Watched, by: str) -> list[Point]:
    """Every look at held-out prompts and the evaluation: nats spent, and the win rate (or reward) they bought."""
    training = policy_of(watched)
    if training is None:
        return []
    look = training.metrics.validation
    if by == "reward":
        pairs = zip(look.steps.tolist(), look.values("kl").tolist(), look.values("reward").tolist(), strict=True)
        return [
            Point(name, model_at(step), kl, value, 0, False)
            for step, kl, value in pairs
            if math.isfinite(kl) and math.isfinite(value)
        ]
    spent = dict(zip(look.steps.tolist(), look.values("kl").tolist(), strict=True))
    found = [
        Point(name, model_at(step), spent[step], rate, n, False)
        for step, rate, n in training.samples.wins()
        if math.isfinite(spent.get(step, math.nan))
    ]
    win = watched.evaluation.get("win") or {}
    kl = watched.evaluation.get("kl_per_prompt")
    if is_number(win.get("rate")) and is_number(kl):
        found.append(Point(name, "evaluated", kl, win["rate"], int(win.get("n") or 0), True))
    return found


def reference(end: float) -> list[tuple[float, float]]:
    """Best of n under a perfect judge, from n = 1 to so many nats."""
    points = [best_of_n(math.exp(step / 40)) for step in range(400)]
    return [point for point in points if point[0] <= end]


def shared_names(watched: Iterable[Watched], kind: str) -> list[str]:
    """Names of numbers that some stage of that kind has told."""
    found: dict[str, None] = {}
    for one in watched:
        for training in one.trainings.values():
            if training.kind == kind:
                found |= dict.fromkeys([*training.metrics.train.names, *training.metrics.validation.names])
    return list(found)


def chosen(names: Sequence[str], asked: Sequence[str]) -> list[str]:
    """The runs that are asked for and are there; by default the run itself and the newest beside it."""
    return [name for name in dict.fromkeys(asked) if name in names][:MOST] or list(names[:3])


def _told(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)
