"""Opens a log: chooses the reader for a path."""

from collections.abc import Mapping
from pathlib import Path

from towpath.errors import DataError
from towpath.view.foreign import events, table_files, towpath_run, trainer_state
from towpath.view.foreign.log import Log, RawLog, translate

KINDS = "a run of Towpath, trainer_state.json, TensorBoard event files, .csv, .tsv, .jsonl or .json"


def open_logs(path: Path, maps: Mapping[str, str] | None = None) -> list[Log]:
    """The log at a path, or the training stages of a run."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder", KINDS, "fix the path")
    own = towpath_run.is_run(path) or towpath_run.is_stage(path)
    if maps and own:
        column, metric = next(iter(maps.items()))
        rule = "--map is for logs of other trainers"
        raise DataError(f"--map {column}={metric}", rule, "a run of Towpath needs none")
    if towpath_run.is_run(path):
        return towpath_run.read_run_logs(path)
    if towpath_run.is_stage(path):
        return [towpath_run.read_stage_log(path)]
    return [translate(_read_folder(path) if path.is_dir() else _read_file(path), maps)]


def _read_file(path: Path) -> RawLog:
    if events.NAME_PART in path.name:
        return events.read(path, [path])
    if path.suffix in table_files.SUFFIXES:
        return table_files.read(path)
    fix = "rename it to what it holds, or export it"
    if path.suffix == ".wandb":
        fix = "export the run's history as CSV (`run.history().to_csv()`)"
    raise DataError(f"{path}: no reader for {path.suffix or 'a name without suffix'}", KINDS, fix)


def _read_folder(folder: Path) -> RawLog:
    """The trainer's state in a folder, else its event files, else the only table in it."""
    state = trainer_state.newest(folder)
    if state:
        return table_files.read(state)
    event_files = events.files(folder)
    if event_files:
        return events.read(folder, event_files)
    tables = sorted(
        path for path in folder.iterdir() if path.suffix in table_files.SUFFIXES and path.name != "config.json"
    )
    if len(tables) != 1:
        names = ", ".join(path.name for path in tables[:5])
        content = f"{len(tables)} tables, {names}" if tables else "no log in it"
        raise DataError(f"{folder}: {content}", f"a folder of one run: {KINDS}", "name the file")
    return table_files.read(tables[0])
