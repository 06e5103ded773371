"""Rows of tokens, packed into lines without mixing; columns that travel with the rows.

P lines, L tokens of a line, B rows, T answer tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Row:
    """Prompt and answer in one array; the answer begins at `start`."""

    ids: np.ndarray
    start: int

    @property
    def answer_length(self) -> int:
        return len(self.ids) - self.start


def row(prompt: Sequence[int], answer: Sequence[int]) -> Row:
    """One row of prompt and answer tokens."""
    return Row(np.asarray([*prompt, *answer], dtype=np.int64), len(prompt))


@dataclass(frozen=True)
class Batch:
    """Rows and their columns: first axis B; a second axis is T, but for the columns named `fixed`.

    Rows of one group are never parted; without `sizes` every row is a group of its own.
    """

    rows: list[Row]
    columns: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    fixed: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def groups(self) -> int:
        return len(self.sizes or self.rows)

    @property
    def mask_BT(self) -> np.ndarray:
        """True on answer tokens."""
        lengths = np.array([row.answer_length for row in self.rows])
        return np.arange(lengths.max(initial=0))[None, :] < lengths[:, None]

    def take(self, groups: Sequence[int]) -> "Batch":
        """The named groups of rows, in that order, columns cut to their longest answer."""
        sizes = np.array(self.sizes or [1] * len(self.rows))
        starts = np.cumsum(sizes) - sizes
        index = np.concatenate([starts[g] + np.arange(sizes[g]) for g in groups])
        rows = [self.rows[i] for i in index]
        longest = max(row.answer_length for row in rows)
        columns = {name: column[index] for name, column in self.columns.items()}
        columns = {name: c[:, :longest] if c.ndim > 1 and name not in self.fixed else c for name, c in columns.items()}
        return replace(self, rows=rows, columns=columns, sizes=tuple(int(sizes[g]) for g in groups) if self.sizes else ())

    def with_columns(self, **columns: Any) -> "Batch":
        """The same rows with more columns."""
        return replace(self, columns={**self.columns, **columns})

    def passes(self, tokens: int) -> Iterator["Batch"]:
        """Micro-batches of about so many tokens, of similar length; their losses add up to the whole."""
        sizes = np.array(self.sizes or [1] * len(self.rows))
        starts = np.cumsum(sizes) - sizes
        weights = [sum(len(row.ids) for row in self.rows[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
        chosen: list[int] = []
        total = 0
        for index in np.argsort(weights, kind="stable")[::-1]:
            if chosen and total + weights[index] > tokens:
                yield self.take(chosen)
                chosen, total = [], 0
            chosen.append(int(index))
            total += weights[index]
        if chosen:
            yield self.take(chosen)


@dataclass(frozen=True)
class Packed:
    """Rows laid into lines; segment 0 is padding, row i of a line is segment i + 1."""

    ids_PL: np.ndarray
    position_PL: np.ndarray
    segment_PL: np.ndarray
    line_B: np.ndarray
    offset_B: np.ndarray


def pack(rows: Sequence[Row], pad: int, width: int = 0) -> Packed:
    """Rows laid into as many lines as a `width` asks for, no wider than these need to be; 0 gives a line to each row."""
    sizes = [len(row.ids) for row in rows]
    lines, width = _lines(sizes, width) if width else (list(range(len(rows))), max(sizes))
    used, count = [0] * (max(lines) + 1), [0] * (max(lines) + 1)
    line_B, offset_B = np.array(lines), np.zeros(len(rows), dtype=np.int64)
    ids_PL = np.full((len(used), width), pad, dtype=np.int64)
    position_PL, segment_PL = np.zeros_like(ids_PL), np.zeros_like(ids_PL)
    for index in _longest_first(sizes):
        line, begin = lines[index], used[lines[index]]
        end = used[line] = begin + sizes[index]
        count[line] += 1
        offset_B[index] = begin
        ids_PL[line, begin:end] = rows[index].ids
        position_PL[line, begin:end] = np.arange(sizes[index])
        segment_PL[line, begin:end] = count[line]
    return Packed(ids_PL, position_PL, segment_PL, line_B, offset_B)


def _lines(sizes: Sequence[int], width: int) -> tuple[list[int], int]:
    """The line of every row, and the narrowest width at which there are no more lines than at the width given."""
    width = max(width, *sizes)
    count = max(_first_fit(sizes, width)) + 1
    for narrow in range(max(-(-sum(sizes) // count), *sizes), width + 1):
        lines = _first_fit(sizes, narrow)
        if max(lines) < count:
            return lines, narrow
    raise AssertionError


def _first_fit(sizes: Sequence[int], width: int) -> list[int]:
    room: list[int] = []
    lines = [0] * len(sizes)
    for index in _longest_first(sizes):
        lines[index] = next((i for i, left in enumerate(room) if left >= sizes[index]), len(room))
        if lines[index] == len(room):
            room.append(width)
        room[lines[index]] -= sizes[index]
    return lines


def _longest_first(sizes: Sequence[int]) -> list[int]:
    return sorted(range(len(sizes)), key=lambda index: -sizes[index])
