"""The engine that a recipe names, over one model."""

from typing import Any

from towpath.rollout.engine import Engine
from towpath.rollout.local import LocalEngine
from towpath.rollout.vllm import VllmEngine
from towpath.stages.job import Job


def engine(job: Job, model: Any, new_tokens: int) -> Engine:
    """Draws answers of at most so many tokens."""
    cfg = job.recipe.engine
    if cfg.of == "local":
        return LocalEngine(model, job.chat.stops, job.chat.pad)
    return VllmEngine(model, job.chat.stops, job.folder / "vllm", cfg.python, job.recipe.data.max_prompt_tokens + new_tokens, cfg.cache)
