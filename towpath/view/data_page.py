"""The overview of a run's data as lines of text and as a page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup

from towpath import __version__
from towpath.data.overview import DataOverview, Lengths, PartOverview
from towpath.errors import ResourceError
from towpath.store.publish import replace_file
from towpath.view.charts import Chart, Point, Series, draw
from towpath.view.format import number, percent
from towpath.view.html import render
from towpath.view.live.terminal import BLOCKS

PAGE = "data.html"
MAX_GROUPS = 8
LEAKS = {
    "train-heldout": "training prompts that are held out, too",
    "demonstrations-heldout": "demonstrations whose prompt is held out",
    "safety-train": "training prompts that are in the safety set",
}


def lines(overview: DataOverview) -> str:
    """The overview for a terminal."""
    rows = [line for part in overview.parts for line in _part_lines(part)]
    least = "" if overview.complete else "at least "
    rows += [f"{least}{text}" for text in _overlaps(overview)]
    total = sum(row.rows for row in overview.left_out)
    rows.append(f"left out: {total:,} rows" if total else "left out: none")
    rows += [f"  {row.rows:>9,}  {row.part:<14}  {row.reason}  ({row.first})" for row in overview.left_out]
    return "\n".join(rows)


def _overlaps(overview: DataOverview) -> list[str]:
    names = {"prompts": "prompts", "safety": "prompts of the safety set"}
    pairs = [f"{count:,} pairs of equal or nearly equal {names[part]}" for part, count in overview.duplicates.items()]
    return [*pairs, *(f"{count:,} {LEAKS[between]}" for between, count in overview.leaks.items())]


def _part_lines(part: PartOverview) -> Iterator[str]:
    files = f"{len(part.files)} files" if len(part.files) > 1 else next(iter(part.files))
    yield f"{part.part}: {part.rows:,} rows in {files}"
    for name, counts in part.groups.items():
        even = f"; evenness {part.evenness[name]:.2f}" if name in part.evenness else ""
        yield f"  {name:<11} {_shares(counts, part.rows)}{even}"
    if set(part.turns) != {1}:
        turns = ", ".join(f"{turns}: {count:,}" for turns, count in part.turns.items())
        yield f"  {'turns':<11} {turns}"
    for name, values in part.lengths.items():
        ends = f"{values.least:,} to {values.most:,} characters"
        yield f"  {name:<11} {ends}, median {values.median:,}, 95 % within {values.p95:,}  {_blocks(values)}"
    yield f"  {'openings':<11} {_shares(part.openings, part.rows, 2)}"
    yield ""


def _shares(counts: dict[str, int], total: int, places: int = 0) -> str:
    largest = list(counts.items())[:MAX_GROUPS]
    more = f", and {len(counts) - len(largest)} more" if len(counts) > len(largest) else ""
    return ", ".join(f"{name or '(none)'} {percent(count / total, places)}" for name, count in largest) + more


def _blocks(values: Lengths) -> str:
    most = max(values.counts)
    return "".join(BLOCKS[(len(BLOCKS) - 1) * count // most] if count else " " for count in values.counts)


def write_page(file: Path, title: str, overview: DataOverview) -> None:
    """Write the overview as a page."""
    total = sum(row.rows for row in overview.left_out)
    content: dict[str, Any] = {
        "title": title,
        "parts": [_part_content(part) for part in overview.parts],
        "overlaps": _overlaps(overview),
        "complete": overview.complete,
        "left_out": overview.left_out,
        "total": total,
        "version": __version__,
    }
    try:
        replace_file(file, render(PAGE, content))
    except OSError as error:
        rule = "a file in a folder that can be written to"
        raise ResourceError(f"--html {file}: {error.strerror}", rule, "name another file") from None


def _part_content(part: PartOverview) -> dict[str, Any]:
    groups = [
        {
            "name": name,
            "evenness": part.evenness.get(name),
            "rows": [(group or "(none)", n, n / part.rows) for group, n in counts.items()][: 3 * MAX_GROUPS],
        }
        for name, counts in (part.groups | {"first words": part.openings}).items()
    ]
    charts = [_histogram(f"Characters of {name}s", values) for name, values in part.lengths.items()]
    return {"part": part, "groups": groups, "charts": charts}


def _histogram(title: str, values: Lengths) -> Markup:
    """The histogram as steps, from the start of each bar to the start of the next."""
    points: list[Point] = []
    ends = [*values.edges[1:], values.edges[-1] + (values.edges[-1] - values.edges[-2] if len(values.edges) > 1 else 1)]
    for start, end, count in zip(values.edges, ends, values.counts, strict=True):
        points += [(start, count), (end - 1e-6, count)]
    note = f"Median {number(values.median)}, 95 % within {number(values.p95)}, longest {number(values.most)}."
    return draw(Chart(title, [Series("rows", points, "area")], x="characters", low=0, note=note))
