"""What the data of a run consists of: rows, groups, lengths, duplicates, leaks, and the rows that are left out."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from towpath.data import curate
from towpath.data.corpus import Corpus
from towpath.data.refused_rows import Part, RefusedRow, reason_kind
from towpath.records import Demonstration, Prompt

LANGUAGE_COLUMNS = ("language", "lang")
"""Columns that name a row's language."""
OPENING_WORDS = 3
SHOWN_OPENINGS = 5
BINS = 24
"""Bars of a histogram; the last holds what is longer than 99 % of the rows."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Characters of texts: quantiles, and a histogram with the lower ends of its bars."""

    least: int
    median: int
    p95: int
    most: int
    edges: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PartOverview:
    """One part of the data: prompts, demonstrations or the safety set."""

    part: Part
    rows: int
    files: dict[str, int]
    groups: dict[str, dict[str, int]]
    """Rows by split, domain, difficulty, language and so on; only what the rows tell apart or name."""
    evenness: dict[str, float]
    """How evenly the rows are spread over the groups: 1 where all are equally large, near 0 where one has all."""
    turns: dict[int, int]
    """Rows by number of turns before the answer."""
    lengths: dict[str, Lengths]
    """Characters of prompts and responses."""
    openings: dict[str, int]
    """The most frequent first words of the last turn."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows that are left out for one reason, with file and line of the first."""

    part: Part
    reason: str
    rows: int
    first: str


@dataclass(frozen=True, slots=True)
class DataOverview:
    """The whole data of a run after filters and balance."""

    parts: list[PartOverview]
    duplicates: dict[str, int] = field(default_factory=dict)
    """Equal and nearly equal questions within prompts and the safety set."""
    leaks: dict[str, int] = field(default_factory=dict)
    """Questions on both sides: what is trained on, and what is held out."""
    complete: bool = True
    """Whether all pairs of nearly equal questions are counted."""
    left_out: list[LeftOut] = field(default_factory=list)


def describe(corpus: Corpus, part: Part | None = None, file: str = "", cache: Path | None = None) -> DataOverview:
    """The overview of a corpus, or of one part and of the files that match a pattern; duplicates are of the whole."""
    records: dict[Part, Sequence[Prompt | Demonstration]] = {
        "prompts": corpus.prompts,
        "demonstrations": corpus.demonstrations,
        "safety": corpus.safety,
    }
    parts = []
    for name, rows in records.items():
        chosen = [row for row in rows if _matches(corpus.locations.file_of(name, row.id), file)]
        if chosen and part in (None, name):
            parts.append(_part(corpus, name, chosen))
    overlaps = curate.overlaps(corpus, cache)
    left_out = (row for row in (*corpus.refused, *corpus.filtered) if part in (None, row.part))
    return DataOverview(
        parts,
        {"prompts": len(overlaps.duplicates), "safety": len(overlaps.safety_duplicates)},
        dict(Counter(leak.between for leak in overlaps.leaks)),
        overlaps.complete,
        tabulate(row for row in left_out if _matches(row.file, file)),
    )


def tabulate(rows: Iterable[RefusedRow]) -> list[LeftOut]:
    """Rows that are left out by part and reason, the most frequent first."""
    counts: Counter[tuple[Part, str]] = Counter()
    first: dict[tuple[Part, str], str] = {}
    for row in rows:
        key = (row.part, reason_kind(row.reason))
        counts[key] += 1
        first.setdefault(key, f"{row.file}:{row.line}")
    return [LeftOut(*key, count, first[key]) for key, count in counts.most_common()]


def _matches(file: str, pattern: str) -> bool:
    return not pattern or fnmatch(file, pattern) or fnmatch(Path(file).name, pattern)


def _part(corpus: Corpus, part: Part, rows: Sequence[Prompt | Demonstration]) -> PartOverview:
    names: dict[str, Callable[[Any], str]] = {"domain": lambda row: row.domain, "language": partial(_language, corpus)}
    if part == "prompts":
        names |= {"split": lambda row: row.split, "difficulty": lambda row: row.difficulty}
    elif part == "safety":
        names |= {"harmful": lambda row: "harmful" if row.harmful else "harmless"}
    else:
        names |= {"style": lambda row: row.style}
    groups = {group: _counted(name(row) for row in rows) for group, name in names.items()}
    groups = {name: counts for name, counts in groups.items() if set(counts) - {"", "general", "medium"}}
    texts = {"prompt": [len(row.text) for row in rows]}
    answers = [len(row.response) for row in rows if isinstance(row, Demonstration)]
    return PartOverview(
        part,
        len(rows),
        _counted(corpus.locations.file_of(part, row.id) for row in rows),
        groups,
        {name: evenness(list(counts.values())) for name, counts in groups.items() if len(counts) > 1},
        dict(sorted(Counter(1 + len(row.history) for row in rows).items())),
        {name: lengths(counts) for name, counts in (texts | {"response": answers}).items() if counts},
        dict(Counter(_opening(row.prompt) for row in rows).most_common(SHOWN_OPENINGS)),
    )


def _counted(names: Iterable[str]) -> dict[str, int]:
    """Rows by name, the most frequent first."""
    return dict(Counter(names).most_common())


def _language(corpus: Corpus, row: Prompt | Demonstration) -> str:
    columns = corpus.columns.get(row.id, {})
    return next((str(columns[key]) for key in LANGUAGE_COLUMNS if columns.get(key)), "")


def _opening(prompt: str) -> str:
    return " ".join(prompt.casefold().split(maxsplit=OPENING_WORDS)[:OPENING_WORDS])


def evenness(counts: Sequence[int]) -> float:
    """Entropy of the shares over its maximum (Pielou 1966)."""
    total = sum(counts)
    entropy = -sum(count / total * math.log(count / total) for count in counts if count)
    return entropy / math.log(len(counts)) if len(counts) > 1 else 1.0


def lengths(counts: Sequence[int]) -> Lengths:
    """Quantiles and histogram of lengths."""
    values = np.asarray(counts)
    most_shown = max(int(np.quantile(values, 0.99)), 1)
    edges = np.unique(np.linspace(0, most_shown, BINS, dtype=np.int64))
    histogram = np.bincount(np.searchsorted(edges, values, "right") - 1, minlength=len(edges))
    median, p95 = (int(np.quantile(values, share)) for share in (0.5, 0.95))
    return Lengths(int(values.min()), median, p95, int(values.max()), tuple(edges.tolist()), tuple(histogram.tolist()))
