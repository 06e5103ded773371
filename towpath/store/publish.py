"""Atomic publication of files and folders: write to a temporary path, fsync, rename, fsync the parent."""

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
    """A point where tests kill the process: TOWPATH_FAULT=name:n kills it at the n-th pass."""
    wanted, _, count = os.environ.get("TOWPATH_FAULT", "").partition(":")
    if wanted != name:
        return
    _fault_counts[name] += 1
    if _fault_counts[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)


def publish(folder: Path, write: Callable[[Path], None]) -> Path:
    """Create a folder atomically with the content that `write` puts into a temporary folder."""
    temporary = _temporary_path(folder)
    with _translate_disk_full(folder):
        try:
            _make_folder(folder.parent)
            temporary.mkdir()
            write(temporary)
            fault_point("write")
            checksums = {
                path.relative_to(temporary).as_posix(): checksum(path)
                for path in sorted(temporary.rglob("*"))
                if path.is_file()
            }
            (temporary / MANIFEST).write_text(json.dumps(checksums, indent=1))
            for path in temporary.rglob("*"):
                _fsync(path)
            _fsync(temporary)
            fault_point("fsync")
            _remove_damaged(folder)
            temporary.rename(folder)
            fault_point("rename")
            _fsync(folder.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return folder


def replace_file(path: Path, text: str | Iterable[str]) -> None:
    """Replace a file's content atomically; `text` may come in parts."""
    temporary = _temporary_path(path)
    with _translate_disk_full(path):
        try:
            _make_folder(path.parent)
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines((text,) if isinstance(text, str) else text)
            fault_point("write")
            _fsync(temporary)
            fault_point("fsync")
            temporary.replace(path)
            fault_point("rename")
            _fsync(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def is_intact(folder: Path) -> bool:
    """Return whether every file of a published folder matches its checksum."""
    try:
        sums = json.loads((folder / MANIFEST).read_text())
        return isinstance(sums, dict) and all(checksum(folder / name) == expected for name, expected in sums.items())
    except (OSError, ValueError):
        return False


def read_checksums(folder: Path) -> dict[str, dict[str, int | str]]:
    """Return the checksums that a folder was published with."""
    return json.loads((folder / MANIFEST).read_text())


def newest_intact(parent: Path, prefix: str) -> tuple[Path | None, list[Path]]:
    """Return the highest numbered `prefix_N` that is intact, and the damaged ones that were skipped."""
    number = re.compile(re.escape(prefix) + r"_([0-9]+)")
    numbered = [
        (int(match[1]), path)
        for path in (parent.iterdir() if parent.is_dir() else ())
        if (match := number.fullmatch(path.name))
    ]
    damaged: list[Path] = []
    for _, path in sorted(numbered, reverse=True):
        if is_intact(path):
            return path, damaged
        damaged.append(path)
    return None, damaged


def remove_temporary(parent: Path) -> None:
    """Remove temporary files and folders that a killed process left behind."""
    for path in [path for path in parent.rglob("*.tmp-*") if _TEMPORARY.fullmatch(path.name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _translate_disk_full(path: Path) -> Iterator[None]:
    """Raise ResourceError for a full disk, whichever library reports it."""
    try:
        yield
    except Exception as error:
        full = (errno.ENOSPC, errno.EDQUOT)
        if getattr(error, "errno", None) not in full and not any(f"os error {number}" in str(error) for number in full):
            raise
        fix = "free space and run the same command to resume; completed work is saved"
        raise ResourceError(
            f"{path}: no space left on the disk", "a run writes checkpoints and weights", fix
        ) from error


def _temporary_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")


def _make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, and fsync each parent."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _fsync(folder.parent)


def _remove_damaged(folder: Path) -> None:
    """Remove a damaged folder; raise if it is intact or was never published."""
    if not folder.exists():
        return
    if not (folder / MANIFEST).is_file() or is_intact(folder):
        raise DataError(
            f"{folder}: already exists",
            "a published folder is never replaced",
            "choose another folder, or remove this one",
        )
    damaged = _temporary_path(folder)
    folder.rename(damaged)
    shutil.rmtree(damaged, ignore_errors=True)


def checksum(path: Path) -> dict[str, int | str]:
    """Return the size and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _fsync(path: Path) -> None:
    """Fsync a path; some filesystems do not support it for folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _open_private(path: str, flags: int) -> int:
    """Open a file that only its owner may read."""
    descriptor = os.open(path, flags, 0o600)
    with suppress(OSError):  # owned by another user
        os.fchmod(descriptor, 0o600)
    return descriptor


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a run's lock. Only the owner may open the lock file, since whoever can read it could lock it and block the
    run."""
    with open(folder / ".lock", "w", opener=_open_private) as lock:  # Path.open takes no opener
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ResourceError(
                f"{folder}: another process runs it", "one process works on a run at a time", "wait for it, or stop it"
            ) from None
        yield
