"""`towpath watch`: the live monitor in a terminal."""

from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from towpath.metrics import form, label
from towpath.run.live_record import LiveRun, LiveStage
from towpath.run.metric_columns import Columns
from towpath.run.plan_record import progress_line
from towpath.run.samples import TUNED, model_at
from towpath.terminal import strip_control
from towpath.view.downsample import bucket_means
from towpath.view.format import number, percent
from towpath.view.live.headline import Number, recent_mean, stage_headline
from towpath.view.live.marks import intervention_label
from towpath.view.live.workers import WorkersPanel, workers_panel

REFRESH_SECONDS = 1.0
BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-=+*#@"
MAX_FINDINGS = 5
MAX_INTERVENTIONS = 4
MAX_SAMPLES = 2
METRIC_ROWS = (
    "reward",
    "kl",
    "loss",
    "policy_loss",
    "value_loss",
    "accuracy",
    "entropy",
    "distinct_2",
    "length",
    "finish_rate",
    "clip_fraction",
    "grad_norm",
    "kl_coef",
    "learning_rate",
    "tokens_per_second",
)
TONES = {"good": "green", "doubt": "yellow", "bad": "bold red"}
SEVERITIES = {"error": "bold red", "critical": "bold red", "warning": "yellow", "info": "cyan"}
"""Styles by severity, the most severe first."""


def show_run(path: Path, assignments: list[str], once: bool = False) -> None:
    """Show the run until stopped; with `once`, or without a terminal, print one frame."""
    run = LiveRun(path, assignments)
    console = Console()
    run.refresh()
    if once or not console.is_terminal:
        console.print(frame(run, console))
        return
    try:
        with Live(frame(run, console), console=console, screen=True, auto_refresh=False) as live:
            while True:
                sleep(REFRESH_SECONDS)
                run.refresh()
                live.update(frame(run, console), refresh=True)
    except KeyboardInterrupt:
        console.print(frame(run, console))  # the last frame stays when the screen is restored


def frame(run: LiveRun, console: Console) -> RenderableType:
    """The stage that is running, at the width of the console."""
    name = run.current_stage()
    parts: list[RenderableType] = [_title(run, name)]
    if run.progress:
        parts.append(Text(progress_line(run.progress), "dim"))
    if run.waiting_for:
        parts.append(Text(f"waiting for: {run.waiting_for}", "yellow"))
    stage = run.stages.get(name)
    if stage is None or not (stage.metrics.train.count or stage.metrics.validation.count):
        return Group(*parts, Text("No metrics yet. They appear with the first step.", "dim"))
    parts.append(_headline(stage_headline(run, name)))
    blocks = BLOCKS if "utf" in (console.encoding or "").lower() else ASCII_BLOCKS
    parts.append(Padding(_curves(stage, console.width, blocks), (1, 0, 0, 0)))
    panel = workers_panel(stage, run.state(name))
    if panel:
        parts.append(Padding(_workers(panel), (1, 0, 0, 0)))
    lists = (_findings(stage), _interventions(stage), _samples(stage))
    parts += [Padding(text, (1, 0, 0, 0)) for text in lists if text is not None]
    return Group(*parts)


def _title(run: LiveRun, name: str) -> Text:
    text = Text(strip_control(run.run.resolve().name), "bold")
    for stage in run.stages:
        text.append("  ")
        text.append(f"{stage} {run.state(stage)}", "bold cyan" if stage == name else "dim")
    return text


def _headline(numbers: list[Number]) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), show_edge=False, pad_edge=False, header_style="dim")
    for each in numbers:
        table.add_column(each.label, overflow="fold")
    table.add_row(*(Text(each.value, TONES.get(each.tone, "bold")) for each in numbers))
    table.add_row(*(Text(each.note, "dim") for each in numbers))
    return table


