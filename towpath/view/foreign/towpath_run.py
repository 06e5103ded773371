"""Runs of Towpath for the doctor, finished or not: metrics of the training stages, with the recipe as facts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from towpath.errors import DataError
from towpath.health.history import history_from_rows
from towpath.metrics import METRICS as REGISTRY
from towpath.recipe import load
from towpath.recipe.reader import flatten
from towpath.run.record import METRICS, read_current, read_manifest, stage_folders, stage_kind, stage_round
from towpath.store import jsonl
from towpath.view.foreign.log import Log, MappedColumn
from towpath.view.foreign.names import Kind

DIAGNOSED: tuple[Kind, ...] = ("policy", "reward", "sft")
"""Training stages, the most important first."""


def is_run(folder: Path) -> bool:
    """Whether a folder is a run."""
    return (folder / "recipe.toml").is_file()


def is_stage(folder: Path) -> bool:
    """Whether a folder is a stage of a run."""
    return (folder / METRICS).is_file()


def read_run_logs(run: Path) -> list[Log]:
    """The training stages, each in its newest round."""
    current = read_current(run, quiet=True)
    folders = stage_folders(run, current) if current.stages else {}
    logs = []
    for kind in DIAGNOSED:
        names = [name for name, folder in folders.items() if stage_kind(name) == kind and is_stage(folder)]
        if names:
            logs.append(read_stage_log(folders[max(names, key=stage_round)]))
    if not logs:
        rule = "a run in which a training stage has started"
        raise DataError(f"{run}: no stage has written metrics yet", rule, f"`towpath run {run}`")
    return logs


def read_stage_log(folder: Path) -> Log:
    """One stage, by its folder `stages/NAME/FINGERPRINT`."""
    folder = folder.resolve()
    name = folder.parent.name
    rows = jsonl.read(folder / METRICS, strict=bool(read_manifest(folder)))
    if not rows:
        value = f"{folder / METRICS}: no complete row"
        raise DataError(value, "a stage that has taken a step", "wait until the first step")
    columns = {
        column for row in rows for column, value in row.items() if isinstance(value, int | float) and column != "step"
    }
    kinds: dict[str, Kind] = {kind: kind for kind in DIAGNOSED}
    kind = kinds.get(stage_kind(name), "training")
    if kind == "policy" and any("pairs_loss" in row for row in rows):
        kind = "pairs"
    mapped_columns = {column: MappedColumn(column, "", _description(column)) for column in sorted(columns)}
    history = history_from_rows(rows, _facts(folder, name))
    notes = tuple(_intervention_notes(folder))
    return Log(str(folder), f"Towpath, {name}", kind, history, mapped_columns, notes=notes, own=True)


def _description(name: str) -> str:
    return REGISTRY[name].description if name in REGISTRY else ""


def _facts(folder: Path, name: str) -> dict[str, Any]:
    """The recipe by dotted key, the results of input stages as `STAGE.result.NAME`, and the stage."""
    run = folder.parents[2]
    manifest = read_manifest(folder)
    result = manifest.get("result") or {}
    recipe = manifest.get("recipe") or (load(run).model_dump(mode="json") if is_run(run) else {})
    facts = flatten(recipe)
    inputs = manifest.get("inputs") or {
        other: fingerprint for other, fingerprint in read_current(run, quiet=True).stages.items() if other != name
    }
    for other, fingerprint in inputs.items():
        input_result = read_manifest(run / "stages" / other / fingerprint).get("result") or {}
        facts |= {f"{stage_kind(other)}.result.{key}": value for key, value in input_result.items()}
    if stage_kind(name) == "reward":
        facts |= {f"reward.result.{key}": value for key, value in result.items()}
    steps = result.get("steps") or (recipe.get("policy") or {}).get("steps")
    if steps and stage_kind(name) == "policy":
        facts["steps"] = steps
    return facts | {"stage": stage_kind(name)}


def _intervention_notes(folder: Path) -> Iterator[str]:
    for row in jsonl.read(folder / "interventions.jsonl"):
        step = row["step"] + 1
        if row.get("stop"):
            yield f"a remedy stopped training after step {step}: {row.get('reason', '')}"
        elif row.get("knob"):
            change = f"{row['knob']} from {row['from']:g} to {row['to']:g} after step {step}"
            yield f"a remedy changed {change}: {row.get('reason', '')}"
