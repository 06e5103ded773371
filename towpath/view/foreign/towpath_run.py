"""A run of Towpath, finished or under way: what its stages wrote, with the recipe as facts."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from towpath.errors import DataError
from towpath.health import history
from towpath.recipe import load
from towpath.recipe.reader import flat
from towpath.view.foreign.log import Log, Taken
from towpath.view.foreign.names import OURS, Kind
from towpath.view.foreign.table_files import json_lines

JUDGED: tuple[Kind, ...] = ("policy", "reward", "sft")
"""Stages that train, the one that is asked about most often first."""
METRICS = "metrics.jsonl"


def is_run(folder: Path) -> bool:
    """Whether a folder is a run."""
    return (folder / "recipe.toml").is_file()


def is_stage(folder: Path) -> bool:
    """Whether a folder is one stage of a run."""
    return (folder / METRICS).is_file()


def logs(run: Path) -> list[Log]:
    """The stages that train, each in its newest round."""
    named = _json(run / "current.json").get("stages") or {}
    found = [_newest_round(run, kind, named) for kind in JUDGED]
    told = [stage(run / "stages" / name / named[name]) for name in found if name]
    if not told:
        raise DataError(
            f"{run}: no stage has written numbers yet",
            "a run of which a stage that trains has begun",
            f"`towpath run {run}`",
        )
    return told


def _newest_round(run: Path, kind: str, named: Mapping[str, str]) -> str:
    rounds = [
        name
        for name, fingerprint in named.items()
        if name.split("@")[0] == kind and (run / "stages" / name / fingerprint / METRICS).is_file()
    ]
    return max(rounds, key=lambda name: int(name.partition("@")[2] or 1), default="")


def stage(folder: Path) -> Log:
    """One stage, by its folder `stages/NAME/FINGERPRINT`."""
    folder = folder.resolve()
    run = folder.parents[2]
    name = folder.parent.name
    rows = json_lines(folder / METRICS)
    if not rows:
        raise DataError(
            f"{folder / METRICS}: no whole row", "a stage that has taken a step", "wait until the first step"
        )
    columns = {
        column for row in rows for column, value in row.items() if isinstance(value, int | float) and column != "step"
    }
    facts = _facts(run, folder, name)
    known: dict[str, Kind] = {kind: kind for kind in JUDGED}
    kind = known.get(name.split("@")[0], "training")
    if kind == "policy" and any("pairs_loss" in row for row in rows):
        kind = "pairs"
    taken = {column: Taken(column, "", OURS.get(column, "")) for column in sorted(columns)}
    return Log(
        str(folder),
        f"Towpath, {name}",
        kind,
        history.history_from_rows(rows, facts),
        taken,
        notes=tuple(_turned(folder)),
        own=True,
    )


def _facts(run: Path, folder: Path, name: str) -> dict[str, Any]:
    """The recipe's values by their dotted keys, what other stages ended with under `STAGE.result.NAME`, and which
    stage this is."""
    manifest = _json(folder / "manifest.json")
    recipe = manifest.get("recipe") or (load(run).model_dump(mode="json") if (run / "recipe.toml").is_file() else {})
    facts = flat(recipe)
    inputs = manifest.get("inputs") or {
        other: mark for other, mark in (_json(run / "current.json").get("stages") or {}).items() if other != name
    }
    for other, fingerprint in inputs.items():
        result = _json(run / "stages" / other / fingerprint / "manifest.json").get("result") or {}
        facts |= {f"{other.split('@')[0]}.result.{key}": value for key, value in result.items()}
    if name.startswith("reward"):
        facts |= {f"reward.result.{key}": value for key, value in (manifest.get("result") or {}).items()}
    steps = (manifest.get("result") or {}).get("steps") or (recipe.get("policy") or {}).get("steps")
    planned = {"steps": steps} if steps and name.startswith("policy") else {}
    return facts | planned | {"stage": name.split("@")[0]}


def _turned(folder: Path) -> Iterator[str]:
    """What remedies have done so far."""
    path = folder / "interventions.jsonl"
    for row in json_lines(path) if path.is_file() and path.stat().st_size else ():
        if row.get("stop"):
            yield f"a remedy ended training after step {row['step'] + 1}: {row.get('reason', '')}"
        elif row.get("knob"):
            change = f"{row['knob']} from {row['from']:g} to {row['to']:g} after step {row['step'] + 1}"
            yield f"a remedy turned {change}: {row.get('reason', '')}"


def _json(path: Path) -> dict[str, Any]:
    """A file of a stage; empty where it is not there yet."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: {error}", "a JSON file written by a stage", "run the stage again") from None
    return value if isinstance(value, dict) else {}
