"""The engine that a recipe names, over one model."""

from collections.abc import Sequence
from typing import Any

from towpath.progress import progress
from towpath.rollout.engine import Drawn, Engine, Request
from towpath.rollout.local import LocalEngine
from towpath.rollout.vllm import VllmEngine
from towpath.stages.job import Job


def engine(job: Job, model: Any, new_tokens: int) -> Engine:
    """Draws answers of at most so many tokens."""
    cfg = job.recipe.engine
    if cfg.of == "local":
        return LocalEngine(model, job.chat.stops, job.chat.pad)
    return VllmEngine(model, job.chat.stops, job.folder / "vllm", cfg.python, job.recipe.data.max_prompt_tokens + new_tokens, cfg.cache)


def generate(sampler: Engine, requests: Sequence[Request], title: str, greedy: bool = False) -> list[Drawn]:
    """Answers in the order of the requests, with progress by tokens: rows end when they like, and say little of the work left."""
    ended = 0
    with progress(title, sum(len(request.uniforms) for request in requests), "tokens") as work:

        def tick(tokens: int, more_ended: int) -> None:
            nonlocal ended
            ended += more_ended
            work.advance(tokens, f"{ended:,} of {len(requests):,} answers")

        return sampler.generate(requests, greedy, tick)
