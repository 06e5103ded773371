"""Tasks of torchrun and srun as workers (`launcher = "env"`): the first is the controller, the others serve it.

The first task writes its address and a token into the run folder, for its user alone; or both come from the
environment, TOWPATH_CLUSTER_ADDRESS and TOWPATH_CLUSTER_TOKEN.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from towpath.errors import RecipeError, ResourceError
from towpath.recipe import Cluster
from towpath.runtime import agent
from towpath.runtime.handshake import MIN_TOKEN, new_token
from towpath.runtime.interfaces import address_of, address_towards, interfaces
from towpath.store.publish import replace_file

RENDEZVOUS = ".cluster.json"
"""In the run folder: address and token of a run's controller."""


@dataclass(frozen=True)
class Task:
    """This process among those that torchrun or srun has started."""

    rank: int
    world: int
    local_rank: int
    first_host: str
    """Where the first task runs, if that is known."""


def present_task(environment: Mapping[str, str] = os.environ) -> Task | None:
    """The task that this process is, or None. A batch script of Slurm is no task: `srun` in it starts tasks."""
    first_host = environment.get("MASTER_ADDR", "")
    for rank, world, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        with suppress(ValueError):
            if rank in environment and world in environment:
                count = int(environment[world])
                return Task(int(environment[rank]), count, int(environment.get(local, "0")), first_host)
    return None


def launcher_of(cluster: Cluster) -> str:
    """What starts workers: `auto` resolved."""
    if cluster.launcher != "auto":
        return cluster.launcher
    task = present_task()
    if task is not None and task.world > 1:
        return "env"
    return "processes" if cluster.node_range == (1, 1) else "ray"


def require_task(cluster: Cluster) -> Task:
    """The task that this process is, or an error."""
    task = present_task()
    if task is None:
        raise RecipeError(
            f"cluster.launcher = {cluster.launcher!r} without tasks",
            "torchrun or srun starts the tasks: RANK and WORLD_SIZE, or SLURM_PROCID and SLURM_STEP_NUM_TASKS, are set",
            "start it as `srun towpath run RUN` or `torchrun … --no-python towpath run RUN`; see docs/cluster.md",
        )
    return task


def serve_if_worker(cluster: Cluster, run: Path) -> None:
    """In another task than the first: become its worker, and never return."""
    if launcher_of(cluster) != "env":
        return
    task = require_task(cluster)
    if task.rank:
        _become_agent(cluster, run, task)


def _become_agent(cluster: Cluster, run: Path, task: Task) -> NoReturn:
    environment = os.environ | _agent_environment(cluster, task.rank, task.local_rank)
    if agent.TOKEN not in os.environ:
        environment[agent.FILE] = str(run / RENDEZVOUS)
    os.execve(sys.executable, [sys.executable, "-m", "towpath.runtime.agent"], environment)


def _agent_environment(cluster: Cluster, slot: int, local_rank: int) -> dict[str, str]:
    return {
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        agent.SLOT: str(slot),
        agent.LOCAL_RANK: str(local_rank),
        agent.WAIT: str(cluster.wait),
    }


