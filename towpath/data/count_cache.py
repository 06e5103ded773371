"""Numbers by content of a text, twelve bytes each, kept in a file of the run folder."""

import hashlib
import json
import secrets
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from towpath.data.file_cache import FOLDER

MAX_UNUSED = 100_000
"""Cached counts of texts not in the current data; skipped rows are among them, which `status` needs."""


def text_key(kind: str, text: str) -> int:
    """A hash of a text of this kind."""
    content = (kind + text).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


class CountCache:
    """Counts by key, as sorted arrays. `head` says what they were made with; None in it takes the cached value."""

    def __init__(self, path: Path | None, head: dict[str, Any]) -> None:
        self._path = path
        stored, keys, counts = _read(path)
        self.head = {name: stored.get(name) if value is None else value for name, value in head.items()}
        fits = bool(stored) and all(stored.get(name) == self.head[name] for name in ("tokenizer", "model"))
        self._keys = keys if fits else np.empty(0, np.uint64)
        self._counts = counts if fits else np.empty(0, np.int32)
        self._used = np.zeros(len(self._keys), bool)
        self._single: dict[int, int] = {}
        """Counts added one by one, before they are merged into the arrays."""
        self._changed = stored != self.head

    def get(self, key: int) -> int | None:
        """The count of a key, or None."""
        if key in self._single or not len(self._keys):
            return self._single.get(key)
        index = min(int(np.searchsorted(self._keys, np.uint64(key))), len(self._keys) - 1)
        if self._keys[index] != key:
            return None
        self._used[index] = True
        return int(self._counts[index])

    def set(self, key: int, count: int) -> None:
        """Add one count."""
        self._single[key] = count

    def look_up(self, key_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The counts of keys, 0 where they are not known, and whether they are."""
        self._merge_single()
        if not len(self._keys):
            return np.zeros(len(key_R), np.int32), np.zeros(len(key_R), bool)
        index_R = np.minimum(np.searchsorted(self._keys, key_R), len(self._keys) - 1)
        known_R = self._keys[index_R] == key_R
        self._used[index_R[known_R]] = True
        return np.where(known_R, self._counts[index_R], 0).astype(np.int32), known_R

    def add(self, key_R: np.ndarray, count_R: np.ndarray) -> None:
        """Add counts of keys that are not there."""
        keys, first = np.unique(np.concatenate([self._keys, key_R]), return_index=True)
        self._counts = np.concatenate([self._counts, count_R.astype(np.int32)])[first]
        self._used = np.concatenate([self._used, np.ones(len(key_R), bool)])[first]
        self._keys = keys
        self._changed = True

    def save(self) -> None:
        """Write the counts; those of other data are dropped if they are most of the cache."""
        self._merge_single()
        unused = len(self._keys) - int(self._used.sum())
        if unused > MAX_UNUSED + int(self._used.sum()):
            self._keys = self._keys[self._used]
            self._counts = self._counts[self._used]
            self._used = self._used[self._used]
            self._changed = True
        if self._changed and self._path is not None:
            _write(self._path, self.head, self._keys, self._counts)
            self._changed = False

    def _merge_single(self) -> None:
        if self._single:
            added = self._single
            self._single = {}
            self.add(np.fromiter(added, np.uint64, len(added)), np.fromiter(added.values(), np.int32, len(added)))


def path_of(run: Path, name: str) -> Path:
    """The path of a cache of counts."""
    return run / FOLDER / f"{name}.npz"


def _read(path: Path | None) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    nothing = ({}, np.empty(0, np.uint64), np.empty(0, np.int32))
    if path is None:
        return nothing
    try:
        with np.load(path) as stored:
            head = json.loads(str(stored["head"]))
            keys = stored["keys"]
            counts = stored["counts"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return nothing
    fits = isinstance(head, dict) and keys.dtype == np.uint64 and counts.dtype == np.int32 and len(keys) == len(counts)
    return (head, keys, counts) if fits else nothing


def _write(path: Path, head: dict[str, Any], keys: np.ndarray, counts: np.ndarray) -> None:
    """Write a cache; errors are ignored, since a cache only saves time."""
    aside = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(exist_ok=True)
        with aside.open("wb") as file:
            np.savez(file, head=np.array(json.dumps(head)), keys=keys, counts=counts)
        aside.replace(path)
    except OSError:
        with suppress(OSError):
            aside.unlink()
