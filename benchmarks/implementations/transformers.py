"""Generation by transformers: its `generate`, eager, `@compiled` (static cache, compiled step), or `@continuous`
(its continuous batching).

python -m benchmarks.implementations.transformers WORKLOAD MODEL OUT

"""

import os
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.implementations import peers
from benchmarks.workload import EOS, PAD, BenchResult, Workload


def generate(workload: Workload, model: str, folder: str) -> BenchResult:
    """All prompts in one batch; the best of two calls after a warm-up."""
    how = os.environ.get("BENCH_HOW")
    longest = workload.new_tokens[1]
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, workload.precision)).eval()
    rows = workload.prompt_ids(policy.config.vocab_size)
    call = continuous(policy, longest) if how == "continuous" else batched(policy, longest, how == "compiled")
    call(rows if how == "compiled" else rows[:4])  # compilation is per shape
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        answers = call(rows)
        seconds.append(time.perf_counter() - begin)
    return BenchResult({"generate": min(seconds)}, {"answers": len(answers), "answer_tokens": sum(map(len, answers))})


def batched(policy: Any, longest: int, compiled: bool) -> Any:
    """`generate` on equal prompts."""
    settings = {
        "max_new_tokens": longest,
        "min_new_tokens": longest,
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "pad_token_id": PAD,
    }
    settings |= {"cache_implementation": "static"} if compiled else {}
    if compiled:
        policy.forward = torch.compile(policy.forward)  # transformers itself compiles on GPUs alone

    @torch.inference_mode()
    def call(rows: list[list[int]]) -> list[Any]:
        ids = torch.tensor(rows)
        return list(policy.generate(ids, **settings)[:, ids.shape[1] :])

    return call


def continuous(policy: Any, longest: int) -> Any:
    """`generate_batch`: paged attention with continuous batching."""
    config = GenerationConfig(
        max_new_tokens=longest,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        eos_token_id=-1,
        pad_token_id=PAD,
        bos_token_id=EOS,
    )

    def call(rows: list[list[int]]) -> list[Any]:
        return [
            output.generated_tokens
            for output in policy.generate_batch(inputs=rows, generation_config=config, progress_bar=False).values()
        ]

    return call


if __name__ == "__main__":
    peers.main({"generate": generate}, ("torch", "transformers"))