class Tasks:
    """The agents of all tasks, as the first one sees them."""

    def __init__(self, cluster: Cluster, run: Path) -> None:
        from towpath.runtime.remote import Agent, Listener

        self.cluster = cluster
        self.task = require_task(cluster)
        if self.task.rank:
            raise ResourceError(
                f"task {self.task.rank} of {self.task.world} would train a model of its own",
                "under torchrun or srun the first task trains, and `towpath run` in the others serves it",
                "use `towpath run`, or cluster = {'launcher': 'processes'} in a program that is to train in each task",
            )
        host, port, token = self._own_address()
        self.listener = Listener(host, port, token)
        self.agents: dict[int, Agent] = {}
        self.file: Path | None = None
        if agent.TOKEN not in os.environ:
            self.file = run / RENDEZVOUS
            _publish(self.file, {"address": self.listener.address, "token": token})
        environment = _agent_environment(cluster, 0, self.task.local_rank) | {
            agent.ADDRESS: self.listener.address,
            agent.TOKEN: token,
            agent.CHILD: "1",
        }
        self.child = subprocess.Popen(
            [sys.executable, "-m", "towpath.runtime.agent"], env=os.environ | environment, stdin=subprocess.DEVNULL
        )

    def _own_address(self) -> tuple[str, int, str]:
        token = os.environ.get(agent.TOKEN, "")
        if token and (len(token) < MIN_TOKEN or agent.ADDRESS not in os.environ):
            raise RecipeError(
                f"{agent.TOKEN} has {len(token)} characters, {agent.ADDRESS} = {os.environ.get(agent.ADDRESS, '')!r}",
                f"a token has at least {MIN_TOKEN} characters, and comes with the controller's HOST:PORT",
                "set both in all tasks, or neither where all hosts share the run folder",
            )
        host, _, port = os.environ.get(agent.ADDRESS, "").rpartition(":") if token else ("", "", "0")
        if self.cluster.interface:
            return address_of(self.cluster.interface), int(port), token or new_token()
        first = host or self.task.first_host or _other_host()
        own = address_towards(first) if first else next(iter(interfaces().values()), "127.0.0.1")
        return own, int(port), token or new_token()

    @property
    def least(self) -> int:
        """The fewest tasks that are enough: all, unless `nodes` is a range."""
        low, high = self.cluster.node_range
        return self.task.world if low == high else max(1, self.task.world * low // high)

    def gather(self) -> "list[Any]":
        """The agents that are there, in order of their tasks; waits until they are enough."""
        self.agents = {slot: known for slot, known in self.agents.items() if known.answers()}
        deadline = time.monotonic() + self.cluster.wait
        started = self.agents or self.least == self.task.world
        while len(self.agents) < self.task.world:
            enough = bool(started) and len(self.agents) >= self.least
            arrived = self.listener.take(
                lambda hello: "agent" in hello, time.monotonic() + 1.0 if enough else min(deadline, time.monotonic() + 1)
            )
            if arrived is not None:
                self._admit(*arrived)
            elif enough:
                break
            elif time.monotonic() > deadline:
                if len(self.agents) >= self.least:
                    break
                raise self._missing()
        fresh = [known for known in self.agents.values() if known.channel is None]
        self._require_same(fresh)
        for known in fresh:
            known.welcome()
        for known in fresh:
            known.ready(deadline + 60.0)
        return [self.agents[slot] for slot in sorted(self.agents)]

    def _admit(self, hello: Mapping[str, Any], connection: Any) -> None:
        from towpath.runtime.remote import Agent

        arrived = Agent(hello, connection)
        former = self.agents.get(arrived.slot)
        if former is not None:  # it has lost its connection and come again
            former.drop()
        self.agents[arrived.slot] = arrived

    def _require_same(self, fresh: "list[Any]") -> None:
        from towpath.runtime.versions import require_same

        try:
            require_same([known.facts for known in fresh])
        except ResourceError:
            for known in fresh:
                known.refuse("other versions")
            raise

    def _missing(self) -> ResourceError:
        missing = [str(slot) for slot in range(self.task.world) if slot not in self.agents]
        tried = f"; refused: {'; '.join(self.listener.refused)}" if self.listener.refused else ""
        return ResourceError(
            f"{len(self.agents)} of {self.task.world} tasks connected to {self.listener.address} within "
            f"{self.cluster.wait:g} s; missing: task {', '.join(missing)}{tried}",
            "every task of torchrun or srun serves the first one, at that address",
            "see the other tasks' messages; set cluster.interface to the interface of this host that they reach",
        )

    def devices(self, agents: "list[Any]", gpu: bool) -> list[tuple[str, Any]]:
        """Device and agent of each worker: one a task."""
        return [
            (f"cuda:{known.facts['local_rank'] % known.gpus}" if gpu and known.gpus else "cpu", known)
            for known in agents
        ]

    def close(self) -> None:
        """Let all tasks end."""
        for known in self.agents.values():
            known.end()
        while (late := self.listener.take(lambda hello: "agent" in hello, time.monotonic())) is not None:
            self._admit(*late)
            self.agents[int(late[0]["slot"])].end()
        self.listener.close()
        if self.file is not None:
            self.file.unlink(missing_ok=True)
        with suppress(subprocess.TimeoutExpired):
            self.child.wait(5.0)
        self.child.kill()
        self.child.wait()


def _publish(path: Path, content: Mapping[str, str]) -> None:
    """Write the rendezvous for this user alone."""
    path.unlink(missing_ok=True)
    mask = os.umask(0o077)
    try:
        replace_file(path, json.dumps(content))
    finally:
        os.umask(mask)


def _other_host() -> str:
    """A host of the Slurm job that is not this one, by the job's list, or nothing."""
    listed = os.environ.get("SLURM_JOB_NODELIST", "")
    with suppress(OSError, subprocess.CalledProcessError):
        if listed:
            done = subprocess.run(
                ["scontrol", "show", "hostnames", listed], capture_output=True, text=True, check=True, timeout=10
            )
            names = done.stdout.split()
            return names[-1] if names else ""
    return ""
