"""`[engine]`: what samples completions."""

from typing import Annotated, Any, Literal

from pydantic import Field

from towpath.recipe.reader import Section, value


class EngineConfig(Section):
    """Sampling engine."""

    type: str = value(
        "local",
        "local (this process), vllm (in an environment of its own), or an import path of your own engine",
        why="see docs/engines.md",
    )
    settings: dict[str, Any] = value({}, "settings of your own engine", why="see docs/extending.md")
    python: str = value(
        "", "path of the Python of an environment with vLLM; empty for the one that `towpath engine install vllm` made"
    )
    cache: float = value(2.0, "GiB of key-value cache of vLLM, per GPU", "2-40", gt=0)
    exact: bool | Literal["auto"] = value(
        "auto",
        "with vLLM: sample by the same uniform numbers as the local engine; auto: on CPUs, and where a decoding has "
        "top_k, top_p or min_p. Else vLLM's own sampler, seeded per request",
        why="vLLM's own sampler is faster on GPUs",
    )
    tensor_parallel: Annotated[int, Field(ge=1)] | Literal["auto"] = value(
        "auto", "GPUs that one vLLM engine spreads the model over; auto: the fewest that hold it", "1-8"
    )
    sleep: bool = value(
        True,
        "with vLLM on a GPU that trains too: free its cache and move its weights to host memory between rollouts",
        why="otherwise the trainer has less memory",
    )
    transport: Literal["auto", "ipc", "nccl", "shm"] = value(
        "auto", "how weights reach vLLM; auto: the first of ipc (same GPU), nccl, shm (a file in /dev/shm) that works"
    )
    timeout: float = value(
        300.0,
        "seconds that vLLM may be silent before it counts as lost; its start may take four times as long",
        "60-1800",
        "while it samples it reports every second, so only one long step is silent",
        gt=0,
    )
    restarts: int = value(3, "times that a lost vLLM is started again within one rollout", "0-5", ge=0)
    correction: float = value(
        2.0,
        "with vLLM and with policy.staleness: cap of the importance weight trainer / sampler of each token; 0 turns "
        "the correction off",
        "1-5",
        "vLLM's rounding differs from the trainer's, and stale rollouts are of an earlier policy",
        ge=0,
    )
