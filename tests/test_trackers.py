"""Trackers follow metrics.jsonl: every row is sent once, and no tracker can delay or stop a stage."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from threading import Event

import pytest

from towpath.errors import ResourceError
from towpath.recipe import Recipe, Track
from towpath.recipe.reader import check
from towpath.run import trackers
from towpath.stages.job import MetricsLog


class RecordingTracker:
    """A tracker that keeps the rows it gets."""

    def __init__(self):
        self.rows = []
        self.closed = False

    def log(self, step, phase, metrics):
        self.rows.append((step, phase, dict(metrics)))

    def close(self):
        self.closed = True


class FailingTracker(RecordingTracker):
    """A tracker whose service is unreachable from its third row on."""

    def log(self, step, phase, metrics):
        if len(self.rows) >= 2:
            raise ConnectionError("the service is unreachable")
        super().log(step, phase, metrics)


@pytest.fixture
def follow(tmp_path, monkeypatch):
    """`follow(openers, say)`: a context in which each opener is a tracker of the recipe."""
    monkeypatch.setattr(trackers, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())

    def start(*openers, say=lambda line: None):
        names = trackers.SERVICES[: len(openers)]
        for name, opener in zip(names, openers, strict=True):
            monkeypatch.setitem(trackers.TRACKERS, name, opener)
        track = {"tensorboard": False} | dict.fromkeys(names, True)
        values = {"name": "boats", "judge": {"api_key": "env:KEY"}, "track": track}
        return trackers.follow(check(Recipe, values, "test"), tmp_path / "run", "sft", tmp_path, say)

    return start


def write(log, steps):
    for step in steps:
        log.write(step, "train", {"reward": step / 10})


def test_every_row_is_sent_to_every_tracker(tmp_path, follow):
    first = RecordingTracker()
    second = RecordingTracker()
    with follow(lambda names: first, lambda names: second):
        log = MetricsLog(tmp_path)
        write(log, range(50))
        log.write(49, "validation", {"reward": 9.0})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["phase"], {"reward": row["reward"]}) for row in rows] == first.rows == second.rows
    assert first.closed
    assert second.closed


def test_a_resumed_stage_sends_only_new_rows(tmp_path, follow):
    write(MetricsLog(tmp_path), range(10))
    tracker = RecordingTracker()
    with follow(lambda names: tracker):
        log = MetricsLog(tmp_path)
        log.rewind(8)
        log.write(8, "train", {"reward": 5.0})
        write(log, range(9, 12))
    assert [step for step, _, _ in tracker.rows] == [8, 10, 11]  # step 9 has the value that was sent before


def test_a_failing_tracker_is_reported_once_and_stops_nothing(tmp_path, follow):
    lines = []
    working = RecordingTracker()
    with follow(
        lambda names: FailingTracker(), lambda names: working, lambda names: 1 / 0, say=lines.append
    ) as followers:
        write(MetricsLog(tmp_path), range(20))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 20
    assert [follower.sent for follower in followers] == [2, 20, 0]
    assert len(working.rows) == 20
    assert sorted(line.split(":")[0] for line in lines) == ["track.trackio"] * 2 + ["track.wandb"] * 2
    assert sum("the service is unreachable" in line for line in lines) == 1
    assert any("18 rows were not sent" in line for line in lines)


def test_a_hanging_tracker_does_not_delay_the_stage(tmp_path, follow, monkeypatch):
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.2)
    released = Event()
    lines = []
    with follow(lambda names: released.wait() and RecordingTracker(), say=lines.append):
        write(MetricsLog(tmp_path), range(50))
    assert not released.is_set()
    assert lines == ["track.wandb: 50 rows were not sent; metrics.jsonl has all of them"]
    released.set()


def test_a_stage_without_metrics_opens_no_tracker(follow):
    opened = []
    with follow(opened.append):
        pass
    assert opened == []


def test_a_service_gets_names_of_the_run_and_no_secrets(tmp_path, follow):
    opened = []

    def open_tracker(names):
        opened.append(names)
        return RecordingTracker()

    with follow(open_tracker):
        write(MetricsLog(tmp_path), [0])
    assert [(names.project, names.name, names.id) for names in opened] == [
        ("boats", "run sft", f"run-sft-{tmp_path.name}")
    ]
    assert "env:KEY" not in json.dumps(opened[0].config)
    assert "store" not in opened[0].config


def test_tensorboard_gets_scalars_by_phase(tmp_path):
    from towpath.view.foreign import events

    recipe = check(Recipe, {}, "test")
    with trackers.follow(recipe, tmp_path, "sft", tmp_path):
        log = MetricsLog(tmp_path)
        write(log, range(3))
        log.write(2, "validation", {"reward": 0.7})
    raw = events.read(tmp_path, events.files(tmp_path / "tensorboard"))
    assert [row["train/reward"] for row in raw.rows] == pytest.approx([0.0, 0.1, 0.2])
    assert raw.rows[2]["validation/reward"] == pytest.approx(0.7)


def test_a_missing_tracker_is_an_error_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    for name in trackers.SERVICES:
        recipe = check(Recipe, {"track": {name: True}}, "test")
        with pytest.raises(ResourceError) as raised, trackers.follow(recipe, tmp_path, "sft", tmp_path):
            pass
        assert raised.value.value == f"track.{name} = true, but {name} is not installed"
        assert "pip install towpath[track]" in raised.value.fix
    assert trackers.missing(Track()) == []
    assert [finding.severity for finding in trackers.missing(Track(wandb=True, mlflow=True))] == ["error", "error"]


def test_no_tracker_is_imported_before_it_is_used():
    script = (
        "import sys; from towpath.run import trackers; "
        "assert not {'wandb', 'mlflow', 'trackio', 'torch', 'tensorboard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


REAL = """
import json, sys
from pathlib import Path
from towpath.recipe import Recipe
from towpath.recipe.reader import check
from towpath.run import trackers
from towpath.stages.job import MetricsLog

