"""Hosts of a Ray cluster (`launcher = "ray"`): Ray reserves a bundle on each node and starts an agent in it. Messages
and tensors do not pass through Ray.
"""

import importlib.util
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from towpath.errors import ResourceError
from towpath.progress import print_note
from towpath.recipe import Cluster
from towpath.runtime import rendezvous
from towpath.runtime.handshake import new_token
from towpath.runtime.interfaces import address_of, address_towards
from towpath.runtime.remote import Agent, Listener
from towpath.runtime.versions import require_same

CONNECT_SECONDS = 120.0
SETTLE_SECONDS = 5.0
SPARE_SECONDS = 20.0
"""Time that a placement on more nodes than the fewest may take: a node may be lost that Ray still lists."""


class RayDriver:
    """The process that talks to Ray."""

    def __init__(self, address: str) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ResourceError(
                "cluster.launcher = 'ray' without Ray", "several hosts need it", "pip install 'towpath[cluster]'"
            )
        _require_head(address)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "towpath.runtime.ray_driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        self._unread = b""
        try:
            reply = self.ask("connect", CONNECT_SECONDS, address=address)
        except ResourceError as error:
            self.close()
            raise _no_cluster(address, error.value) from error
        self.head = str(reply["head"])
        self.authenticated = bool(reply["authenticated"])

    def ask(self, method: str, limit: float, **arguments: Any) -> dict[str, Any]:
        """A reply within a limit."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"method": method, "arguments": arguments}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise self._failed("Ray's driver has ended") from None
        deadline = time.monotonic() + limit
        while b"\n" not in self._unread:
            if not select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self.process.kill()
                raise self._failed(f"Ray did not answer {method!r} within {limit:.0f} s")
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                raise self._failed("Ray's driver has ended")
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise ResourceError(reply["error"], "Ray places the workers on nodes", "see `ray status`")
        return reply

    def _failed(self, what: str) -> ResourceError:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()[-3:]
        return ResourceError("; ".join([what, *lines]), "Ray places the workers on nodes", "see `ray status`")

    def close(self) -> None:
        """End it, and with it the placement."""
        assert self.process.stdin and self.process.stdout
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self._log.close()


def _no_cluster(address: str, reason: str) -> ResourceError:
    return ResourceError(
        f"cluster.address = {address!r}: no Ray cluster: {reason}",
        "launcher = 'ray' uses a cluster that runs, with the same token (RAY_AUTH_MODE, RAY_AUTH_TOKEN)",
        "`ray start --head` here, or set cluster.address to HOST:PORT of its head; `ray status` must work",
    )


def _require_head(address: str) -> None:
    """Whether something listens at an address that is given: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit():
        raise _no_cluster(address, "not HOST:PORT")
    try:
        socket.create_connection((host, int(port)), 10.0).close()
    except OSError as error:
        raise _no_cluster(address, str(error)) from error


