"""Run a stage again from its last checkpoint after a worker was lost, and record who was lost and why."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from towpath.errors import WorkerLost
from towpath.progress import print_note
from towpath.recipe.stage_configs import StageConfig
from towpath.records import Finding, finding_of
from towpath.stages.job import Job
from towpath.store import manifest
from towpath.store.publish import replace_file

C = TypeVar("C", bound=StageConfig)


def run_stage(run: Callable[[Job[C]], dict[str, Any]], job: Job[C]) -> tuple[Job[C], dict[str, Any]]:
    """The job that came to its end, and its result; a lost worker costs what was done since the last checkpoint, at
    most `cluster.restarts` times."""
    limit = job.config.cluster.restarts
    restarts = manifest.read_restarts(job.folder)
    job.findings += [finding_of(restart["finding"]) for restart in restarts]
    before = list(job.findings)
    for restart in range(limit + 1):
        try:
            return job, run(job)
        except WorkerLost as lost:
            if restart == limit:
                raise
            print_note(f"{lost.value}")
            print_note(f"{job.name}: resumes from its last checkpoint, restart {restart + 1} of {limit}")
            restarts.append(_restart(lost))
            before.append(finding_of(restarts[-1]["finding"]))
            replace_file(job.folder / manifest.RESTARTS, json.dumps(restarts, indent=1))
        # as another process would begin: nothing of the attempt but what is on the disk
        job = replace(job, findings=list(before))
    raise AssertionError("unreachable")


def _restart(lost: WorkerLost) -> dict[str, Any]:
    """A restart: its time, the finding on it, and where the worker was last seen."""
    who, *stack = lost.value.splitlines()
    finding = Finding(
        "worker-restarted",
        "warning",
        f"{who}; the stage resumed from its last checkpoint",
        "a worker process ended, hung or answered nonsense: memory, a driver, or a host that was taken away",
        "nothing is lost but time; if it repeats, read the system's log of that host (dmesg), and lower "
        "model.tokens_per_pass if its memory was short",
    )
    return {"at": datetime.now(UTC).isoformat(timespec="seconds"), "finding": asdict(finding), "stack": stack}
