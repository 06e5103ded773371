"""Workers on several hosts: who may connect, tasks of torchrun, nodes of a Ray cluster, lost and added nodes."""

import functools
import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from command import SETTINGS, towpath
from pydantic import ValidationError
from ray_nodes import RayNodes
from safetensors.torch import load_file

import towpath as tp
from towpath.errors import RecipeError, ResourceError
from towpath.recipe import Cluster, Model
from towpath.recipe.reader import check
from towpath.run import training
from towpath.runtime import handshake, launch, remote, versions
from towpath.runtime.group import Group
from towpath.runtime.handshake import HandshakeFailed, call, send_json
from towpath.runtime.interfaces import address_of, address_towards, interface_with
from towpath.runtime.launchers import close_workers, open_workers
from towpath.runtime.present_task import launcher_of, present_task
from towpath.runtime.remote import Agent, Listener, Remote
from towpath.runtime.workers import Workers, shared_workers
from towpath.stages.job import Job

TOKEN = "a token of sixteen or more"
ROOT = Path(__file__).parent.parent
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
PROMPTS = [f"Tell me something about the number {i}." for i in range(12)]


@pytest.fixture
def listener():
    listener = Listener("127.0.0.1", 0, TOKEN)
    yield listener
    listener.close()


# Who may connect


def test_both_ends_know_the_token(listener):
    done: list[socket.socket] = []
    caller = threading.Thread(target=lambda: done.append(call(listener.address, TOKEN, {"agent": {}, "slot": 0})))
    caller.start()
    arrived = listener.take(lambda hello: "agent" in hello, time.monotonic() + 10)
    assert arrived and arrived[0]["peer"] == "127.0.0.1"
    send_json(arrived[1], {})
    caller.join(10)
    done[0].sendall(b"x")
    assert arrived[1].recv(1) == b"x"
    for end in (done[0], arrived[1]):
        end.close()


def test_another_token_is_refused_by_both(listener):
    with pytest.raises(HandshakeFailed, match="does not know the token"):
        call(listener.address, "another token of its own", {"agent": {}, "slot": 0})
    # a caller that accepts any controller, but has no token, gets no further
    with socket.create_connection(("127.0.0.1", listener.port)) as stranger:
        stranger.sendall(handshake.MAGIC + bytes(32))
        received = b""
        while len(received) < 64:
            received += stranger.recv(64 - len(received))
        stranger.sendall(received[32:])  # the controller's own proof, sent back
        assert stranger.recv(1) == b""
    assert listener.take(lambda hello: True, time.monotonic() + 0.2) is None
    assert any("does not know the token" in reason for reason in listener.refused)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"", b"TWPH" + bytes(500)])
def test_a_stranger_is_sent_away(listener, sent, monkeypatch):
    monkeypatch.setattr(handshake, "HANDSHAKE_SECONDS", 0.5)
    monkeypatch.setattr(handshake.answer, "__defaults__", (0.5,))
    with socket.create_connection(("127.0.0.1", listener.port)) as stranger:
        stranger.settimeout(10)
        stranger.sendall(sent)
        try:
            while stranger.recv(100):
                pass
        except ConnectionResetError:
            pass
    assert listener.take(lambda hello: True, time.monotonic() + 0.1) is None


def test_a_long_hello_is_refused(listener):
    hello = {"agent": "x" * handshake.LONGEST_HELLO, "slot": 0}
    with pytest.raises(OSError):
        call(listener.address, TOKEN, hello, 5.0)
    assert listener.take(lambda hello: True, time.monotonic() + 0.2) is None


def test_a_host_that_does_not_answer_is_lost(monkeypatch):
    monkeypatch.setattr(remote, "LIMIT", 0.2)
    one, other = socket.socketpair()
    with one, other:
        agent = Agent({"agent": {"host": "node-2"}, "slot": 0, "peer": "10.0.0.2"}, one)
        agent.welcome()
        assert agent.alive
        assert not agent.answers() and not agent.alive


# Recipe, tasks, interfaces


