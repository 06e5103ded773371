"""What this machine can do: the rate of matrix products, measured beside every benchmark; and a model's floating-point work."""

import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch


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
    rates["float32, medium"] = gemm(torch.float32)
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "gemm_flops": rates}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def forward_flops(config: Any, tokens: int, answer_tokens: int, mean_length: float) -> float:
    """Floating-point operations of one forward pass: the linear layers, causal attention, and the vocabulary's head on answer tokens."""
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    keys = width * config.num_key_value_heads // config.num_attention_heads
    linear = layers * (2 * width * width + 2 * width * keys + 3 * width * inner)
    attention = layers * width * mean_length
    return 2.0 * tokens * (linear + attention) + 2.0 * answer_tokens * width * config.vocab_size


if __name__ == "__main__":
    json.dump(described(), sys.stdout)
