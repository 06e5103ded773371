"""The command `towpath` in a process of its own, forked from one that has imported what commands import.

A command from `start` is a real process with its own environment, signals, exit status and death; what it saves is the
seconds in which a fresh interpreter imports torch and transformers. `python -m towpath` itself is tested where the
interpreter's start matters (tests/test_imports.py, tests/test_command_line.py, tests/test_interrupt.py).
"""

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

SMALL = [
    "sft.epochs=0.15",
    "evaluate.prompts=12",
    "evaluate.jailbreak_prompts=2",
    "preferences.prompts=30",
    "preferences.min_labels=8",
    "policy.steps=3",
    "policy.validate_every=1",
    "evaluate.bootstrap=100",
    "policy.max_new_tokens=12",
    "evaluate.max_new_tokens=12",
    "preferences.max_new_tokens=12",
]
SETTINGS = [part for value in SMALL for part in ("--set", value)]
"""A whole run of the tiny recipe in seconds."""
_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(["tests.preload"])


def towpath(*arguments: object, timeout: float = 300, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end; `environment` is added to this process's."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "stdout"
        err = Path(folder) / "stderr"
        process = start(*arguments, out=out, err=err, **environment)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(list(map(str, arguments)), timeout, out.read_bytes(), err.read_bytes())
        return subprocess.CompletedProcess(arguments, process.exitcode, out.read_text(), err.read_text())


def start(*arguments: object, out: Path, err: Path, **environment: str) -> BaseProcess:
    """Start a command that writes to the files `out` and `err` and reads nothing; they exist when this returns."""
    out.touch()
    err.touch()
    words = tuple(map(str, arguments))
    process = _forkserver.Process(
        target=_main, args=(words, os.environ | environment, str(Path.cwd()), str(out), str(err))
    )
    process.start()
    return process


def _main(arguments: tuple[str, ...], environment: dict[str, str], folder: str, out: str, err: str) -> None:
    for path, descriptor in ((os.devnull, 0), (out, 1), (err, 2)):
        opened = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)
    sys.argv = ["towpath", *arguments]
    from towpath.cli.app import main

    try:
        main()
    finally:
        sys.stdout.flush()
        atexit._run_exitfuncs()  # which a multiprocessing child leaves out