def test_nodes_of_a_recipe():
    assert Cluster().node_range == (1, 1)
    assert Cluster(nodes=3).node_range == (3, 3)
    assert Cluster(nodes="2-4").node_range == (2, 4)
    for nodes in ("4-2", "two", 0, "2-"):
        with pytest.raises(ValidationError, match="a number of hosts"):
            Cluster(nodes=nodes)
    with pytest.raises(RecipeError, match="launcher = 'processes': processes start on this host alone"):
        check(Cluster, {"nodes": 2, "launcher": "processes"}, "recipe.toml")


@pytest.mark.parametrize(
    ("environment", "task"),
    [
        ({}, None),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node-1"}, (3, 4, 1, "node-1")),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "0"}, (2, 8, 0, "")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # a batch script, in which srun starts tasks
        ({"RANK": "x", "WORLD_SIZE": "4"}, None),
    ],
)
def test_tasks_of_launchers(environment, task):
    present = present_task(environment)
    assert (present and (present.rank, present.world, present.local_rank, present.first_host)) == task


def test_auto_launcher(monkeypatch, tmp_path):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert launcher_of(Cluster()) == "processes"
    assert launcher_of(Cluster(nodes="1-2")) == "ray"
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launcher_of(Cluster()) == "processes"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launcher_of(Cluster()) == "env"
    with pytest.raises(ResourceError, match="outside of `towpath run`"):
        train(tmp_path, {})


def test_interfaces():
    assert address_of("lo") == address_of("127.0.0.1") == address_towards("127.0.0.1") == "127.0.0.1"
    assert interface_with("127.0.0.1") == "lo"
    with pytest.raises(ResourceError, match=r"'eth9': no such interface on .*\n  rule: one of .*lo \(127.0.0.1\)"):
        address_of("eth9")


def test_hosts_with_other_versions_are_named():
    own = versions.facts()
    other = own | {"host": "node-2", "torch": "2.11.0"}
    missing = {"host": "node-3", "towpath": "missing", "error": "(No module named 'towpath')"}
    with pytest.raises(ResourceError) as raised:
        versions.require_same([own, other, missing])
    assert f"node-2: torch 2.11.0, here {own['torch']}" in str(raised.value)
    assert "node-3: towpath is missing (No module named 'towpath')" in str(raised.value)


# Agents


@pytest.fixture
def agents(listener):
    """Two agents of this host that have connected."""
    processes = []
    for slot in range(2):
        environment = os.environ | {
            "TOWPATH_CLUSTER_ADDRESS": listener.address,
            "TOWPATH_CLUSTER_TOKEN": TOKEN,
            "TOWPATH_CLUSTER_SLOT": str(slot),
            "TOWPATH_CLUSTER_WAIT": "30",
            "PYTHONPATH": str(ROOT),
        }
        processes.append(subprocess.Popen([sys.executable, "-m", "towpath.runtime.agent"], env=environment))
    by_slot = {}
    while len(by_slot) < 2:
        arrived = listener.take(lambda hello: "agent" in hello, time.monotonic() + 60)
        assert arrived
        agent = Agent(*arrived)
        by_slot[agent.slot] = agent
    for agent in by_slot.values():
        agent.welcome()
    for agent in by_slot.values():
        agent.ready(time.monotonic() + 120)
    yield [by_slot[0], by_slot[1]], processes
    for agent in by_slot.values():
        agent.end()
    for process in processes:
        process.kill()
        process.wait()


def trained_by(workers: Workers, folder: Path, monkeypatch) -> dict[str, torch.Tensor]:
    """The weights of a training by these workers."""

    def launcher(model, pad, packing=True, training=True, cluster=None):
        return Group(workers, model, pad, torch.float32, packing, training)

    monkeypatch.setattr(training, "Job", functools.partial(Job, launcher=launcher))
    return weights(train(folder, {}, steps=2))


