"""Folders and files that are there whole or not at all: write aside, fsync, rename, fsync the parent."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from towpath.errors import ResourceError

MANIFEST = "manifest.sha256.json"
_passed: Counter[str] = Counter()


def fault(name: str) -> None:
    """A place where tests kill the process: TOWPATH_FAULT=name:n dies at the n-th passing."""
    wanted, _, count = os.environ.get("TOWPATH_FAULT", "").partition(":")
    if wanted != name:
        return
    _passed[name] += 1
    if _passed[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _room(place: Path) -> Iterator[None]:
    """A full disk is the user's to mend, and is told as such."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fix = "free space and run again; what was finished is kept and the run goes on from it"
        raise ResourceError(f"{place}: no space left on the disk", "a run writes checkpoints and weights", fix) from error


def publish(folder: Path, write: Callable[[Path], None]) -> Path:
    """Make a folder with what `write` puts there; until the last rename nothing of it can be seen."""
    aside = folder.with_name(f"{folder.name}.tmp-{secrets.token_hex(4)}")
    with _room(folder):
        try:
            aside.mkdir(parents=True)
            write(aside)
            fault("write")
            sums = {path.relative_to(aside).as_posix(): _sum(path) for path in sorted(aside.rglob("*")) if path.is_file()}
            (aside / MANIFEST).write_text(json.dumps(sums, indent=1))
            for path in aside.rglob("*"):
                _sync(path)
            _sync(aside)
            fault("fsync")
            aside.rename(folder)
            fault("rename")
            _sync(folder.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return folder


def replace_file(path: Path, text: str) -> None:
    """A small file with new content, or with its old one, never with half."""
    with _room(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
        try:
            aside.write_text(text, encoding="utf-8")
            _sync(aside)
            fault("fsync")
            aside.replace(path)
            fault("rename")
            _sync(path.parent)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def verified(folder: Path) -> bool:
    """Whether every file of a published folder is still what was written."""
    try:
        sums = json.loads((folder / MANIFEST).read_text())
        return all(_sum(folder / name) == told for name, told in sums.items())
    except (OSError, ValueError):
        return False


def newest(parent: Path, prefix: str) -> tuple[Path | None, list[Path]]:
    """The highest numbered `prefix_N` that verifies, and those passed over as broken."""
    numbered = [path for path in parent.glob(f"{prefix}_*") if path.name.removeprefix(f"{prefix}_").isdigit()]
    passed_over: list[Path] = []
    for path in sorted(numbered, key=lambda path: int(path.name.removeprefix(f"{prefix}_")), reverse=True):
        if verified(path):
            return path, passed_over
        passed_over.append(path)
    return None, passed_over


def sweep(parent: Path) -> None:
    """Remove what a killed process left half written."""
    for path in parent.rglob("*.tmp-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sum(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
