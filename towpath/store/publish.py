"""Folders and files that are there whole or not at all: write aside, fsync, rename, fsync the parent."""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from towpath.errors import DataError, ResourceError

MANIFEST = "manifest.sha256.json"
_ASIDE = re.compile(r".+\.tmp-[0-9a-f]{8}")
_passed: Counter[str] = Counter()


def fault(name: str) -> None:
    """A place where tests kill the process: TOWPATH_FAULT=name:n dies at the n-th passing."""
    wanted, _, count = os.environ.get("TOWPATH_FAULT", "").partition(":")
    if wanted != name:
        return
    _passed[name] += 1
    if _passed[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)


def publish(folder: Path, write: Callable[[Path], None]) -> Path:
    """Make a folder with what `write` puts there; until the last rename nothing of it can be seen."""
    aside = _aside(folder)
    with _room(folder):
        try:
            _make(folder.parent)
            aside.mkdir()
            write(aside)
            fault("write")
            sums = {
                path.relative_to(aside).as_posix(): checksum(path)
                for path in sorted(aside.rglob("*"))
                if path.is_file()
            }
            (aside / MANIFEST).write_text(json.dumps(sums, indent=1))
            for path in aside.rglob("*"):
                _sync(path)
            _sync(aside)
            fault("fsync")
            _clear(folder)
            aside.rename(folder)
            fault("rename")
            _sync(folder.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return folder


def replace_file(path: Path, text: str | Iterable[str]) -> None:
    """A file with new content, in one piece or in parts as they come, or with its old one, never with half."""
    aside = _aside(path)
    with _room(path):
        try:
            _make(path.parent)
            with aside.open("w", encoding="utf-8") as file:
                file.writelines((text,) if isinstance(text, str) else text)
            fault("write")
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
        return isinstance(sums, dict) and all(checksum(folder / name) == told for name, told in sums.items())
    except (OSError, ValueError):
        return False


def sums_of(folder: Path) -> dict[str, dict[str, int | str]]:
    """The checksums that a folder was published with."""
    return json.loads((folder / MANIFEST).read_text())


def newest(parent: Path, prefix: str) -> tuple[Path | None, list[Path]]:
    """The highest numbered `prefix_N` that verifies, and those passed over as broken."""
    number = re.compile(re.escape(prefix) + r"_([0-9]+)")
    found = [
        (int(match[1]), path)
        for path in (parent.iterdir() if parent.is_dir() else ())
        if (match := number.fullmatch(path.name))
    ]
    passed_over: list[Path] = []
    for _, path in sorted(found, reverse=True):
        if verified(path):
            return path, passed_over
        passed_over.append(path)
    return None, passed_over


def sweep(parent: Path) -> None:
    """Remove what a killed process left half written, and nothing whose name only looks alike."""
    for path in [path for path in parent.rglob("*.tmp-*") if _ASIDE.fullmatch(path.name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _room(place: Path) -> Iterator[None]:
    """A full disk is the user's to mend, and is told as such, whichever library met it."""
    try:
        yield
    except Exception as error:
        full = (errno.ENOSPC, errno.EDQUOT)
        if getattr(error, "errno", None) not in full and not any(f"os error {number}" in str(error) for number in full):
            raise
        fix = "free space and run again; what was finished is kept and the run goes on from it"
        raise ResourceError(
            f"{place}: no space left on the disk", "a run writes checkpoints and weights", fix
        ) from error


def _aside(place: Path) -> Path:
    return place.with_name(f"{place.name}.tmp-{secrets.token_hex(4)}")


def _make(folder: Path) -> None:
    """A folder and its missing parents, each one's name on disk too."""
    if folder.is_dir():
        return
    _make(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def _clear(folder: Path) -> None:
    """Make way where a damaged folder lies; one that is whole, or was never published, stays."""
    if not folder.exists():
        return
    if not (folder / MANIFEST).is_file() or verified(folder):
        raise DataError(
            f"{folder}: there already",
            "what was published is never replaced",
            "name another folder, or remove this one",
        )
    damaged = _aside(folder)
    folder.rename(damaged)
    shutil.rmtree(damaged, ignore_errors=True)


def checksum(path: Path) -> dict[str, int | str]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    """To the disk itself; some file systems know no fsync of a folder, any other failure is one."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _private(path: str, flags: int) -> int:
    """Open a file that only its owner may read, made before or now."""
    descriptor = os.open(path, flags, 0o600)
    with suppress(OSError):  # another user's
        os.fchmod(descriptor, 0o600)
    return descriptor


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process works in a folder at a time. Only the owner may open the lock, for whoever can read a file can
    lock it and stop the run."""
    with open(folder / ".lock", "w", opener=_private) as lock:  # Path.open takes no opener
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ResourceError(
                f"{folder}: another process runs it", "one process works on a run at a time", "wait for it, or stop it"
            ) from None
        yield