def _workers(panel: WorkersPanel) -> RenderableType:
    """A line for each worker, with the share of its time that it waits, and below it its seconds by phase."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, pad_edge=False, header_style="dim")
    for title in ("workers", "now", "waiting", "sampling", "training", "memory", "heartbeat"):
        table.add_column(title, justify="left" if title in ("workers", "now", "heartbeat") else "right", no_wrap=True)
    for row in panel.rows:
        waiting = percent(sum(phase.share for phase in row.phases if phase.name == "waiting"))
        cells = (f"{row.name}: {row.location}", row.verb, waiting, row.sampled, row.trained, row.memory)
        table.add_row(*(Text(strip_control(cell)) for cell in cells), Text(row.heartbeat, TONES.get(row.tone, "")))
    first = ", ".join(f"{phase.name} {phase.seconds}" for phase in panel.rows[0].phases)
    note = Text(strip_control(panel.note), TONES.get(panel.tone, "dim"))
    return Group(table, Text(f"{panel.rows[0].name}: {first}", "dim"), note)


def _curves(stage: LiveStage, width: int, blocks: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False, header_style="dim")
    curve_width = max(10, min(60, width - 56))
    for title in ("", "now", "steps", "min", "max", "held out"):
        table.add_column(title, justify="left" if title in ("", "steps") else "right", no_wrap=True)
    train = stage.metrics.train
    validation = stage.metrics.validation
    for name in METRIC_ROWS:
        if name in train.names or name in validation.names:
            columns = train if name in train.names else validation
            table.add_row(label(name), *_row(columns, validation, name, curve_width, blocks))
    for name in train.names:
        if name.startswith("reward/"):
            title = Text(f"reward: {name.removeprefix('reward/')}", "dim")
            table.add_row(title, *_row(train, validation, name, curve_width, blocks))
    return table


def _row(columns: Columns, validation: Columns, name: str, curve_width: int, blocks: str) -> Iterator[RenderableType]:
    write: Callable[[Any], str] = percent if form(name) == "percent" else number
    values = columns.values(name)
    finite = values[np.isfinite(values)]
    yield Text(write(recent_mean(columns, name)), "bold")
    yield Text(sparkline(values, curve_width, blocks), "cyan")
    yield Text(write(float(finite.min()) if len(finite) else None), "dim")
    yield Text(write(float(finite.max()) if len(finite) else None), "dim")
    held_out = validation.values(name) if validation is not columns else np.array([])
    held_out = held_out[np.isfinite(held_out)]
    yield Text(write(float(held_out[-1])) if len(held_out) else "")


def sparkline(values: np.ndarray, width: int, blocks: str = BLOCKS) -> str:
    """A curve as one line of characters, each the mean of its share of the steps."""
    means = bucket_means(values, width)
    if not len(means):
        return ""
    low = float(means.min())
    span = float(np.ptp(means))
    if span <= 1e-12 * max(1.0, abs(low)):
        return blocks[len(blocks) // 2] * len(means)
    levels = np.minimum((means - low) / span * len(blocks), len(blocks) - 1)
    return "".join(blocks[int(level)] for level in levels)


def _findings(stage: LiveStage) -> Text | None:
    if not stage.findings:
        return None
    order = list(SEVERITIES)
    findings = sorted(
        stage.findings, key=lambda row: order.index(row["severity"]) if row.get("severity") in order else 9
    )
    text = Text("findings", "dim")
    for row in findings[:MAX_FINDINGS]:
        text.append(strip_control(f"\n{row.get('severity')} "), SEVERITIES.get(str(row.get("severity")), ""))
        text.append(strip_control(f"{row.get('code')}"), "bold")
        text.append(strip_control(f"  {row.get('evidence', '')}"))
        if row.get("remedy"):
            text.append(strip_control(f"\n    {row['remedy']}"), "dim")
    if len(findings) > MAX_FINDINGS:
        text.append(f"\n{len(findings) - MAX_FINDINGS} more", "dim")
    return text


def _interventions(stage: LiveStage) -> Text | None:
    if not stage.interventions:
        return None
    text = Text("interventions", "dim")
    for row in stage.interventions[-MAX_INTERVENTIONS:]:
        text.append(strip_control(f"\nafter step {row['step']}  "), "dim")
        text.append(strip_control(intervention_label(row)), "bold magenta")
        text.append(strip_control(f"  {row.get('reason') or ''}"))
    return text


def _samples(stage: LiveStage) -> Text | None:
    prompts = stage.samples.prompts.values()
    newest = max((step for prompt in prompts for step in prompt.steps), default=None)
    if newest is None:
        return None
    sampled = [prompt for prompt in prompts if newest in prompt.steps][:MAX_SAMPLES]
    text = Text(f"samples of {'the ' if newest == TUNED else ''}{model_at(newest)}", "dim")
    for prompt in sampled:
        answer = prompt.steps[newest]
        text.append(strip_control(f"\n{_one_line(prompt.prompt, 100)}"), "bold")
        text.append(f"  reward {number(answer.reward)}", "dim")
        text.append(strip_control(f"\n    {_one_line(answer.text, 240)}"))
    return text


def _one_line(text: str, max_length: int) -> str:
    """A text in one line, without control characters."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(printable.split())
    return line if len(line) <= max_length else line[: max_length - 1] + "…"
