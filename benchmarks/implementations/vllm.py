"""Generation by vLLM with the log-probability of every token, as needed for training.

python -m benchmarks.implementations.vllm WORKLOAD MODEL OUT
"""

import os
import time
from importlib.metadata import packages_distributions

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}

import torch
from vllm import LLM, SamplingParams, TokensPrompt

from benchmarks.implementations import peers
from benchmarks.workload import BenchResult, Workload


def generate(workload: Workload, model: str, folder: str) -> BenchResult:
    """All prompts at once; the best of two calls after a warm-up."""
    longest = workload.new_tokens[1]
    llm = LLM(
        model,
        dtype=workload.precision,
        skip_tokenizer_init=True,
        max_model_len=workload.prompt_tokens + longest,
        max_num_seqs=workload.prompts,
        kv_cache_memory_bytes=2 << 30,
        enforce_eager=not torch.cuda.is_available(),
        enable_prefix_caching=False,
    )
    how = SamplingParams(
        temperature=1.0, max_tokens=longest, min_tokens=longest, ignore_eos=True, logprobs=0, detokenize=False
    )
    rows = [TokensPrompt(prompt_token_ids=ids) for ids in workload.prompt_ids(llm.model_config.get_vocab_size())]
    llm.generate(rows[:4], how, use_tqdm=False)
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        outputs = llm.generate(rows, how, use_tqdm=False)
        seconds.append(time.perf_counter() - begin)
    tokens = sum(len(one.outputs[0].token_ids) for one in outputs)
    logp = sum(next(iter(one.outputs[0].logprobs[0].values())).logprob for one in outputs) / len(outputs)
    return BenchResult(
        {"generate": min(seconds)}, {"answers": len(outputs), "answer_tokens": tokens}, {"first_token_logp": logp}
    )


if __name__ == "__main__":
    peers.main({"generate": generate}, (packages_distributions()["vllm"][0], "torch", "transformers"))
