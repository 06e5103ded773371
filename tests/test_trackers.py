"""Numbers go to trackers from the one place where they are written, and no tracker can stop or hold up training."""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

from towpath.data.corpus import Corpus
from towpath.errors import ResourceError
from towpath.recipe import Recipe, Track
from towpath.recipe.reader import check
from towpath.stages import trackers
from towpath.stages.job import Job, Log


class Kept:
    """A tracker that keeps what it is told."""

    def __init__(self):
        self.rows = []
        self.closed = False

    def log(self, step, phase, numbers):
        self.rows.append((step, phase, dict(numbers)))

    def close(self):
        self.closed = True


class Failing(Kept):
    """One whose service is gone from its third row on."""

    def log(self, step, phase, numbers):
        if len(self.rows) >= 2:
            raise ConnectionError("the service is gone")
        super().log(step, phase, numbers)


def opened(*trackers_, say=lambda line: None):
    return trackers.Trackers([trackers.Courier(f"t{n}", begin, say) for n, begin in enumerate(trackers_)])


def test_every_row_of_the_record_goes_to_every_tracker(tmp_path):
    one = Kept()
    two = Kept()
    others = opened(lambda: one, lambda: two)
    log = Log(tmp_path, False, others)
    for step in range(50):
        log.write(step, "train", {"reward": step / 10})
    log.write(49, "validation", {"reward": 9.0})
    others.close()
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["phase"], {"reward": row["reward"]}) for row in written] == one.rows == two.rows
    assert one.closed


def test_a_tracker_that_fails_is_counted_said_once_and_stops_nothing(tmp_path):
    said = []
    kept = Kept()
    failing = Failing()
    others = opened(lambda: failing, lambda: kept, lambda: 1 / 0, say=said.append)
    couriers = others.couriers
    log = Log(tmp_path, False, others)
    for step in range(20):
        log.write(step, "train", {"reward": 1.0})
    others.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 20
    assert len(kept.rows) == 20
    assert [(courier.sent, courier.failed) for courier in couriers] == [(2, 18), (20, 0), (0, 20)]
    assert sorted(line.split(":")[0] for line in said) == ["track.t0", "track.t0", "track.t2", "track.t2"]
    assert sum("the service is gone" in line for line in said) == 1
    assert any("18 rows" in line for line in said)


def test_a_tracker_that_hangs_holds_nothing_up(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "PATIENCE", 0.3)
    monkeypatch.setattr(trackers, "ROOM", 5)
    said = []
    others = opened(lambda: time.sleep(3600), say=said.append)
    log = Log(tmp_path, False, others)
    begun = time.monotonic()
    for step in range(50):
        log.write(step, "train", {"reward": 1.0})
    others.close()
    assert time.monotonic() - begun < 3
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 50
    assert len(said) == 1
    assert "50 rows" in said[0]


def test_the_next_stage_closes_the_trackers_of_the_last(tmp_path, monkeypatch):
    made = []

    def begin(place):
        made.append((place, Kept()))
        return made[-1][1]

    monkeypatch.setitem(trackers.BEGIN, "wandb", begin)
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    recipe = check(
        Recipe,
        {"name": "boats", "model": {"source": "tiny"}, "judge": {"api_key": "env:KEY"}, "track": {"wandb": True}},
        "test",
    )
    for stage in ("sft", "policy"):
        folder = tmp_path / "run" / "stages" / stage / "abc"
        job = Job(recipe, tmp_path / "run", stage, folder, {}, None, Corpus(()))  # pyright: ignore[reportArgumentType]
        job.log.write(0, "train", {"loss": 1.0})
    trackers.close()
    assert [(place.project, place.name, place.id) for place, _ in made] == [
        ("boats", "run sft", "run-sft-abc"),
        ("boats", "run policy", "run-policy-abc"),
    ]
    assert all(kept.rows == [(0, "train", {"loss": 1.0})] and kept.closed for _, kept in made)
    assert "env:KEY" not in json.dumps(made[0][0].config)
    assert "store" not in made[0][0].config


def test_a_tracker_that_is_not_installed_is_an_error_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    for name in trackers.NAMES:
        recipe = check(Recipe, {"track": {name: True}}, "test")
        with pytest.raises(ResourceError) as told:
            trackers.opened(recipe, tmp_path, "sft", tmp_path)
        assert told.value.value == f"track.{name} = true, but {name} is not installed"
        assert "pip install towpath[track]" in told.value.fix
    assert trackers.missing(Track()) == []
    assert [finding.severity for finding in trackers.missing(Track(wandb=True, mlflow=True))] == ["error", "error"]
    assert trackers.opened(check(Recipe, {}, "test"), tmp_path, "sft", tmp_path).couriers == ()


def test_nothing_is_imported_that_is_not_asked_for():
    script = (
        "import sys; from towpath.stages import trackers; assert not {'wandb', 'mlflow', 'trackio', 'torch'} & "
        "set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


REAL = """
import json, sys
from pathlib import Path
from towpath.config import check
from towpath.recipe import Recipe
from towpath.stages import trackers

name, run = sys.argv[1], Path(sys.argv[2])
folder = run / "stages" / "policy" / "abc"
folder.mkdir(parents=True, exist_ok=True)
recipe = check(Recipe, {"name": "boats", "track": {name: True}}, "test")
trackers.PATIENCE = 90.0
for begin in (0, 3):  # the second time as a resumed run tells steps again
    opened = trackers.opened(recipe, run, "policy", folder)
    couriers = opened.couriers
    for step in range(begin, begin + 5):
        opened.write(step, "train", {"reward": step / 2, "reward/odd (domain)": float("nan")})
    opened.write(begin + 4, "validation", {"reward": 2.0})
    trackers.close()
    print(json.dumps([couriers[0].sent, couriers[0].failed, couriers[0].lost]), file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", trackers.NAMES)
def test_the_real_trackers_take_every_row(tmp_path, name):
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
    counted = [
        json.loads(line)
        for line in done.stderr.splitlines()
        if line.startswith("[") and line.endswith("]") and "," in line
    ]
    assert counted == [[6, 0, 0], [6, 0, 0]], done.stderr
    assert done.stdout == ""
    place = tmp_path / "run" / "stages" / "policy" / "abc"
    kept = {
        "wandb": place.glob("wandb/offline-run-*/*.wandb"),
        "mlflow": place.glob("mlflow.db"),
        "trackio": (tmp_path / "trackio").glob("*.db"),
    }
    assert all(path.stat().st_size > 1000 for path in kept[name])
    if name == "mlflow":
        assert mlflow_told(place / "mlflow.db") == {0: 0.0, 1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0, 5: 2.5, 6: 3.0, 7: 3.5}


def mlflow_told(path) -> dict[int, float]:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT step, value FROM metrics WHERE key = 'train/reward'").fetchall())
