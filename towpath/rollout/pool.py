"""An engine in every worker: completions of one model, divided over workers.

A request is sampled by its own uniform numbers, so that it does not matter which worker samples it.
"""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from towpath.data.chat import Chat
from towpath.recipe import Decoding, EngineConfig
from towpath.rollout.engine import SampleOutput, SampleRequest, Tick, engine_module
from towpath.runtime.group import Group
from towpath.runtime.shares import deal
from towpath.runtime.weight_bridge import WeightBridge

ROWS_AT_ONCE = 256
"""Requests that a worker gets at a time, so that one whose answers end early can take over from another."""


class Pool:
    """The engines of a group's workers as one engine."""

    def __init__(self, group: Group, section: EngineConfig, chat: Chat, folder: Path, max_tokens: int) -> None:
        self._bridge = WeightBridge(group, group.samplers) if group.samplers else None
        self.is_apart = self._bridge is not None
        """Whether its workers only sample, so that others can train at the same time."""
        self.group = group = group.samplers or group
        self.version = 0
        group.run_everywhere(f"{__name__}:open_here", section=section, chat=chat, folder=folder, max_tokens=max_tokens)

    def publish(self, role: str) -> int:
        """Give every engine the role's weights; where its worker does not train they are sent there first."""
        if self._bridge is not None:
            self._bridge.send(role)
        versions = self.group.run_everywhere(f"{__name__}:publish_here", role=role)
        assert len(set(versions)) == 1
        self.version = versions[0]
        return self.version

    def refresh(self, model: Any, version: int = 0) -> None:
        """Weights come from the workers themselves, by `publish`."""
        raise NotImplementedError

    def generate(
        self, requests: Sequence[SampleRequest], greedy: bool = False, tick: Tick | None = None
    ) -> list[SampleOutput]:
        """Completions in the order of the requests."""
        parts = _parts(requests, self.group.workers.count)
        arguments = [{"greedy": greedy, **_pack([requests[i] for i in part])} for part in parts]
        ended = 0

        def count(units: int) -> None:
            # a worker's progress has one number: units below, completions above
            if tick:
                tick(units % COMPLETION, units // COMPLETION)

        outputs: list[SampleOutput | None] = [None] * len(requests)
        for part, packed in zip(parts, self.group.run(f"{__name__}:generate_here", arguments, count), strict=True):
            for index, output in zip(part, _unpack_outputs(packed), strict=True):
                outputs[index] = output
                ended += 1
        assert ended == len(requests)
        return [output for output in outputs if output is not None]


COMPLETION = 1 << 40


def _parts(requests: Sequence[SampleRequest], workers: int) -> list[list[int]]:
    """Requests in parts of about equal cost, one for each worker or several where there are many; those of one prompt
    stay together where that divides as well."""
    rounds = max(1, round(len(requests) / (ROWS_AT_ONCE * workers)))
    costs = np.array([len(request.prompt) + len(request.uniforms) for request in requests], float)
    prompts: dict[tuple[int, ...], int] = {}
    bundle = np.array([prompts.setdefault(tuple(request.prompt), len(prompts)) for request in requests])
    count = min(rounds * workers, len(requests))
    together = deal(np.bincount(bundle, costs), count)[bundle]
    apart = deal(costs, count)
    longest = [np.bincount(part, costs, count).max() for part in (together, apart)]
    part_of = together if longest[0] <= 1.1 * longest[1] else apart
    return [part for number in range(count) if (part := np.flatnonzero(part_of == number).tolist())]


def _pack(requests: Sequence[SampleRequest]) -> dict[str, Any]:
    """Requests as few arrays."""
    return {
        "prompts": np.concatenate([np.asarray(request.prompt, np.int64) for request in requests]),
        "prompt_lengths": np.array([len(request.prompt) for request in requests]),
        "uniforms": np.concatenate([request.uniforms for request in requests]),
        "uniform_lengths": np.array([len(request.uniforms) for request in requests]),
        "decodings": [request.decoding for request in requests],
    }


def _split(values: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return np.split(values, np.cumsum(lengths)[:-1])


def _pack_outputs(outputs: Sequence[SampleOutput]) -> dict[str, Any]:
    return {
        "tokens": np.concatenate([np.asarray(output.token_ids, np.int64) for output in outputs]),
        "logprobs": np.concatenate([np.asarray(output.logprobs, np.float64) for output in outputs]),
        "lengths": np.array([len(output.token_ids) for output in outputs]),
        "finish": [output.finish for output in outputs],
    }


def _unpack_outputs(packed: dict[str, Any]) -> list[SampleOutput]:
    tokens = _split(packed["tokens"], packed["lengths"])
    logprobs = _split(packed["logprobs"], packed["lengths"])
    return [
        SampleOutput(ids.tolist(), logp.tolist(), finish)
        for ids, logp, finish in zip(tokens, logprobs, packed["finish"], strict=True)
    ]


# In a worker


def open_here(
    runtime: Any, count: Callable[[int], None], section: EngineConfig, chat: Chat, folder: Path, max_tokens: int
) -> None:
    """Open this worker's engine."""
    rank = runtime.rank
    module = importlib.import_module(engine_module(section.type))
    runtime.engine = module.open_engine(section, chat, folder / f"engine-{rank + 1}" if rank else folder, max_tokens)


def publish_here(runtime: Any, count: Callable[[int], None], role: str) -> int:
    """Give this worker's engine a role's weights."""
    return runtime.publish(role, runtime.engine)


def generate_here(
    runtime: Any,
    count: Callable[[int], None],
    greedy: bool,
    prompts: np.ndarray,
    prompt_lengths: np.ndarray,
    uniforms: np.ndarray,
    uniform_lengths: np.ndarray,
    decodings: Sequence[Decoding],
) -> dict[str, Any]:
    """Sample with this worker's engine."""
    requests = [
        SampleRequest(prompt.tolist(), decoding, draws)
        for prompt, decoding, draws in zip(
            _split(prompts, prompt_lengths), decodings, _split(uniforms, uniform_lengths), strict=True
        )
    ]
    outputs = runtime.engine.generate(requests, greedy, lambda units, ended: count(units + ended * COMPLETION))
    runtime.usage.sampled_tokens += sum(len(output.token_ids) for output in outputs)
    return _pack_outputs(outputs)
