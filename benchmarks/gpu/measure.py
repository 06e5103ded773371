"""Time, memory and floating-point operations on a device, and what the device is."""

import importlib.metadata
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import gemm
from towpath.models.pass_memory import ModelShape
from towpath.runtime.process import describe_gpu

DATASHEET = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}
"""Dense bfloat16 operations per second of a datasheet, by a part of the GPU's name: what the field divides by."""
PACKAGES = ("torch", "transformers", "triton", "safetensors", "numpy", "pydantic", "liger-kernel")


def synchronise(device: torch.device) -> None:
    """Wait for all that the device has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, work: Callable[[], Any]) -> float:
    """The time that `work` takes, until the device has done it."""
    synchronise(device)
    begin = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - begin


def peak_bytes(device: torch.device) -> int:
    """The most memory that was in use: the device's, or this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def train_flops(config: Any, lengths: list[int], answers: int, full: bool) -> float:
    """Operations of one update over rows of these lengths: linear layers, causal attention, and the head on answer
    tokens; forward, and backward with the gradients of weights if these train."""
    shape = ModelShape.of_config(config)
    linear = 2 * shape.width * (shape.queries + shape.keys) + 3 * shape.width * shape.inner
    tokens = sum(lengths)
    trunk = 2.0 * shape.layers * linear * tokens
    trunk += 2.0 * shape.layers * shape.queries * sum(length**2 for length in lengths)
    head = 2.0 * answers * shape.width * shape.vocabulary
    return (3 if full else 2) * (trunk + head)


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware, versions, and the measured rate of a matrix product."""
    name = describe_gpu() if device.type == "cuda" else _processor()
    versions = {package: _version(package) for package in PACKAGES}
    facts: dict[str, Any] = {"device": name, "python": platform.python_version(), "versions": versions}
    if device.type == "cuda":
        facts |= {"cuda": torch.version.cuda, "capability": torch.cuda.get_device_capability(device)}
        facts["datasheet_flops"] = next((rate for part, rate in DATASHEET.items() if part in str(name)), None)
    return facts | {"gemm_flops": gemm(torch.bfloat16, tries=4)}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
