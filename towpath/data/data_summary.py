"""Cached digests of a run's data by file size and time, so that `towpath status` reads no data.

A stage that runs always reads the files: only their content decides its fingerprint.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from towpath.data.corpus import Digests
from towpath.data.corpus_reader import match_files, relative_name
from towpath.data.file_cache import cache_file, code_fingerprint, read_cache, write_cache
from towpath.data.token_lengths import limits_of, model_key
from towpath.recipe import Recipe

PARTS = ("prompts", "demonstrations", "safety")
MAX_RECIPES = 8
"""Recipes whose digests are cached, so that different `--set` values do not evict each other."""


@dataclass(frozen=True)
class DataSummary:
    """What a plan needs to know of a corpus."""

    digests: Digests
    bundled: bool
    """Whether it is the data of a bundled recipe."""


def summary_key(run: Path, recipe: Recipe) -> str:
    """Cache key: files by size, time and inode, the settings that affect reading, and the code that reads."""
    stamps = {
        part: [_stamp(run, path) for path in match_files(run, f"data.{part}", getattr(recipe.data, part))]
        for part in PARTS
    }
    settings: list[Any] = [
        recipe.data.model_dump(mode="json", exclude={"preferences", "max_prompt_tokens"}),
        recipe.seed,
        model_key(recipe),
        asdict(limits_of(recipe, None)),
    ]
    return hashlib.sha256(repr([code_fingerprint(), stamps, settings]).encode()).hexdigest()


def save_summary(run: Path, name: str, summary: DataSummary) -> None:
    """Cache the summary of a corpus under its key."""
    path = cache_file(run, "data_summary")
    cached = {known: value for known, value in read_cache(path).items() if known != name}
    write_cache(path, dict(list(cached.items())[1 - MAX_RECIPES :]) | {name: asdict(summary)})


def load_summary(run: Path, recipe: Recipe) -> DataSummary | None:
    """The cached summary of a recipe's data, or None."""
    known = read_cache(cache_file(run, "data_summary")).get(summary_key(run, recipe))
    try:
        return DataSummary(Digests(**known["digests"]), known["bundled"]) if known else None
    except (KeyError, TypeError):
        return None


def file_hashes(run: Path, paths: Iterable[Path], trust: bool) -> dict[str, str]:
    """SHA-256 of files by name; with `trust`, cached hashes of files with the same size, time and inode are used."""
    path = cache_file(run, "file_hashes")
    cached = read_cache(path)
    known = dict(cached)
    hashes: dict[str, str] = {}
    for file in paths:
        name = relative_name(run, file)
        stamp = _stamp(run, file)[1:]
        entry = known.get(name)
        if not (trust and isinstance(entry, list) and entry[:-1] == stamp):
            with file.open("rb") as opened:
                known[name] = [*stamp, hashlib.file_digest(opened, "sha256").hexdigest()]
        hashes[name] = known[name][-1]
    if known != cached:
        write_cache(path, known)
    return hashes


def _stamp(run: Path, path: Path) -> list[Any]:
    stat = path.stat()
    return [relative_name(run, path), stat.st_size, stat.st_mtime_ns, stat.st_ino]
