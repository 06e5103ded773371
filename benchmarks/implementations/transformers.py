"""Generation by transformers' own `generate`, eager or with a static cache and a compiled step (`options.transformers.compiled`).

python -m benchmarks.implementations.transformers WORKLOAD MODEL OUT
"""

import time

import torch
from transformers import AutoModelForCausalLM

from benchmarks.implementations import peers
from benchmarks.workload import PAD, Told, Workload


@torch.inference_mode()
def generate(workload: Workload, model: str, folder: str) -> Told:
    """All prompts in one batch; the best of two calls, the first warms up."""
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, workload.precision)).eval()
    ids = torch.tensor(workload.prompt_ids(policy.config.vocab_size))
    how = {
        "max_new_tokens": workload.new_tokens[1],
        "min_new_tokens": workload.new_tokens[1],
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "pad_token_id": PAD,
    }
    if workload.options.get("transformers", {}).get("compiled"):
        how["cache_implementation"] = "static"
    policy.generate(ids[:4], **how)
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        found = policy.generate(ids, **how)
        seconds.append(time.perf_counter() - begin)
    return Told({"generate": min(seconds)}, {"answers": len(found), "answer_tokens": (found.shape[1] - ids.shape[1]) * len(found)})


if __name__ == "__main__":
    peers.main({"generate": generate}, ("torch", "transformers"))
