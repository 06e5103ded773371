"""`trainer_state.json` of transformers' Trainer and the trainers built on it, such as TRL's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from towpath.errors import DataError
from towpath.view.foreign.log import RawLog

NAME = "trainer_state.json"


def raw_log(source: str, state: Mapping[str, Any]) -> RawLog:
    """The rows of its `log_history`."""
    rows = state.get("log_history")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        fix = "name the trainer_state.json of a run that logged"
        raise DataError(f"{source}: log_history is {type(rows).__name__}", "a list of rows", fix)
    if not rows:
        fix = "set logging_steps, or wait until the first log"
        raise DataError(f"{source}: log_history is empty", "a run that logged", fix)
    return RawLog(source, rows, {key: state[key] for key in ("max_steps",) if key in state})


def newest(folder: Path) -> Path | None:
    """The state of a finished run, or of its last checkpoint."""
    states = [path for path in (folder / NAME, *folder.glob(f"checkpoint-*/{NAME}")) if path.is_file()]
    return max(states, key=_progress, default=None)


def _progress(path: Path) -> tuple[bool, int]:
    number = path.parent.name.rpartition("-")[2]
    return (not path.parent.name.startswith("checkpoint-"), int(number) if number.isdigit() else -1)
