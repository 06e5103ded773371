"""The driver of a Ray cluster, in a process of its own: it places actors, which start agents, and does nothing else.

A request is a line of JSON on standard input, its reply one on standard output. Ray ends a driver whose head node is
lost, and may hang: neither touches the run's controller, which ends with this process's placement.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

REPLY_SECONDS = 60.0
"""Time in which an actor that is placed must have started and answered."""


def host_actor() -> Any:
    """The actor of a node. Ray sends its code, so that a node without towpath can say so."""

    class Host:
        def facts(self, address: str) -> dict[str, Any]:
            """Versions of this node, or what is missing, and whether it reaches the controller."""
            import socket

            try:
                from towpath.runtime.versions import facts

                known = dict(facts())
            except ImportError as error:
                return {"host": socket.gethostname(), "towpath": "missing", "error": f"({error})"}
            host, _, port = address.rpartition(":")
            try:
                socket.create_connection((host, int(port)), 10.0).close()
            except OSError as error:
                known["unreachable"] = str(error)
            return known

        def start(self, environment: dict[str, str]) -> int:
            """Start the agent, which ends with this actor."""
            import os
            import subprocess
            import sys
            from pathlib import Path

            # where this node has what the driver imports from
            entries = [entry for entry in environment.pop("PYTHONPATH").split(os.pathsep) if Path(entry).exists()]
            own = os.environ.get("PYTHONPATH", "")
            environment["PYTHONPATH"] = os.pathsep.join([*([own] if own else []), *entries])
            self.process = subprocess.Popen(
                [sys.executable, "-m", "towpath.runtime.agent"], env=os.environ | environment, stdin=subprocess.DEVNULL
            )
            return self.process.pid

    return ray.remote(max_restarts=0)(Host)


class Driver:
    """One placement at a time."""

    def __init__(self) -> None:
        self.group: Any = None
        self.actors: list[Any] = []

    def connect(self, address: str) -> dict[str, Any]:
        """Join the cluster as a driver; the address of its head, and whether it asks for a token."""
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="towpath")
        return {"head": ray.get_runtime_context().gcs_address, "authenticated": _is_authenticated()}

    def nodes(self) -> dict[str, Any]:
        """The nodes that live, with what they have and what of it is free."""
        from ray._private.state import available_resources_per_node

        free = available_resources_per_node()
        listed = [
            {
                "id": node["NodeID"],
                "address": node["NodeManagerAddress"],
                "host": node["NodeManagerHostname"],
                "total": _amounts(node["Resources"]),
                "free": _amounts(free.get(node["NodeID"], {})),
            }
            for node in ray.nodes()
            if node["Alive"]
        ]
        return {"nodes": listed, "own": ray.get_runtime_context().get_node_id()}

    def reserve(self, count: int, bundle: dict[str, float], wait: float, address: str) -> dict[str, Any]:
        """Reserve a bundle on each of `count` nodes; versions of these nodes, or that it was not placed in time."""
        self.release()
        self.group = placement_group([bundle] * count, strategy="STRICT_SPREAD")
        ready, _ = ray.wait([self.group.ready()], timeout=wait)
        if not ready:
            self.release()
            return {"placed": False}
        actor = host_actor()
        for index in range(count):
            strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=index)
            self.actors.append(
                actor.options(
                    num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0), scheduling_strategy=strategy
                ).remote()
            )
        replies = ray.get([one.facts.remote(address) for one in self.actors], timeout=REPLY_SECONDS)
        table = ray.util.placement_group_table(self.group)["bundles_to_node_id"]
        return {"placed": True, "hosts": [facts | {"node": table[index]} for index, facts in enumerate(replies)]}

    def start(self, environments: list[dict[str, str]]) -> dict[str, Any]:
        """Start the agents, each with the variables of its actor."""
        started = [one.start.remote(own) for one, own in zip(self.actors, environments, strict=True)]
        return {"pids": ray.get(started, timeout=REPLY_SECONDS)}

    def release(self) -> dict[str, Any]:
        """End the actors, and with them the agents."""
        for one in self.actors:
            ray.kill(one)
        self.actors = []
        if self.group is not None:
            remove_placement_group(self.group)
            self.group = None
        return {}


def _is_authenticated() -> bool:
    """Whether Ray asks for a token, which it can since 2.52."""
    try:
        from ray._private.authentication.authentication_utils import is_token_auth_enabled
    except ImportError:
        return os.environ.get("RAY_AUTH_MODE") == "token"
    return bool(is_token_auth_enabled())


def _amounts(resources: Mapping[str, float]) -> dict[str, float]:
    return {name: float(resources.get(name, 0.0)) for name in ("CPU", "GPU")}


def main() -> None:
    """Answer requests until standard input ends."""
    from towpath.runtime.worker import die_with_parent

    die_with_parent()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints is not a reply
    driver = Driver()
    for line in sys.stdin:
        request = json.loads(line)
        method: Callable[..., dict[str, Any]] = getattr(driver, request["method"])
        try:
            reply = method(**request["arguments"])
        except Exception as error:  # process boundary
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    driver.release()
    time.sleep(0.1)
    ray.shutdown()


if __name__ == "__main__":
    main()
