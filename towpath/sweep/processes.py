"""Trials side by side: worker processes that share one study, each with its share of the cores, or a GPU each."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from towpath.errors import RecipeError, ResourceError
from towpath.interrupt import GRACE_SECONDS
from towpath.progress import progress
from towpath.sweep.preparation import POLL, Say, SweepPlan, open_trials


def run_processes(plan: SweepPlan, say: Say, overrides: Sequence[str]) -> None:
    """Start the workers and wait for them; when one fails, or this process is stopped, all write a checkpoint and
    end."""
    count = plan.recipe.sweep.processes
    environments = [worker_environment(plan, number) for number in range(count)]
    arguments = json.dumps({"run": str(plan.run), "overrides": list(overrides), "parent": os.getpid()})
    command = [sys.executable, "-m", "towpath.sweep.worker", arguments]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        workers += [subprocess.Popen(command, env=environment) for environment in environments]
        with open_trials(plan) as study, progress("sweep", study.limit, start=len(study.records())) as bar:
            while any(worker.poll() is None for worker in workers):
                _raise_if_failed(workers)
                bar.advance(len(study.records()) - bar.done, f"{study.open_trials()} in progress")
                time.sleep(POLL)
        _raise_if_failed(workers)
    finally:
        _stop(workers)


def worker_environment(plan: SweepPlan, number: int) -> Mapping[str, str]:
    """The environment of a worker: its threads, and where the recipe's device is a GPU one GPU alone."""
    from towpath.runtime.process import gpu_count

    count = plan.recipe.sweep.processes
    environment = dict(os.environ) | {"OMP_NUM_THREADS": str(thread_share(count))}
    gpus = 0 if plan.recipe.model.is_on_cpu else gpu_count()
    if gpus and gpus < count:
        raise RecipeError(
            f"sweep.processes = {count} with {gpus} GPUs", "each trial has a GPU of its own", f"set it to {gpus}"
        )
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        environment["CUDA_VISIBLE_DEVICES"] = visible[number] if len(visible) == gpus and visible[0] else str(number)
    return environment


def _raise_if_failed(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    codes = [worker.poll() for worker in workers]
    failed = [code for code in codes if code]
    if failed:
        raise ResourceError(
            f"a process of the sweep ended with code {failed[0]}",
            "its reason is printed above; trials that ended are kept",
            "correct it, then run the same command to resume",
        )


def _stop(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let the workers write a checkpoint and end."""
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    deadline = time.monotonic() + GRACE_SECONDS + 5
    for worker in workers:
        try:
            worker.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def thread_share(processes: int) -> int:
    """CPU threads of one of so many processes."""
    return max(1, int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)) // processes)
