"""Small results kept in a hidden folder of the run, so that a second look is quick; removing them costs time alone."""

import hashlib
import json
import secrets
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = ".cache"


def cache_file(run: Path, name: str) -> Path:
    """Where a result of that name is kept."""
    return run / FOLDER / f"{name}.json"


def read_cache(path: Path | None) -> dict[str, Any]:
    """What a file keeps; empty where there is none or it is damaged."""
    try:
        value = json.loads(path.read_bytes()) if path else {}
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_cache(path: Path | None, value: dict[str, Any]) -> None:
    """Keep a result; a folder that cannot be written to only makes the next look slower."""
    if path is None:
        return
    aside = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(exist_ok=True)
        aside.write_text(json.dumps(value, separators=(",", ":")), encoding="utf-8")
        aside.replace(path)  # no fsync: a cache that is lost is made again
    except OSError:
        with suppress(OSError):
            aside.unlink()


@cache
def code_fingerprint() -> str:
    """The modules that read and tokenise data: what other code made of the same files is not read."""
    return hashlib.sha256(
        b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    ).hexdigest()
