"""Study of a sweep: which trials there are, who works on them, and what they came to, in Optuna's storage.

A number is claimed by creating a trial, which the database makes unique. A trial that runs belongs to its owner. On one
host a file lock shows whether the owner lives; on other hosts a counter in the storage that the owner raises does. Two
hosts that take over the same trial at once waste work and change nothing: training is deterministic.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from towpath.errors import ResourceError
from towpath.store.study_storage import open_study_storage, translate_storage_errors
from towpath.sweep.sampler import distribution, import_optuna
from towpath.sweep.space import Settings, Space
from towpath.sweep.trial_record import TrialRecord, from_row, to_row

BEATS = 6
"""Signs of life within `sweep.patience`."""
LOCK = ".lock"
Wait = Literal["wait", "done"]


class TrialStudy:
    """The trials of one kind, by number; numbers from `limit` on are never trained."""

    def __init__(self, location: Path | str, name: str, folder: Path, limit: int, patience: float) -> None:
        self.optuna = import_optuna()
        self.folder = folder
        self.limit = limit
        self.patience = patience
        self.is_shared = not isinstance(location, Path)
        folder.mkdir(parents=True, exist_ok=True)
        self.storage = open_study_storage(self.optuna, location)
        with translate_storage_errors(self.optuna):
            self.study = self.optuna.create_study(
                storage=self.storage, study_name=name, direction="maximize", load_if_exists=True
            )
        self._beats: dict[int, tuple[int, float]] = {}
        """Of each trial elsewhere the last counter, and when it was first read."""

    def __enter__(self) -> "TrialStudy":
        return self

    def __exit__(self, *_: object) -> None:
        self.storage.remove_session()
        self.storage.engine.dispose()

    # What there is

    def records(self) -> list[TrialRecord]:
        """The trials that have ended, by number."""
        rows = [trial.user_attrs["result"] for trial in self._trials() if "result" in trial.user_attrs]
        return sorted((from_row(json.loads(row)) for row in rows), key=lambda record: record.number)

    def settings_of(self, number: int) -> Settings | None:
        """The settings that a trial was begun with, None if it has not."""
        row = self._trial(number).user_attrs.get("settings")
        return json.loads(row) if row else None

    def open_trials(self) -> int:
        """Trials that have begun and not ended."""
        return sum(not trial.state.is_finished() for trial in self._trials())

    # Work

    def claim(self) -> "Claim | Wait":
        """A trial to work on: one whose owner is dead, or a new one; `wait` while others work, `done` at the end."""
        with translate_storage_errors(self.optuna):
            for trial in self._trials():
                if not trial.state.is_finished() and (claim := self._take_over(trial)):
                    return claim
            with _locked(self.folder / LOCK):
                if len(self._trials()) < self.limit:
                    claim = self._claim_new()
                    if claim:
                        return claim
            return "wait" if any(not trial.state.is_finished() for trial in self._trials()) else "done"

    def _claim_new(self) -> "Claim | None":
        number = self.study.ask().number
        if number >= self.limit:  # another machine was faster; it is taken up if the limit rises
            return None
        lock = try_lock(self._lock_path(number))
        return Claim(self, number, lock) if lock else None

    def _take_over(self, trial: Any) -> "Claim | None":
        """The claim of a trial whose owner shows no sign of life."""
        owner = json.loads(trial.user_attrs.get("owner", "{}"))
        here = owner.get("host") == _host() and owner.get("lock") == str(self._lock_path(trial.number))
        if (owner and here) or not self.is_shared:
            lock = try_lock(self._lock_path(trial.number))
            return Claim(self, trial.number, lock) if lock else None
        beat = int(trial.user_attrs.get("beat", 0))
        last, since = self._beats.get(trial.number, (-1, 0.0))
        if beat != last:
            self._beats[trial.number] = beat, time.monotonic()
            return None
        if time.monotonic() - since < self.patience:
            return None
        lock = try_lock(self._lock_path(trial.number))
        return Claim(self, trial.number, lock) if lock else None

    def trial_id(self, number: int) -> int:
        """Optuna's id of a trial."""
        return self._trial(number)._trial_id

    def set_attribute(self, number: int, name: str, value: Any) -> None:
        """Store a value with a trial."""
        with translate_storage_errors(self.optuna):
            self.storage.set_trial_user_attr(self.trial_id(number), name, value)

    def set_parameters(self, number: int, space: Space, settings: Mapping[str, Any]) -> None:
        """Store the settings where tools for Optuna read them, as far as they are within the space."""
        if not all(r.contains(settings.get(key)) for key, r in space.items()):
            return
        identifier = self.trial_id(number)
        with translate_storage_errors(self.optuna):
            present = self.storage.get_trial(identifier).params
            for key, search_range in space.items():
                form = distribution(search_range)
                if key not in present:
                    self.storage.set_trial_param(identifier, key, form.to_internal_repr(settings[key]), form)

    def finish(self, record: TrialRecord) -> None:
        """Store the result of a trial; a trial that another machine has ended stays as it is."""
        states = self.optuna.trial.TrialState
        state = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[record.status]
        value = record.value.value if record.status == "complete" else None
        with suppress(RuntimeError):  # Optuna's error for a trial that has ended is one
            self.set_attribute(record.number, "result", json.dumps(to_row(record)))
            with translate_storage_errors(self.optuna):
                self.study.tell(record.number, value, state, skip_if_finished=True)

    def _trials(self) -> list[Any]:
        with translate_storage_errors(self.optuna):
            return [trial for trial in self.study.get_trials(deepcopy=False) if trial.number < self.limit]

    def _trial(self, number: int) -> Any:
        return next(trial for trial in self._trials() if trial.number == number)

    def _lock_path(self, number: int) -> Path:
        return self.folder / str(number) / LOCK


class Claim:
    """The right to work on a trial, until it is released; meanwhile signs of life go to a shared storage."""

    def __init__(self, study: TrialStudy, number: int, lock: IO[str]) -> None:
        self.study = study
        self.number = number
        self._lock = lock
        self._released = threading.Event()
        self._thread: threading.Thread | None = None
        owner = {"host": _host(), "lock": str(study._lock_path(number)), "process": os.getpid()}
        study.set_attribute(number, "owner", json.dumps(owner))
        if study.is_shared:
            self._thread = threading.Thread(target=self._beat, daemon=True, name=f"trial {number}")
            self._thread.start()

    def release(self) -> None:
        """Give the trial up, ended or not."""
        self._released.set()
        if self._thread:
            self._thread.join()
        self._lock.close()

    def _beat(self) -> None:
        identifier = self.study.trial_id(self.number)
        count = int(self.study._trial(self.number).user_attrs.get("beat", 0))
        while not self._released.wait(self.study.patience / BEATS):
            count += 1
            with suppress(ResourceError), translate_storage_errors(self.study.optuna):  # the next beat may reach it
                self.study.storage.set_trial_user_attr(identifier, "beat", count)


def try_lock(path: Path) -> IO[str] | None:
    """An open file with its lock, None if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock for the moment in which a trial is created."""
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _host() -> str:
    return socket.gethostname()
