"""`[cluster]`: the hosts, processes and devices that a run uses."""

import re
from typing import Literal

from pydantic import ValidationInfo, field_validator

from towpath.recipe.reader import Section, value


class Cluster(Section):
    """Workers of a run: processes on one host or on several, one for each GPU, or several on a CPU."""

    nodes: int | str = value(
        1,
        "hosts that share the work; with a range such as '2-4' a run continues on fewer after one is lost, and uses "
        "one that is added from the next stage on",
        "1-8, or '2-4'",
        "one host needs no further software",
    )
    gpus: Literal["auto"] | int = value("auto", "GPUs of each host; auto is all of them", "auto")
    workers: Literal["auto"] | int = value(
        "auto",
        "processes of each host that share the work; auto is one for each GPU, and without a GPU one a host, which on "
        "one host is the run's own process",
        "auto, or a divisor of the number of cores",
        "results do not depend on it beyond the order of sums",
    )
    sample_workers: int = value(
        0,
        "of all workers so many only sample in the policy stage, and the others train; 0: all do both in turn",
        "0, or half of them with policy.staleness = 1",
        "weights go from the first worker that trains to those that sample before each rollout",
        ge=0,
    )
    launcher: Literal["auto", "processes", "ray", "env"] = value(
        "auto",
        "what starts workers: processes of this host, a Ray cluster, or the tasks of torchrun or srun (env); auto is "
        "env under torchrun or srun with several tasks, ray where nodes is not 1, else processes",
        "auto",
    )
    address: str = value("auto", "of a running Ray cluster, as host:port; auto is the one of this machine", "auto")
    interface: str = value(
        "",
        "name or address of the network interface of this host that other hosts reach; empty is the one towards them",
        "empty, eth0, ib0",
    )
    wait: float = value(
        300.0,
        "seconds to wait for nodes at the start and after one was lost; then the run says what is missing and stops",
        "60-1800",
        ge=1.0,
    )
    threads: int = value(0, "CPU threads of each worker; 0 divides the cores among them", "0", ge=0)
    shard: Literal["auto", "replicate", "fsdp"] = value(
        "auto",
        "replicate: each worker has the whole model; fsdp: weights, gradients and optimizer state are divided over the "
        "workers; auto divides what would take more than 60 % of a GPU",
        "auto",
        "with LoRA a whole frozen model on each GPU is faster, as long as it fits",
    )
    restarts: int = value(
        3, "how many times a stage is resumed from its last checkpoint after a worker was lost", "1-10", ge=0
    )
    timeout: float = value(
        60.0,
        "seconds without a heartbeat after which a worker counts as lost; ten times that without progress",
        "30-300",
        ge=0.1,
    )

    @field_validator("workers", "gpus")
    @classmethod
    def _at_least_one(cls, count: Literal["auto"] | int) -> Literal["auto"] | int:
        if count != "auto" and count < 1:
            raise ValueError("must be auto or at least 1")
        return count

    @field_validator("nodes")
    @classmethod
    def _number_or_range(cls, nodes: int | str) -> int | str:
        parts = re.fullmatch(r"(\d+)(?:-(\d+))?", str(nodes).strip())
        if not parts or int(parts[1]) < 1 or int(parts[2] or parts[1]) < int(parts[1]):
            raise ValueError("must be a number of hosts such as 2, or a range such as '2-4'")
        return nodes

    @field_validator("launcher")
    @classmethod
    def _processes_are_on_one_host(cls, launcher: str, info: ValidationInfo) -> str:
        nodes = info.data.get("nodes", 1)
        if launcher == "processes" and str(nodes) != "1":
            raise ValueError(f"processes start on this host alone, and nodes is {nodes!r}; set 'auto', or nodes to 1")
        return launcher

    @property
    def node_range(self) -> tuple[int, int]:
        """The fewest and the most hosts."""
        low, _, high = str(self.nodes).partition("-")
        return int(low), int(high or low)
