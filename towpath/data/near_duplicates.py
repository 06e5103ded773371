"""Near-duplicate texts: MinHash with locality-sensitive hashing finds candidates, exact Jaccard similarity decides.

N texts, K hash functions, B bands of R rows. Time grows with the total length of the texts, not with its square.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SIMILAR = 0.9
"""Jaccard similarity of shingles from which two prompts count as the same question."""
SHINGLE = 4
BANDS = 16
ROWS = 8
"""Two texts of similarity s share a band with probability 1 - (1 - s^R)^B: 0.9999 at 0.9."""
ESTIMATE_MARGIN = 0.15
"""Candidates whose signature agreement is five standard errors below SIMILAR are not compared exactly."""
WHOLE_BUCKET = 64
NEIGHBOURS = 2
"""In a larger bucket a text is compared only with its neighbours in length."""
MOST_CANDIDATES = 100_000
"""Above so many candidates (or two per text) each text keeps a few: similar prompts have quadratically many pairs."""
SETS_KEPT = 2048
CHUNK = 1 << 17
"""Characters hashed at once, to fit the processor's cache."""
SEED = 20_000_003
VERSION = 1
"""Increment when other pairs would be found, so that old caches are not used."""


@dataclass(frozen=True, slots=True)
class NearPairs:
    """Pairs of indices, first below second; not complete if so many texts are alike that only some pairs are listed."""

    pairs: list[tuple[int, int]]
    complete: bool


def near_pairs(texts: Sequence[str]) -> NearPairs:
    """Pairs of texts whose shingles have a Jaccard similarity of at least SIMILAR."""
    if len(texts) < 2:
        return NearPairs([], True)
    signature_NK = _signatures(texts)

    @lru_cache(SETS_KEPT)
    def sets(position: int) -> frozenset[str]:
        return shingles(texts[position])

    code_P, complete = _candidates(signature_NK, [len(text) for text in texts])
    code_P, complete = _bounded(_likely(signature_NK, code_P), complete, len(texts))
    pairs = zip((code_P // len(texts)).tolist(), (code_P % len(texts)).tolist(), strict=True)
    return NearPairs([(i, j) for i, j in pairs if jaccard(sets(i), sets(j)) >= SIMILAR], complete)


def shingles(text: str) -> frozenset[str]:
    """All substrings of SHINGLE characters."""
    return frozenset(text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1)))


def jaccard(one: frozenset[str], two: frozenset[str]) -> float:
    """Shared elements over all elements."""
    common = len(one & two)
    return common / (len(one) + len(two) - common)


def _signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signature of each text, (N, K)."""
    random = np.random.Generator(np.random.Philox(SEED))
    factor_K, offset_K = (random.integers(0, 2**64, BANDS * ROWS, dtype=np.uint64) for _ in range(2))
    factor_K |= np.uint64(1)
    signature_NK = np.empty((len(texts), BANDS * ROWS), np.uint32)
    for begin, end in _chunks(texts):
        hashes, starts = _hashed(texts[begin:end])
        for k, (factor, offset) in enumerate(zip(factor_K, offset_K, strict=True)):
            least = np.minimum.reduceat(hashes * factor + offset, starts)
            signature_NK[begin:end, k] = least >> np.uint64(32)
    return signature_NK


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    begin = 0
    size = 0
    for end, text in enumerate(texts, 1):
        size += len(text)
        if size >= CHUNK or end == len(texts):
            yield begin, end
            begin = end
            size = 0


def _hashed(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """A 64-bit hash of every shingle, and the start of each text's shingles."""
    pad = "\0" * (SHINGLE - 1)  # a text shorter than a shingle is one shingle
    letters = np.frombuffer(
        "".join(text + pad for text in texts).encode("utf-32-le", "surrogatepass"), np.uint32
    ).astype(np.uint64)
    counts = np.array([max(1, len(text) - SHINGLE + 1) for text in texts])
    lengths = np.array([len(text) + len(pad) for text in texts])
    starts = np.cumsum(counts) - counts
    position = np.arange(counts.sum()) + np.repeat(np.cumsum(lengths) - lengths - starts, counts)
    mixed = letters[position]
    for step in range(1, SHINGLE):
        mixed = _mix(mixed) ^ letters[position + step]
    return _mix(mixed), starts


def _mix(x: np.ndarray) -> np.ndarray:
    """The SplitMix64 finalizer: every bit of the input affects every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _candidates(signature_NK: np.ndarray, lengths: Sequence[int]) -> tuple[np.ndarray, bool]:
    """Pairs that share a band, as first * N + second, sorted; and whether all pairs of all bands are included."""
    count = len(signature_NK)
    codes = [np.empty(0, np.int64)]
    complete = True
    by_length = np.argsort(np.asarray(lengths), kind="stable")
    for band in range(BANDS):
        for members in _buckets(signature_NK[by_length, band * ROWS : (band + 1) * ROWS], by_length):
            whole = len(members) <= WHOLE_BUCKET
            complete = complete and whole
            codes.append(_bucket_pairs(members, len(members) - 1 if whole else NEIGHBOURS, count))
    return np.unique(np.concatenate(codes)), complete


def _bounded(code_P: np.ndarray, complete: bool, count: int) -> tuple[np.ndarray, bool]:
    """Limit the candidates: beyond the maximum, each text keeps the same number."""
    most = max(MOST_CANDIDATES, 2 * count)
    if len(code_P) <= most:
        return code_P, complete
    rank_P = _rank(code_P // count)
    total = np.cumsum(np.bincount(rank_P))  # pairs that remain if each text keeps so many
    return code_P[rank_P <= max(0, np.searchsorted(total, most, "right") - 1)], False


def _buckets(band_NR: np.ndarray, position_N: np.ndarray) -> Iterator[np.ndarray]:
    """Indices whose rows of a band are equal, two or more each, in the given order."""
    key_N = np.zeros(len(band_NR), np.uint64)
    for column in band_NR.T:
        key_N = _mix(key_N ^ column)
    order = np.argsort(key_N, kind="stable")
    edges = np.flatnonzero(np.diff(key_N[order])) + 1
    begins = np.append(0, edges)
    ends = np.append(edges, len(order))
    shared = ends - begins > 1
    for begin, end in zip(begins[shared], ends[shared], strict=True):
        yield position_N[order[begin:end]]


def _bucket_pairs(members: np.ndarray, width: int, count: int) -> np.ndarray:
    """Each member with the next `width` members, as first * N + second."""
    pairs = [np.sort(np.stack([members[:-step], members[step:]]), axis=0) for step in range(1, width + 1)]
    lower, upper = np.concatenate(pairs, axis=1)
    return lower.astype(np.int64) * count + upper


def _rank(sorted_P: np.ndarray) -> np.ndarray:
    """Number of equal values before each."""
    begins = np.flatnonzero(np.append(True, np.diff(sorted_P) != 0)) if len(sorted_P) else np.empty(0, np.int64)
    return np.arange(len(sorted_P)) - np.repeat(begins, np.diff(np.append(begins, len(sorted_P))))


def _likely(signature_NK: np.ndarray, code_P: np.ndarray, size: int = 1 << 16) -> np.ndarray:
    """Candidates whose signature agreement, an estimate of the similarity, is close to SIMILAR or above."""
    likely = [np.empty(0, np.int64)]
    for begin in range(0, len(code_P), size):
        part = code_P[begin : begin + size]
        agreement = (signature_NK[part // len(signature_NK)] == signature_NK[part % len(signature_NK)]).mean(1)
        likely.append(part[agreement >= SIMILAR - ESTIMATE_MARGIN])
    return np.concatenate(likely)
