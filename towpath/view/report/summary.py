"""A run in a terminal: stages and gates as a table, answers side by side."""

import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

from towpath.view.format import duration, percent, percents

MODELS = (("base", "base"), ("sft", "SFT"), ("policy", "policy"))


def table(stages: Sequence[tuple[str, Any, Any, Any]]) -> Iterator[str]:
    """A line a stage and gate: (name, seconds, gate, gate of safety)."""
    row = "  {:<12} {:>12}  {:<10} {:<10} {:>9} {:>13}  {}".format
    yield row("stage", "took", "gate", "verdict", "value", "interval", "asked").rstrip()
    for name, seconds, gate, safety in stages:
        yield row(name, duration(seconds), *_gate(name.split("@")[0], gate, "more than")).rstrip()
        if safety:
            yield row("", "", *_gate("safety", safety, "at most")).rstrip()


def _gate(name: str, told: Any, must: str) -> tuple[str, ...]:
    if not told:
        return ("",) * 5
    if told["value"] is None:
        return name, told["verdict"], "–", "–", told["note"]
    asked = f"{must} {percent(told['threshold'])} of {told['n']}"
    return name, told["verdict"], percent(told["value"], 1), percents(told["interval"]), asked


def side_by_side(samples: Sequence[dict[str, Any]], width: int) -> Iterator[str]:
    """Each prompt with the answers of base, SFT and policy in columns; one below the other where the terminal is
    narrow."""
    column = (min(width, 160) - 4) // 3
    for sample in samples:
        yield from textwrap.wrap(f"{sample['prompt']}", width, initial_indent="> ", subsequent_indent="  ")
        if column < 24:
            for key, name in MODELS:
                yield from textwrap.wrap(f"{name}: {sample[key]}", width, subsequent_indent="  ")
        else:
            cells = [[name, "-" * len(name), *_wrapped(sample[key], column)] for key, name in MODELS]
            yield from (
                "  ".join(f"{cell:<{column}}" for cell in line).rstrip() for line in zip_longest(*cells, fillvalue="")
            )
        yield ""


def _wrapped(text: str, width: int) -> list[str]:
    return [line for paragraph in text.strip().splitlines() for line in textwrap.wrap(paragraph, width)]
