"""The content of a base model and of a chat template as hashes, so that another model under the same name is another
model.

Hashes of files are kept in the run by size, times and inode: looking at a run reads no weights, and never fetches a
model.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from towpath.data.chat import BUILTIN_TEMPLATES
from towpath.data.file_cache import cache_file, read_cache, write_cache
from towpath.errors import ModelError
from towpath.models import files, locate
from towpath.progress import progress

TEXTS = (
    *files.TEXTS,
    "model.safetensors.index.json",
    "chat_template.jinja",
    "chat_template.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
)
"""Patterns of what is read of a model's folder besides its weights."""
UNSAID = ("transformers_version", "_name_or_path")
"""Keys of a configuration that say who wrote it, not what it is."""
SLOW = 2**30
"""Bytes from which hashing shows progress."""


def fetch(source: str, run: Path, key: str = "model.source") -> str:
    """The content of a model that is about to be used: found, or fetched."""
    folder = Path(locate.find(source, run, key))
    return _content(source, run, _files(source, folder, run))


def known(source: str, run: Path) -> str:
    """The content of a model as it lies on this machine, or as it was when this run last used it; empty where
    neither is known, and, since nothing is done that it could be compared with, before the first run."""
    recorded = read_cache(cache_file(run, "model_content")).get(source) or {}
    if not recorded and not (run / "stages").is_dir():
        return ""
    folder = locate.known(source, run) or Path(recorded.get("folder", ""))
    path = _files(source, folder, run) if folder.is_dir() else []
    return _content(source, run, path) if path else str(recorded.get("digest", ""))


def template(name: str) -> str:
    """The content of a template that is a file of the user's; a name of one that comes along stands for itself."""
    path = Path(name)
    if name in BUILTIN_TEMPLATES or not path.is_file():
        return name
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _files(source: str, folder: Path, run: Path) -> list[Path]:
    """What a model is made of. A GGUF file stands for itself: libraries may convert it to other words for the same."""
    if source.startswith("gguf:"):
        path = locate.gguf_file(source, run)
        return [path] if path else []
    try:
        weights = files.weight_files(folder)
    except ModelError:
        weights = []  # loading says what is wrong
    texts = {path for pattern in TEXTS for path in folder.glob(pattern) if path.is_file()}
    return [*weights, *sorted(texts)] if (folder / "config.json").is_file() else []


def _content(source: str, run: Path, paths: list[Path]) -> str:
    """One hash of all the files, by name and content."""
    cached = cache_file(run, "model_content")
    stamps = {path.name: _stamp(path) for path in paths}
    recorded = read_cache(cached).get(source) or {}
    if recorded.get("stamps") == stamps:
        return str(recorded["digest"])
    total = sum(path.stat().st_size for path in paths)
    if total < SLOW:
        hashes = {path.name: _hash(path) for path in paths}
    else:
        with progress("reading the base model", total, "bytes") as work:
            hashes = {}
            for path in paths:
                hashes[path.name] = _hash(path)
                work.advance(path.stat().st_size)
    digest = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:12]
    entry: dict[str, Any] = {"folder": str(paths[0].parent.absolute()), "stamps": stamps, "digest": digest}
    write_cache(cached, read_cache(cached) | {source: entry})
    return digest


def _hash(path: Path) -> str:
    if path.name in ("config.json", "generation_config.json"):
        try:
            digest = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            digest = None
        if isinstance(digest, dict):
            return hashlib.sha256(
                json.dumps({k: v for k, v in digest.items() if k not in UNSAID}, sort_keys=True).encode()
            ).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
