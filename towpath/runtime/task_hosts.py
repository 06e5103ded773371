"""Tasks of torchrun and srun as workers (`launcher = "env"`): the first is the controller, the others serve it.

The first task writes its address and a token into the run folder, for its user alone; or both come from the
environment, TOWPATH_CLUSTER_ADDRESS and TOWPATH_CLUSTER_TOKEN.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from towpath.errors import RecipeError, ResourceError
from towpath.progress import print_note
from towpath.recipe import Cluster
from towpath.runtime import rendezvous
from towpath.runtime.handshake import MIN_TOKEN, new_token
from towpath.runtime.interfaces import address_of, address_towards, interfaces
from towpath.runtime.present_task import RENDEZVOUS, agent_environment, require_task
from towpath.runtime.processes import START_SECONDS
from towpath.runtime.remote import Agent, Listener
from towpath.runtime.versions import require_same
from towpath.store.publish import replace_file

POLL_SECONDS = 1.0
NOTE_SECONDS = 10.0
"""Time after which waiting is worth a line."""


class TaskHosts:
    """The agents of all tasks, as the first one sees them."""

    is_open = False

    def __init__(self, cluster: Cluster, run: Path) -> None:
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
        if rendezvous.TOKEN not in os.environ:
            self.file = run / RENDEZVOUS
            _publish(self.file, {"address": self.listener.address, "token": token})
        environment = agent_environment(cluster, 0, self.task.local_rank) | {
            rendezvous.ADDRESS: self.listener.address,
            rendezvous.TOKEN: token,
            rendezvous.CHILD: "1",
        }
        self.child = subprocess.Popen(
            [sys.executable, "-m", "towpath.runtime.agent"], env=os.environ | environment, stdin=subprocess.DEVNULL
        )

    def _own_address(self) -> tuple[str, int, str]:
        token = os.environ.get(rendezvous.TOKEN, "")
        address = os.environ.get(rendezvous.ADDRESS, "")
        if token and (len(token) < MIN_TOKEN or not address):
            raise RecipeError(
                f"{rendezvous.TOKEN} has {len(token)} characters, {rendezvous.ADDRESS} is {address or 'not set'}",
                f"a token has at least {MIN_TOKEN} characters, and comes with the controller's HOST:PORT",
                "set both in all tasks, or neither where all hosts share the run folder",
            )
        host, _, port = address.rpartition(":") if token else ("", "", "0")
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

    def gather(self, on_change: Callable[[], None]) -> list[Agent]:
        """The agents that are there, in order of their tasks; waits until they are enough. `on_change` is called where
        they are not those of before."""
        before = dict(self.agents)
        self.agents = {slot: known for slot, known in before.items() if known.answers()}
        self._wait_for_tasks()
        fresh = [known for known in self.agents.values() if known.channel is None]
        try:
            require_same([known.facts for known in fresh])
        except ResourceError:
            for known in fresh:
                known.refuse("other versions")
            raise
        for known in fresh:
            known.welcome()
        for known in fresh:
            known.ready(time.monotonic() + START_SECONDS)
        if before and before != self.agents:
            on_change()
            if len(before) != len(self.agents):
                print_note(f"continues with {len(self.agents)} tasks ({len(before)} before)")
        return [self.agents[slot] for slot in sorted(self.agents)]

    def _wait_for_tasks(self) -> None:
        """All tasks, within the time; of a range of nodes as many as there are after a loss, if they are enough."""
        deadline = time.monotonic() + self.cluster.wait
        lost = bool(self.agents) and self.least < self.task.world
        noted = False
        while len(self.agents) < self.task.world:
            enough = lost and len(self.agents) >= self.least
            limit = min(deadline, time.monotonic() + (POLL_SECONDS if enough else NOTE_SECONDS))
            arrived = self.listener.take(lambda hello: "agent" in hello, limit)
            if arrived is not None:
                self._admit(*arrived)
            elif enough or (time.monotonic() > deadline and len(self.agents) >= self.least):
                return
            elif time.monotonic() > deadline:
                raise self._missing()
            elif not noted:
                noted = True
                print_note(f"waiting up to {self.cluster.wait:g} s for tasks: {len(self.agents)} of {self.task.world}")

    def _admit(self, hello: Mapping[str, Any], connection: socket.socket) -> None:
        arrived = Agent(hello, connection)
        former = self.agents.get(arrived.slot)
        if former is not None:  # it has lost its connection and come again
            former.drop()
        self.agents[arrived.slot] = arrived

    def _missing(self) -> ResourceError:
        missing = [str(slot) for slot in range(self.task.world) if slot not in self.agents]
        tried = f"; refused: {'; '.join(self.listener.refused)}" if self.listener.refused else ""
        return ResourceError(
            f"{len(self.agents)} of {self.task.world} tasks connected to {self.listener.address} within "
            f"{self.cluster.wait:g} s; missing: task {', '.join(missing)}{tried}",
            "every task of torchrun or srun serves the first one, at that address",
            "see the other tasks' messages; set cluster.interface to the interface of this host that they reach",
        )

    def devices(self, agents: list[Agent], gpu: bool) -> list[tuple[str, Agent]]:
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
