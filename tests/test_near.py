"""Near duplicates: the same pairs as the exact method, without comparing all pairs."""

import math
import random
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.large_data import chain, text
from towpath.data import curate, near_duplicates
from towpath.data.corpus import Corpus
from towpath.records import Demonstration, Prompt

FOLLOWS = chain()
STARTS = list(FOLLOWS)


def exact_pairs(texts: list[str]) -> list[tuple[int, int]]:
    """All pairs at the threshold, by prefix filtering (Chaudhuri et al. 2006): two similar sets share one of their
    rarest shingles."""
    sets = [near_duplicates.shingles(one) for one in texts]
    frequency = Counter(shingle for one in sets for shingle in one)
    index: dict[str, list[int]] = {}
    pairs = []
    for location in sorted(range(len(sets)), key=lambda i: len(sets[i])):
        mine = sets[location]
        rare = sorted(mine, key=lambda shingle: (frequency[shingle], shingle))[
            : len(mine) - math.ceil(near_duplicates.SIMILAR * len(mine) - 1e-9) + 1
        ]
        candidates = {
            other
            for shingle in rare
            for other in index.get(shingle, ())
            if len(sets[other]) >= near_duplicates.SIMILAR * len(mine) - 1e-9
        }
        pairs += [
            (min(location, other), max(location, other))
            for other in candidates
            if near_duplicates.jaccard(mine, sets[other]) >= near_duplicates.SIMILAR
        ]
        for shingle in rare:
            index.setdefault(shingle, []).append(location)
    return sorted(pairs)


def edited(draw: random.Random, prompt: str) -> str:
    """A prompt with one to four words replaced: similarities on both sides of the threshold."""
    words = prompt.split()
    for _ in range(draw.randint(1, 4)):
        words[draw.randrange(len(words))] = draw.choice(STARTS)
    return " ".join(words)


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    draw = random.Random(5)
    fresh = [text(draw, FOLLOWS, STARTS) for _ in range(1600)]
    return [*fresh, *(edited(draw, one) for one in fresh[:1200]), "", "a", "ab", "abc", "abcd", "ab "]


def test_near_pairs_match_the_exact_method(prompts: list[str]) -> None:
    expected = exact_pairs(prompts)
    result = near_duplicates.near_pairs(prompts)
    assert len(expected) > 300 and result.complete
    assert set(result.pairs) <= set(expected), "a candidate is confirmed by its exact similarity"
    assert len(result.pairs) >= 0.99 * len(expected)
    assert result.pairs == sorted(result.pairs) and all(i < j for i, j in result.pairs)


def test_pairs_do_not_depend_on_the_order_of_the_texts(prompts: list[str]) -> None:
    some = prompts[:400] + prompts[1600:2000]
    mixed = random.Random(1).sample(some, len(some))
    there = {frozenset((some[i], some[j])) for i, j in near_duplicates.near_pairs(some).pairs}
    assert there == {frozenset((mixed[i], mixed[j])) for i, j in near_duplicates.near_pairs(mixed).pairs}


def test_prompts_of_one_template_are_not_compared_pairwise(prompts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(2)
    template = " ".join(prompts[:8])[:1500]
    alike = [f"{template} {' '.join(draw.choices(STARTS, k=3))}" for _ in range(1500)]
    compared = []
    jaccard = near_duplicates.jaccard
    monkeypatch.setattr(near_duplicates, "jaccard", lambda *sets: compared.append(1) or jaccard(*sets))
    result = near_duplicates.near_pairs(alike)
    assert len(compared) <= near_duplicates.MOST_CANDIDATES < 1500 * 1499 / 2
    assert not result.complete and {position for pair in result.pairs for position in pair} == set(range(1500))


def test_overlaps_between_all_parts(prompts: list[str]) -> None:
    one = prompts[0]
    two = prompts[1]
    three = prompts[2]
    corpus = Corpus(
        (
            Prompt("t", one),
            Prompt("h", f"{one} Please", split="heldout"),
            Prompt("u", two),
            Prompt("u2", f"{two}!"),
            Prompt("x", prompts[3]),
        ),
        (Demonstration("d", f"{one} Thanks", "Yes.", "t"),),
        (Prompt("s", f"{two} now", harmful=True), Prompt("s2", three), Prompt("s3", f" {three.upper()}")),
    )
    result = curate.overlaps(corpus)
    assert {frozenset(pair) for pair in result.duplicates} == {frozenset(("t", "h")), frozenset(("u", "u2"))}
    assert result.safety_duplicates == [("s2", "s3")]
    assert {(x.between, x.trained, x.evaluated, x.exact) for x in result.leaks} == {
        ("train-heldout", "t", "h", False),
        ("demonstrations-heldout", "d", "h", False),
        ("safety-train", "u", "s", False),
    }


def test_only_new_texts_are_hashed_again(tmp_path: Path, prompts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / ".cache" / "near"
    corpus = Corpus((Prompt("a", prompts[0]), Prompt("b", f"{prompts[0]} so"), Prompt("c", prompts[1])))
    hashed = []
    signatures = near_duplicates.signatures
    monkeypatch.setattr(near_duplicates, "signatures", lambda texts: hashed.append(len(texts)) or signatures(texts))
    assert curate.overlaps(corpus, cache).duplicates == [("a", "b")]
    assert curate.overlaps(corpus, cache).duplicates == [("a", "b")]
    longer = Corpus((*corpus.prompts, Prompt("d", f"{prompts[1]}, or not"), Prompt("e", prompts[2])))
    assert curate.overlaps(longer, cache).duplicates == [("a", "b"), ("c", "d")]
    assert hashed == [3, 0, 2]
    next(cache.parent.iterdir()).write_bytes(b"broken")
    assert curate.overlaps(longer, cache).duplicates == [("a", "b"), ("c", "d")]
    assert hashed[-1] == 5 and len(list(cache.parent.iterdir())) == 1
