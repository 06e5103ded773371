"""What the command line says of an exception that is no error of the user's: a bug of our own, or a refusal of the
system."""

import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

BUG = 70
"""The exit status of a bug, as sysexits.h has it."""


def lines(error: Exception, arguments: list[str]) -> tuple[str, int]:
    """What to print, and the exit status; the traceback goes to a file, and to the terminal with
    TOWPATH_TRACEBACK=1."""
    message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    signs = ("can't allocate memory", "out of memory", "bad_alloc")
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(sign in str(error) for sign in signs)
    ):
        fix = "lower model.tokens_per_pass, max_new_tokens or the batch, use LoRA or a smaller model, or free memory"
        return (
            f"error: {message}\n  rule: what a stage holds must fit into memory (`towpath check` estimates it)\n  "
            f"fix:  {fix}",
            1,
        )
    place = _written(error, arguments)
    if os.environ.get("TOWPATH_TRACEBACK") == "1":
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        rule = f"the operating system refused it; traceback in {place}"
        return (
            f"error: {name}{error.strerror.lower()}\n  rule: {rule}\n  fix:  check that file or address; if it is "
            "towpath's own, report this",
            1,
        )
    rule = f"this is a bug in towpath; traceback written to {place}"
    return (
        f"error: {message}\n  rule: {rule}\n  fix:  report it with that file; TOWPATH_TRACEBACK=1 prints the traceback",
        BUG,
    )


def _written(error: Exception, arguments: list[str]) -> str:
    """The file that holds the traceback: in the run's folder where the command names one, else in a temporary one."""
    from towpath import __version__

    command = f"towpath {__version__}, Python {sys.version.split()[0]}, {' '.join(arguments)}\n\n"
    text = command + "".join(traceback.format_exception(error))
    run = next((Path(word) for word in arguments[1:] if _is_run(Path(word))), None)
    name = f"traceback-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (*([run] if run else []), Path(tempfile.gettempdir())):
        try:
            # A traceback may name what a command was given, so that only its owner may read it; "x" follows no link of
            # another's in /tmp.
            with open(
                folder / name, "x", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)
            ) as file:
                file.write(text)
            return str(folder / name)
        except OSError:
            continue
    return "no file, since none could be written"


def _is_run(folder: Path) -> bool:
    try:
        return (folder / "recipe.toml").is_file()
    except (OSError, ValueError):  # a word that no path can be
        return False
