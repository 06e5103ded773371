"""`towpath watch`: the run in the terminal, as it goes on."""

from collections.abc import Iterator
from pathlib import Path
from time import sleep

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from towpath.terminal import strip_control
from towpath.view.downsample import levels
from towpath.view.format import number, percent
from towpath.view.live.columns import Columns
from towpath.view.live.headline import Number, lately
from towpath.view.live.live_run import Training, Watched, turned
from towpath.view.live.samples import TUNED, model_at

REFRESH_SECONDS = 1.0
"""Seconds between two pictures."""
BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-=+*#@"
MAX_FINDINGS = 5
MAX_INTERVENTIONS = 4
MAX_SAMPLES = 2
CURVES = {
    "reward": "reward",
    "kl": "KL, nats per prompt",
    "loss": "loss",
    "policy_loss": "policy loss",
    "value_loss": "value loss",
    "accuracy": "accuracy",
    "entropy": "entropy",
    "distinct_2": "different pairs",
    "length": "length",
    "finish_rate": "end by themselves",
    "clip_fraction": "clipped",
    "grad_norm": "gradient norm",
    "kl_coef": "KL weight",
    "learning_rate": "learning rate",
    "tokens_per_second": "tokens a second",
}
PERCENT_METRICS = ("accuracy", "finish_rate", "clip_fraction", "distinct_2")
TONE_STYLES = {"good": "green", "doubt": "yellow", "bad": "bold red"}
SEVERITY_STYLES = {"info": "cyan", "warning": "yellow", "critical": "bold red", "error": "bold red"}


def show_run(run: Path, assignments: list[str], once: bool = False) -> None:
    """Show the run until stopped; once, or where nobody looks at a terminal, one picture is printed."""
    watched = Watched(run, assignments)
    console = Console()
    watched.refresh()
    if once or not console.is_terminal:
        console.print(run_view(watched, console))
        return
    try:
        with Live(run_view(watched, console), console=console, screen=True, auto_refresh=False) as live:
            while True:
                sleep(REFRESH_SECONDS)
                watched.refresh()
                live.update(run_view(watched, console), refresh=True)
    except KeyboardInterrupt:
        console.print(run_view(watched, console))  # the last picture stays when the screen is given back


def run_view(watched: Watched, console: Console) -> RenderableType:
    """Everything worth seeing of the stage that is at work, cut to the width there is."""
    name = watched.current()
    parts: list[RenderableType] = [_title(watched, name)]
    if watched.waiting_for:
        parts.append(Text(f"waits for: {watched.waiting_for}", "yellow"))
    training = watched.trainings.get(name)
    if training is None or not (training.metrics.train.count or training.metrics.validation.count):
        return Group(*parts, Text("Nothing was written yet. The picture begins with the first step.", "dim"))
    parts.append(_headline(watched.headline(name)))
    parts.append(
        _curves(training, console.width, BLOCKS if "utf" in (console.encoding or "").lower() else ASCII_BLOCKS)
    )
    parts += [
        Padding(part, (1, 0, 0, 0))
        for part in (_findings(training), _interventions(training), _samples(training))
        if part is not None
    ]
    return Group(*parts)


def _title(watched: Watched, name: str) -> Text:
    text = Text(strip_control(watched.run.resolve().name), "bold")
    for stage in watched.trainings:
        text.append("  ")
        text.append(f"{stage} {watched.state(stage)}", "bold cyan" if stage == name else "dim")
    return text


def _headline(numbers: list[Number]) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), show_edge=False, pad_edge=False, header_style="dim")
    for told in numbers:
        table.add_column(told.label, overflow="fold")
    table.add_row(*(Text(told.value, TONE_STYLES.get(told.tone, "bold")) for told in numbers))
    table.add_row(*(Text(told.note, "dim") for told in numbers))
    return table