class RayHosts:
    """The agents on the nodes of a Ray cluster."""

    def __init__(self, cluster: Cluster, gpu: bool) -> None:
        self.cluster = cluster
        self.gpu = gpu
        self.driver = RayDriver(cluster.address)
        self.token = new_token()
        head = self.driver.head.rpartition(":")[0]
        own = address_of(cluster.interface) if cluster.interface else address_towards(head)
        self.listener = Listener(own, 0, self.token)
        self.agents: list[Agent] = []

    @property
    def is_open(self) -> bool:
        """Whether anyone who reaches the cluster's ports can run programs there."""
        return not self.driver.authenticated

    def gather(self, on_change: Callable[[], None]) -> list[Agent]:
        """An agent on each node, on as many as there are up to `nodes`; `on_change` is called before they change."""
        low, high = self.cluster.node_range
        if self.driver.process.poll() is not None:  # it ends with the head node, or with the node it has joined
            self.driver.close()
            self.driver = RayDriver(self.cluster.address)
        alive = [known.answers() for known in self.agents]
        if self.agents and all(alive) and (len(alive) == high or len(self._usable()) <= len(alive)):
            return self.agents
        before = len(self.agents)
        on_change()
        for known in self.agents:
            known.end()
        self.agents = []
        hosts = self._reserve(low, high)
        self._require_usable(hosts)
        self._start(hosts)
        if before and before != len(self.agents):
            print_note(f"continues on {len(self.agents)} nodes ({before} before)")
        return self.agents

    # Nodes

    def bundle(self, nodes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """What a node must have: a CPU for each worker, and its GPUs."""
        gpus = 0
        if self.gpu:
            most = sorted((int(node["total"]["GPU"]) for node in nodes), reverse=True)
            enough = most[: self.cluster.node_range[0]]
            gpus = self.cluster.gpus if self.cluster.gpus != "auto" else min(enough, default=0)
        workers = self.cluster.workers if self.cluster.workers != "auto" else max(1, gpus)
        return {"CPU": float(workers)} | ({"GPU": float(gpus)} if gpus else {})

    def _nodes(self) -> list[dict[str, Any]]:
        return self.driver.ask("nodes", 30.0)["nodes"]

    def _usable(self) -> list[dict[str, Any]]:
        """Nodes that have the bundle free, or hold one of ours."""
        nodes = self._nodes()
        bundle = self.bundle(nodes)
        mine = {known.facts.get("node") for known in self.agents if known.alive}
        return [
            node
            for node in nodes
            if node["id"] in mine or all(node["free"][name] >= count for name, count in bundle.items())
        ]

    def _count_usable(self, high: int) -> int:
        """How many nodes are usable, after a moment in which Ray learns what was released or added."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while (usable := len(self._usable())) < high and time.monotonic() < deadline:
            time.sleep(0.5)
        return usable

    def _reserve(self, low: int, high: int) -> list[dict[str, Any]]:
        """Versions of the nodes on which bundles are reserved, this host's own first."""
        self.driver.ask("release", 30.0)
        deadline = time.monotonic() + self.cluster.wait
        waiting = False
        while True:
            usable = self._count_usable(high)
            count = max(low, min(high, usable))
            if usable < low and not waiting:
                waiting = True
                print_note(f"waiting up to {self.cluster.wait:g} s for {low} nodes; {usable} are free")
            left = max(1.0, deadline - time.monotonic())
            limit = left if count == low else min(left, SPARE_SECONDS)
            bundle = self.bundle(self._nodes())
            reply = self.driver.ask(
                "reserve", limit + 90.0, count=count, bundle=bundle, wait=limit, address=self.listener.address
            )
            if reply["placed"]:
                return self._named(reply["hosts"])
            if time.monotonic() > deadline:
                raise self._short(low, bundle)

    def _named(self, hosts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        reply = self.driver.ask("nodes", 30.0)
        by_id = {node["id"]: node for node in reply["nodes"]}
        for number, host in enumerate(hosts):
            node = by_id.get(host["node"], {})
            host |= {
                "actor": number,
                "address": node.get("address", ""),
                "cpus": int(node["total"]["CPU"]) if node else 1,
            }
            host["own"] = host["node"] == reply["own"]
        return sorted(hosts, key=lambda host: not host["own"])

    def _short(self, low: int, bundle: Mapping[str, float]) -> ResourceError:
        """What is missing, node by node."""
        nodes = self._nodes()
        wanted = ", ".join(f"{count:g} {name}" for name, count in bundle.items())
        rows = [
            f"  {node['address']} ({node['host']}): "
            + ", ".join(f"{node['free'][name]:g} of {node['total'][name]:g} {name} free" for name in ("CPU", "GPU"))
            for node in nodes
        ]
        return ResourceError(
            f"{wanted} on each of {low} nodes were not placed within {self.cluster.wait:g} s; the cluster has "
            f"{len(nodes)} nodes:\n" + "\n".join(rows),
            "cluster.nodes hosts have the CPUs and GPUs of their workers free",
            "add nodes, end other jobs (`ray status`), or lower cluster.nodes, cluster.gpus or cluster.workers",
        )

    def _require_usable(self, hosts: Sequence[Mapping[str, Any]]) -> None:
        require_same(hosts)
        cut_off = [
            f"{host['host']} ({host['address']}): {host['unreachable']}" for host in hosts if "unreachable" in host
        ]
        if cut_off:
            raise ResourceError(
                f"nodes do not reach the controller at {self.listener.address}:\n  " + "\n  ".join(cut_off),
                "every worker connects to the controller",
                "set cluster.interface to the network interface of this host that the nodes reach, and open its ports",
            )

    def _start(self, hosts: Sequence[Mapping[str, Any]]) -> None:
        """Start agents and wait until they are ready to fork workers."""
        environments: list[dict[str, str]] = [{} for _ in hosts]
        for slot, host in enumerate(hosts):
            environments[host["actor"]] = {
                "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
                rendezvous.ADDRESS: self.listener.address,
                rendezvous.TOKEN: self.token,
                rendezvous.SLOT: str(slot),
                rendezvous.WAIT: str(self.cluster.wait),
                rendezvous.CHILD: "1",
                "TOWPATH_HOST_CPUS": str(host["cpus"]),
            }
        self.driver.ask("start", 90.0, environments=environments)
        deadline = time.monotonic() + CONNECT_SECONDS
        by_slot: dict[int, Agent] = {}
        while len(by_slot) < len(hosts):
            arrived = self.listener.take(lambda hello: "agent" in hello, deadline)
            if arrived is None:
                missing = [str(host["host"]) for slot, host in enumerate(hosts) if slot not in by_slot]
                raise ResourceError(
                    f"{', '.join(missing)}: no agent connected to {self.listener.address}",
                    "Ray starts one on each node",
                    "see the logs of Ray's workers on that node, in /tmp/ray/session_latest/logs",
                )
            known = Agent(*arrived)
            known.facts = dict(known.facts) | {"node": hosts[known.slot]["node"]}
            by_slot[known.slot] = known
        self.agents = [by_slot[slot] for slot in range(len(hosts))]
        for known in self.agents:
            known.welcome()
        for known in self.agents:
            known.ready(deadline)

    def devices(self, agents: Sequence[Agent], gpu: bool) -> list[tuple[str, Agent]]:
        """Device and agent of each worker, node by node."""
        workers = self.cluster.workers
        placed: list[tuple[str, Agent]] = []
        for known in agents:
            gpus = known.gpus if gpu else 0
            count = workers if workers != "auto" else max(1, gpus)
            placed += [(f"cuda:{number % gpus}" if gpus else "cpu", known) for number in range(count)]
        return placed

    def close(self) -> None:
        """End the agents and the placement."""
        for known in self.agents:
            known.end()
        self.driver.close()
        self.listener.close()
