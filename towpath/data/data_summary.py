"""What is recorded of a run's data, by file size and time, so that `towpath status`, `plan` and `report` read no data.

A stage that runs always reads the files: only their content decides its fingerprint.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from towpath.data.corpus import Corpus, Digests
from towpath.data.corpus_reader import match_files, relative_name
from towpath.data.file_cache import cache_file, code_fingerprint, read_cache, write_cache
from towpath.data.token_lengths import limits_of, model_key
from towpath.recipe import Recipe

PARTS = ("prompts", "demonstrations", "safety")
MAX_RECIPES = 8
"""Recipes whose digests are cached, so that different `--set` values do not evict each other."""
READ_AT_ONCE = 16 << 20
"""Bytes of data that a command which only looks at the run reads where nothing is recorded; it takes a second."""
SAMPLED_LENGTHS = 200
CHANGED = "data files changed since they were last read: `towpath check` reads them"
UNREAD = "the data has not been read: `towpath check` reads it"


@dataclass(frozen=True)
class DataSummary:
    """What a plan needs to know of a corpus."""

    digests: Digests
    bundled: bool
    """Whether it is the data of a bundled recipe."""
    train: int = 0
    """Training prompts."""
    prompt_lengths: tuple[int, ...] = ()
    """Characters of the first training prompts."""
    heldout: int = 0
    """Held-out prompts."""
    safety: int = 0
    """Prompts of the safety set."""
    harmful: int = 0
    """Those of them that are harmful."""
    demonstrations: int = 0
    demonstration_lengths: tuple[int, ...] = ()
    """Characters of the first ones, prompts included."""
    note: str = ""
    """What is not known: CHANGED, where it is about an earlier state of the files, or UNREAD."""

    @property
    def is_unread(self) -> bool:
        """Whether nothing is known of the data."""
        return self.note == UNREAD


def prompt_lengths(corpus: Corpus) -> tuple[int, ...]:
    """Characters of the first training prompts."""
    return tuple(len(p.text) for p in corpus.train[:SAMPLED_LENGTHS])


def demonstration_lengths(corpus: Corpus) -> tuple[int, ...]:
    """Characters of the first demonstrations, prompts included."""
    return tuple(
        sum(len(message.content) for message in demonstration.messages) + len(demonstration.response)
        for demonstration in corpus.demonstrations[:SAMPLED_LENGTHS]
    )


def is_small(run: Path, recipe: Recipe) -> bool:
    """Whether the data can be read at once."""
    files = [path for part in PARTS for path in match_files(run, f"data.{part}", getattr(recipe.data, part))]
    return sum(path.stat().st_size for path in files) <= READ_AT_ONCE


def summary_key(run: Path, recipe: Recipe) -> str:
    """Cache key: files by size, time and inode, the settings that affect reading, and the code that reads."""
    stamps = {
        part: [_stamp(run, path) for path in match_files(run, f"data.{part}", getattr(recipe.data, part))]
        for part in PARTS
    }
    return hashlib.sha256(repr([code_fingerprint(), stamps, _settings(recipe)]).encode()).hexdigest()


def _settings(recipe: Recipe) -> list[Any]:
    """The settings that affect reading."""
    return [
        recipe.data.model_dump(mode="json", exclude={"preferences", "max_prompt_tokens"}),
        recipe.seed,
        model_key(recipe),
        asdict(limits_of(recipe, None)),
    ]


def save_summary(run: Path, recipe: Recipe, name: str, summary: DataSummary) -> None:
    """Record the summary of a corpus under its key."""
    path = cache_file(run, "data_summary")
    cached = {known: value for known, value in read_cache(path).items() if known != name}
    entry = asdict(summary) | {"settings": _settings_key(recipe)}
    write_cache(path, dict(list(cached.items())[1 - MAX_RECIPES :]) | {name: entry})


def load_summary(run: Path, recipe: Recipe) -> DataSummary | None:
    """The recorded summary of a recipe's data, or None."""
    return _summary(read_cache(cache_file(run, "data_summary")).get(summary_key(run, recipe)))


def last_summary(run: Path, recipe: Recipe) -> DataSummary:
    """The newest summary that was recorded with these settings, whatever the files are now."""
    wanted = _settings_key(recipe)
    entries = read_cache(cache_file(run, "data_summary")).values()
    newest = [entry for entry in entries if isinstance(entry, dict) and entry.get("settings") == wanted][-1:]
    known = _summary(newest[0]) if newest else None
    return replace(known, note=CHANGED) if known else DataSummary(Digests("", "", "", ""), False, note=UNREAD)


def _settings_key(recipe: Recipe) -> str:
    return hashlib.sha256(repr(_settings(recipe)).encode()).hexdigest()


def _summary(entry: Any) -> DataSummary | None:
    try:
        counts = {name: entry[name] for name in ("train", "heldout", "safety", "harmful", "demonstrations")}
        prompts, demonstrations = (tuple(entry[f"{name}_lengths"]) for name in ("prompt", "demonstration"))
        digests = Digests(**entry["digests"])
        return DataSummary(
            digests, entry["bundled"], prompt_lengths=prompts, demonstration_lengths=demonstrations, **counts
        )
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
