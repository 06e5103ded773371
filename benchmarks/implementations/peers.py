"""Shared code for other libraries: prescribed answer lengths, counts, and precision."""

import gc
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, TrainerCallback

from benchmarks.workload import EOS, BenchResult, Workload


class Prescribed(LogitsProcessor):
    """Ends row i at its prescribed length; if all lengths are equal, no row ends."""

    def __init__(self, lengths: list[int], forced: bool) -> None:
        self.lengths = torch.tensor(lengths)
        self.forced = forced
        self.started = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.started = self.started or input_ids.shape[1]
        last = (
            torch.zeros(len(scores), dtype=torch.bool)
            if self.forced
            else self.lengths[: len(scores)] == input_ids.shape[1] - self.started + 1
        )
        scores[~last, EOS] = -torch.inf
        scores[last] = -torch.inf
        scores[last, EOS] = 0.0
        return scores


def prescribe(model: Any, workload: Workload) -> None:
    """Make the model's `generate` return answers of prescribed lengths."""
    generate = model.generate

    def prescribed(*arguments: Any, **named: Any) -> Any:
        return generate(
            *arguments,
            **named,
            logits_processor=LogitsProcessorList([Prescribed(workload.answer_lengths(), workload.forced)]),
        )

    model.generate = prescribed


class Counting(TrainerCallback):
    """Counts the tokens without padding in forward passes with gradients, and optimizer steps; times the steps."""

    def __init__(self, model: Any) -> None:
        self.counts: Counter[str] = Counter()
        self.started = self.ended = 0.0
        model.register_forward_pre_hook(self._passed, with_kwargs=True)

    def _passed(self, _module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            mask = named.get("attention_mask")
            tokens = (
                mask
                if mask is not None
                else torch.ones_like(named["input_ids"] if "input_ids" in named else arguments[0])
            )
            self.counts["tokens_optimised"] += int((tokens != 0).sum())

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = self.started or time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.counts["updates"] += 1
        self.ended = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.ended - self.started


def timed(owner: Any, name: str, seconds: dict[str, float], key: str) -> None:
    """Wrap a function so that the seconds of its calls are added up."""
    inner = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return inner(*arguments, **named)
        finally:
            seconds[key] = seconds.get(key, 0.0) + time.perf_counter() - begin

    setattr(owner, name, call)


def main(tasks: dict[str, Callable[[Workload, str, str], BenchResult]], packages: tuple[str, ...]) -> None:
    """Run one workload and write its result."""
    workload = Workload.read(Path(sys.argv[1]))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    if os.environ.get("BENCH_HOW") == "medium":
        torch.set_float32_matmul_precision("medium")
    torch.manual_seed(workload.seed)
    for _ in range(1 + bool(os.environ.get("BENCH_WARM"))):
        gc.collect()
        with tempfile.TemporaryDirectory() as folder:
            result = tasks[workload.task](workload, sys.argv[2], folder)
    result.write(Path(sys.argv[3]), {name: version(name) for name in packages})
