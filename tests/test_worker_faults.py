"""Workers that are killed, stop, hang or talk nonsense: the run resumes and gives the bits of an undisturbed one."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import towpath as tp
from towpath.data.batch import Batch, Row
from towpath.data.chat import Chat
from towpath.errors import ResourceError, WorkerLost
from towpath.models import base
from towpath.recipe import Cluster, Decoding, EngineConfig, Lora, Model
from towpath.rollout.engine import SampleRequest
from towpath.rollout.generate import load_engine
from towpath.run import training
from towpath.runtime.contract import RoleSpec
from towpath.runtime.launch import launch
from towpath.runtime.state_files import StateReader
from towpath.runtime.worker import Worker
from towpath.runtime.workers import WorkerFailed, Workers, _shared, close_shared_workers
from towpath.store import manifest

PROMPTS = [f"Tell me something about the number {i}." for i in range(12)]
POINTS = [
    "begin-launch",
    "end-open",
    "begin-cache_frozen_prefix",
    "end-score",
    "begin-publish_here",
    "end-generate_here",
    "begin-forward_backward",
    "end-forward_backward",
    "begin-step",
    "end-step",
    "begin-fit",
    "begin-write_state",
    "end-write_state",
    "begin-snapshot",
    "end-restore",
    "begin-export",
]
"""Where a worker may fail: before and after what it computes."""


def length(_prompts, answers):
    return [len(answer) / 10 for answer in answers]


def train(folder: Path, restarts: int = 3) -> training.Trained:
    return tp.train(
        "ppo",
        model="tiny",
        dtype="float32",
        prompts=PROMPTS,
        reward=length,
        steps=3,
        rollout=8,
        batch=4,
        max_new_tokens=6,
        validate_every=1,
        learning_rate=1e-4,
        folder=folder,
        cluster={"workers": 2, "threads": 1, "timeout": 3.0, "restarts": restarts},
    )


def results(trained: training.Trained) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Metrics without times, memory and bytes moved, and weights."""
    timed = "seconds", "memory", "tokens", "collective", "sync"
    rows = [{key: x for key, x in row.items() if not key.startswith(timed)} for row in trained.metrics]
    return rows, load_file(trained.job.folder / "adapter" / "adapter_model.safetensors")


def require_same(one: training.Trained, other: training.Trained) -> None:
    rows, weights = results(one)
    other_rows, other_weights = results(other)
    assert rows == other_rows
    assert all(torch.equal(tensor, other_weights[key]) for key, tensor in weights.items())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> training.Trained:
    trained = train(tmp_path_factory.mktemp("undisturbed"))
    close_shared_workers()
    return trained


@pytest.fixture(autouse=True)
def checkpoint_each_step(monkeypatch):
    monkeypatch.setenv("TOWPATH_CHECKPOINT_SECONDS", "0")
    yield
    close_shared_workers()


def disturbed(monkeypatch, tmp_path: Path, point: str, number: int, action: str, rank: int = 1) -> training.Trained:
    fault_file = tmp_path / "fault_file"
    monkeypatch.setenv("TOWPATH_WORKER_FAULT", f"{rank}:{point}:{number}:{action}:{fault_file}")
    trained = train(tmp_path / "run")
    assert fault_file.exists(), f"{point} was not passed"
    return trained


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "number", "action"),
    [
        ("begin-step", 3, "kill"),
        ("end-generate_here", 2, "stop"),
        pytest.param("end-score", 2, "garbage", marks=pytest.mark.proof),
        pytest.param("begin-fit", 1, "half", marks=pytest.mark.proof),
    ],
)
def test_a_lost_worker_costs_a_restart(undisturbed, monkeypatch, tmp_path, capsys, point, number, action) -> None:
    trained = disturbed(monkeypatch, tmp_path, point, number, action)
    require_same(trained, undisturbed)
    printed = capsys.readouterr().err
    assert "worker 2 of 2" in printed and "restart 1 of 3" in printed
    (restart,) = manifest.read_restarts(trained.job.folder)
    assert restart["finding"]["code"] == "worker-restarted" and "worker 2 of 2" in restart["finding"]["evidence"]
    assert restart["finding"]["evidence"] in [row["evidence"] for row in manifest.read(trained.job.folder)["findings"]]


