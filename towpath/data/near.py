"""Near-duplicate texts: MinHash and locality-sensitive hashing find candidates, their exact Jaccard similarity decides.

N texts, K hash functions, B bands of R rows. The time grows with the length of all texts together, not with its square.
"""

from collections.abc import Iterator, Sequence

import numpy as np

SIMILAR = 0.9
"""Jaccard similarity of shingles from which two prompts count as the same question."""
SHINGLE = 4
BANDS, ROWS = 16, 8
"""Two texts of similarity s share a band with probability 1 - (1 - s^R)^B: 0.9999 at 0.9."""
ESTIMATE_MARGIN = 0.15
"""A candidate whose signatures agree on less than SIMILAR by five standard errors is not compared exactly."""
WHOLE_BUCKET, NEIGHBOURS = 64, 16
"""In a larger bucket each text is compared with the texts next to it in length alone, so that a set of templates costs no square."""
CHUNK = 1 << 17
"""Characters hashed at once: what fits the processor's cache."""
SEED = 20_000_003


def near_pairs(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of positions, first below second, whose shingles overlap by SIMILAR or more."""
    if len(texts) < 2:
        return []
    signature_NK = _signatures(texts)
    candidates = _candidates(signature_NK, [len(text) for text in texts])
    sets: dict[int, frozenset[str]] = {}
    pairs = []
    for i, j in candidates:
        for position in (i, j):
            if position not in sets:
                sets[position] = shingles(texts[position])
        if jaccard(sets[i], sets[j]) >= SIMILAR:
            pairs.append((i, j))
    return pairs


def shingles(text: str) -> frozenset[str]:
    """Every run of SHINGLE letters."""
    return frozenset(text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1)))


def jaccard(one: frozenset[str], two: frozenset[str]) -> float:
    """Shared elements over all elements."""
    common = len(one & two)
    return common / (len(one) + len(two) - common)


def _signatures(texts: Sequence[str]) -> np.ndarray:
    """For each text the least value of each hash function over its shingles, (N, K)."""
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
    begin, size = 0, 0
    for end, text in enumerate(texts, 1):
        size += len(text)
        if size >= CHUNK or end == len(texts):
            yield begin, end
            begin, size = end, 0


def _hashed(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """A 64-bit hash of every shingle, and where the shingles of each text begin."""
    pad = "\0" * (SHINGLE - 1)  # a text shorter than a shingle is one shingle
    letters = np.frombuffer("".join(text + pad for text in texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    counts = np.array([max(1, len(text) - SHINGLE + 1) for text in texts])
    lengths = np.array([len(text) + len(pad) for text in texts])
    starts = np.cumsum(counts) - counts
    position = np.arange(counts.sum()) + np.repeat(np.cumsum(lengths) - lengths - starts, counts)
    mixed = letters[position]
    for step in range(1, SHINGLE):
        mixed = _mix(mixed) ^ letters[position + step]
    return _mix(mixed), starts


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64: every bit of the input reaches every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _candidates(signature_NK: np.ndarray, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs that share a band and whose signatures agree on nearly SIMILAR."""
    count = len(signature_NK)
    by_length = np.argsort(np.asarray(lengths), kind="stable")
    codes = [np.empty(0, np.int64)]
    for band in range(BANDS):
        key = np.zeros(count, np.uint64)
        for row in range(band * ROWS, (band + 1) * ROWS):
            key = _mix(key ^ signature_NK[:, row])
        order = by_length[np.argsort(key[by_length], kind="stable")]
        edges = np.flatnonzero(np.diff(key[order])) + 1
        begins, ends = np.append(0, edges), np.append(edges, count)
        shared = ends - begins > 1
        codes += [_bucket_pairs(order[begin:end], count) for begin, end in zip(begins[shared], ends[shared], strict=True)]
    code = np.unique(np.concatenate(codes))
    first, second = code // count, code % count
    kept = []
    for begin in range(0, len(code), 1 << 16):
        part = slice(begin, begin + (1 << 16))
        kept.append((signature_NK[first[part]] == signature_NK[second[part]]).mean(1) >= SIMILAR - ESTIMATE_MARGIN)
    mask = np.concatenate([np.empty(0, bool), *kept])
    return list(zip(first[mask].tolist(), second[mask].tolist(), strict=True))


def _bucket_pairs(members: np.ndarray, count: int) -> np.ndarray:
    """Pairs of a bucket as first * N + second; of a large one only neighbours in length."""
    width = len(members) if len(members) <= WHOLE_BUCKET else NEIGHBOURS + 1
    pairs = [np.sort(np.stack([members[:-step], members[step:]]), axis=0) for step in range(1, min(width, len(members)))]
    lower, upper = np.concatenate(pairs, axis=1)
    return lower.astype(np.int64) * count + upper
