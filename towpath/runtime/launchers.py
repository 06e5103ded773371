"""The workers that a recipe asks for, wherever they are: processes of this host, tasks of torchrun or srun, or nodes of
a Ray cluster.
"""

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from towpath.errors import ResourceError
from towpath.recipe import Cluster, Model
from towpath.runtime.host_devices import worker_devices
from towpath.runtime.present_task import launcher_of
from towpath.runtime.ray_hosts import RayHosts
from towpath.runtime.remote import Remote
from towpath.runtime.task_hosts import TaskHosts
from towpath.runtime.workers import Part, Workers, close_shared_workers, shared_workers

T = TypeVar("T")

_hosts: dict[tuple[str, int], Any] = {}
"""Other hosts of this process's run, which stay connected from stage to stage, by launcher and process."""


def open_hosts(model: Model, cluster: Cluster, run: Path) -> None:
    """Let other hosts connect, before anything is loaded; nothing where all workers are on this one."""
    kind = launcher_of(cluster)
    if kind == "processes" or (kind, os.getpid()) in _hosts:
        return
    hosts = TaskHosts(cluster, run) if kind == "env" else RayHosts(cluster, not model.is_on_cpu)
    _hosts[kind, os.getpid()] = hosts
    weakref.finalize(hosts, _close_at_exit, kind)


def open_workers(model: Model, cluster: Cluster, part: Part = "all") -> Workers | None:
    """The workers of a stage, started when they are first wanted, or wanted after a loss; None where this process does
    the work itself."""
    kind = launcher_of(cluster)
    if kind == "processes":
        everywhere = worker_devices(model, cluster)
        threads = cluster.threads or max(1, torch.get_num_threads() // max(1, len(everywhere)))
        devices = _chosen(everywhere, cluster, part)
        return shared_workers(devices, threads, cluster.timeout, part=part) if devices else None
    if kind == "env" and (kind, os.getpid()) not in _hosts:
        raise ResourceError(
            "cluster.launcher = 'env' outside of `towpath run`",
            "under torchrun or srun the first task trains, and `towpath run` in the others serves it",
            "use `towpath run`, or cluster = {'launcher': 'processes'} in a program that trains in each task",
        )
    open_hosts(model, cluster, Path())
    hosts = _hosts[kind, os.getpid()]
    agents = hosts.gather(close_shared_workers)
    everything = hosts.devices(agents, not model.is_on_cpu)
    everyone = [agent for _, agent in everything]
    threads = cluster.threads or max(1, min(agent.facts["cpus"] // everyone.count(agent) for agent in agents))
    placed = _chosen(everything, cluster, part)
    owners = [agent for _, agent in placed]
    key = tuple(id(agent) for agent in owners)
    devices = [device for device, _ in placed]
    return shared_workers(devices, threads, cluster.timeout, lambda: Remote(hosts.listener, owners), key, part)


def _chosen(placed: Sequence[T], cluster: Cluster, part: Part) -> list[T]:
    """Of all workers those that train, or those that only sample: the last ones."""
    if part == "all":
        return list(placed)
    require_training_workers(cluster, len(placed))
    training = len(placed) - cluster.sample_workers
    return list(placed[:training] if part == "training" else placed[training:])


def require_training_workers(cluster: Cluster, workers: int) -> None:
    """ResourceError where no worker is left to train; 0 workers are this process alone."""
    if cluster.sample_workers >= max(1, workers):
        count = f"{workers} worker{'s' * (workers != 1)}" if workers else "one process"
        raise ResourceError(
            f"cluster.sample_workers = {cluster.sample_workers} with {count} in all",
            "at least one worker trains beside those that only sample",
            f"set cluster.workers to {cluster.sample_workers + 1} or more, or cluster.sample_workers = 0",
        )


def is_open() -> bool:
    """Whether strangers can start programs where the workers run."""
    return any(hosts.is_open for (_, process), hosts in _hosts.items() if process == os.getpid())


def close_workers() -> None:
    """End all workers of this process, and let other hosts go."""
    close_shared_workers()
    for key in [key for key in _hosts if key[1] == os.getpid()]:
        _hosts.pop(key).close()


def _close_at_exit(kind: str) -> None:
    hosts = _hosts.pop((kind, os.getpid()), None)
    if hosts is not None:
        hosts.close()
