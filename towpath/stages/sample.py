"""Sample stage: completions of training prompts, and comparisons of two completions of a prompt.

In the first round the SFT model is compared with itself and with the base model, in later rounds the last policy with
itself and with SFT.
"""

from itertools import combinations
from pathlib import Path
from typing import Any

from towpath.evals import text_statistics
from towpath.hashing import hash_uniform
from towpath.recipe import Decoding
from towpath.recipe.stage_configs import SampleConfig
from towpath.records import Comparison, Completion, Prompt
from towpath.stages import generation
from towpath.stages.job import Job


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
    completions = _sample_completions(job, source, weights, draws)
    # a model that was tuned elsewhere has no base model here
    base_share = 0.0 if job.round == 1 and job.config.sft.method == "none" else cfg.base_share
    shared = [p for p in prompts if hash_uniform(job.config.seed, f"base/{job.round}", p.id) < base_share]
    draws = [(p, "other", cfg.decodings[i % len(cfg.decodings)]) for i, p in enumerate(shared)]
    other_completions = _sample_completions(job, other_source, other_weights, draws)
    comparisons, dropped = _compare(job, prompts, completions + other_completions, source)
    job.store.add_prompts(prompts)
    job.store.add_completions(completions + other_completions)
    job.store.add_comparisons(comparisons)
    return {
        "completions": len(completions) + len(other_completions),
        "comparisons": len(comparisons),
        "dropped_identical": dropped,
        **text_statistics.text_statistics(completions),
    }


def _suffix(round_: int) -> str:
    return "" if round_ == 1 else f"@{round_}"


def _prompts(job: Job[SampleConfig]) -> list[Prompt]:
    """A random sample of the training prompts, another one in each round."""
    prompts = sorted(job.corpus.train, key=lambda p: hash_uniform(job.config.seed, f"sample/{job.round}", p.id))
    return prompts[: job.config.preferences.prompts or len(prompts)]


def _sample_completions(
    job: Job[SampleConfig], source: str, model: str | Path, draws: list[tuple[Prompt, str, Decoding]]
) -> list[Completion]:
    """Completions of one model; their ids begin with this stage's fingerprint."""
    named_draws = [(p, f"{job.folder.name[:6]}.{name}", decoding) for p, name, decoding in draws]
    limit = job.config.preferences.max_new_tokens
    title = f"{job.name}: {source}"
    return generation.load_or_sample(
        job.folder / f"completions-{source}.jsonl",
        len(draws),
        lambda: generation.sample(job, model, named_draws, source, limit, title),
    )


def _compare(
    job: Job[SampleConfig], prompts: list[Prompt], completions: list[Completion], source: str
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
