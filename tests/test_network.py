"""Two hosts as network namespaces: 100 ms of delay, a partition in mid-training, the wrong interface."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command import SETTINGS, towpath
from safetensors.torch import load_file

pytestmark = pytest.mark.proof
ROOT = Path(__file__).parent.parent
HOSTS = ("towpath-a", "towpath-b")
ADDRESSES = ("10.213.0.1", "10.213.0.2")
STAGE = [*SETTINGS, "--set", "sft.epochs=0.5", "--set", "cluster.threads=1"]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[None]:
    """Two namespaces with a cable between them on which a packet takes 100 ms."""
    try:
        for host in HOSTS:
            ip("netns", "add", host)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("network namespaces are not permitted here")
    command = [sys.executable, str(ROOT / "tests" / "delayed_link.py"), *HOSTS, "0.1"]
    cable = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert cable.stdout and cable.stdout.readline() == b"ready\n"
        for host, address in zip(HOSTS, ADDRESSES, strict=True):
            ip("-n", host, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", host, "link", "set", "cable", "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield
    finally:
        cable.kill()
        cable.communicate()
        for host in HOSTS:
            ip("netns", "delete", host)


def start_task(rank: int, run: Path, *settings: str, **more: str) -> "subprocess.Popen[str]":
    """`towpath stage sft` as one of two tasks, each on a host of its own."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": ADDRESSES[0],
        "TOWPATH_CHECKPOINT_SECONDS": "0",
        **more,
    }
    command = [sys.executable, "-m", "towpath", "stage", "sft", str(run), *STAGE, *settings]
    return subprocess.Popen(
        ["ip", "netns", "exec", HOSTS[rank], *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def await_step(run: Path, step: int, process: "subprocess.Popen[str]") -> None:
    while process.poll() is None:
        files = list(run.glob("stages/sft/*/metrics.jsonl"))
        if files and len(files[0].read_text().splitlines()) > step:
            return
        time.sleep(0.2)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(next(run.glob("stages/sft/*/weights/model.safetensors")))


def test_a_partition_is_survived_with_the_same_bits(hosts: None, tmp_path: Path) -> None:
    for name in ("undisturbed", "run"):
        assert towpath("new", tmp_path / name, "--recipe", "tiny").returncode == 0
    one_host = ["--set", "cluster.workers=2"]
    assert towpath("stage", "sft", tmp_path / "undisturbed", *STAGE, *one_host, OMP_NUM_THREADS="1").returncode == 0
    where = {"TOWPATH_CLUSTER_TOKEN": "a token of this test", "TOWPATH_CLUSTER_ADDRESS": f"{ADDRESSES[0]}:29600"}
    tasks = [start_task(rank, tmp_path / "run", "--set", "cluster.timeout=5", **where) for rank in range(2)]
    await_step(tmp_path / "run", 3, tasks[0])
    ip("-n", HOSTS[0], "link", "set", "cable", "down")
    time.sleep(12)
    ip("-n", HOSTS[0], "link", "set", "cable", "up")
    printed = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], printed
    assert "worker 2 of 2" in printed[0][1] and "restart 1 of 3" in printed[0][1]
    expected = weights(tmp_path / "undisturbed")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in weights(tmp_path / "run").items())


def test_the_wrong_interface_is_named(hosts: None, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert towpath("new", run, "--recipe", "tiny").returncode == 0
    settings = ["--set", "cluster.interface=lo", "--set", "cluster.wait=12"]
    tasks = [start_task(rank, run, *settings) for rank in range(2)]
    printed = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [1, 1]
    assert "1 of 2 tasks connected to 127.0.0.1:" in printed[0][1] and "missing: task 1" in printed[0][1]
    assert "no connection to the run's controller within 12 s" in printed[1][1]
    assert "set cluster.interface" in printed[1][1]
