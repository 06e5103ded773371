"""Batches of token rows in host memory, and packing of rows into lines without attention between them.

P lines, L tokens of a line, B rows, T answer tokens.
"""

import itertools
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Row:
    """Prompt and answer tokens in one array; the answer begins at `start`."""

    ids: np.ndarray
    start: int

    @property
    def answer_length(self) -> int:
        return len(self.ids) - self.start

    @property
    def prompt(self) -> bytes:
        """The prompt's tokens, as a key."""
        return self.ids[: self.start].tobytes()


def make_row(prompt: Sequence[int], answer: Sequence[int]) -> Row:
    """A row of prompt and answer tokens."""
    return Row(np.asarray([*prompt, *answer], dtype=np.int64), len(prompt))


@dataclass(frozen=True)
class Batch:
    """Rows and their columns: the first axis is B, the second is T except in columns named in `fixed`.

    Rows of one group stay together; without `sizes` (rows per group) every row is a group.
    """

    rows: list[Row]
    columns: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    fixed: frozenset[str] = frozenset()
    handles: Mapping[str, Any] = field(default_factory=dict)
    """What a runtime keeps of these rows; the column `cached_row` numbers them there."""
    host: Mapping[str, Any] = field(default_factory=dict)
    """The columns in host memory, where `columns` are on a device."""

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
        """The groups with these indices, in that order, with columns cut to their longest answer."""
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
        """The same rows with further columns."""
        return replace(self, columns={**self.columns, **columns})

    def on_host(self, name: str) -> Any:
        """A column in host memory: what is read from a device waits for all work before it."""
        return self.host.get(name, self.columns[name])

    def with_handle(self, name: str, handle: Any) -> "Batch":
        """The same rows with a handle to data that a runtime keeps for them."""
        cached_row = self.columns.get("cached_row", np.arange(len(self)))
        return replace(self, columns={**self.columns, "cached_row": cached_row}, handles={**self.handles, name: handle})

    def micro_batches(self, tokens: int, repeated_prompts: bool = False) -> Iterator["Batch"]:
        """Split into as few micro-batches of at most about `tokens` as possible, of similar size and length.

        Rows of one prompt stay together where possible, and count it once, or with every row if `repeated_prompts`.
        The losses of all parts add up to the loss of the whole.
        """
        sizes = np.array(self.sizes or [1] * len(self.rows))
        starts = np.cumsum(sizes) - sizes
        groups = [self.rows[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        prompts = [rows[0].prompt for rows in groups]
        longest: dict[bytes, int] = {}
        for prompt, rows in zip(prompts, groups, strict=True):
            longest[prompt] = max(longest.get(prompt, 0), *(len(row.ids) for row in rows))
        order = sorted(range(len(groups)), key=lambda i: (-longest[prompts[i]], prompts[i]))
        if repeated_prompts:
            costs = [(b"", 0, sum(len(row.ids) for row in groups[i])) for i in order]
        else:
            costs = [(prompts[i], groups[i][0].start, sum(row.answer_length for row in groups[i])) for i in order]
        fewest_parts = len(_split_by_tokens(costs, tokens))
        even_limit = bisect_left(range(tokens), -fewest_parts, key=lambda limit: -len(_split_by_tokens(costs, limit)))
        for part in _split_by_tokens(costs, even_limit):
            yield self.take(order[part])


def _split_by_tokens(costs: Sequence[tuple[bytes, int, int]], tokens: int) -> list[slice]:
    """Split consecutive rows at `tokens`: each has a prompt of `length` tokens, read once per part, and answer
    tokens."""
    parts: list[slice] = []
    begin = 0
    total = 0
    prompts = set[bytes]()
    for index, (prompt, length, answers) in enumerate(costs):
        total += answers + (0 if prompt in prompts else length)
        prompts.add(prompt)
        if total > tokens and index > begin:
            parts.append(slice(begin, index))
            begin = index
            total = answers + length
            prompts = {prompt}
    return [*parts, slice(begin, len(costs))] if costs else parts


ATTENTION_CROSSOVER = 1500
"""Tokens of a line at which attention costs about as much as the linear layers."""
WIDTH_CANDIDATES = 32
"""How many line widths are tried."""


@dataclass(frozen=True)
class PackedRows:
    """Rows packed into lines; rows with the same prompt may share its tokens.

    Segment 0 is padding; every prompt and every answer of a line has its own segment. The `parent` of an answer's
    segment is its prompt's, which it attends to besides itself.
    """

    ids_PL: np.ndarray
    position_PL: np.ndarray
    segment_PL: np.ndarray
    parent_PL: np.ndarray
    token_positions: list[np.ndarray]
    """For each row, the indices of its tokens in the flattened lines."""
    begin_B1: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """Where each row begins in the only line, and where the last one ends; empty where lines are padded."""

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.token_positions), default=0)


