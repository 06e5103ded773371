"""AdamW of `towpath.models.cpu.optimizer` compared with torch's: one clipped step over the weights of a model.

`python -m benchmarks.adamw` times, in turn and in one process, a step with the gradient clipped at norm 1:
  float32   all weights of SmolLM2-135M, float32: own, torch fused, torch foreach
  bfloat16  the same weights trained in bfloat16: own (split weights), and torch fused on float32 masters (cast the
            gradients up, step, copy the weights down)
  lora      rank-16 adapters on all projections: 420 small weights
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.machine import describe_machine
from towpath.models.cpu.optimizer import AdamW

LAYERS = 30
LAYER = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536), (576,), (576,)]
SMOLLM2 = [(49152, 576), (576,), *(shape for _ in range(LAYERS) for shape in LAYER)]
LORA = [part for _ in range(LAYERS) for out, into in LAYER[:7] for part in ((16, into), (out, 16))]
RATE = 1e-4
BETAS = (0.9, 0.999)
DECAY = 0.01


def weights(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [nn.Parameter((0.02 * torch.randn(shape, generator=draw)).to(dtype)) for shape in shapes]


def gradients(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]


def own(shapes: list[tuple[int, ...]], split: bool = False) -> Callable[[], None]:
    """Clip and step by the optimizer of the CPU runtime."""
    trained = weights(shapes)
    optimizer = AdamW([(RATE, trained)], 1e-8, DECAY, BETAS)
    if split:
        for weight in trained:
            optimizer.split_bf16(weight)
    for weight, grad in zip(trained, gradients(shapes, trained[0].dtype), strict=True):
        weight.grad = grad

    def step() -> None:
        optimizer.step(1.0, min(1.0, 1.0 / optimizer.norm()))

    return step


def fused(shapes: list[tuple[int, ...]], kind: str = "fused") -> Callable[[], None]:
    """Clip and step by torch; the gradients are restored, since clipping changes them in place."""
    trained = weights(shapes)
    optimizer = torch.optim.AdamW(trained, RATE, BETAS, 1e-8, DECAY, **{kind: True})
    for weight, grad in zip(trained, gradients(shapes, torch.float32), strict=True):
        weight.grad = grad

    def step() -> None:
        nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
        optimizer.step()

    return step


def masters(shapes: list[tuple[int, ...]]) -> Callable[[], None]:
    """bfloat16 weights with float32 masters, stepped by torch's fused AdamW."""
    held = weights(shapes, torch.bfloat16)
    grads = gradients(shapes, torch.bfloat16)
    master = [nn.Parameter(weight.detach().float()) for weight in held]
    optimizer = torch.optim.AdamW(master, RATE, BETAS, 1e-8, DECAY, fused=True)

    def step() -> None:
        for weight, grad in zip(master, grads, strict=True):
            weight.grad = grad.float()
        nn.utils.clip_grad_norm_(master, 1.0, foreach=True)
        optimizer.step()
        torch._foreach_copy_([weight.data for weight in held], [weight.data for weight in master])

    return step


WORK = {
    "float32": {
        "own": lambda: own(SMOLLM2),
        "torch fused": lambda: fused(SMOLLM2),
        "torch foreach": lambda: fused(SMOLLM2, "foreach"),
    },
    "bfloat16": {"own": lambda: own(SMOLLM2, split=True), "torch fused": lambda: masters(SMOLLM2)},
    "lora": {
        "own": lambda: own(LORA),
        "torch fused": lambda: fused(LORA),
        "torch foreach": lambda: fused(LORA, "foreach"),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report: dict[str, dict[str, float]] = {}
    for work, sides in WORK.items():
        steps = {name: make() for name, make in sides.items()}
        for step in steps.values():
            step()
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(options.turns):
            for name, step in steps.items():
                begin = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - begin)
        medians = {name: median(times) for name, times in seconds.items()}
        report[work] = medians
        parts = (f"{name} {1000 * took:.1f} ms ({took / medians['own']:.2f})" for name, took in medians.items())
        print(f"{work}: " + ", ".join(parts), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": describe_machine(), "seconds": report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
