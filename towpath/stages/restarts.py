"""Run a stage again from its last checkpoint after a worker was lost."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from towpath.errors import WorkerLost
from towpath.progress import print_note
from towpath.recipe.stage_configs import StageConfig
from towpath.stages.job import Job

C = TypeVar("C", bound=StageConfig)


def run_stage(run: Callable[[Job[C]], dict[str, Any]], job: Job[C]) -> tuple[Job[C], dict[str, Any]]:
    """The job that came to its end, and its result; a lost worker costs what was done since the last checkpoint, at
    most `cluster.restarts` times."""
    restarts = job.config.cluster.restarts
    before = list(job.findings)
    for restart in range(restarts + 1):
        try:
            return job, run(job)
        except WorkerLost as lost:
            if restart == restarts:
                raise
            print_note(f"{lost.value}")
            print_note(f"{job.name}: resumes from its last checkpoint, restart {restart + 1} of {restarts}")
        # as another process would begin: nothing of the attempt but what is on the disk
        job = replace(job, findings=list(before))
    raise AssertionError("unreachable")