@pytest.mark.slow
def test_workers_of_agents(listener, agents, monkeypatch, tmp_path):
    """Versions are shown before; workers connect, are named when killed, and end with the agent's run in peace."""
    (first, second), processes = agents
    versions.require_same([first.facts, second.facts])
    workers = Workers(["cpu"] * 3, 1, 20.0, Remote(listener, [first, second, second]))
    assert [reply > 0 for reply in workers.ask("memory", [{}, {}, {}])] == [True] * 3
    os.kill(workers.states[1].pid, 9)
    with pytest.raises(ResourceError, match=r"worker 2 of 3 .*was ended by SIGKILL"):
        workers.ask("memory", [{}, {}, {}])
    workers = Workers(["cpu"] * 2, 1, 20.0, Remote(listener, [first, second]))  # at once: nothing is imported again
    connected = trained_by(workers, tmp_path / "remote", monkeypatch)
    forked = trained_by(shared_workers(["cpu"] * 2, 1, 20.0), tmp_path / "forked", monkeypatch)
    close_workers()
    for key, tensor in forked.items():
        assert torch.equal(tensor, connected[key]), key
    os.kill(processes[1].pid, 9)
    time.sleep(0.5)
    assert first.answers() and not second.answers()
    with pytest.raises(ResourceError, match=r"worker 2 of 2 .*was lost with its host"):
        workers.ask("memory", [{}, {}])
    first.end()
    assert processes[0].wait(10) == 0


@pytest.mark.slow
def test_an_agent_ends_with_a_lost_controller(listener, agents):
    (first, second), processes = agents
    listener.close()
    first.drop()
    second.drop()
    assert [process.wait(30) for process in processes] == [1, 1]


# torchrun


def stage(run: Path, *settings: str) -> list[str]:
    """The arguments of `towpath` for one stage."""
    return ["stage", "sft", str(run), *SETTINGS, "--set", "cluster.threads=1", *settings]


