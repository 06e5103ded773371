"""Preflight checks of the sampling engine."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from towpath import algos
from towpath.errors import RecipeError
from towpath.recipe import Decoding, Recipe
from towpath.records import Finding
from towpath.rollout.engine import engine_module
from towpath.rollout.vllm_environment import engine_python, installed_version, is_tested, tested_range
from towpath.run.gpu_checks import uses_gpu

READ_SECONDS = 30
INSTALL = "towpath engine install vllm, and leave engine.python out"


def check_engine(recipe: Recipe) -> list[Finding]:
    """Whether the engine exists: a module with `open_engine`, and for vLLM a Python with a tested version."""
    engine = recipe.engine
    try:
        path = algos.source_of(engine_module(engine.type))
    except RecipeError as error:
        return [Finding("engine", "error", error.value, error.rule, error.fix)]
    if path is None or "def open_engine(" not in path.read_text(encoding="utf-8"):
        cause = "an import path names a module with open_engine, in the run folder or the working directory"
        return [Finding("engine", "error", f"engine.type = {engine.type!r}: no such engine", cause, "fix the path")]
    if engine.settings and "." not in engine.type:
        evidence = f"engine.settings with engine.type = {engine.type!r}"
        return [
            Finding("engine", "error", evidence, "settings are for an engine of your own", "remove engine.settings")
        ]
    return [*_check_vllm(recipe)] if engine.type == "vllm" else []


def _check_vllm(recipe: Recipe) -> Iterator[Finding]:
    engine = recipe.engine
    try:
        python = engine_python(engine.python)
    except RecipeError as error:
        yield Finding("engine", "error", error.value, error.rule, error.fix)
        return
    version = installed_version(python)
    if version is None:
        evidence = f"engine.python = {python!r}: no Python with vLLM"
        yield Finding("engine", "error", evidence, "engine.type = 'vllm' needs an environment that has vLLM", INSTALL)
    elif not is_tested(version):
        evidence = f"vLLM {version} in the environment of {python}"
        cause = f"tested versions are {tested_range()}: others may load weights or sample in another way"
        yield Finding("engine", "error", evidence, cause, INSTALL)
    elif engine.transport == "shm" or (engine.transport == "auto" and not uses_gpu(recipe)):
        yield from _check_shared_memory(python)
    if engine.exact is False:
        yield from _check_filters(recipe)


def _check_shared_memory(python: str) -> Iterator[Finding]:
    """Whether weights can go to vLLM through shared memory: 64 KiB, read by its Python, and room for one message. Other
    transports are tried when vLLM starts."""
    import torch

    from towpath.rollout.vllm_process.tensors import CHUNK
    from towpath.rollout.weight_sync import TRY_BYTES
    from towpath.rollout.weight_transport import SharedMemory

    transport = SharedMemory(Path(tempfile.gettempdir()))
    script = "import hashlib, os, sys; os.write(1, hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest().encode())"
    try:
        buffer = transport.buffer(TRY_BYTES)
        buffer.copy_(torch.frombuffer(bytearray(os.urandom(TRY_BYTES)), dtype=torch.uint8))
        command = [python, "-c", script, transport.source(TRY_BYTES)["file"]]
        read = subprocess.run(command, capture_output=True, text=True, timeout=READ_SECONDS)
        same = read.stdout.strip() == hashlib.sha256(buffer.numpy().tobytes()).hexdigest()
        problem = "" if same else (read.stderr.strip().splitlines() or ["other bytes came"])[-1]
        free = shutil.disk_usage(transport.folder).free
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = f"{type(error).__name__}: {error}"
        free = CHUNK
    finally:
        transport.release()
    cause = f"weights reach vLLM through files in {transport.folder}, {CHUNK // 2**20} MiB at a time"
    if problem:
        fix = f"run vLLM's Python on this host, as a user who reads {transport.folder}"
        yield Finding("engine", "error", f"64 KiB in {transport.folder}: {problem}", cause, fix)
    elif free < CHUNK:
        fix = "free shared memory; in a container, start it with a larger --shm-size, such as 1g"
        yield Finding("engine", "error", f"{free // 2**20} MiB free in {transport.folder}", cause, fix)


def _check_filters(recipe: Recipe) -> Iterator[Finding]:
    """vLLM's own sampler gives log-probabilities after filters; those of a completion are before."""
    if recipe.preferences.raters == "recorded":
        return
    for number, decoding in enumerate(recipe.preferences.decodings):
        filters = [name for name in ("top_k", "top_p", "min_p") if getattr(decoding, name) != getattr(Decoding(), name)]
        if filters:
            evidence = f"engine.exact = false with preferences.decodings[{number}].{filters[0]}"
            cause = "vLLM's own sampler gives log-probabilities after the filter, a completion has those before"
            yield Finding("engine", "error", evidence, cause, "remove engine.exact, or the filters")
            return