name, run = sys.argv[1], Path(sys.argv[2])
folder = run / "stages" / "policy" / "abc"
recipe = check(Recipe, {"name": "boats", "track": {"tensorboard": False, name: True}}, "test")
trackers.CLOSE_SECONDS = 90.0
for start in (0, 3):  # the second time like a resumed run, which writes steps again
    with trackers.follow(recipe, run, "policy", folder) as followers:
        log = MetricsLog(folder)
        log.rewind(start)
        for step in range(start, start + 5):
            log.write(step, "train", {"reward": step / 2, "reward/odd (domain)": float("nan"), "start": start})
        log.write(start + 4, "validation", {"reward": 2.0})
    print(json.dumps([followers[0].sent]), file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", trackers.SERVICES)
def test_real_trackers_accept_every_row(tmp_path, name):
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    settings = {
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", REAL, name, str(tmp_path / "run")],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = [line for line in done.stderr.splitlines() if line.startswith("[") and line.endswith("]")]
    assert counts == ["[6]", "[6]"], done.stderr
    assert done.stdout == ""
    folder = tmp_path / "run" / "stages" / "policy" / "abc"
    files = {
        "wandb": folder.glob("wandb/offline-run-*/*.wandb"),
        "mlflow": folder.glob("mlflow.db"),
        "trackio": (tmp_path / "trackio").glob("*.db"),
    }
    sizes = [path.stat().st_size for path in files[name]]
    assert sizes
    assert min(sizes) > 1000
    if name == "mlflow":
        rewards = _mlflow_rewards(folder / "mlflow.db")
        assert rewards == {0: 0.0, 1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0, 5: 2.5, 6: 3.0, 7: 3.5}


def _mlflow_rewards(path) -> dict[int, float]:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT step, value FROM metrics WHERE key = 'train/reward'").fetchall())
