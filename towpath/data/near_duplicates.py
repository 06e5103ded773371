"""Near-duplicate texts: MinHash with locality-sensitive hashing finds candidates, exact Jaccard similarity decides.

N texts, K hash functions, B bands of R rows. Time and memory grow with the total length of the texts, not with its
square; a text costs K bytes.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from towpath.progress import progress

SIMILAR = 0.9
"""Jaccard similarity of shingles from which two prompts count as the same question."""
SHINGLE = 4
BANDS = 16
ROWS = 8
"""Two texts of similarity s share a band with probability 1 - (1 - s^R)^B: 0.9999 at 0.9."""
SIGNATURE = BANDS * ROWS
ESTIMATE_MARGIN = 0.11
"""Candidates whose signature agreement is four standard errors below SIMILAR are not compared exactly."""
WHOLE_BUCKET = 64
NEIGHBOURS = 2
"""In a larger bucket a text is compared only with its neighbours, sorted by the bands that follow."""
MOST_CANDIDATES = 100_000
"""Above so many candidates (or two per text) each text keeps a few: similar prompts have quadratically many pairs."""
SETS_KEPT = 2048
CHUNK = 1 << 17
"""Characters hashed at once, to fit the processor's cache."""
THREADS = 2
SEED = 20_000_003
VERSION = 2
"""Increment when signatures change, so that old caches are not used."""


@dataclass(frozen=True, slots=True)
class NearPairs:
    """Pairs of indices, first below second; not complete if so many texts are alike that only some pairs are listed."""

    pairs: list[tuple[int, int]]
    complete: bool


def near_pairs(texts: Sequence[str], signature_NK: np.ndarray | None = None) -> NearPairs:
    """Pairs of texts whose shingles have a Jaccard similarity of at least SIMILAR."""
    if len(texts) < 2:
        return NearPairs([], True)
    if signature_NK is None:
        signature_NK = signatures(texts)

    @lru_cache(SETS_KEPT)
    def sets(position: int) -> frozenset[str]:
        return shingles(texts[position])

    code_P, complete = _candidates(signature_NK)
    pairs = []
    with progress("near duplicates: comparing", len(code_P), "pairs") as work:
        for i, j in zip((code_P // len(texts)).tolist(), (code_P % len(texts)).tolist(), strict=True):
            if jaccard(sets(i), sets(j)) >= SIMILAR:
                pairs.append((i, j))
            work.advance()
    return NearPairs(pairs, complete)


def shingles(text: str) -> frozenset[str]:
    """All substrings of SHINGLE characters."""
    return frozenset(text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1)))


def jaccard(one: frozenset[str], two: frozenset[str]) -> float:
    """Shared elements over all elements."""
    common = len(one & two)
    return common / (len(one) + len(two) - common)


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signature of each text, one byte of each minimum, (N, K)."""
    signature_NK = np.empty((len(texts), SIGNATURE), np.uint8)
    if not len(texts):
        return signature_NK
    factor_K, offset_K = np.random.Generator(np.random.Philox(SEED)).integers(0, 2**32, (2, SIGNATURE), dtype=np.uint32)
    factor_K |= np.uint32(1)

    def fill(begin: int, part: list[str]) -> int:
        hashes, starts = _hashed(part)
        for k, (factor, offset) in enumerate(zip(factor_K, offset_K, strict=True)):
            least = np.minimum.reduceat(hashes * factor + offset, starts)
            # the least value's high bits are nearly always zero; its other bits tell which shingle it was
            signature_NK[begin : begin + len(part), k] = (least * np.uint32(0x9E3779B1)) >> np.uint32(24)
        return len(part)

    # numpy releases the interpreter's lock in each operation
    with progress("near duplicates: hashing", len(texts), "texts") as work, ThreadPoolExecutor(THREADS) as pool:
        waiting = []
        for begin, part in _chunks(texts):
            waiting.append(pool.submit(fill, begin, part))
            if len(waiting) > 2 * THREADS:  # a bounded number of texts is held
                work.advance(waiting.pop(0).result())
        for one in waiting:
            work.advance(one.result())
    return signature_NK


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Consecutive texts of about CHUNK characters, with the position of the first."""
    part: list[str] = []
    size = 0
    for position, text in enumerate(texts):
        part.append(text)
        size += len(text)
        if size >= CHUNK:
            yield position + 1 - len(part), part
            part = []
            size = 0
    if part:
        yield len(texts) - len(part), part


