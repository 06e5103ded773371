"""Completions of one engine, with progress, in as many parts as memory asks for."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from towpath.data.chat import Chat
from towpath.errors import ResourceError
from towpath.progress import print_note, progress
from towpath.recipe import EngineConfig
from towpath.rollout.engine import Engine, SampleOutput, SampleRequest, engine_module
from towpath.rollout.pool import Pool
from towpath.runtime.contract import Runtime
from towpath.runtime.group import Group
from towpath.runtime.out_of_memory import with_less


def load_engine(runtime: Runtime, section: EngineConfig, chat: Chat, folder: Path, max_tokens: int) -> Engine:
    """The engine that a recipe names, in this process or in each worker of the runtime, for rows of at most so many
    tokens; weights come by `Runtime.publish`."""
    if isinstance(runtime, Group):
        return Pool(runtime, section, chat, folder, max_tokens)
    return importlib.import_module(engine_module(section.type)).open_engine(section, chat, folder, max_tokens)


def generate(engine: Engine, requests: Sequence[SampleRequest], title: str, greedy: bool = False) -> list[SampleOutput]:
    """Completions in the order of the requests. Progress counts tokens: rows end at different lengths."""
    ended = 0
    with progress(title, sum(request.cost for request in requests), "tokens") as work:

        def tick(units: int, more_ended: int) -> None:
            nonlocal ended
            ended += more_ended
            work.advance(units, f"{ended:,} of {len(requests):,} answers")

        return in_parts(engine, requests, greedy, tick)


def in_parts(
    engine: Engine, requests: Sequence[SampleRequest], greedy: bool, tick: Callable[[int, int], None]
) -> list[SampleOutput]:
    """Completions, fewer rows at a time once memory runs out: what a row samples does not depend on other rows."""
    rows = len(requests)
    outputs = list[SampleOutput]()

    def less() -> None:
        nonlocal rows
        if rows < 2:
            fix = "lower max_new_tokens or data.max_prompt_tokens, use a smaller model, or free memory"
            raise ResourceError("out of memory while one answer is sampled", "its keys and values must fit", fix)
        rows = (rows + 1) // 2
        print_note(f"out of memory: answers are sampled {rows} at a time")

    def work() -> list[SampleOutput]:
        while len(outputs) < len(requests):
            outputs.extend(engine.generate(requests[len(outputs) : len(outputs) + rows], greedy, tick))
        return outputs

    return with_less(work, less)
