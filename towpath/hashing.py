"""Random numbers by hash: every number depends only on its name, not on the order or number of other draws."""

import hashlib


def hash_uniform(*parts: int | str) -> float:
    """A uniform number in [0, 1) by hash of a seed or stream and a name."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
