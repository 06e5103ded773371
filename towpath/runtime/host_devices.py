"""The devices of this host, and the worker processes on them. Loads torch only where there may be a GPU."""

import os
import sys
from pathlib import Path

from towpath.errors import ResourceError
from towpath.recipe import Cluster, Model

MAX_WORKERS_PER_CORE = 4
"""More than one is of use for tests alone."""
DRIVER_FILES = "nvidia*", "kfd", "dxg"
"""In /dev, of drivers for NVIDIA's and AMD's GPUs, and of those under Windows."""


def visible_gpus() -> int:
    """How many GPUs this process may use."""
    if sys.platform == "linux" and not any(file for name in DRIVER_FILES for file in Path("/dev").glob(name)):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def worker_devices(model: Model, cluster: Cluster) -> list[str]:
    """The device of each worker process of this host; none where this process does the work itself."""
    gpus = 0 if model.is_on_cpu else visible_gpus()
    if cluster.gpus != "auto" and not model.is_on_cpu:
        if cluster.gpus > gpus:
            fix = "set cluster.gpus = 'auto', or install the driver and a torch build for this GPU"
            raise ResourceError(f"cluster.gpus = {cluster.gpus}", f"this host has {gpus} that torch can use", fix)
        gpus = cluster.gpus
    if cluster.workers == "auto":
        return [f"cuda:{number}" for number in range(gpus)] if gpus > 1 else []
    if gpus:
        return [f"cuda:{number % gpus}" for number in range(cluster.workers)]
    cores = os.cpu_count() or 1
    if cluster.workers > MAX_WORKERS_PER_CORE * cores:
        rule = f"this host has {cores} cores, and each worker computes all the time"
        raise ResourceError(f"cluster.workers = {cluster.workers}", rule, f"set cluster.workers to {cores} at most")
    return ["cpu"] * cluster.workers
