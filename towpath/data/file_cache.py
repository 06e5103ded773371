"""Small JSON caches in a hidden folder of the run; deleting them only costs time."""

import hashlib
import json
import secrets
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = ".cache"


def cache_file(run: Path, name: str) -> Path:
    """The path of a cache."""
    return run / FOLDER / f"{name}.json"


def read_cache(path: Path | None) -> dict[str, Any]:
    """The content of a cache; empty if missing or damaged."""
    try:
        value = json.loads(path.read_bytes()) if path else {}
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_cache(path: Path | None, value: dict[str, Any]) -> None:
    """Write a cache; errors are ignored, since a cache only saves time."""
    if path is None:
        return
    aside = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(exist_ok=True)
        aside.write_text(json.dumps(value, separators=(",", ":")), encoding="utf-8")
        aside.replace(path)  # no fsync: a lost cache is recreated
    except OSError:
        with suppress(OSError):
            aside.unlink()


@cache
def code_fingerprint() -> str:
    """Hash of the code that reads and tokenises data, so that caches of other versions are not used."""
    return hashlib.sha256(
        b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    ).hexdigest()
