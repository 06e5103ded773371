"""Whether this process is one of several tasks that torchrun or srun has started (`launcher = "env"`): the first is the
run's controller, and the others become its workers before they load anything.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from towpath.errors import RecipeError
from towpath.recipe import Cluster
from towpath.runtime import rendezvous

RENDEZVOUS = ".cluster.json"
"""In the run folder: address and token of a run's controller, for its user alone."""


@dataclass(frozen=True)
class LaunchedTask:
    """This process among those that torchrun or srun has started."""

    rank: int
    world: int
    local_rank: int
    first_host: str
    """Where the first task runs, if that is known."""


def present_task(environment: Mapping[str, str] = os.environ) -> LaunchedTask | None:
    """The task that this process is, or None. A batch script of Slurm is no task: `srun` in it starts tasks."""
    first_host = environment.get("MASTER_ADDR", "")
    for rank, world, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        with suppress(ValueError):
            if rank in environment and world in environment:
                count = int(environment[world])
                return LaunchedTask(int(environment[rank]), count, int(environment.get(local, "0")), first_host)
    return None


def launcher_of(cluster: Cluster) -> str:
    """What starts workers: `auto` resolved."""
    if cluster.launcher != "auto":
        return cluster.launcher
    task = present_task()
    if task is not None and task.world > 1:
        return "env"
    return "processes" if cluster.node_range == (1, 1) else "ray"


def require_task(cluster: Cluster) -> LaunchedTask:
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


def _become_agent(cluster: Cluster, run: Path, task: LaunchedTask) -> NoReturn:
    environment = os.environ | agent_environment(cluster, task.rank, task.local_rank)
    if rendezvous.TOKEN not in os.environ:
        environment[rendezvous.FILE] = str(run / RENDEZVOUS)
    os.execve(sys.executable, [sys.executable, "-m", "towpath.runtime.agent"], environment)


def agent_environment(cluster: Cluster, slot: int, local_rank: int) -> dict[str, str]:
    return {
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        rendezvous.SLOT: str(slot),
        rendezvous.LOCAL_RANK: str(local_rank),
        rendezvous.WAIT: str(cluster.wait),
    }
