"""Duplicates and train-test leaks in a corpus, and its counts. Nothing is changed here."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from towpath.data import near_duplicates as near
from towpath.data.corpus import Corpus
from towpath.data.file_cache import read_cache, write_cache
from towpath.data.texts import normalise

Between = Literal["train-heldout", "demonstrations-heldout", "safety-train"]
Groups = dict[str, list[str]]
"""Ids by normalised text."""


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


def overlaps(corpus: Corpus, cache: Path | None = None) -> Overlaps:
    """Find equal and nearly equal questions in all parts of a corpus; `cache` is a file that stores the pairs."""
    train, heldout = (_grouped((p.text, p.id) for p in prompts) for prompts in (corpus.train, corpus.heldout))
    prompts, safety = (_grouped((p.text, p.id) for p in part) for part in (corpus.prompts, corpus.safety))
    demonstrations = _grouped((d.text, d.id) for d in corpus.demonstrations)
    similar, complete = _similar(list({**prompts, **demonstrations, **safety}), cache)
    leaks = _leaks("train-heldout", train, heldout, similar)
    leaks += _leaks("demonstrations-heldout", demonstrations, heldout, similar)
    leaks += _leaks("safety-train", train, safety, similar)
    return Overlaps(_duplicates(prompts, similar), _duplicates(safety, similar), leaks, complete)


def _leaks(between: Between, trained: Groups, evaluated: Groups, similar: Iterable[tuple[str, str]]) -> list[Leak]:
    exact = [
        Leak(between, trained[text][0], name, True) for text in evaluated if text in trained for name in evaluated[text]
    ]
    near = [
        Leak(between, trained[one][0], evaluated[other][0], False)
        for pair in similar
        for one, other in (pair, pair[::-1])
        if one in trained and other in evaluated
    ]
    return exact + near


def _duplicates(groups: Groups, similar: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    same = [(ids[0], other) for ids in groups.values() for other in ids[1:]]
    return same + [(groups[one][0], groups[other][0]) for one, other in similar if one in groups and other in groups]


def _similar(texts: Sequence[str], cache: Path | None) -> tuple[list[tuple[str, str]], bool]:
    """Pairs of nearly equal texts and whether they are all; from the cache if the texts are unchanged."""
    content = hashlib.sha256(json.dumps([near.VERSION, *texts]).encode()).hexdigest()
    cached = read_cache(cache)
    if cached.get("content") == content:
        near_texts = near.NearPairs(cached["pairs"], cached["complete"])
    else:
        near_texts = near.near_pairs(texts)
        write_cache(cache, {"content": content, "pairs": near_texts.pairs, "complete": near_texts.complete})
    return [(texts[i], texts[j]) for i, j in near_texts.pairs], near_texts.complete


def _grouped(named: Iterable[tuple[str, str]]) -> Groups:
    groups: Groups = {}
    for text, name in named:
        groups.setdefault(normalise(text), []).append(name)
    return groups