def _curves(training: Training, width: int, blocks: str) -> Padding:
    table = Table(box=None, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False, header_style="dim")
    room = max(10, min(60, width - 56))
    for title in ("", "now", "steps", "least", "most", "held out"):
        table.add_column(title, justify="left" if title in ("", "steps") else "right", no_wrap=True)
    metrics = training.metrics
    for name, label in CURVES.items():
        train = metrics.train
        look = metrics.validation
        where = train if name in train.names else look if name in look.names else None
        if where is not None:
            table.add_row(label, *_row(where, look, name, room, blocks))
    for name in metrics.train.names:
        if name.startswith("reward/"):
            table.add_row(
                Text(f"  {name.removeprefix('reward/')}", "dim"),
                *_row(metrics.train, metrics.validation, name, room, blocks),
            )
    return Padding(table, (1, 0, 0, 0))


def _row(where: Columns, look: Columns, name: str, room: int, blocks: str) -> Iterator[RenderableType]:
    told = percent if name in PERCENT_METRICS else number
    values = where.values(name)
    finite = values[np.isfinite(values)]
    yield Text(told(lately(where, name)), "bold")
    yield Text(sparkline(values, room, blocks), "cyan")
    yield from (
        Text(told(float(end)), "dim") for end in ((finite.min(), finite.max()) if len(finite) else (np.nan, np.nan))
    )
    seen = look.values(name) if name in look.names and look is not where else np.array([])
    seen = seen[np.isfinite(seen)]
    yield Text(told(float(seen[-1])) if len(seen) else "")


def sparkline(values: np.ndarray, room: int, blocks: str = BLOCKS) -> str:
    """A curve as a line of characters: each the mean of its share of the steps, from the least to the greatest."""
    means = levels(values, room)
    if not len(means):
        return ""
    low = float(means.min())
    span = float(np.ptp(means))
    if span <= 1e-12 * max(1.0, abs(low)):
        return blocks[len(blocks) // 2] * len(means)
    return "".join(blocks[int(place)] for place in np.minimum((means - low) / span * len(blocks), len(blocks) - 1))


def _findings(training: Training) -> Text | None:
    if not training.findings:
        return None
    order = list(SEVERITY_STYLES)
    found = sorted(
        training.findings, key=lambda row: -order.index(row["severity"]) if row.get("severity") in order else 0
    )
    text = Text("findings", "dim")
    for row in found[:MAX_FINDINGS]:
        text.append(strip_control(f"\n{row.get('severity')} "), SEVERITY_STYLES.get(str(row.get("severity")), ""))
        text.append(strip_control(f"{row.get('code')}"), "bold")
        text.append(strip_control(f"  {row.get('evidence', '')}"))
        if row.get("remedy"):
            text.append(strip_control(f"\n    {row['remedy']}"), "dim")
    if len(found) > MAX_FINDINGS:
        text.append(strip_control(f"\n{len(found) - MAX_FINDINGS} more"), "dim")
    return text


def _interventions(training: Training) -> Text | None:
    if not training.turns:
        return None
    text = Text("turns of knobs", "dim")
    for row in training.turns[-MAX_INTERVENTIONS:]:
        text.append(strip_control(f"\nafter step {row['step']}  "), "dim")
        text.append(turned(row), "bold magenta")
        text.append(strip_control(f"  {row.get('reason') or ''}"))
    return text


def _samples(training: Training) -> Text | None:
    newest = max((step for asked in training.samples.asked.values() for step in asked.steps), default=None)
    if newest is None:
        return None
    said = [(asked, asked.steps[newest]) for asked in training.samples.asked.values() if newest in asked.steps][
        :MAX_SAMPLES
    ]
    text = Text(f"samples of {'the ' if newest == TUNED else ''}{model_at(newest)}", "dim")
    for asked, version in said:
        text.append(strip_control(f"\n{_one_line(asked.prompt, 100)}"), "bold")
        text.append(strip_control(f"  reward {number(version.reward)}"), "dim")
        text.append(strip_control(f"\n    {_one_line(version.text, 240)}"))
    return text


def _one_line(text: str, most: int) -> str:
    """A text in one line, without characters that steer a terminal."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    words = " ".join(plain.split())
    return words if len(words) <= most else words[: most - 1] + "…"
