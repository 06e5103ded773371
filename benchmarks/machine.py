"""The matrix multiplication rate of this machine, measured with every benchmark, and the floating-point operations of
a workload."""

import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.workload import Workload
from towpath.runtime.process import products_round


def gemm(dtype: torch.dtype, tries: int = 12) -> float:
    """The best rate of a square matrix product, in floating-point operations per second."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 4096 if device == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(tries):
        begin = perf_counter()
        _ = a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, perf_counter() - begin)
    return 2 * size**3 / best


def describe_machine() -> dict[str, Any]:
    """Processor or GPU, threads, versions and rates."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    rates = {"float32": gemm(torch.float32), "bfloat16": gemm(torch.bfloat16)}
    torch.set_float32_matmul_precision("medium")
    rates["float32, made of bfloat16" if products_round() else "float32, medium"] = gemm(torch.float32)
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "gemm_flops": rates}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def optimise_flops(workload: Workload, model: Path, work: dict[str, int]) -> float:
    """Floating-point operations of a workload's updates: every token of every row once per epoch, forward and backward,
    whether or not an implementation shares prompts or computes on padding. Counts linear layers, causal attention, and
    the head on answer tokens."""
    c = json.loads((model / "config.json").read_text())
    width = c["hidden_size"]
    inner = c["intermediate_size"]
    layers = c["num_hidden_layers"]
    heads = c["num_attention_heads"]
    keys = (c.get("head_dim") or width // heads) * c["num_key_value_heads"]
    tokens = work["tokens_optimised"]
    if workload.task in ("ppo", "grpo"):
        answers = work["answer_tokens"] * workload.epochs
        rows = work["answers"] * workload.epochs
    else:
        both = workload.rows(c["vocab_size"], 1 if workload.task == "sft" else 2)
        answers = sum(len(ids) for _, ids_ in both for ids in ids_)
        rows = sum(len(ids_) for _, ids_ in both)
    linear = layers * (2 * width * width + 2 * width * keys + 3 * width * inner)
    trunk = 2.0 * tokens * (linear + layers * width * tokens / rows)
    head = 0.0 if workload.task == "reward" else 2.0 * answers * width * c["vocab_size"]
    passes = 3 if workload.method == "full" else 2  # frozen weights need no weight gradients
    return passes * (trunk * (2 if workload.task == "ppo" and workload.method == "full" else 1) + head)


if __name__ == "__main__":
    json.dump(describe_machine(), sys.stdout)
