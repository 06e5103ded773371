"""`[cluster]`: the processes and devices that a run uses."""

from typing import Literal

from pydantic import field_validator

from towpath.recipe.reader import Section, value


class Cluster(Section):
    """Workers of a run: processes on one host, one for each GPU, or several on a CPU."""

    workers: Literal["auto"] | int = value(
        "auto",
        "processes that share the work; auto is one for each GPU, and without a GPU the run's own process",
        "auto, or a divisor of the number of cores",
        "results do not depend on it beyond the order of sums",
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

    @field_validator("workers")
    @classmethod
    def _at_least_one(cls, workers: Literal["auto"] | int) -> Literal["auto"] | int:
        if workers != "auto" and workers < 1:
            raise ValueError("must be auto or at least 1")
        return workers