def _hashed(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """A 32-bit hash of every shingle, and the start of each text's shingles."""
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
    return (_mix(mixed) >> np.uint64(32)).astype(np.uint32), starts


def _mix(x: np.ndarray) -> np.ndarray:
    """The SplitMix64 finalizer: every bit of the input affects every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _candidates(signature_NK: np.ndarray) -> tuple[np.ndarray, bool]:
    """Likely pairs that share a band, as first * N + second, sorted; and whether these are all such pairs."""
    count = len(signature_NK)
    most = max(MOST_CANDIDATES, 2 * count)
    key_NB = np.ascontiguousarray(signature_NK).view(np.uint64)  # the R bytes of a band are its key
    codes = np.empty(0, np.int64)
    complete = True
    with progress("near duplicates: bands", BANDS) as work:
        for band in range(BANDS):
            band_codes, whole = _band_pairs(signature_NK, key_NB, band, most)
            complete = complete and whole
            codes = np.unique(np.concatenate([codes, band_codes]))
            work.advance()
    if len(codes) <= most:
        return codes, complete
    rank_P = _rank(codes // count)
    total = np.cumsum(np.bincount(rank_P))  # pairs that remain if each text keeps so many
    return codes[rank_P <= max(0, np.searchsorted(total, most, "right") - 1)], False


def _band_pairs(signature_NK: np.ndarray, key_NB: np.ndarray, band: int, most: int) -> tuple[np.ndarray, bool]:
    """Likely pairs in the buckets of one band. In a large bucket the most similar texts are neighbours, since it is
    sorted by further bands."""
    count = len(key_NB)
    order_N = np.argsort(key_NB[:, band])
    key_N = key_NB[order_N, band]
    begins = np.flatnonzero(np.append(True, key_N[1:] != key_N[:-1]))
    sizes = np.diff(np.append(begins, count))
    size_N = np.repeat(sizes, sizes)
    large_L = np.flatnonzero(size_N > WHOLE_BUCKET)
    members_L = order_N[large_L]
    following = [key_NB[members_L, (band + step) % BANDS] for step in (2, 1, 0)]
    order_N[large_L] = members_L[np.lexsort(following)]
    complete = bool(size_N.max() <= WHOLE_BUCKET)
    first_P = np.flatnonzero(size_N > 1)
    codes = []
    total = 0
    for step in range(1, WHOLE_BUCKET):
        first_P = first_P[first_P < count - step]
        first_P = first_P[key_N[first_P] == key_N[first_P + step]]
        if step > NEIGHBOURS:
            first_P = first_P[size_N[first_P] <= WHOLE_BUCKET]
            if total + len(first_P) > 4 * most:
                return np.concatenate(codes), False
        if not len(first_P):
            break
        total += len(first_P)
        pair_2P = np.sort(np.stack([order_N[first_P], order_N[first_P + step]]), axis=0).astype(np.int64)
        codes.append(_likely(signature_NK, pair_2P[0] * count + pair_2P[1]))
    return np.concatenate(codes) if codes else np.empty(0, np.int64), complete


def _rank(sorted_P: np.ndarray) -> np.ndarray:
    """Number of equal values before each."""
    begins = np.flatnonzero(np.append(True, np.diff(sorted_P) != 0)) if len(sorted_P) else np.empty(0, np.int64)
    return np.arange(len(sorted_P)) - np.repeat(begins, np.diff(np.append(begins, len(sorted_P))))


def _likely(signature_NK: np.ndarray, code_P: np.ndarray, size: int = 1 << 14) -> np.ndarray:
    """Candidates whose signature agreement, an estimate of the similarity, is close to SIMILAR or above."""
    likely = [np.empty(0, np.int64)]
    for begin in range(0, len(code_P), size):
        part = code_P[begin : begin + size]
        agreement = (signature_NK[part // len(signature_NK)] == signature_NK[part % len(signature_NK)]).mean(1)
        likely.append(part[agreement >= SIMILAR - ESTIMATE_MARGIN])
    return np.concatenate(likely)