@pytest.mark.slow
def test_what_workers_do_is_in_a_file(undisturbed) -> None:
    folder = undisturbed.job.folder
    first, second = manifest.read_workers(folder)["workers"]
    assert (first["rank"], second["rank"]) == (0, 1) and first["pid"] != second["pid"]
    for row in (first, second):
        assert all(row["seconds"][phase] > 0 for phase in ("sample", "score", "train", "sync", "other", "waiting"))
        assert row["tokens_per_second"]["train"] > 0 and row["tokens_per_second"]["sample"] > 0
        assert row["memory_bytes"] > 0
    steps = [row for row in undisturbed.metrics if row["phase"] == "train"]
    # each step gives the engine the whole model, and adds up all gradients twice, for two minibatches
    (trained,) = {row["sync_bytes"] for row in steps}
    assert first["sync_bytes"] == second["sync_bytes"] >= len(steps) * trained > 0
    assert all(row["seconds_sync"] > 0 and row["collective_bytes"] > 0 for row in steps)
    assert first["collective_bytes"] >= sum(row["collective_bytes"] for row in steps)
    manifest.verify(folder)  # the file is no result


@pytest.mark.proof
@pytest.mark.parametrize("action", ["kill", "stop", "garbage", "half"])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("point", POINTS)
def test_every_fault_at_every_point(undisturbed, monkeypatch, tmp_path, point, rank, action) -> None:
    if rank and point == "begin-export":
        pytest.skip("the first worker alone does that")
    require_same(disturbed(monkeypatch, tmp_path, point, 1, action, rank), undisturbed)


@pytest.fixture(scope="module")
def seconds(undisturbed) -> float:
    """How long the training takes."""
    rows = undisturbed.metrics
    return sum(row.get(f"seconds_{part}", 0.0) for row in rows for part in ("generate", "score", "optimise")) + 2.0


@pytest.mark.proof
@pytest.mark.parametrize("moment", range(50))
def test_random_moments(undisturbed, seconds, tmp_path, moment) -> None:
    """A worker that is killed or stopped at any moment."""
    draw = random.Random(moment)

    def strike() -> None:
        for workers in list(_shared.values()):
            state = draw.choice(workers.states)
            with suppress(ProcessLookupError):
                os.kill(state.pid, draw.choice([signal.SIGKILL, signal.SIGSTOP]))

    timer = threading.Timer(draw.uniform(0.1, seconds), strike)
    timer.start()
    trained = train(tmp_path / "run")
    timer.cancel()
    require_same(trained, undisturbed)


