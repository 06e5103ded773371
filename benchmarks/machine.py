"""What this machine can do: the rate of matrix products, measured beside every benchmark; and a model's
floating-point work."""

import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.workload import Workload
from towpath.runtime.process import products_round


def gemm(dtype: torch.dtype, size: int = 2048, tries: int = 12) -> float:
    """The best rate of a square product, in floating-point operations a second."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(tries):
        begin = perf_counter()
        _ = a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, perf_counter() - begin)
    return 2 * size**3 / best


def described() -> dict[str, Any]:
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
    """Floating-point operations that the updates of a workload ask for: every token of every row once an epoch,
    forward and back, whether or not an implementation shares prompts or computes on padding. Linear layers, causal
    attention, and the head on answer tokens."""
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
        answers = sum(len(ids) for _, found in both for ids in found)
        rows = sum(len(found) for _, found in both)
    linear = layers * (2 * width * width + 2 * width * keys + 3 * width * inner)
    trunk = 2.0 * tokens * (linear + layers * width * tokens / rows)
    head = 0.0 if workload.task == "reward" else 2.0 * answers * width * c["vocab_size"]
    passes = 3 if workload.method == "full" else 2  # with frozen weights nothing is computed for their gradients
    return passes * (trunk * (2 if workload.task == "ppo" and workload.method == "full" else 1) + head)


if __name__ == "__main__":
    json.dump(described(), sys.stdout)
