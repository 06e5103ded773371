"""Whole runs of the tiny recipe on several workers: each stage, gate and result as with one process."""

import hashlib
import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from command import SETTINGS, start, towpath
from test_worker_faults import is_running

from towpath.store import manifest

pytestmark = pytest.mark.slow
WORKERS = ("--set", "cluster.workers=2", "--set", "cluster.threads=1")


def weights(run: Path) -> dict[str, str]:
    """The hash of each weight file of a run."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.glob("stages/*/*/*/*.safetensors"))
    }


def summary(run: Path) -> dict:
    return json.loads((run / "reports" / "summary.json").read_text())


@pytest.fixture(scope="module")
def on_workers(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("workers") / "run"
    assert towpath("new", run, "--recipe", "tiny").returncode == 0
    done = towpath("run", run, *SETTINGS, *WORKERS)
    assert done.returncode == 0, done.stderr
    return run


def test_run_has_the_same_stages_gates_and_counts(finished, on_workers) -> None:
    one, other = summary(finished), summary(on_workers)
    assert list(one["stages"]) == list(other["stages"])
    for name, stage in one["stages"].items():
        assert stage.get("fingerprint") == other["stages"][name].get("fingerprint"), name
        assert stage.keys() == other["stages"][name].keys(), name
        for gate in ("gate", "safety"):
            if gate in stage:
                assert other["stages"][name][gate]["n"] == stage[gate]["n"], name
    assert (on_workers / "reports" / "report.html").stat().st_size > 10_000
    # the memory of the workers, which have the models, is added to that of the run's own process
    folder = next(on_workers.glob("stages/sft/*"))
    of_workers = manifest.peak_of_workers(folder)
    assert of_workers > 2 * 100e6
    assert json.loads((folder / "manifest.json").read_text())["peak_memory_bytes"] > of_workers + 100e6
    # the first stage differs by the order of sums alone
    losses = [json.loads(next(run.glob("stages/sft/*/manifest.json")).read_text()) for run in (finished, on_workers)]
    a, b = (content["result"]["validation_loss"] for content in losses)
    assert a == pytest.approx(b, rel=1e-3)
    assert json.loads(next(on_workers.glob("stages/policy/*/run_info.json")).read_text())["workers"] == "2"


def test_killed_run_leaves_no_worker_and_resumes_with_the_same_bits(on_workers, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(on_workers, run)
    shutil.rmtree(next(run.glob("stages/policy/*")))
    shutil.rmtree(next(run.glob("stages/evaluate/*")))
    environment = {"TOWPATH_CHECKPOINT_SECONDS": "0"}
    process = start("run", run, *SETTINGS, *WORKERS, out=tmp_path / "out", err=tmp_path / "err", **environment)
    deadline = time.monotonic() + 120
    while not list(run.glob("stages/policy/*/checkpoints/step_*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = children_of(process.pid)
    assert len(workers) >= 3  # the fork server and two workers
    process.kill()
    process.join()
    time.sleep(1.0)
    assert not [pid for pid in workers if is_running(pid)]
    done = towpath("run", run, *SETTINGS, *WORKERS, **environment)
    assert done.returncode == 0, done.stderr
    assert weights(run) == weights(on_workers)


def test_run_that_is_stopped_writes_a_checkpoint_and_ends_its_workers(on_workers, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(on_workers, run)
    shutil.rmtree(next(run.glob("stages/policy/*")))
    shutil.rmtree(next(run.glob("stages/evaluate/*")))
    process = start("run", run, *SETTINGS, *WORKERS, out=tmp_path / "out", err=tmp_path / "err")
    deadline = time.monotonic() + 120
    while not list(run.glob("stages/policy/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = children_of(process.pid)
    process.terminate()
    process.join(60)
    assert process.exitcode == 75, (tmp_path / "err").read_text()
    time.sleep(1.0)
    assert not [pid for pid in workers if is_running(pid)]
    assert towpath("run", run, *SETTINGS, *WORKERS).returncode == 0
    assert weights(run) == weights(on_workers)


def children_of(pid: int | None) -> list[int]:
    """All processes below one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    below = [child for child, parent in parents.items() if parent == pid]
    return below + [other for child in below for other in children_of(child)]


def test_a_signal_of_the_terminal_reaches_no_worker(tmp_path) -> None:
    """Ctrl-C goes to all processes of a terminal: workers ignore it, so that a checkpoint can be written."""
    import os

    from towpath.runtime.workers import Workers

    workers = Workers(["cpu"], 1, 30.0)
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(workers.states[0].pid, number)
        assert workers.ask("memory", [{}])[0] > 0
    finally:
        workers.close()