@pytest.mark.slow
def test_full_disk_in_a_checkpoint_is_named_and_resumed(undisturbed, tmp_path) -> None:
    """A real file system without room; after more is given the run resumes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    try:
        with pytest.raises(ResourceError, match="no space left on the disk"):
            train(disk / "run")
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        require_same(train(disk / "run"), undisturbed)
    finally:
        close_shared_workers()
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
def test_a_hang_is_named_within_twice_its_limit() -> None:
    workers = Workers(["cpu", "cpu"], 1, 2.0)
    os.kill(workers.states[1].pid, signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(WorkerLost, match=r"worker 2 of 2 .*no heartbeat for 2 s, during memory"):
        workers.ask("memory", [{}, {}])
    assert time.monotonic() - begin < 4.0
    require_gone([state.pid for state in workers.states])
    with pytest.raises(WorkerLost):
        workers.ask("memory", [{}, {}])


@pytest.mark.slow
def test_no_progress_is_named_with_the_last_stack(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TOWPATH_WORKER_FAULT", f"0:begin-memory:1:hang:{tmp_path / 'fault_file'}")
    workers = Workers(["cpu"], 1, 0.7)
    with pytest.raises(WorkerLost, match=r"(?s)worker 1 of 1 .*made no progress for 7 s.*time.sleep\(3600\)"):
        workers.ask("memory", [{}])


@pytest.mark.slow
def test_an_exception_has_rank_host_and_traceback_once(tiny_folder) -> None:
    runtime = launch(Model(source="tiny"), 0, cluster=Cluster(workers=2, threads=1))
    runtime.open({"model": RoleSpec(tiny_folder)})
    with pytest.raises(WorkerFailed) as raised:
        runtime.run_everywhere("json:loads", s="{")  # type: ignore[attr-defined]
    text = "".join(traceback.format_exception(raised.value)).partition("WorkerFailed: ")[2]
    assert re.match(rf"worker [12] of 2 \({socket.gethostname()}, cpu\): TypeError: loads", text)
    assert text.count("Traceback") == 1
    assert runtime.memory_in_use() > 0  # the group can still be used


@pytest.mark.slow
def test_an_interrupted_request_leaves_no_answer_behind(tiny_folder, tmp_path) -> None:
    """Sampling is given up, and what is asked next gets its own answer, not that of the request before."""
    chat = Chat(base.load_tokenizer(tiny_folder))
    runtime = launch(Model(source="tiny"), chat.pad, cluster=Cluster(workers=2, threads=1))
    runtime.open({"model": RoleSpec(tiny_folder, Lora(), learning_rate=1e-4)})
    engine = load_engine(runtime, EngineConfig(), chat, tmp_path, 2100)
    runtime.publish("model", engine)
    draw = np.random.default_rng(0)
    requests = [SampleRequest([5, 6, number], Decoding(), draw.random(2000)) for number in range(64)]
    short = [replace(request, uniforms=request.uniforms[:5]) for request in requests]
    expected = engine.generate(short)

    def interrupt(_units: int, _ended: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(requests, tick=interrupt)
    begin = time.monotonic()
    (tmp_path / "state").mkdir()
    runtime.write_state(tmp_path / "state", runtime.snapshot())
    assert time.monotonic() - begin < 5.0  # all 128,000 tokens take far longer
    assert any(key.startswith("best:") for key in StateReader(tmp_path / "state").keys())  # noqa: SIM118
    assert engine.generate(short) == expected


def test_what_a_worker_keeps_goes_with_its_runtime(tiny_folder) -> None:
    """Features and snapshots to which the controller still had handles when it let go of the runtime."""
    worker = Worker(None, 0, 1)
    worker.device = torch.device("cpu")
    settings = {"pad": 0, "packing": True, "training": True, "dtype": "float32", "sharded": False, "path": []}
    worker.do_launch(1, Model(source="tiny"), settings | {"device_share": 1})
    roles = {"policy": RoleSpec(tiny_folder, Lora(), learning_rate=1e-4)}
    worker.do_call(1, "open", {"roles": roles}, [])
    batch = Batch([Row(np.arange(3, 9), 2)])
    out = worker.do_call(1, "score", {"role": "policy", "batch": batch, "wants": ("features",)}, [])
    assert isinstance(out.features, int) and isinstance(worker.do_call(1, "snapshot", {}, []), int)
    stored = weakref.ref(next(iter(worker.runtimes[1]._stored.values())))
    assert stored() is not None
    worker.do_drop([1])
    assert not worker.handles and stored() is None


@pytest.mark.slow
def test_restarts_end(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TOWPATH_WORKER_FAULT", f"1:begin-step:1:kill:{tmp_path / 'missing' / 'fault_file'}")
    with pytest.raises(WorkerLost, match="SIGKILL") as raised:
        train(tmp_path / "run", restarts=1)
    assert "cluster.restarts" in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_its_controller(number: int) -> None:
    program = textwrap.dedent("""
        import time
        from towpath.runtime.workers import Workers
        workers = Workers(["cpu", "cpu"], 1, 30.0)
        print(workers.launcher.server.process.pid, *[state.pid for state in workers.states], flush=True)
        time.sleep(600)
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 3
    os.kill(pids[2], signal.SIGSTOP)
    process.send_signal(number)
    process.wait(10)
    process.stdout.close()
    require_gone(pids)


def require_gone(pids: list[int]) -> None:
    """Fail if one of the processes still runs after a few seconds."""
    deadline = time.monotonic() + 5.0
    while (left := [pid for pid in pids if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
