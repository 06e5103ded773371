"""MinHash signatures by content of the text, kept in the run folder: only new texts are hashed again."""

import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from towpath.data import near_duplicates as near
from towpath.data.file_cache import FOLDER

ENTRY = np.dtype([("key", np.uint64), ("signature", np.uint8, near.SIGNATURE)])
ROWS_AT_ONCE = 1 << 16


def path_of(run: Path) -> Path:
    """The cache of a run, without the version in its name."""
    return run / FOLDER / "signatures"


def signatures(texts: Sequence[str], key_N: np.ndarray, cache: Path | None = None) -> np.ndarray:
    """The signatures of texts with these content keys, (N, K); those not in the cache are computed and added."""
    known = _read(cache)
    index_N = np.searchsorted(known["key"], key_N)
    index_N[index_N == len(known)] = 0
    stored_N = known["key"][index_N] == key_N if len(known) else np.zeros(len(key_N), bool)
    signature_NK = np.empty((len(key_N), near.SIGNATURE), np.uint8)
    if len(known):
        signature_NK[stored_N] = known["signature"][index_N[stored_N]]
    missing = np.flatnonzero(~stored_N)
    signature_NK[missing] = near.signatures(_Selected(texts, missing))
    if len(missing):
        _write(cache, key_N, signature_NK)
    return signature_NK


class _Selected(Sequence[str]):
    """Some of the texts."""

    def __init__(self, texts: Sequence[str], positions: np.ndarray) -> None:
        self._texts = texts
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] - slices are not used
        return self._texts[int(self._positions[index])]


def _file(cache: Path) -> Path:
    return cache.with_name(f"{cache.name}-{near.VERSION}.npy")


def _read(cache: Path | None) -> np.ndarray:
    """The cached entries sorted by key, read from the disk as they are needed; none if missing or damaged."""
    empty = np.empty(0, ENTRY)
    if cache is None:
        return empty
    try:
        known = np.load(_file(cache), mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return empty
    return known if known.dtype == ENTRY and known.ndim == 1 else empty


def _write(cache: Path | None, key_N: np.ndarray, signature_NK: np.ndarray) -> None:
    """Replace the cache by these entries; errors are ignored, since a cache only saves time."""
    if cache is None:
        return
    path = _file(cache)
    aside = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    order_N = np.argsort(key_N)
    try:
        path.parent.mkdir(exist_ok=True)
        with aside.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(ENTRY), "fortran_order": False, "shape": (len(key_N),)}
            np.lib.format.write_array_header_1_0(file, header)
            for begin in range(0, len(key_N), ROWS_AT_ONCE):
                part = order_N[begin : begin + ROWS_AT_ONCE]
                entries = np.empty(len(part), ENTRY)
                entries["key"] = key_N[part]
                entries["signature"] = signature_NK[part]
                file.write(entries.tobytes())
        for old in path.parent.glob(f"{cache.name}-*.npy"):
            old.unlink()
        aside.replace(path)
    except OSError:
        with suppress(OSError):
            aside.unlink()
