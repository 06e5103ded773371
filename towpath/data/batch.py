"""Rows of tokens, packed into lines without mixing; columns that travel with the rows.

P lines, L tokens of a line, B rows, T answer tokens.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
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

    @property
    def prompt(self) -> bytes:
        """The prompt's tokens, to compare by."""
        return self.ids[: self.start].tobytes()


def make_row(prompt: Sequence[int], answer: Sequence[int]) -> Row:
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
    handles: Mapping[str, Any] = field(default_factory=dict)
    """What a runtime keeps of these rows; the column `cached_row` numbers them there."""

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

    def take(self, groups: Sequence[int] | np.ndarray) -> "Batch":
        """The named groups of rows, in that order, columns cut to their longest answer."""
        sizes = np.array(self.sizes or [1] * len(self.rows))
        starts = np.cumsum(sizes) - sizes
        index = np.concatenate([starts[g] + np.arange(sizes[g]) for g in groups])
        rows = [self.rows[i] for i in index]
        longest = max(row.answer_length for row in rows)
        columns = {name: column[index] for name, column in self.columns.items()}
        columns = {name: c[:, :longest] if c.ndim > 1 and name not in self.fixed else c for name, c in columns.items()}
        return replace(
            self, rows=rows, columns=columns, sizes=tuple(int(sizes[g]) for g in groups) if self.sizes else ()
        )

    def with_columns(self, **columns: Any) -> "Batch":
        """The same rows with more columns."""
        return replace(self, columns={**self.columns, **columns})

    def with_handle(self, name: str, handle: Any) -> "Batch":
        """The same rows with a handle to what a runtime keeps of them."""
        cached_row = self.columns.get("cached_row", np.arange(len(self)))
        return replace(self, columns={**self.columns, "cached_row": cached_row}, handles={**self.handles, name: handle})

    def passes(self, tokens: int) -> Iterator["Batch"]:
        """Micro-batches of about so many tokens, as few as that allows and of about one size, of similar length,
        rows of one prompt together; their losses add up to the whole."""
        sizes = np.array(self.sizes or [1] * len(self.rows))
        starts = np.cumsum(sizes) - sizes
        groups = [self.rows[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        prompts = [rows[0].prompt for rows in groups]
        longest: dict[bytes, int] = {}
        for prompt, rows in zip(prompts, groups, strict=True):
            longest[prompt] = max(longest.get(prompt, 0), *(len(row.ids) for row in rows))
        order = sorted(range(len(groups)), key=lambda i: (-longest[prompts[i]], prompts[i]))
        costs = [(prompts[i], groups[i][0].start, sum(row.answer_length for row in groups[i])) for i in order]
        fewest = len(_cut(costs, tokens))
        even = bisect_left(range(tokens), -fewest, key=lambda limit: -len(_cut(costs, limit)))
        for part in _cut(costs, even):
            yield self.take(order[part])


def _cut(costs: Sequence[tuple[bytes, int, int]], tokens: int) -> list[slice]:
    """Neighbours that one pass takes: each has a prompt, of so many tokens but read once a pass, and answers of so
    many."""
    found: list[slice] = []
    begin = 0
    total = 0
    read = set[bytes]()
    for place, (prompt, length, answers) in enumerate(costs):
        total += answers + (0 if prompt in read else length)
        read.add(prompt)
        if total > tokens and place > begin:
            found.append(slice(begin, place))
            begin = place
            total = answers + length
            read = {prompt}
    return [*found, slice(begin, len(costs))] if costs else found


CROSSING = 1500
"""Tokens of a line at which attention costs about as much as the linear layers."""
WIDTHS = 32
"""How many widths of lines are tried."""


@dataclass(frozen=True)
class PackedRows:
    """Rows laid into lines; rows of one prompt may share its tokens.

    Segment 0 is padding, every prompt and every answer of a line has a number of its own; the `parent` of an
    answer's segment is its prompt's, which it sees beside itself.
    """

    ids_PL: np.ndarray
    position_PL: np.ndarray
    segment_PL: np.ndarray
    parent_PL: np.ndarray
    places: list[np.ndarray]
    """Where every token of each row lies in the lines, one behind the other."""


def pack(rows: Sequence[Row], pad: int, width: int = 0) -> PackedRows:
    """Rows laid into lines at most as wide as `width`, or as the longest row; 0 gives a line to each row, or to
    several that share a prompt where that is less work, the longest first."""
    bundles = _bundles(rows)
    sizes = [rows[bundle[0]].start + sum(rows[i].answer_length for i in bundle) for bundle in bundles]
    lines, width = _lines(sizes, width) if width else (np.argsort(_longest_first(sizes)).tolist(), max(sizes))
    used = [0] * (max(lines) + 1)
    count = [0] * (max(lines) + 1)
    ids_PL = np.full((len(used), width), pad, dtype=np.int64)
    position_PL, segment_PL, parent_PL = (np.zeros_like(ids_PL) for _ in range(3))
    places = [np.zeros(0, dtype=np.int64)] * len(rows)

    def lay(line: int, ids: np.ndarray, first: int, parent: int) -> np.ndarray:
        begin, count[line] = used[line], count[line] + 1
        end = used[line] = begin + len(ids)
        ids_PL[line, begin:end] = ids
        position_PL[line, begin:end] = np.arange(first, first + len(ids))
        segment_PL[line, begin:end] = count[line]
        parent_PL[line, begin:end] = parent or count[line]
        return line * width + np.arange(begin, end)

    for number in _longest_first(sizes):
        line = lines[number]
        start = rows[bundles[number][0]].start
        prompt = lay(line, rows[bundles[number][0]].ids[:start], 0, 0)
        parent = count[line]
        for index in bundles[number]:
            places[index] = np.concatenate([prompt, lay(line, rows[index].ids[start:], start, parent)])
    return PackedRows(ids_PL, position_PL, segment_PL, parent_PL, places)


def _bundles(rows: Sequence[Row]) -> list[list[int]]:
    """Rows that share a prompt's tokens, as long as reading the prompt again would cost more than the longer line
    does."""

    def cost(tokens: int) -> int:
        return tokens * (CROSSING + tokens)

    found: list[list[int]] = []
    latest: dict[bytes, tuple[list[int], int]] = {}
    for index, row in enumerate(rows):
        bundle, size = latest.get(row.prompt, ([], 0))
        if not bundle or cost(size + row.answer_length) - cost(size) > cost(len(row.ids)):
            bundle = []
            size = row.start
            found.append(bundle)
        bundle.append(index)
        latest[row.prompt] = bundle, size + row.answer_length
    return found


def _lines(sizes: Sequence[int], most: int) -> tuple[list[int], int]:
    """The line of every row, and the width, at which padding and attention together cost least; no wider than
    `most`, if rows allow."""
    least = max(sizes)
    order = _longest_first(sizes)
    widths = sorted({round(width) for width in np.linspace(least, max(most, least), WIDTHS)})
    return min(
        (_fitted(sizes, order, width) for width in widths),
        key=lambda found: (max(found[0]) + 1) * found[1] * (CROSSING + found[1]),
    )


def _fitted(sizes: Sequence[int], order: Sequence[int], width: int) -> tuple[list[int], int]:
    """The longest rows first, each into the fullest line that has room; the line of every row, and the width that is
    used."""
    room: list[tuple[int, int]] = []  # what is left of each line, least first
    lines = [0] * len(sizes)
    for index in order:
        at = bisect_left(room, (sizes[index], -1))
        left, line = room.pop(at) if at < len(room) else (width, len(room))
        lines[index] = line
        insort(room, (left - sizes[index], line))
    return lines, width - room[0][0]


def _longest_first(sizes: Sequence[int]) -> list[int]:
    return sorted(range(len(sizes)), key=lambda index: -sizes[index])
