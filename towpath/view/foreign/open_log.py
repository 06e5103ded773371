"""Which reader a path is for."""

from collections.abc import Mapping
from pathlib import Path

from towpath.errors import DataError
from towpath.view.foreign import events, table_files, towpath_run, trainer_state
from towpath.view.foreign.log import Log, Raw, translated

KINDS = "a run of Towpath, trainer_state.json, TensorBoard event files, .csv, .tsv, .jsonl or .json"


def opened(path: Path, maps: Mapping[str, str] | None = None) -> list[Log]:
    """What is to be judged at a path: one log, or the stages of a run."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder", KINDS, "mend the path")
    if maps and (towpath_run.is_run(path) or towpath_run.is_stage(path)):
        raise DataError(
            f"--map {next(iter(maps))}={next(iter(maps.values()))}",
            "--map is for logs of others",
            "a run of Towpath needs none",
        )
    if towpath_run.is_run(path):
        return towpath_run.logs(path)
    if towpath_run.is_stage(path):
        return [towpath_run.stage(path)]
    return [translated(_in_folder(path) if path.is_dir() else _in_file(path), maps)]


def _in_file(path: Path) -> Raw:
    if events.MARK in path.name:
        return events.read(path, [path])
    if path.suffix in table_files.SUFFIXES:
        return table_files.read(path)
    fix = (
        "export the run's history as CSV (`run.history().to_csv()`)"
        if path.suffix == ".wandb"
        else "rename it to what it holds, or export it"
    )
    raise DataError(f"{path}: no reader for {path.suffix or 'a name without ending'}", KINDS, fix)


def _in_folder(folder: Path) -> Raw:
    """A trainer's folder: its state, else its event files, else the one table in it."""
    state = trainer_state.newest(folder)
    if state:
        return table_files.read(state)
    found = events.files(folder)
    if found:
        return events.read(folder, found)
    lying = sorted(
        path for path in folder.iterdir() if path.suffix in table_files.SUFFIXES and path.name != "config.json"
    )
    if len(lying) != 1:
        told = f"{len(lying)} tables, {', '.join(path.name for path in lying[:5])}" if lying else "no log in it"
        raise DataError(f"{folder}: {told}", f"a folder of one run: {KINDS}", "name the file")
    return table_files.read(lying[0])
