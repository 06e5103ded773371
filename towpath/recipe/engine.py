"""`[engine]`: what samples completions."""

from typing import Any

from towpath.recipe.reader import Section, value


class EngineConfig(Section):
    """Sampling engine."""

    type: str = value(
        "local",
        "local (this process), vllm (in an environment of its own), or an import path of your own engine",
        why="see docs/engines.md",
    )
    settings: dict[str, Any] = value({}, "settings of your own engine", why="see docs/extending.md")
    python: str = value("", "path of the Python of the environment that has vLLM")
    cache: float = value(2.0, "GiB of key-value cache of vLLM", "2-40", gt=0)
    correction: float = value(
        2.0,
        "with vLLM: cap of the importance weight trainer / sampler of each token; 0 turns the correction off",
        "1-5",
        "vLLM's rounding differs from the trainer's",
        ge=0,
    )
