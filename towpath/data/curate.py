"""Duplicates and train-test leaks in a corpus. Nothing is changed here."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from towpath.data import near_duplicates as near
from towpath.data import signature_cache
from towpath.data.corpus import Corpus
from towpath.data.texts import normalise
from towpath.progress import progress
from towpath.records import Demonstration, Prompt

Between = Literal["train-heldout", "demonstrations-heldout", "safety-train"]
TRAIN, HELDOUT, DEMONSTRATION, SAFETY = range(4)
"""Sides of a record: what is trained on must not be in what is evaluated."""
_LEAKS: tuple[tuple[Between, int, int], ...] = (
    ("train-heldout", TRAIN, HELDOUT),
    ("demonstrations-heldout", DEMONSTRATION, HELDOUT),
    ("safety-train", TRAIN, SAFETY),
)


@dataclass(frozen=True, slots=True)
class Leak:
    """One question on both sides of a split."""

    between: Between
    trained: str
    evaluated: str
    exact: bool


@dataclass(frozen=True, slots=True)
class Overlaps:
    """Duplicates within the prompts and within the safety set, and leaks between parts."""

    duplicates: list[tuple[str, str]]
    safety_duplicates: list[tuple[str, str]]
    leaks: list[Leak]
    complete: bool
    """Whether every pair is listed; among thousands of similar prompts only some are."""


@dataclass(frozen=True)
class SameQuestions:
    """The records of a corpus by their question: equal normalised texts are one question."""

    records: Sequence[Prompt | Demonstration]
    side_R: np.ndarray
    question_R: np.ndarray
    """The question of each record."""
    similar: list[tuple[int, int]]
    """Pairs of questions that are nearly equal."""
    complete: bool

    def shared(self) -> dict[int, list[int]]:
        """The records of each question that has several, or is similar to another."""
        count_Q = np.bincount(self.question_R)
        wanted_Q = count_Q > 1
        wanted_Q[np.array(self.similar, dtype=np.int64).reshape(-1)] = True
        position_S = np.flatnonzero(wanted_Q[self.question_R])
        groups: dict[int, list[int]] = {}
        for position, question in zip(position_S.tolist(), self.question_R[position_S].tolist(), strict=True):
            groups.setdefault(question, []).append(position)
        return groups


def same_questions(corpus: Corpus, cache: Path | None = None) -> SameQuestions:
    """Find equal and nearly equal questions in all parts of a corpus; signatures of texts are kept in `cache`."""
    records = [*corpus.prompts, *corpus.demonstrations, *corpus.safety]
    sides = [HELDOUT if p.split == "heldout" else TRAIN for p in corpus.prompts]
    sides += [DEMONSTRATION] * len(corpus.demonstrations) + [SAFETY] * len(corpus.safety)
    key_R = _keys(records)
    key_Q, first_Q, question_R = np.unique(key_R, return_index=True, return_inverse=True)
    order_Q = np.argsort(first_Q)  # questions in the order of the files
    rank_Q = np.empty_like(order_Q)
    rank_Q[order_Q] = np.arange(len(order_Q))
    texts = _Questions(records, first_Q[order_Q])
    signature_QK = signature_cache.signatures(texts, key_Q[order_Q], cache)
    pairs = near.near_pairs(texts, signature_QK)
    return SameQuestions(records, np.array(sides, np.int8), rank_Q[question_R], pairs.pairs, pairs.complete)


def overlaps(corpus: Corpus, cache: Path | None = None) -> Overlaps:
    """Duplicates and leaks: equal and nearly equal questions within parts, and across them."""
    same = same_questions(corpus, cache)
    groups = same.shared()
    leaks = [
        leak for between, trained, evaluated in _LEAKS for leak in _leaks(same, groups, between, trained, evaluated)
    ]
    prompts = list(_duplicates(same, groups, (TRAIN, HELDOUT)))
    return Overlaps(prompts, list(_duplicates(same, groups, (SAFETY,))), leaks, same.complete)


class _Questions(Sequence[str]):
    """The normalised text of each question, made when it is asked for: a million texts are not held twice."""

    def __init__(self, records: Sequence[Prompt | Demonstration], first_Q: np.ndarray) -> None:
        self._records = records
        self._first = first_Q.tolist()

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, index: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] - slices are not used
        return normalise(self._records[self._first[index]].text)


def _keys(records: Sequence[Prompt | Demonstration]) -> np.ndarray:
    """A hash of each record's normalised text."""
    key_R = np.empty(len(records), np.uint64)
    with progress("duplicates", len(records), "texts") as work:
        for position, record in enumerate(records):
            content = normalise(record.text).encode("utf-8", "surrogatepass")
            key_R[position] = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
            work.advance()
    return key_R


def _on(same: SameQuestions, groups: dict[int, list[int]], question: int, sides: Sequence[int]) -> list[str]:
    """The ids of a question's records on these sides."""
    return [same.records[position].id for position in groups[question] if same.side_R[position] in sides]


def _leaks(
    same: SameQuestions, groups: dict[int, list[int]], between: Between, trained: int, evaluated: int
) -> Iterator[Leak]:
    for question in groups:
        if owners := _on(same, groups, question, (trained,)):
            for name in _on(same, groups, question, (evaluated,)):
                yield Leak(between, owners[0], name, True)
    for pair in same.similar:
        for one, other in (pair, pair[::-1]):
            owners = _on(same, groups, one, (trained,))
            copies = _on(same, groups, other, (evaluated,))
            if owners and copies:
                yield Leak(between, owners[0], copies[0], False)


def _duplicates(same: SameQuestions, groups: dict[int, list[int]], sides: Sequence[int]) -> Iterator[tuple[str, str]]:
    for question in groups:
        first, *others = _on(same, groups, question, sides) or [""]
        yield from ((first, other) for other in others)
    for one, other in same.similar:
        pair = [_on(same, groups, question, sides) for question in (one, other)]
        if all(pair):
            yield pair[0][0], pair[1][0]
