"""The plan of a run for a terminal: a table of its stages, the critical path, the total, and what would be cheaper."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from towpath.planning.amounts import Amount, span, spans
from towpath.planning.memory import memory_parts
from towpath.planning.run_plan import Change, RunPlan, StagePlan
from towpath.planning.sizes import gigabytes

BAR = 40
"""Characters of the whole critical path."""
FILLS = {"people": "█", "judge": "▓", "computation": "░"}
HEAD = "  {:<12}{:>28}{:>10}{:>10}{:>10}{:>11}   {}"


def hours(amount: Amount) -> str:
    """Likely hours of people."""
    if not amount.high:
        return "–"
    return f"{amount.likely:,.0f} h" if amount.likely >= 100 else f"{amount.likely:,.1f} h"


def dollars(amount: Amount) -> str:
    """Likely dollars."""
    if not amount.high:
        return "–"
    return f"${amount.likely:,.0f}" if amount.likely >= 100 else f"${amount.likely:,.2f}"


def plan_lines(plan: RunPlan, changes: Sequence[Change]) -> list[str]:
    """The whole plan."""
    source = plan.computation.source
    lines = [f"plan on {plan.machine} (time of computation: {source})"]
    lines.append(HEAD.format("stage", "time (low to high)", "people", "memory", "disk", "dollars", "per step").rstrip())
    lines += [_row(stage) for stage in plan.stages]
    people = hours(plan.people)
    largest = plan.largest
    memory = gigabytes(largest.memory.total) if largest and largest.memory else "–"
    disk = gigabytes(round(plan.disk.likely)) if plan.disk.high else "–"
    lines.append(HEAD.format("all", spans(plan.seconds), people, memory, disk, dollars(plan.dollars), "").rstrip())
    lines += [*_memory_lines(plan), *_path_lines(plan), *_total_lines(plan)]
    if changes:
        lines.append("cheapest changes:")
        lines += [f"  {number}. {change_line(change)}" for number, change in enumerate(changes, 1)]
    return [*lines, *(f"note: {note}" for note in plan.notes)]


def _row(stage: StagePlan) -> str:
    people = hours(stage.people)
    memory = gigabytes(stage.memory.total) if stage.memory else "–"
    disk = gigabytes(round(stage.disk.likely)) if stage.disk.high else "–"
    step = f"{stage.per_step:.3g} s" if stage.per_step is not None else ""
    return HEAD.format(stage.stage, spans(stage.seconds), people, memory, disk, dollars(stage.dollars), step).rstrip()


def _memory_lines(plan: RunPlan) -> Iterator[str]:
    largest = plan.largest
    if largest and largest.memory:
        available = f" of {gigabytes(plan.device_memory)}" if plan.device_memory else ""
        each = f", for each of {plan.device_share} workers" if plan.device_share > 1 else ""
        yield f"most memory, {largest.stage}: {gigabytes(largest.memory.total)}{available}{each}"
        yield f"  {memory_parts(largest.memory)}"
    for stage in plan.too_large:
        if stage.memory:
            yield f"it does not fit: {stage.stage} takes {gigabytes(stage.memory.total)}; {advice(plan, stage)}"


def advice(plan: RunPlan, stage: StagePlan) -> str:
    """What to change where a stage does not fit."""
    memory = stage.memory
    assert memory
    ways = []
    if memory.optimizer > memory.weights / 4:
        ways.append(f"{stage.stage}.method = 'lora'")
    if memory.activations and memory.activations > memory.total / 4:
        ways.append(f"model.tokens_per_pass = {max(256, memory.tokens_per_pass // 4)}")
    if memory.cache > memory.total / 4:
        ways.append("fewer rows at once (engine), or shorter answers")
    ways.append(
        "more or larger GPUs (cluster.shard divides models over them), model.quantize = '4bit', or a smaller model"
    )
    return "change " + ", or ".join(ways)


def _path_lines(plan: RunPlan) -> Iterator[str]:
    """A bar for each part of the critical path."""
    bars = list(plan.bars())
    if not bars:
        return
    whole = bars[-1].end
    yield "critical path:"
    for one in bars:
        begin = round(BAR * one.start / whole)
        width = max(1, round(BAR * one.end / whole) - begin)
        line = " " * min(begin, BAR - 1) + FILLS[one.who] * width
        yield f"  {one.stage:<12}{line:<{BAR + 2}}{span(one.end - one.start)}, {one.who}"


def _total_lines(plan: RunPlan) -> Iterator[str]:
    words = [f"{span(plan.seconds.likely)} ({span(plan.seconds.low)} to {span(plan.seconds.high)})"]
    if plan.dollars.high:
        low, likely, high = (f"${getattr(plan.dollars, name):,.0f}" for name in ("low", "likely", "high"))
        words.append(f"{likely} ({low} to {high})")
    yield f"total: {', '.join(words)}"
    most = plan.most_time()
    if most:
        yield f"most time: {most.who} in {most.stage}, {span(most.amount)}, {most.share:.0%} of all"
    money = plan.most_dollars()
    if money:
        yield f"most dollars: {money.who} in {money.stage}, ${money.amount:,.0f}, {money.share:.0%} of all"


def change_line(change: Change) -> str:
    """`a judge for 65 % of the pairs: −31 days, −$9,400; expected label error 4.1% → 5.0%`."""
    effects = []
    if abs(change.seconds) >= 1:
        effects.append(f"{'−' if change.seconds < 0 else '+'}{span(abs(change.seconds))}")
    if abs(change.dollars) >= 0.5:
        effects.append(f"{'−' if change.dollars < 0 else '+'}${abs(change.dollars):,.0f}")
    return f"{change.title}: {', '.join(effects)}; {change.consequence}"


def plan_content(plan: RunPlan, changes: Sequence[Change]) -> dict[str, Any]:
    """The plan for scripts: each amount has low, likely, high, the source and its basis."""
    stages = []
    for stage in plan.stages:
        row = asdict(stage) | {"seconds": asdict(stage.seconds), "dollars": asdict(stage.dollars)}
        if stage.memory:
            row["memory"] = asdict(stage.memory) | {"total": stage.memory.total, "source": stage.memory.source}
        stages.append(row)
    totals = {name: asdict(getattr(plan, name)) for name in ("seconds", "computation", "people", "dollars", "disk")}
    return {
        "machine": plan.machine,
        "device_memory": plan.device_memory,
        "device_share": plan.device_share,
        "parts": plan.parts,
        "fits": not plan.too_large,
        "stages": stages,
        "total": totals,
        "critical_path": [asdict(bar) for bar in plan.bars()],
        "changes": [asdict(change) for change in changes],
        "notes": list(plan.notes),
    }
