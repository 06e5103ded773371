"""What is wrong or lopsided in a corpus: duplicates, leaks between the parts, counts. Nothing is changed here."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any, Literal

from towpath.data.sources import Corpus, normalised
from towpath.records import Prompt

ALIKE = 0.9
"""Jaccard similarity of shingles from which two prompts count as the same question."""
_SHINGLE = 4

Between = Literal["train-heldout", "demonstrations-heldout", "safety-train"]


@dataclass(frozen=True, slots=True)
class Leak:
    """One question on both sides of a line that must keep them apart."""

    between: Between
    learned: str
    judged: str
    exact: bool


def duplicates(prompts: Sequence[Prompt]) -> list[tuple[str, str]]:
    """Pairs of ids whose prompts are the same, or nearly so."""
    groups = _grouped((p.prompt, p.id) for p in prompts)
    texts = list(groups)
    same = [(ids[0], other) for ids in groups.values() for other in ids[1:]]
    return same + [(groups[texts[i]][0], groups[texts[j]][0]) for i, j in near(texts)]


def leaks(corpus: Corpus) -> list[Leak]:
    """Questions met in training and in what judges it: held-out prompts, the safety set."""
    train = [(p.prompt, p.id) for p in corpus.train]
    heldout = [(p.prompt, p.id) for p in corpus.heldout]
    shown = [(d.prompt, d.id) for d in corpus.demonstrations]
    safety = [(p.prompt, p.id) for p in corpus.safety]
    return [*_across("train-heldout", train, heldout), *_across("demonstrations-heldout", shown, heldout), *_across("safety-train", train, safety)]


def describe(corpus: Corpus) -> dict[str, Any]:
    """Counts by domain, difficulty, split and style, and lengths in words."""
    prompts, shown, safety = corpus.prompts, corpus.demonstrations, corpus.safety
    return {
        "prompts": {
            "count": len(prompts),
            "harmful": sum(p.harmful for p in prompts),
            "domain": _counts(p.domain for p in prompts),
            "difficulty": _counts(p.difficulty for p in prompts),
            "split": _counts(p.split for p in prompts),
            "heldout_by_domain": _counts(p.domain for p in corpus.heldout),
            "words": _lengths(p.prompt for p in prompts),
        },
        "demonstrations": {
            "count": len(shown),
            "domain": _counts(d.domain for d in shown),
            "style": _counts(d.style or "(none)" for d in shown),
            "words": _lengths(d.response for d in shown),
        },
        "safety": {
            "count": len(safety),
            "harmful": sum(p.harmful for p in safety),
            "harmless": sum(not p.harmful for p in safety),
            "twins": sum(bool(p.twin) for p in safety),
            "words": _lengths(p.prompt for p in safety),
        },
    }


def near(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of places, first below second, whose shingles overlap by ALIKE or more.

    Prefix filtering (Chaudhuri et al. 2006): two sets that similar share one of their few rarest shingles, so
    only texts that meet in an index of those are compared.
    """
    sets = [_shingles(text) for text in texts]
    frequency = Counter(shingle for one in sets for shingle in one)
    index: dict[str, list[int]] = {}
    found = []
    for place in sorted(range(len(sets)), key=lambda i: len(sets[i])):
        mine = sets[place]
        rare = sorted(mine, key=lambda shingle: (frequency[shingle], shingle))[: len(mine) - math.ceil(ALIKE * len(mine) - 1e-9) + 1]
        candidates = {other for shingle in rare for other in index.get(shingle, ()) if len(sets[other]) >= ALIKE * len(mine) - 1e-9}
        found += [(min(place, other), max(place, other)) for other in candidates if _jaccard(mine, sets[other]) >= ALIKE]
        for shingle in rare:
            index.setdefault(shingle, []).append(place)
    return sorted(found)


def _across(between: Between, learned: list[tuple[str, str]], judged: list[tuple[str, str]]) -> list[Leak]:
    left, right = _grouped(learned), _grouped(judged)
    same = [Leak(between, left[text][0], name, True) for text in right if text in left for name in right[text]]
    texts = list({**left, **right})
    found = []
    for i, j in near(texts):
        for one, other in ((texts[i], texts[j]), (texts[j], texts[i])):
            if one in left and other in right:
                found.append(Leak(between, left[one][0], right[other][0], False))
    return same + found


def _grouped(named: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for text, name in named:
        groups.setdefault(normalised(text), []).append(name)
    return groups


def _shingles(text: str) -> frozenset[str]:
    return frozenset(text[i : i + _SHINGLE] for i in range(max(1, len(text) - _SHINGLE + 1)))


def _jaccard(one: frozenset[str], two: frozenset[str]) -> float:
    common = len(one & two)
    return common / (len(one) + len(two) - common)


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _lengths(texts: Iterable[str]) -> dict[str, float]:
    words = [len(text.split()) for text in texts]
    if not words:
        return {"min": 0, "median": 0, "mean": 0.0, "max": 0}
    return {"min": min(words), "median": median(words), "mean": round(mean(words), 1), "max": max(words)}
