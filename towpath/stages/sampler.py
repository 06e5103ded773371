"""The engine that a recipe names, over one model."""

from collections.abc import Callable, Sequence
from typing import Any

from towpath.errors import ResourceError
from towpath.progress import print_note, progress
from towpath.rollout.engine import Drawn, Engine, Request
from towpath.rollout.local import LocalEngine
from towpath.rollout.vllm import VllmEngine
from towpath.runtime.out_of_memory import with_less
from towpath.stages.job import Job


def engine(job: Job, model: Any, new_tokens: int) -> Engine:
    """Draws answers of at most so many tokens."""
    cfg = job.recipe.engine
    if cfg.type == "local":
        return LocalEngine(model, job.chat.stops, job.chat.pad)
    return VllmEngine(
        model,
        job.chat.stops,
        job.folder / "vllm",
        cfg.python,
        job.recipe.data.max_prompt_tokens + new_tokens,
        cfg.cache,
    )


def generate(sampler: Engine, requests: Sequence[Request], title: str, greedy: bool = False) -> list[Drawn]:
    """Answers in the order of the requests, with progress by tokens: rows end when they like, and say little of the
    work left."""
    ended = 0
    with progress(title, sum(len(request.uniforms) for request in requests), "tokens") as work:

        def tick(tokens: int, more_ended: int) -> None:
            nonlocal ended
            ended += more_ended
            work.advance(tokens, f"{ended:,} of {len(requests):,} answers")

        return _in_parts(sampler, requests, greedy, tick)


def _in_parts(
    sampler: Engine, requests: Sequence[Request], greedy: bool, tick: Callable[[int, int], None]
) -> list[Drawn]:
    """Answers, in as many parts as memory asks for: what a row draws does not depend on the rows beside it."""
    rows = len(requests)
    drawn = list[Drawn]()

    def less() -> None:
        nonlocal rows
        if rows < 2:
            fix = "lower max_new_tokens or data.max_prompt_tokens, use a smaller model, or free memory"
            raise ResourceError("out of memory while one answer is drawn", "its keys and values must fit", fix)
        rows = (rows + 1) // 2
        print_note(f"out of memory: answers are drawn {rows} at a time")

    def work() -> list[Drawn]:
        while len(drawn) < len(requests):
            drawn.extend(sampler.generate(requests[len(drawn) : len(drawn) + rows], greedy, tick))
        return drawn

    return with_less(work, less)
