"""`[engine]`: what samples completions."""

from typing import Literal

from towpath.recipe.reader import Section, value


class Engine(Section):
    """Sampling engine."""

    type: Literal["local", "vllm"] = value(
        "local", "engine: this process, or vLLM in an environment of its own", why="see docs/engines.md"
    )
    python: str = value("", "path of the Python of the environment that has vLLM")
    cache: float = value(2.0, "GiB of key-value cache of vLLM", "2-40", gt=0)
    correction: float = value(
        2.0,
        "with vLLM: cap of the importance weight trainer / sampler of each token; 0 turns the correction off",
        "1-5",
        "vLLM rounds otherwise than the trainer",
        ge=0,
    )
