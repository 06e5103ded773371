"""Messages for exceptions that are not user errors: out of memory, operating system errors, bugs."""

import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

BUG_EXIT_CODE = 70
"""The exit code of a bug: EX_SOFTWARE of sysexits.h."""


def describe_crash(error: Exception, arguments: list[str]) -> tuple[str, int]:
    """Return the message and exit code; the traceback goes to a file, and to the terminal with TOWPATH_TRACEBACK=1."""
    message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    signs = ("can't allocate memory", "out of memory", "bad_alloc")
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(sign in str(error) for sign in signs)
    ):
        fix = "lower model.tokens_per_pass, max_new_tokens or the batch, use LoRA or a smaller model, or free memory"
        return (
            f"error: {message}\n  rule: a stage must fit into memory (`towpath check` estimates it)\n  fix:  {fix}",
            1,
        )
    traceback_path = _write_traceback(error, arguments)
    if os.environ.get("TOWPATH_TRACEBACK") == "1":
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        rule = f"the operating system refused it; traceback in {traceback_path}"
        return (
            f"error: {name}{error.strerror.lower()}\n  rule: {rule}\n  fix:  check that file or address; if it is "
            "towpath's own, report this",
            1,
        )
    rule = f"this is a bug in towpath; traceback written to {traceback_path}"
    return (
        f"error: {message}\n  rule: {rule}\n  fix:  report it with that file; TOWPATH_TRACEBACK=1 prints the traceback",
        BUG_EXIT_CODE,
    )


def _write_traceback(error: Exception, arguments: list[str]) -> str:
    """Write the traceback to the run's folder if the command names one, else to a temporary file, and return its
    path."""
    from towpath import __version__

    command = f"towpath {__version__}, Python {sys.version.split()[0]}, {' '.join(arguments)}\n\n"
    text = command + "".join(traceback.format_exception(error))
    run = next((Path(word) for word in arguments[1:] if _is_run_folder(Path(word))), None)
    name = f"traceback-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (*([run] if run else []), Path(tempfile.gettempdir())):
        try:
            # Only the owner may read it, since arguments may be secret; "x" does not follow a symlink planted in /tmp.
            with open(
                folder / name, "x", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)
            ) as file:
                file.write(text)
            return str(folder / name)
        except OSError:
            continue
    return "no file (none could be written)"


def _is_run_folder(folder: Path) -> bool:
    try:
        return (folder / "recipe.toml").is_file()
    except (OSError, ValueError):  # not a valid path
        return False
