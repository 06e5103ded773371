"""Counter-based randomness: every draw is a function of (seed, stream, step, sample)."""

import hashlib

import numpy as np


def generator(seed: int, stream: str, *counters: int | str) -> np.random.Generator:
    """A generator for one draw."""
    text = "/".join([str(seed), stream, *map(str, counters)])
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def uniforms(count: int, seed: int, stream: str, *counters: int | str) -> np.ndarray:
    """`count` uniform numbers in [0, 1)."""
    return generator(seed, stream, *counters).random(count)


def permutation(count: int, seed: int, stream: str, *counters: int | str) -> np.ndarray:
    """A random permutation of `count` items."""
    return generator(seed, stream, *counters).permutation(count)
