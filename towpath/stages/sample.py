"""Sample stage: completions of training prompts, and comparisons of two completions of a prompt.

In the first round the SFT model is compared with itself and with the base model, in later rounds the last policy with
itself and with SFT.
"""

from collections.abc import Collection, Sequence
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from towpath.evals import text_statistics
from towpath.hashing import hash_uniform
from towpath.progress import progress
from towpath.recipe import Decoding
from towpath.recipe.stage_configs import SampleConfig
from towpath.records import Comparison, Completion, Prompt
from towpath.stages import generation
from towpath.stages.job import Job

PROMPTS_AT_ONCE = 500
"""Prompts whose completions are compared and stored in one transaction."""
MAX_MEASURED = 2048
"""Completions that statistics are measured on: distinct n-grams of all would not fit into memory."""


def run(job: Job[SampleConfig]) -> dict[str, Any]:
    """Sample completions, drop near-identical pairs, and add completions and comparisons to the ledger."""
    cfg = job.config.preferences
    prompts = _prompts(job)
    sft_weights = job.inputs["sft"] / "weights"
    if job.round == 1:
        source = "sft"
        weights = sft_weights
        other_source = "base"
        other_weights = job.base_model
    else:
        source = f"policy@{job.round - 1}"
        weights = job.inputs[f"policy{_suffix(job.round - 1)}"] / "weights"
        other_source = "sft"
        other_weights = sft_weights
    draws = [
        (p, f"{number}", cfg.decodings[(index + number) % len(cfg.decodings)])
        for index, p in enumerate(prompts)
        for number in range(cfg.completions)
    ]
    own = _sample_completions(job, source, weights, draws)
    # a model that was tuned elsewhere has no base model here
    base_share = 0.0 if job.round == 1 and job.config.sft.method == "none" else cfg.base_share
    shared = [p for p in prompts if hash_uniform(job.config.seed, f"base/{job.round}", p.id) < base_share]
    draws = [(p, "other", cfg.decodings[i % len(cfg.decodings)]) for i, p in enumerate(shared)]
    others = _sample_completions(job, other_source, other_weights, draws)
    counts = _store_comparisons(job, prompts, {p.id for p in shared}, own, others, source)
    some = list(islice(generation.iterate_completions(own), MAX_MEASURED))
    return counts | text_statistics.text_statistics(some)


def _store_comparisons(
    job: Job[SampleConfig], prompts: Sequence[Prompt], shared: Collection[str], own: Path, others: Path, source: str
) -> dict[str, int]:
    """Add prompts, completions and comparisons to the ledger, a block of prompts at a time; both files are in the
    order of the prompts."""
    own_rows = generation.iterate_completions(own)
    other_rows = generation.iterate_completions(others)
    counts = {"completions": 0, "comparisons": 0, "dropped_identical": 0}
    with progress(f"{job.name}: comparisons", len(prompts), "prompts") as work:
        for begin in range(0, len(prompts), PROMPTS_AT_ONCE):
            block = prompts[begin : begin + PROMPTS_AT_ONCE]
            completions = list(islice(own_rows, len(block) * job.config.preferences.completions))
            completions += islice(other_rows, sum(p.id in shared for p in block))
            comparisons, dropped = _compare(job, block, completions, source)
            with job.store.transaction():
                job.store.add_prompts(block)
                job.store.add_completions(completions)
                job.store.add_comparisons(comparisons)
            counts["completions"] += len(completions)
            counts["comparisons"] += len(comparisons)
            counts["dropped_identical"] += dropped
            work.advance(len(block))
    return counts


def _suffix(round_: int) -> str:
    return "" if round_ == 1 else f"@{round_}"


def _prompts(job: Job[SampleConfig]) -> list[Prompt]:
    """A random sample of the training prompts, another one in each round."""
    prompts = sorted(job.corpus.train, key=lambda p: hash_uniform(job.config.seed, f"sample/{job.round}", p.id))
    return prompts[: job.config.preferences.prompts or len(prompts)]


def _sample_completions(
    job: Job[SampleConfig], source: str, model: str | Path, draws: list[tuple[Prompt, str, Decoding]]
) -> Path:
    """The file with completions of one model; their ids begin with this stage's fingerprint."""
    named_draws = [(p, f"{job.folder.name[:6]}.{name}", decoding) for p, name, decoding in draws]
    limit = job.config.preferences.max_new_tokens
    path = job.folder / f"completions-{source}.jsonl"
    generation.sample_to_file(job, path, model, named_draws, source, limit, f"{job.name}: {source}")
    return path


def _compare(
    job: Job[SampleConfig], prompts: Sequence[Prompt], completions: Sequence[Completion], source: str
) -> tuple[list[Comparison], int]:
    """Comparisons of every two completions of `source`, and of its first one with each of the other model; returns the
    number of near-identical pairs, which are dropped, too."""
    by_prompt: dict[str, list[Completion]] = {}
    for completion in completions:
        by_prompt.setdefault(completion.prompt_id, []).append(completion)
    comparisons = []
    dropped = 0
    for p in prompts:
        own = [c for c in by_prompt[p.id] if c.source == source]
        others = [c for c in by_prompt[p.id] if c.source != source]
        pairs = [*combinations(own, 2), *((own[0], c) for c in others)]
        for number, (a, b) in enumerate(pairs):
            if _near_identical(a, b):
                dropped += 1
                continue
            if hash_uniform(job.config.seed, "side", f"{a.id}{b.id}") < 0.5:
                a, b = b, a
            comparisons.append(Comparison(f"{job.folder.name[:6]}.{p.id}.{number}", p.id, a.id, b.id, job.round))
    return comparisons, dropped


def _near_identical(a: Completion, b: Completion) -> bool:
    """Whether two completions share more than 90 % of their words."""
    one = set(a.text.lower().split())
    two = set(b.text.lower().split())
    return not (one | two) or len(one & two) / len(one | two) > 0.9