@pytest.mark.proof
def test_torchrun_on_two_nodes_gives_the_bits_of_four_workers(tmp_path):
    """Two tasks on each of two nodes, which are both this host."""
    for name in ("group", "tasks"):
        assert towpath("new", tmp_path / name, "--recipe", "tiny").returncode == 0
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"]
    torchrun += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    nodes = [
        subprocess.Popen(
            [*torchrun, "--node-rank", str(node), "-m", "towpath", *stage(tmp_path / "tasks")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    printed = [node.communicate(timeout=300) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], printed
    assert printed[1] == ("", "")  # the other tasks print nothing of their own
    assert not (tmp_path / "tasks" / ".cluster.json").exists()
    assert towpath(*stage(tmp_path / "group", "--set", "cluster.workers=4"), OMP_NUM_THREADS="1").returncode == 0
    one, other = (
        load_file(next((tmp_path / name).glob("stages/sft/*/weights/model.safetensors"))) for name in ("group", "tasks")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def start_task(rank: int, run: Path) -> "subprocess.Popen[bytes]":
    """`towpath stage sft` as one of two tasks of this host."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOWPATH_CHECKPOINT_SECONDS": "0"}
    environment |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    return subprocess.Popen(
        [sys.executable, "-m", "towpath", *stage(run)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.proof
def test_tasks_end_with_a_killed_controller_and_the_next_one_resumes(tmp_path):
    for name in ("undisturbed", "run"):
        assert towpath("new", tmp_path / name, "--recipe", "tiny").returncode == 0
    two = ["--set", "cluster.workers=2"]
    assert towpath(*stage(tmp_path / "undisturbed", *two), OMP_NUM_THREADS="1").returncode == 0
    tasks = [start_task(rank, tmp_path / "run") for rank in range(2)]
    while not list((tmp_path / "run").glob("stages/sft/*/checkpoints/step_*")):
        assert [task.poll() for task in tasks] == [None, None]
        time.sleep(0.05)
    tasks[0].kill()
    assert [task.wait(30) for task in tasks] == [-9, 1]
    assert (tmp_path / "run" / ".cluster.json").exists()  # of a controller that is lost: the next one replaces it
    late = start_task(1, tmp_path / "run")
    time.sleep(8)  # it meets the old file first
    tasks = [start_task(0, tmp_path / "run"), late]
    assert [task.wait(120) for task in tasks] == [0, 0]
    one, other = (
        load_file(next((tmp_path / name).glob("stages/sft/*/weights/model.safetensors")))
        for name in ("undisturbed", "run")
    )
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


# Ray


def length(_prompts, answers):
    return [len(answer) / 10 for answer in answers]


class At:
    """Calls a function once, after a step."""

    def __init__(self, step: int, function) -> None:
        self.step = step
        self.function = function

    def on_step(self, step: int, metrics) -> None:
        if step == self.step and self.function:
            function, self.function = self.function, None
            function()


def train(folder: Path, cluster: dict, callbacks=(), close: bool = True, **settings) -> training.Trained:
    try:
        return tp.train(
            "ppo",
            model="tiny",
            prompts=PROMPTS,
            reward=length,
            rollout=8,
            batch=4,
            max_new_tokens=6,
            validate_every=1,
            learning_rate=1e-4,
            folder=folder,
            callbacks=callbacks,
            cluster={"threads": 1, "timeout": 10.0} | cluster,
            **{"steps": 4, "dtype": "float32"} | settings,
        )
    finally:
        if cluster and close:
            close_workers()


def weights(trained: training.Trained) -> dict[str, torch.Tensor]:
    return load_file(trained.job.folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture
def checkpoint_each_step(monkeypatch):
    monkeypatch.setenv("TOWPATH_CHECKPOINT_SECONDS", "0")


@needs_ray
@pytest.mark.proof
def test_a_node_that_is_replaced_changes_no_bit(checkpoint_each_step, tmp_path, capsys):
    """Three nodes, one killed in mid-training, one added."""
    undisturbed = train(tmp_path / "group", {"workers": 3})
    with RayNodes(3) as nodes:

        def replace_node():
            nodes.change("remove")
            nodes.change("add")

        trained = train(tmp_path / "ray", {"nodes": 3, "address": nodes.address}, callbacks=[At(1, replace_node)])
    printed = capsys.readouterr().err
    assert "was lost with its host" in printed and "restart 1 of 3" in printed
    for key, tensor in weights(undisturbed).items():
        assert torch.equal(tensor, weights(trained)[key]), key


@needs_ray
@pytest.mark.proof
def test_a_run_continues_on_fewer_nodes(checkpoint_each_step, tmp_path, capsys, monkeypatch):
    """In float64, so that the order of sums makes no visible difference."""
    monkeypatch.setattr(launch, "dtype_named", lambda name, device: torch.float64)
    undisturbed = train(tmp_path / "group", {"workers": 3})
    with RayNodes(3) as nodes:
        cluster = {"nodes": "2-3", "address": nodes.address}
        remove = At(1, lambda: nodes.change("remove"))
        trained = train(tmp_path / "ray", cluster, callbacks=[remove], close=False)
        settings = Cluster(threads=1, **cluster)
        assert (on_two := open_workers(Model(source="tiny"), settings)) and on_two.count == 2
        nodes.change("add")
        time.sleep(3)  # until Ray shows it
        assert (on_three := open_workers(Model(source="tiny"), settings)) and on_three.count == 3
        assert not on_two.alive and len(on_three.ask("memory", [{}] * 3)) == 3
        close_workers()
    assert "continues on 2 nodes (3 before)" in capsys.readouterr().err
    for key, tensor in weights(undisturbed).items():
        difference = float((weights(trained)[key] - tensor).abs().max())
        assert difference <= 1e-6 * float(tensor.abs().max()), key


@needs_ray
@pytest.mark.proof
def test_nodes_that_are_short_are_named(tmp_path):
    with RayNodes(2) as nodes, pytest.raises(ResourceError) as raised:
        train(tmp_path / "run", {"nodes": 3, "address": nodes.address, "wait": 3.0})
    text = str(raised.value)
    assert "1 CPU on each of 3 nodes were not placed within 3 s; the cluster has 3 nodes" in text
    assert text.count("1 of 1 CPU free") == 2 and text.count("0 of 0 CPU free") == 1


@needs_ray
@pytest.mark.slow
def test_no_ray_cluster_is_an_error(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ResourceError, match=rf"cluster.address = '127.0.0.1:{port}': no Ray cluster"):
        train(tmp_path, {"nodes": 2, "address": f"127.0.0.1:{port}"})
