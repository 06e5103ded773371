"""All data of a run, as records."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, cached_property
from typing import Any

from towpath.data.locations import Locations
from towpath.data.refused_rows import RefusedRow, count_by_part
from towpath.records import Conversation, Demonstration, Finding, Prompt

PIECE = 4096
"""Records that are hashed at once."""


@dataclass(frozen=True)
class Digests:
    """Content hashes of the parts of a corpus, for the fingerprints of stages."""

    demonstrations: str
    train: str
    evaluated: str
    preferences: str
    """What decides which recorded preferences are used: every prompt with its split, and the safety set."""


@dataclass(frozen=True)
class Corpus:
    """The prompts, demonstrations and safety set of a run."""

    prompts: tuple[Prompt, ...]
    demonstrations: tuple[Demonstration, ...] = ()
    safety: tuple[Prompt, ...] = ()
    findings: tuple[Finding, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    refused: tuple[RefusedRow, ...] = ()
    """Rows that were left out because they cannot be used."""
    locations: Locations = field(default_factory=Locations)
    random_splits: int = 0
    """Prompts whose split was assigned at random (`data.heldout`), since their rows name none."""
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Extra columns of the prompts' rows, by prompt id, for reward functions."""
    conversational: bool = False
    """Whether rows give their prompts as messages, so that reward functions get messages, too."""
    filtered: tuple[RefusedRow, ...] = ()
    """Rows that the recipe's filters and balance leave out."""

    @cached_property
    def column_names(self) -> frozenset[str]:
        """The names of all extra columns."""
        return frozenset(name for row in self.columns.values() for name in row)

    def columns_of(self, prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
        """The extra columns of these prompts; None where a row has no such column."""
        rows = [self.columns.get(p.id, {}) for p in prompts]
        return {name: [row.get(name) for row in rows] for name in sorted(self.column_names)}

    def as_rows_have_them(self, prompts: Sequence[Prompt]) -> list[str | Conversation]:
        """Prompts for reward functions: as messages if the rows have messages, else as texts."""
        return [p.messages if self.conversational else p.text for p in prompts]

    @cached_property
    def train(self) -> tuple[Prompt, ...]:
        """Training prompts."""
        return tuple(p for p in self.prompts if p.split == "train")

    @cached_property
    def heldout(self) -> tuple[Prompt, ...]:
        """Held-out prompts, used only for evaluation."""
        return tuple(p for p in self.prompts if p.split == "heldout")

    @cached_property
    def by_id(self) -> dict[str, Prompt]:
        """Prompts and the safety set by id."""
        return {p.id: p for p in (*self.prompts, *self.safety)}

    @property
    def counts(self) -> dict[str, Any]:
        """Number of records per part, and of rows left out."""
        parts = {
            "prompts": self.train,
            "heldout": self.heldout,
            "demonstrations": self.demonstrations,
            "safety": self.safety,
        }
        left_out = {"skipped_rows": count_by_part(self.refused), "filtered_rows": count_by_part(self.filtered)}
        return {name: len(records) for name, records in parts.items()} | left_out

    @cached_property
    def digests(self) -> Digests:
        """Content hashes, computed once."""
        columns = {p.id: self.columns[p.id] for p in self.train if p.id in self.columns}
        heldout = {p.id: self.columns[p.id] for p in self.heldout if p.id in self.columns}
        train = digest([self.train, columns] if columns else self.train)
        evaluated = digest([self.heldout, self.safety, *([heldout] if heldout else [])])
        return Digests(digest(self.demonstrations), train, evaluated, digest([train, evaluated]))


def digest(content: Any) -> str:
    """Content hash of records and plain values, as JSON; a long list is never one text."""
    sha256 = hashlib.sha256()
    for text in _pieces(content):
        sha256.update(text.encode())
    return sha256.hexdigest()


def _pieces(content: Any) -> Iterator[str]:
    """The JSON text of a value, piece by piece."""
    if not isinstance(content, list | tuple):
        yield _ENCODER.encode(content)
        return
    yield "["
    for begin in range(0, len(content), PIECE):
        yield ", " * bool(begin)
        block = content[begin : begin + PIECE]
        if any(isinstance(item, list | tuple) for item in block):
            for number, item in enumerate(block):
                yield ", " * bool(number)
                yield from _pieces(item)
        else:
            yield _ENCODER.encode(block)[1:-1]
    yield "]"


def _plain(value: Any) -> Any:
    """A record as a dictionary of its fields, a sequence as a list, anything else as text."""
    names = _names(type(value))
    if names:
        return {name: getattr(value, name) for name in names}
    return list(value) if isinstance(value, Iterable) else str(value)


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()


_ENCODER = json.JSONEncoder(sort_keys=True, default=_plain)
