"""Preflight checks of the hosts and workers that a recipe asks for: resources, versions, connections, folders."""

import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from towpath.algos import data_of
from towpath.errors import TowpathError
from towpath.recipe import Cluster, Recipe
from towpath.records import Finding
from towpath.runtime.present_task import launcher_of

VISIBLE_SECONDS = 5.0
"""Time in which a file that another host has written must be visible here: network file systems cache folders."""


@contextmanager
def connected(recipe: Recipe, run: Path) -> Iterator[None]:
    """Let other hosts connect during the block, and end all workers after it."""
    if launcher_of(recipe.cluster) != "processes":
        from towpath.runtime.launchers import open_hosts

        open_hosts(recipe.model, recipe.cluster, run)
    try:
        yield
    finally:
        if launcher_of(recipe.cluster) != "processes" or _wants_processes(recipe.cluster):
            from towpath.runtime.launchers import close_workers

            close_workers()


def _wants_processes(cluster: Cluster) -> bool:
    """Whether this host runs several workers; drivers show GPUs as files, which costs no import of torch."""
    if cluster.workers != "auto":
        return True
    return len(list(Path("/dev").glob("nvidia[0-9]*"))) > 1


def check_cluster(recipe: Recipe, run: Path, model_folder: Path) -> Iterator[Finding]:
    """Start the workers and try their connections, before a model is loaded; nothing where the run needs none."""
    yield from _check_staleness(recipe)
    apart = recipe.cluster.sample_workers
    if launcher_of(recipe.cluster) == "processes" and not _wants_processes(recipe.cluster) and not apart:
        return
    from towpath.runtime.launchers import is_open, open_workers, require_training_workers

    try:
        workers = open_workers(recipe.model, recipe.cluster)
        require_training_workers(recipe.cluster, workers.count if workers else 0)
        if workers is None:
            return
        name = f".cluster-probe-{secrets.token_hex(8)}"
        begin = time.monotonic()
        replies = _probe(workers, run, name, model_folder)
        seconds = time.monotonic() - begin
    except TowpathError as error:
        yield Finding("cluster", "error", error.value, error.rule, error.fix)
        return
    hosts = [state.host for state in workers.states]
    counts = ", ".join(f"{count} on {host}" for host, count in Counter(hosts).items())
    evidence = f"{workers.count} workers: {counts}; 64 KiB added over all of them in {seconds:.2g} s"
    yield Finding("cluster", "info", evidence, "", "")
    cores = os.cpu_count() or 1
    if launcher_of(recipe.cluster) == "processes" and workers.devices[0] == "cpu" and workers.count > cores:
        evidence = f"cluster.workers = {workers.count} on {cores} cores"
        cause = "workers compute at the same time: more of them than cores wait for each other"
        yield Finding("cluster", "warning", evidence, cause, f"set cluster.workers to {cores} at most")
    if is_open():
        cause = "anyone who reaches the ports of the cluster can run programs on its nodes"
        fix = "`ray get-auth-token --generate`, and start Ray with RAY_AUTH_MODE=token on every node (docs/cluster.md)"
        yield Finding("cluster", "warning", "the Ray cluster asks for no token", cause, fix)
    yield from _check_folders(replies, run, model_folder)


def _check_staleness(recipe: Recipe) -> Iterator[Finding]:
    """Stale rollouts cost quality: they must gain time, and be weighted."""
    apart = recipe.cluster.sample_workers
    policy = recipe.policy
    if not (apart or policy.staleness):
        return
    if data_of(policy.algo) == "comparisons":
        evidence = f"policy.staleness = {policy.staleness}, cluster.sample_workers = {apart} with {policy.algo}"
        cause = f"{policy.algo} learns from labelled pairs: there are no rollouts, and workers to sample are idle"
        yield Finding("staleness", "warning", evidence, cause, "leave both out")
        return
    if policy.staleness and not apart:
        evidence = "policy.staleness = 1 and cluster.sample_workers = 0"
        cause = "all workers sample and train in turn: rollouts are older, and no time is gained"
        yield Finding("staleness", "warning", evidence, cause, "set cluster.sample_workers, or policy.staleness = 0")
    if policy.staleness and not recipe.engine.correction:
        cause = "tokens of an earlier policy are learned from as if they were the present one's"
        yield Finding(
            "staleness", "warning", "policy.staleness = 1 and engine.correction = 0", cause, "set engine.correction = 2"
        )


def _probe(workers: Any, run: Path, name: str, model_folder: Path) -> list[dict[str, Any]]:
    """What each worker sees of the run's folder and the model's, and whether what it writes is seen here."""
    token = secrets.token_hex(16)
    file = run / name
    file.write_text(token)
    try:
        shared = {"folder": run.resolve(), "name": name, "needed": model_folder}
        replies = workers.ask("probe", [shared] * workers.count)
        deadline = time.monotonic() + VISIBLE_SECONDS
        for rank, reply in enumerate(replies):
            written = run / f"{name}-{rank}"
            while not written.exists() and reply["content"] == token and time.monotonic() < deadline:
                time.sleep(0.1)
            reply["shared"] = reply["content"] == token and written.exists()
            written.unlink(missing_ok=True)
    finally:
        file.unlink(missing_ok=True)
    return [reply | {"host": state.host} for reply, state in zip(replies, workers.states, strict=True)]


def _check_folders(replies: list[dict[str, Any]], run: Path, model_folder: Path) -> Iterator[Finding]:
    apart = sorted({reply["host"] for reply in replies if not reply["shared"]})
    if apart:
        evidence = f"{run}: not the same folder on {', '.join(apart)}"
        cause = "sample, reward, policy and evaluate read on every host the weights that earlier stages wrote"
        fix = (
            "put the run into a folder that all hosts share at one path, such as NFS, Lustre or a ReadWriteMany volume"
        )
        yield Finding("cluster", "error", evidence, cause, fix)
    without = sorted({reply["host"] for reply in replies if not reply["needed"]})
    if without:
        evidence = f"{model_folder}: missing on {', '.join(without)}"
        fix = "put the model into a folder that all hosts share, and name that as model.source; or share HF_HOME"
        yield Finding("cluster", "error", evidence, "every worker loads the model", fix)
