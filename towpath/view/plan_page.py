"""The plan of a run as a page: totals, the critical path, a table of its stages with the source of each number, and
what would be cheaper.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from towpath import __version__
from towpath.errors import ResourceError
from towpath.planning.amounts import DAY, Amount, span
from towpath.planning.memory import memory_parts
from towpath.planning.run_plan import Bar, Change, RunPlan, StagePlan
from towpath.planning.sizes import gigabytes
from towpath.run.plan_record import RunProgress
from towpath.store.publish import replace_file
from towpath.view.charts import NOTHING, ticks
from towpath.view.format import number
from towpath.view.html import render
from towpath.view.plan import advice, change_line, dollars, hours

PAGE = "plan.html"
WIDTH = 820
LEFT = 96
RIGHT = 150
"""Room for the labels of the bars."""
ROW = 26
TOP = 8
COLOURS = {"computation": "c0", "people": "c1", "judge": "c2"}
WORDS = {"computation": "computation", "people": "people", "judge": "AI judge"}
SOURCES = {
    "measured": "measured on this machine or in this run",
    "formula": "computed from the model's shape, the recipe and a data sheet",
    "table": "a table with a date",
    "assumption": "assumed until it is measured",
    "data": "counted in the data",
    "recipe": "set in the recipe",
}


def write_page(file: Path, title: str, plan: RunPlan, changes: Sequence[Change]) -> None:
    """Write the plan as a page that loads nothing else."""
    try:
        replace_file(file, render(PAGE, content(title, plan, changes) | {"version": __version__}))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ResourceError(f"{file}: {reason}", "the page is written to a file", "name another file") from error


def content(title: str, plan: RunPlan, changes: Sequence[Change]) -> dict[str, Any]:
    """What the templates of the page show."""
    used = {amount.source for stage in plan.stages for amount in _amounts(stage) if amount.high}
    return {
        "title": title,
        "machine": plan.machine,
        "summary": summary(plan),
        "tiles": list(_tiles(plan)),
        "chart": path_chart(list(plan.bars())),
        "legend": [(COLOURS[who], WORDS[who]) for who in COLOURS if any(bar.who == who for bar in plan.bars())],
        "rows": [_row(stage) for stage in plan.stages],
        "memory": [_memory_row(plan, stage) for stage in plan.stages if stage.memory],
        "changes": [change_line(change).partition(": ") for change in changes],
        "problems": [f"{stage.stage} does not fit: {advice(plan, stage)}" for stage in plan.too_large],
        "notes": plan.notes,
        "sources": [(name, words) for name, words in SOURCES.items() if name in used],
        "bases": list(dict.fromkeys(_bases(plan))),
    }


def summary(plan: RunPlan) -> str:
    """What dominates, in a sentence."""
    words = [f"{span(plan.seconds.likely)} from start to end"]
    if plan.dollars.high:
        words.append(f"${plan.dollars.likely:,.0f}")
    text = f"{' and '.join(words)}."
    most = plan.most_time()
    if most:
        text += f" {most.share:.0%} of the time is {WORDS.get(most.who, most.who)} in the stage {most.stage}"
        money = plan.most_dollars()
        if money and (money.stage, money.who) == (most.stage, most.who):
            text += f", and so is {money.share:.0%} of the money"
        elif money:
            text += f"; {money.share:.0%} of the money is {money.who} in {money.stage}"
        text += "."
    return text


def _tiles(plan: RunPlan) -> Iterator[dict[str, str]]:
    seconds = plan.seconds
    yield {"value": span(seconds.likely), "name": "from start to end", "note": _range(seconds, span)}
    if plan.dollars.high:
        note = _range(plan.dollars, lambda amount: f"${amount:,.0f}")
        yield {"value": f"${plan.dollars.likely:,.0f}", "name": "in all", "note": note}
    if plan.people.high:
        yield {"value": hours(plan.people), "name": "of people", "note": _range(plan.people, _hours)}
    if plan.computation.high:
        note = _range(plan.computation, span)
        yield {"value": span(plan.computation.likely), "name": "of computation", "note": note}
    largest = plan.largest
    if largest and largest.memory:
        available = f", of {gigabytes(plan.device_memory)}" if plan.device_memory else ""
        yield {"value": gigabytes(largest.memory.total), "name": "of memory", "note": f"in {largest.stage}{available}"}
    if plan.disk.high:
        yield {"value": gigabytes(round(plan.disk.likely)), "name": "of disk", "note": "weights and checkpoints"}


def _hours(amount: float) -> str:
    return f"{amount:,.0f} h"


def _range(amount: Amount, write: Any) -> str:
    return f"{write(amount.low)} to {write(amount.high)}" if amount.low < amount.high else ""


def _amounts(stage: StagePlan) -> list[Amount]:
    money = [stage.people_dollars, stage.judge_dollars, stage.gpu_dollars]
    return [stage.computation, stage.waiting, stage.judge, *money, stage.disk]


def _bases(plan: RunPlan) -> Iterator[str]:
    for stage in plan.stages:
        for amount in _amounts(stage):
            if amount.high and amount.basis:
                yield f"{amount.source}: {amount.basis}"


def _row(stage: StagePlan) -> dict[str, Any]:
    cells = []
    for who, amount in stage.times.items():
        if amount.high:
            cells.append({"words": WORDS[who], "value": span(amount.likely), "range": _range(amount, span)})
            cells[-1]["source"] = amount.source
    money = stage.dollars
    return {
        "stage": stage.stage,
        "times": cells,
        "people": hours(stage.people),
        "dollars": dollars(money),
        "dollars_range": _range(money, lambda amount: f"${amount:,.0f}") if money.high >= 1 else "",
        "dollars_source": money.source if money.high else "",
        "disk": gigabytes(round(stage.disk.likely)) if stage.disk.high else "–",
        "memory": gigabytes(stage.memory.total) if stage.memory else "–",
    }


def _memory_row(plan: RunPlan, stage: StagePlan) -> dict[str, str]:
    memory = stage.memory
    assert memory
    return {
        "stage": stage.stage,
        "total": gigabytes(memory.total),
        "source": memory.source,
        "parts": memory_parts(memory),
        "fits": "" if plan.device_memory is None else "no" if stage in plan.too_large else "yes",
    }


def progress_rows(progress: RunProgress) -> list[dict[str, str]]:
    """Plan against actual of each stage."""
    rows = []
    for stage in progress.stages:
        planned = stage.planned if stage.planned and stage.planned.high else None
        rows.append(
            {
                "stage": stage.name,
                "state": stage.state,
                "planned": span(planned.likely) if planned else "–",
                "range": _range(planned, span) if planned else "–",
                "actual": span(stage.actual) if stage.actual is not None else "–",
                "left": span(stage.left) if stage.left else "–",
                "planned_memory": gigabytes(stage.planned_memory) if stage.planned_memory else "–",
                "actual_memory": gigabytes(stage.actual_memory) if stage.actual_memory else "–",
            }
        )
    return rows


def path_chart(bars: Sequence[Bar]) -> Markup:
    """The critical path: a bar for each stage and who works in it, from the run's start to its end."""
    if not bars:
        return NOTHING
    whole = bars[-1].end
    units = [(DAY, "days"), (3600, "hours"), (60, "minutes")]
    unit, name = next(((size, name) for size, name in units if whole >= 2 * size), units[-1])
    height = TOP + ROW * len(bars) + 30
    scale = (WIDTH - LEFT - RIGHT) / whole
    parts = []
    bottom = TOP + ROW * len(bars)
    for at in ticks(0.0, whole / unit, 6):
        x = round(LEFT + at * unit * scale, 1)
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(x, x, TOP, bottom))
        parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(x, bottom + 15, number(at)))
    parts.append(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>').format(WIDTH, bottom + 15, name)
    )
    for row, bar in enumerate(bars):
        y = TOP + ROW * row
        x = round(LEFT + bar.start * scale, 1)
        width = max(2.0, round((bar.end - bar.start) * scale, 1))
        label = f"{span(bar.end - bar.start)}, {WORDS[bar.who]}"
        parts.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(LEFT - 10, y + 17, bar.stage))
        parts.append(
            Markup('<rect class="small {}" x="{}" y="{}" width="{}" height="{}" rx="3"/>').format(
                COLOURS[bar.who], x, y + 5, width, ROW - 10
            )
        )
        parts.append(Markup('<text x="{}" y="{}">{}</text>').format(round(x + width + 6, 1), y + 17, label))
    words = "; ".join(f"{bar.stage}, {WORDS[bar.who]}: {span(bar.end - bar.start)}" for bar in bars)
    return Markup(
        '<figure class="chart path"><svg viewBox="0 0 {} {}" role="img" aria-label="Critical path. {}">{}</svg>'
        "</figure>"
    ).format(WIDTH, height, words, Markup().join(parts))
