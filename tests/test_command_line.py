"""Errors of the command line: with a fix, or a bug with its traceback in a file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from towpath.cli import app, crash
from towpath.run import status


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text("")
    return tmp_path


def command(monkeypatch: pytest.MonkeyPatch, run: Path, error: Exception) -> int:
    """Return the exit code of `towpath status` while a function of ours raises."""

    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(status, "read_status", fail)
    monkeypatch.setattr(sys, "argv", ["towpath", "status", str(run)])
    with pytest.raises(SystemExit) as ended:
        app.main()
    code = ended.value.code
    assert isinstance(code, int)
    return code


def test_bug_message_and_traceback_file(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TOWPATH_TRACEBACK", raising=False)
    assert command(monkeypatch, run, IndexError("list index out of range")) == crash.BUG_EXIT_CODE
    output = capfd.readouterr().err
    (path,) = run.glob("traceback-*.txt")
    assert path.stat().st_mode & 0o077 == 0, "it may contain secrets of its owner"
    assert f"this is a bug in towpath; traceback written to {path}" in output and "Traceback" not in output
    traceback_text = path.read_text()
    assert (
        "Traceback (most recent call last)" in traceback_text
        and "IndexError: list index out of range" in traceback_text
        and f"status {run}" in traceback_text
    )


def test_traceback_is_printed_on_request(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOWPATH_TRACEBACK", "1")
    assert command(monkeypatch, run, ZeroDivisionError("division by zero")) == crash.BUG_EXIT_CODE
    assert "Traceback (most recent call last)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(2, "No such file or directory", "/nowhere/x"), "/nowhere/x: no such file or directory"),
        (MemoryError(), "must fit into memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "must fit into memory",
        ),
        (PermissionError(13, "Permission denied", "/root/x"), "/root/x: permission denied"),
    ],
)
def test_operating_system_errors_are_not_reported_as_bugs(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Exception, words: str
) -> None:
    assert command(monkeypatch, run, error) == 1
    output = capfd.readouterr().err
    assert (
        words in output and "rule:" in output and "fix:" in output and "bug" not in output and "Traceback" not in output
    )


def test_traceback_goes_to_a_temporary_file_if_the_run_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    output, code = crash.describe_crash(KeyError("x"), ["towpath", "status", "\0", "/nowhere"])
    (path,) = tmp_path.glob("traceback-*.txt")
    assert str(path) in output and code == crash.BUG_EXIT_CODE


def test_broken_pipe_is_not_an_error() -> None:
    script = f"{sys.executable} -m towpath explain | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    assert "Traceback" not in done.stderr and "error" not in done.stderr, done.stderr
