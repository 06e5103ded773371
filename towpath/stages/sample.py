"""Completions to compare: two or more a prompt, from the tuned model, some from the base or the policy of the last
round."""

from typing import Any

from towpath.evals import text_statistics
from towpath.hashing import hash_uniform
from towpath.recipe.stage_configs import SampleConfig
from towpath.records import Comparison, Completion, Prompt
from towpath.stages import generation
from towpath.stages.job import Job


def run(job: Job[SampleConfig]) -> dict[str, Any]:
    """Draw, drop near-identical pairs, and put completions and comparisons into the ledger."""
    cfg = job.config.preferences
    seed = job.config.seed
    prompts = _prompts(job)
    own = "sft" if job.round == 1 else f"policy@{job.round - 1}"
    weights = job.inputs["sft"] / "weights" if job.round == 1 else job.inputs[f"policy{_at(job.round - 1)}"] / "weights"
    wanted = []
    for index, p in enumerate(prompts):
        for number in range(cfg.completions):
            how = cfg.decodings[(index + number) % len(cfg.decodings)]
            wanted.append((p, f"{number}", how))
    own_completions = _sample_completions(job, own, weights, wanted)
    other, folder = ("base", None) if job.round == 1 else ("sft", job.inputs["sft"] / "weights")
    some = [p for p in prompts if hash_uniform(seed, f"base/{job.round}", p.id) < cfg.base_share]
    foreign = _sample_completions(
        job, other, folder, [(p, "other", cfg.decodings[i % len(cfg.decodings)]) for i, p in enumerate(some)]
    )
    pairs, dropped = _pairs(job, prompts, own_completions + foreign, own)
    job.store.add_prompts(prompts)
    job.store.add_completions(own_completions + foreign)
    job.store.add_comparisons(pairs)
    figures = text_statistics.text_statistics(own_completions)
    return {
        "completions": len(own_completions) + len(foreign),
        "comparisons": len(pairs),
        "dropped_identical": dropped,
        **figures,
    }


def _at(round_: int) -> str:
    return "" if round_ == 1 else f"@{round_}"


def _prompts(job: Job[SampleConfig]) -> list[Prompt]:
    prompts = sorted(job.corpus.train, key=lambda p: hash_uniform(job.config.seed, f"sample/{job.round}", p.id))
    return prompts[: job.config.preferences.prompts or len(prompts)]


def _sample_completions(job: Job[SampleConfig], source: str, weights: Any, wanted: list[Any]) -> list[Completion]:
    """Completions of one model, kept on disk as soon as they are drawn, under ids that name this stage's
    fingerprint."""
    path = job.folder / f"completions-{source}.jsonl"
    completions = generation.read(path)
    if len(completions) != len(wanted):
        named = [(p, f"{job.folder.name[:6]}.{name}", how) for p, name, how in wanted]
        completions = generation.sample(
            job,
            weights or job.base_model,
            named,
            source,
            job.config.preferences.max_new_tokens,
            f"{job.name}: {source}",
        )
        generation.write(path, completions)
    return completions


def _pairs(
    job: Job[SampleConfig], prompts: list[Prompt], completions: list[Completion], own: str
) -> tuple[list[Comparison], int]:
    """Neighbouring completions of a prompt, and one of the other model against the first; near-identical ones
    dropped."""
    by_prompt: dict[str, list[Completion]] = {}
    for completion in completions:
        by_prompt.setdefault(completion.prompt_id, []).append(completion)
    pairs = []
    dropped = 0
    for p in prompts:
        mine = [c for c in by_prompt[p.id] if c.source == own]
        others = [c for c in by_prompt[p.id] if c.source != own]
        couples = [(mine[i], mine[j]) for i in range(len(mine)) for j in range(i + 1, len(mine))] + [
            (mine[0], c) for c in others
        ]
        for number, (a, b) in enumerate(couples):
            if _near_identical(a, b):
                dropped += 1
                continue
            if hash_uniform(job.config.seed, "side", f"{a.id}{b.id}") < 0.5:
                a, b = b, a
            pairs.append(Comparison(f"{job.folder.name[:6]}.{p.id}.{number}", p.id, a.id, b.id, job.round))
    return pairs, dropped


def _near_identical(a: Completion, b: Completion) -> bool:
    one = set(a.text.lower().split())
    two = set(b.text.lower().split())
    return not (one | two) or len(one & two) / len(one | two) > 0.9
