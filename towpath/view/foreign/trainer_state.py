"""`trainer_state.json` of transformers' Trainer, and of every trainer built on it: TRL's among them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from towpath.errors import DataError
from towpath.view.foreign.log import Raw

NAME = "trainer_state.json"


def raw(source: str, state: Mapping[str, Any]) -> Raw:
    """The rows of its `log_history`."""
    rows = state.get("log_history")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(
            f"{source}: log_history is {type(rows).__name__}",
            "a list of rows",
            "name the trainer_state.json of a run that logged",
        )
    if not rows:
        raise DataError(
            f"{source}: log_history is empty", "a run that logged", "set logging_steps, or wait until the first log"
        )
    return Raw(source, rows, {key: state[key] for key in ("max_steps",) if key in state})


def newest(folder: Path) -> Path | None:
    """The state of a finished run, or of its last checkpoint: whichever has gone further."""
    found = [path for path in (folder / NAME, *folder.glob(f"checkpoint-*/{NAME}")) if path.is_file()]
    return max(found, key=_reached, default=None)


def _reached(path: Path) -> tuple[bool, int]:
    number = path.parent.name.rpartition("-")[2]
    return (not path.parent.name.startswith("checkpoint-"), int(number) if number.isdigit() else -1)
