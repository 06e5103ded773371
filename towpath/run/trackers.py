"""TensorBoard, Weights & Biases, MLflow and Trackio: each follows metrics.jsonl while a stage writes it.

The stage never waits for a tracker and does not fail with one: a tracker reads the file in a thread of its own, and
rows that it could not send are counted.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any, Protocol

from towpath.errors import ResourceError
from towpath.recipe import Recipe, Track
from towpath.recipe.reader import flatten
from towpath.records import Finding
from towpath.store.jsonl import JsonlTail, objects
from towpath.terminal import print_status

POLL_SECONDS = 0.5
CLOSE_SECONDS = 30.0
"""Seconds that a stage waits at its end for rows that trackers have not sent yet."""
SERVICES = ("wandb", "mlflow", "trackio")
FIX = "pip install towpath[track]"
METRICS = "metrics.jsonl"
SECRET: Any = {"store": True, "judge": {"api_key"}, "evaluate": {"judge": {"api_key"}}}
"""Recipe keys that are never sent to a tracker."""


class Tracker(Protocol):
    """One run of one service."""

    def log(self, step: int, phase: str, metrics: Mapping[str, float]) -> None:
        """Send one row of metrics.jsonl."""
        ...

    def close(self) -> None:
        """Finish the run."""
        ...


class Follower:
    """Sends the rows of a metrics file to one tracker, in a thread of its own."""

    def __init__(self, name: str, path: Path, open_tracker: Callable[[], Tracker], say: Callable[[str], None]) -> None:
        self.name = name
        self.sent = 0
        self._read = 0
        self._tail = JsonlTail(path)
        self._open_tracker = open_tracker
        self._say = say
        self._error_printed = False
        self._closing = Event()
        self._read_lines: set[int] = set()
        """Hashes of lines: a resumed stage writes the file again up to its checkpoint."""
        self._new_lines()  # an earlier process sent these
        self._thread = Thread(target=self._follow, name=f"towpath-{name}", daemon=True)
        self._thread.start()

    def close(self, deadline: float) -> None:
        """Send the remaining rows, but not beyond a deadline."""
        self._closing.set()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        unsent = self._read - self.sent
        if self._thread.is_alive():
            unsent += len(self._new_lines())
        if unsent:
            self._say(f"track.{self.name}: {unsent} rows were not sent; metrics.jsonl has all of them")

    def _follow(self) -> None:
        tracker = None
        opened = False
        last_read = False
        while not last_read:
            last_read = self._closing.wait(POLL_SECONDS)
            rows = objects(b"\n".join(self._new_lines()))
            self._read += len(rows)
            if rows and not opened:
                opened = True
                tracker = self._attempt(self._open_tracker)
            for row in rows:
                if tracker is not None and self._attempt(lambda row=row, tracker=tracker: _send(tracker, row)):
                    self.sent += 1
        if tracker is not None:
            self._attempt(tracker.close)

    def _new_lines(self) -> list[bytes]:
        """Lines that were not read before, also where the file was replaced."""
        lines = [line for line in self._tail.read()[0].splitlines() if hash(line) not in self._read_lines]
        self._read_lines.update(map(hash, lines))
        return lines

    def _attempt(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (Exception, SystemExit) as error:  # process boundary: a service may raise anything
            if not self._error_printed:
                self._error_printed = True
                self._say(
                    f"track.{self.name}: {type(error).__name__}: {error}; training continues, metrics.jsonl has every "
                    "number"
                )
            return None


def _send(tracker: Tracker, row: Mapping[str, Any]) -> bool:
    metrics = {name: value for name, value in row.items() if name not in ("step", "phase")}
    tracker.log(row["step"], row["phase"], metrics)
    return True


@contextmanager
def follow(
    recipe: Recipe, run: Path, stage: str, folder: Path, say: Callable[[str], None] = print_status
) -> Iterator[list[Follower]]:
    """Follow the metrics of a stage with the trackers of the recipe while the block runs."""
    require(recipe.track)
    names = RunNames(recipe, run.resolve(), stage, folder)
    followers = [
        Follower(name, folder / METRICS, lambda tracker=tracker: tracker(names), say)
        for name, tracker in TRACKERS.items()
        if getattr(recipe.track, name)
    ]
    try:
        yield followers
    finally:
        deadline = time.monotonic() + CLOSE_SECONDS
        for follower in followers:
            follower.close(deadline)


def missing(track: Track) -> list[Finding]:
    """An error for each tracker of the recipe that is not installed."""
    return [
        Finding(
            "track",
            "error",
            f"track.{name} = true, but {name} is not installed",
            "a tracker that the recipe names must be installed",
            f"{FIX}, or set track.{name} = false",
        )
        for name in SERVICES
        if getattr(track, name) and find_spec(name) is None
    ]


def require(track: Track) -> None:
    """Raise if a tracker of the recipe is not installed."""
    for finding in missing(track):
        raise ResourceError(finding.evidence, finding.cause, finding.remedy)


class RunNames:
    """Names for a service: a project for the recipe, a group for the run, a name and a stable id for the stage."""

    def __init__(self, recipe: Recipe, run: Path, stage: str, folder: Path) -> None:
        self.project = recipe.track.project or recipe.name
        self.entity = recipe.track.entity or None
        self.group = run.name
        self.stage = stage
        self.folder = folder
        self.name = f"{run.name} {stage}"
        self.id = re.sub(r"[^A-Za-z0-9_-]", "-", f"{run.name}-{stage}-{folder.name}")
        self.config = recipe.model_dump(mode="json", exclude=SECRET)


class _TensorBoard:
    def __init__(self, names: RunNames) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(names.folder / "tensorboard"))

    def log(self, step: int, phase: str, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"{phase}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """Logs with a step axis of its own, because a resumed run may log a step again."""

    def __init__(self, names: RunNames) -> None:
        wandb: Any = import_module("wandb")
        self._run = wandb.init(
            project=names.project,
            entity=names.entity,
            group=names.group,
            name=names.name,
            id=names.id,
            job_type=names.stage,
            dir=str(names.folder),
            config=names.config,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, phase: str, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step} | {f"{phase}/{name}": value for name, value in metrics.items()})

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    """Uses the client, which is not bound to a thread, and finds the run of a resumed stage by its tag."""

    def __init__(self, names: RunNames) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        mlflow: Any = import_module("mlflow")
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri(f"sqlite:///{names.folder / 'mlflow.db'}")
        self._client = mlflow.MlflowClient()
        experiment = self._client.get_experiment_by_name(names.project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(names.project)
        earlier = self._client.search_runs([number], f"tags.towpath = '{names.id}'", max_results=1)
        if earlier:
            self._id = earlier[0].info.run_id
            return
        tags = {"towpath": names.id, "stage": names.stage}
        self._id = self._client.create_run(number, run_name=names.name, tags=tags).info.run_id
        for key, value in flatten(names.config).items():
            self._client.log_param(self._id, key, str(value)[:500])

    def log(self, step: int, phase: str, metrics: Mapping[str, float]) -> None:
        metric = import_module("mlflow.entities").Metric
        now = int(time.time() * 1000)
        self._client.log_batch(
            self._id,
            metrics=[metric(_safe(f"{phase}/{name}"), value, now, max(step, 0)) for name, value in metrics.items()],
        )

    def close(self) -> None:
        self._client.set_terminated(self._id)


class _Trackio:
    def __init__(self, names: RunNames) -> None:
        trackio: Any = import_module("trackio")
        config = {key: str(value) for key, value in flatten(names.config).items()}
        with redirect_stdout(sys.stderr):  # standard output is for results
            self._run = trackio.init(
                project=_safe(names.project).replace("/", "-"),
                name=names.id,
                config=config,
                resume="allow",
                embed=False,
            )

    def log(self, step: int, phase: str, metrics: Mapping[str, float]) -> None:
        self._run.log({f"{phase}/{name}": value for name, value in metrics.items()}, step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()


TRACKERS: dict[str, Callable[[RunNames], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
}


def _safe(name: str) -> str:
    """A name that every service accepts."""
    return re.sub(r"[^\w./ -]", "_", name)
