"""Where numbers go besides metrics.jsonl: wandb, MLflow, Trackio. None of them can hold training up or stop it.

Each tracker lives in a thread of its own, behind a queue with an end: training hands a row over and goes on. What
fails is counted and said once.
"""

import atexit
import os
import queue
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

from towpath import terminal
from towpath.errors import ResourceError
from towpath.recipe import Recipe, Track
from towpath.recipe.reader import flat
from towpath.records import Finding

ROOM = 10_000
"""Rows a tracker may lag behind; later ones are lost to it."""
PATIENCE = 30.0
"""Seconds that a stage waits at its end for what trackers have not sent yet."""
NAMES = ("wandb", "mlflow", "trackio")
FIX = "pip install towpath[track]"

Row = tuple[int, str, dict[str, float]]


class Tracker(Protocol):
    """One run of one service."""

    def log(self, step: int, phase: str, numbers: Mapping[str, float]) -> None:
        """One row of metrics.jsonl."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class Courier:
    """Carries rows to one tracker, in a thread of its own."""

    def __init__(self, name: str, begin: Callable[[], Tracker], say: Callable[[str], None]) -> None:
        self.name = name
        self.failed = 0
        self.lost = 0
        self.sent = 0
        self._begin = begin
        self._say = say
        self._told = False
        self._rows: queue.Queue[Row | None] = queue.Queue(ROOM)
        self._thread = Thread(target=self._carry, name=f"towpath-{name}", daemon=True)
        self._thread.start()

    def take(self, row: Row) -> None:
        """Hand a row over; never waits."""
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self.lost += 1

    def close(self, until: float) -> None:
        """Wait for what is under way, but not for ever."""
        with suppress(queue.Full):
            self._rows.put(None, timeout=max(0.0, until - time.monotonic()))
        self._thread.join(max(0.0, until - time.monotonic()))
        missed = self.failed + self.lost + (self._rows.qsize() if self._thread.is_alive() else 0)
        if missed:
            self._say(f"track.{self.name}: {missed} rows did not get there; metrics.jsonl has them all")

    def _carry(self) -> None:
        tracker = self._try(self._begin)
        while (row := self._rows.get()) is not None:
            if tracker is None:
                self.failed += 1
            elif self._try(lambda row=row: tracker.log(*row) or True):
                self.sent += 1
            else:
                self.failed += 1
        if tracker is not None:
            self._try(tracker.close)

    def _try(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except (Exception, SystemExit) as error:  # the boundary to a service: whatever it raises is its own affair
            if not self._told:
                self._told = True
                self._say(
                    f"track.{self.name}: {type(error).__name__}: {error}; training goes on, metrics.jsonl has every "
                    "number"
                )
            return None


class Trackers:
    """All trackers of one stage."""

    def __init__(self, couriers: Sequence[Courier] = ()) -> None:
        self.couriers = tuple(couriers)

    def write(self, step: int, phase: str, numbers: Mapping[str, float]) -> None:
        """One row to each."""
        for courier in self.couriers:
            courier.take((step, phase, dict(numbers)))

    def close(self) -> None:
        """Wait a little for each; nothing can be written any more."""
        until = time.monotonic() + PATIENCE
        for courier in self.couriers:
            courier.close(until)
        self.couriers = ()


_open = Trackers()


def opened(recipe: Recipe, run: Path, stage: str, folder: Path, say: Callable[[str], None] | None = None) -> Trackers:
    """The trackers that a recipe asks for, open for one stage; those of the stage before are closed."""
    global _open
    require(recipe.track)
    close()
    begun = [(name, begin) for name, begin in BEGIN.items() if getattr(recipe.track, name)]
    place = Place(recipe, run.resolve(), stage, folder)
    _open = Trackers(
        [Courier(name, lambda begin=begin: begin(place), say or terminal.print_status) for name, begin in begun]
    )
    return _open


def close() -> None:
    """Close what is open."""
    _open.close()


atexit.register(close)


def missing(track: Track) -> list[Finding]:
    """An error for every tracker that is asked for and not installed."""
    lost = [name for name in NAMES if getattr(track, name) and find_spec(name) is None]
    cause = "a tracker that is asked for must be installed"
    return [
        Finding(
            "track",
            "error",
            f"track.{name} = true, but {name} is not installed",
            cause,
            f"{FIX}, or set track.{name} = false",
        )
        for name in lost
    ]


def require(track: Track) -> None:
    """Raise where a tracker that is asked for is not installed."""
    for finding in missing(track):
        raise ResourceError(finding.evidence, finding.cause, finding.remedy)


class Place:
    """What a service calls things by: a project for the recipe, a group for the run, a name and a lasting id for the
    stage."""

    def __init__(self, recipe: Recipe, run: Path, stage: str, folder: Path) -> None:
        self.project = recipe.name
        self.group = run.name
        self.stage = stage
        self.folder = folder
        self.name = f"{run.name} {stage}"
        self.id = re.sub(r"[^A-Za-z0-9_-]", "-", f"{run.name}-{stage}-{folder.name}")
        self.config = recipe.model_dump(mode="json", exclude={"store": True, "judge": {"api_key"}})


class _Wandb:
    """An own axis of steps, so that a resumed run may tell a step again."""

    def __init__(self, place: Place) -> None:
        wandb: Any = import_module("wandb")
        settings = wandb.Settings(silent=True)
        self._run = wandb.init(
            project=place.project,
            group=place.group,
            name=place.name,
            id=place.id,
            job_type=place.stage,
            dir=str(place.folder),
            config=place.config,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, phase: str, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step} | {f"{phase}/{name}": value for name, value in numbers.items()})

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    """By its client, whose calls belong to no thread; a run is found again by its id."""

    def __init__(self, place: Place) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        mlflow: Any = import_module("mlflow")
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri(f"sqlite:///{place.folder / 'mlflow.db'}")
        self._client = mlflow.MlflowClient()
        experiment = self._client.get_experiment_by_name(place.project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(place.project)
        found = self._client.search_runs([number], f"tags.towpath = '{place.id}'", max_results=1)
        run = (
            found[0]
            if found
            else self._client.create_run(number, run_name=place.name, tags={"towpath": place.id, "stage": place.stage})
        )
        self._id = run.info.run_id
        if not found:
            for key, value in flat(place.config).items():
                self._client.log_param(self._id, key, str(value)[:500])

    def log(self, step: int, phase: str, numbers: Mapping[str, float]) -> None:
        metric = import_module("mlflow.entities").Metric
        at = int(time.time() * 1000)
        self._client.log_batch(
            self._id,
            metrics=[metric(_plain(f"{phase}/{name}"), value, at, max(step, 0)) for name, value in numbers.items()],
        )

    def close(self) -> None:
        self._client.set_terminated(self._id)


class _Trackio:
    def __init__(self, place: Place) -> None:
        trackio: Any = import_module("trackio")
        config = {key: str(value) for key, value in flat(place.config).items()}
        with redirect_stdout(sys.stderr):  # standard output is for results
            self._run = trackio.init(
                project=_plain(place.project).replace("/", "-"),
                name=place.id,
                config=config,
                resume="allow",
                embed=False,
            )

    def log(self, step: int, phase: str, numbers: Mapping[str, float]) -> None:
        self._run.log({f"{phase}/{name}": value for name, value in numbers.items()}, step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()


BEGIN: dict[str, Callable[[Place], Tracker]] = {"wandb": _Wandb, "mlflow": _Mlflow, "trackio": _Trackio}


def _plain(name: str) -> str:
    """A name that every service takes."""
    return re.sub(r"[^\w./ -]", "_", name)