def concatenate(rows: Sequence[Row]) -> PackedRows:
    """Rows one after another in one line without padding, each a segment; prompts are repeated with every row."""
    lengths = np.array([len(row.ids) for row in rows])
    begin_B1 = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    positions = [np.arange(begin, end) for begin, end in itertools.pairwise(begin_B1.tolist())]
    segment_1L = np.repeat(np.arange(1, len(rows) + 1), lengths)[None]
    position_1L = np.concatenate([np.arange(length) for length in lengths])[None]
    ids_1L = np.concatenate([row.ids for row in rows])[None]
    return PackedRows(ids_1L, position_1L, segment_1L, segment_1L, positions, begin_B1)


def pack(rows: Sequence[Row], pad: int, width: int = 0) -> PackedRows:
    """Pack rows into lines of at most `width` tokens or the longest row; 0 gives each row its own line.

    Rows with the same prompt share a line where that costs less. Longest rows come first.
    """
    bundles = _group_by_prompt(rows)
    sizes = [rows[bundle[0]].start + sum(rows[i].answer_length for i in bundle) for bundle in bundles]
    lines, width = _choose_width(sizes, width) if width else (np.argsort(_longest_first(sizes)).tolist(), max(sizes))
    used = [0] * (max(lines) + 1)
    count = [0] * (max(lines) + 1)
    ids_PL = np.full((len(used), width), pad, dtype=np.int64)
    position_PL, segment_PL, parent_PL = (np.zeros_like(ids_PL) for _ in range(3))
    positions = [np.zeros(0, dtype=np.int64)] * len(rows)

    def write_segment(line: int, ids: np.ndarray, first: int, parent: int) -> np.ndarray:
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
        prompt = write_segment(line, rows[bundles[number][0]].ids[:start], 0, 0)
        parent = count[line]
        for index in bundles[number]:
            positions[index] = np.concatenate([prompt, write_segment(line, rows[index].ids[start:], start, parent)])
    return PackedRows(ids_PL, position_PL, segment_PL, parent_PL, positions)


def _group_by_prompt(rows: Sequence[Row]) -> list[list[int]]:
    """Group rows that share a prompt, as long as repeating the prompt would cost more than the longer line."""

    def cost(tokens: int) -> int:
        return tokens * (ATTENTION_CROSSOVER + tokens)

    bundles: list[list[int]] = []
    latest: dict[bytes, tuple[list[int], int]] = {}
    for index, row in enumerate(rows):
        bundle, size = latest.get(row.prompt, ([], 0))
        if not bundle or cost(size + row.answer_length) - cost(size) > cost(len(row.ids)):
            bundle = []
            size = row.start
            bundles.append(bundle)
        bundle.append(index)
        latest[row.prompt] = bundle, size + row.answer_length
    return bundles


def _choose_width(sizes: Sequence[int], most: int) -> tuple[list[int], int]:
    """The line of every row, and the width with the lowest cost of padding and attention, at most `most` if rows
    allow."""
    least = max(sizes)
    order = _longest_first(sizes)
    widths = sorted({round(width) for width in np.linspace(least, max(most, least), WIDTH_CANDIDATES)})
    return min(
        (_best_fit(sizes, order, width) for width in widths),
        key=lambda packing: (max(packing[0]) + 1) * packing[1] * (ATTENTION_CROSSOVER + packing[1]),
    )


def _best_fit(sizes: Sequence[int], order: Sequence[int], width: int) -> tuple[list[int], int]:
    """Best-fit decreasing: longest rows first, each into the fullest line with room; returns lines and the used
    width."""
    room: list[tuple[int, int]] = []  # (free tokens, line), least free first
    lines = [0] * len(sizes)
    for index in order:
        at = bisect_left(room, (sizes[index], -1))
        left, line = room.pop(at) if at < len(room) else (width, len(room))
        lines[index] = line
        insort(room, (left - sizes[index], line))
    return lines, width - room[0][0]


def _longest_first(sizes: Sequence[int]) -> list[int]:
    return sorted(range(len(sizes)), key=lambda index: -sizes[index])
