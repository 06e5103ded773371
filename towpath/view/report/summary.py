"""Parts of the report for a terminal: gates as a table, sample answers side by side."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from towpath.view.format import NONE, duration, percent, percents

MODELS = (("base", "base"), ("sft", "SFT"), ("policy", "policy"))
MAX_WIDTH = 160
MIN_COLUMN = 24
ROW = "  {:<12} {:>12}  {:<10} {:<10} {:>9} {:>13}  {}"


def gate_table(stages: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A line for each stage with its gate, and one for each second gate."""
    yield ROW.format("stage", "time", "gate", "verdict", "value", "interval", "threshold, judge")
    for name, stage in stages.items():
        cells = _gate_cells(name.partition("@")[0], stage.get("gate"), "more than")
        yield ROW.format(name, duration(stage["seconds"]), *cells).rstrip()
        if stage.get("people"):
            yield ROW.format("", "", *_gate_cells("people", stage["people"], "more than")).rstrip()
        if stage.get("accuracy"):
            yield ROW.format("", "", *_gate_cells("accuracy", stage["accuracy"], "more than")).rstrip()
        if stage.get("safety"):
            yield ROW.format("", "", *_gate_cells("safety", stage["safety"], "at most")).rstrip()


def _gate_cells(name: str, gate: Mapping[str, Any] | None, bound: str) -> tuple[str, ...]:
    if not gate:
        return ("",) * 5
    if gate["value"] is None:
        return name, gate["verdict"], NONE, NONE, gate["note"]
    threshold = f"{bound} {percent(gate['threshold'])} of {gate['n']}"
    if gate.get("judge"):
        threshold += f", {gate['judge']}"
    return name, gate["verdict"], percent(gate["value"], 1), percents(gate["interval"]), threshold


def answer_columns(samples: Sequence[Mapping[str, Any]], width: int) -> Iterator[str]:
    """Each prompt with the answers of base, SFT and policy in columns, or one below the other on a narrow terminal."""
    column = (min(width, MAX_WIDTH) - 4) // 3
    for sample in samples:
        models = [(key, name) for key, name in MODELS if key in sample]
        yield from textwrap.wrap(sample["prompt"], width, initial_indent="> ", subsequent_indent="  ")
        if column < MIN_COLUMN:
            for key, name in models:
                yield from textwrap.wrap(f"{name}: {sample[key]}", width, subsequent_indent="  ")
        else:
            cells = [[name, "-" * len(name), *_wrapped(sample[key], column)] for key, name in models]
            for line in zip_longest(*cells, fillvalue=""):
                yield "  ".join(f"{cell:<{column}}" for cell in line).rstrip()
        yield ""


def _wrapped(text: str, width: int) -> list[str]:
    return [line for paragraph in text.strip().splitlines() for line in textwrap.wrap(paragraph, width)]
