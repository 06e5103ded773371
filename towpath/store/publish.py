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
_TEMPORARY = re.compile(r".+\.tmp-[0-9a-f]{8}")
_fault_counts: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """A place where tests kill the process: TOWPATH_FAULT=name:n dies at the n-th passing."""
    wanted, _, count = os.environ.get("TOWPATH_FAULT", "").partition(":")
    if wanted != name:
        return
    _fault_counts[name] += 1
    if _fault_counts[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)


def publish(folder: Path, write: Callable[[Path], None]) -> Path:
    """Make a folder with what `write` puts there; until the last rename nothing of it can be seen."""
    aside = _temporary_path(folder)
    with _translate_disk_full(folder):
        try:
            _make_folder(folder.parent)
            aside.mkdir()
            write(aside)
            fault_point("write")
            sums = {
                path.relative_to(aside).as_posix(): checksum(path)
                for path in sorted(aside.rglob("*"))
                if path.is_file()
            }
            (aside / MANIFEST).write_text(json.dumps(sums, indent=1))
            for path in aside.rglob("*"):
                _fsync(path)
            _fsync(aside)
            fault_point("fsync")
            _remove_damaged(folder)
            aside.rename(folder)
            fault_point("rename")
            _fsync(folder.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return folder


def replace_file(path: Path, text: str | Iterable[str]) -> None:
    """A file with new content, in one piece or in parts as they come, or with its old one, never with half."""
    aside = _temporary_path(path)
    with _translate_disk_full(path):
        try:
            _make_folder(path.parent)
            with aside.open("w", encoding="utf-8") as file:
                file.writelines((text,) if isinstance(text, str) else text)
            fault_point("write")
            _fsync(aside)
            fault_point("fsync")
            aside.replace(path)
            fault_point("rename")
            _fsync(path.parent)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def is_intact(folder: Path) -> bool:
    """Whether every file of a published folder is still what was written."""
    try:
        sums = json.loads((folder / MANIFEST).read_text())
        return isinstance(sums, dict) and all(checksum(folder / name) == told for name, told in sums.items())
    except (OSError, ValueError):
        return False


def read_checksums(folder: Path) -> dict[str, dict[str, int | str]]:
    """The checksums that a folder was published with."""
    return json.loads((folder / MANIFEST).read_text())


def newest_intact(parent: Path, prefix: str) -> tuple[Path | None, list[Path]]:
    """The highest numbered `prefix_N` that verifies, and those passed over as broken."""
    number = re.compile(re.escape(prefix) + r"_([0-9]+)")
    found = [
        (int(match[1]), path)
        for path in (parent.iterdir() if parent.is_dir() else ())
        if (match := number.fullmatch(path.name))
    ]
    passed_over: list[Path] = []
    for _, path in sorted(found, reverse=True):
        if is_intact(path):
            return path, passed_over
        passed_over.append(path)
    return None, passed_over


def remove_temporary(parent: Path) -> None:
    """Remove what a killed process left half written, and nothing whose name only looks alike."""
    for path in [path for path in parent.rglob("*.tmp-*") if _TEMPORARY.fullmatch(path.name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _translate_disk_full(place: Path) -> Iterator[None]:
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


def _temporary_path(place: Path) -> Path:
    return place.with_name(f"{place.name}.tmp-{secrets.token_hex(4)}")


def _make_folder(folder: Path) -> None:
    """A folder and its missing parents, each one's name on disk too."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _fsync(folder.parent)


def _remove_damaged(folder: Path) -> None:
    """Make way where a damaged folder lies; one that is whole, or was never published, stays."""
    if not folder.exists():
        return
    if not (folder / MANIFEST).is_file() or is_intact(folder):
        raise DataError(
            f"{folder}: there already",
            "what was published is never replaced",
            "name another folder, or remove this one",
        )
    damaged = _temporary_path(folder)
    folder.rename(damaged)
    shutil.rmtree(damaged, ignore_errors=True)


def checksum(path: Path) -> dict[str, int | str]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _fsync(path: Path) -> None:
    """To the disk itself; some file systems know no fsync of a folder, any other failure is one."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _open_private(path: str, flags: int) -> int:
    """Open a file that only its owner may read, made before or now."""
    descriptor = os.open(path, flags, 0o600)
    with suppress(OSError):  # another user's
        os.fchmod(descriptor, 0o600)
    return descriptor


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """One process works in a folder at a time. Only the owner may open the lock, for whoever can read a file can
    lock it and stop the run."""
    with open(folder / ".lock", "w", opener=_open_private) as lock:  # Path.open takes no opener
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ResourceError(
                f"{folder}: another process runs it", "one process works on a run at a time", "wait for it, or stop it"
            ) from None
        yield
