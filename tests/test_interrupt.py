"""Signals during a run: from a scheduler, a closed terminal, or Ctrl-C."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import kills
from towpath import interrupt, recipe
from towpath.run import pipeline
from towpath.run.new_run import create_run
from towpath.store import jsonl

SETTINGS = [part for value in kills.SETTINGS for part in ("--set", value)]


@pytest.fixture(autouse=True)
def signals_not_ignored() -> Iterator[None]:
    """Tests that were started by nohup or in a shell's background have signals that they, too, would ignore."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def started(run: Path, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "towpath", "run", str(run), "--no-serve", *SETTINGS]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ | environment
    )


def wait_for(run: Path, pattern: str, process: "subprocess.Popen[str]") -> None:
    """Wait until a run has created a file."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not list(run.glob(pattern)):
        time.sleep(0.02)
    assert process.poll() is None, process.stderr and process.stderr.read()


def run(folder: Path, number: int = 0, pattern: str = "") -> None:
    """Run in this process; send the signal `number` once the run has created a file."""
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(0.002):
            if list(folder.glob(pattern)):
                os.kill(os.getpid(), number)
                return

    thread = threading.Thread(target=send)
    if number:
        thread.start()
    try:
        pipeline.run(recipe.load(folder, kills.SETTINGS), folder, lambda _line: None)
    finally:
        ended.set()
        if number:
            thread.join()


MOMENTS = [
    (signal.SIGHUP, "stages/sft/*/run_info.json", ""),
    (signal.SIGUSR1, "stages/policy/*/pending_rollouts/checkpoints/rollout_2", "A checkpoint of policy after step"),
]


def test_run_stopped_by_signals_resumes_bit_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """During training and in a stage without checkpoints; `make prove` covers twenty moments."""
    stopped = tmp_path / "stopped"
    whole = tmp_path / "whole"
    for folder in (stopped, whole):
        create_run(folder, "tiny")
    process = started(stopped)
    wait_for(stopped, "stages/baseline/*", process)
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=60)
    assert process.returncode == interrupt.EXIT_CODE and "SIGTERM: stopped." in output and "Traceback" not in output, (
        output
    )
    shutil.rmtree(stopped / "stages" / "sft")
    for number, pattern, saved in MOMENTS:
        with pytest.raises(interrupt.Stopped) as error:
            run(stopped, number, pattern)
        assert error.value.code == interrupt.EXIT_CODE
        output = capsys.readouterr().err
        assert f"{signal.Signals(number).name}: stopped." in output and "Run the same command to resume." in output
        assert saved in output
    run(stopped)
    run(whole)
    assert kills.run_outcome(stopped) == kills.run_outcome(whole)
    (metrics,) = stopped.glob("stages/policy/*/metrics.jsonl")
    assert [row["step"] for row in jsonl.read(metrics) if row["phase"] == "train"] == [0, 1, 2, 3]


def script(body: str) -> "subprocess.Popen[str]":
    """Start a program that handles signals, defers them, prints `ready`, and then works for a long time."""
    lines = [
        "import time",
        "from towpath import interrupt",
        "with interrupt.handle_signals():",
        *(f"    {line}" for line in body.splitlines()),
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


HOLDS = (
    "with interrupt.defer_signals():\n    print('ready', flush=True)\n    end = time.monotonic() + 30\n    while "
    "time.monotonic() < end: time.sleep(0.01)"
)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_second_signal_ends_at_once(second: int) -> None:
    process = script(HOLDS)
    process.send_signal(signal.SIGTERM)
    assert process.stderr and "stopping after the next checkpoint" in process.stderr.readline()
    assert process.poll() is None
    process.send_signal(second)
    process.communicate(timeout=20)  # it would hold for 30 s
    assert process.returncode == -second


def test_grace_period_without_checkpoint() -> None:
    process = script("interrupt.GRACE_SECONDS = 0.3\n" + HOLDS)
    process.send_signal(signal.SIGUSR1)
    _, output = process.communicate(timeout=10)
    assert process.returncode == interrupt.EXIT_CODE and "the previous checkpoint is the newest" in output


def test_signal_waits_for_the_end_of_an_uninterrupted_block() -> None:
    """A message to a worker that was left half written would be the end of the connection."""
    done = []
    with pytest.raises(interrupt.Stopped), interrupt.handle_signals():
        with interrupt.uninterrupted():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("block")
        done.append("after")
    assert done == ["block"]


def test_user_code_except_does_not_swallow_signals() -> None:
    wait = "try:\n    print('ready', flush=True)\n    time.sleep(30)\nexcept Exception:\n    time.sleep(30)"
    process = script(wait)
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=10)
    assert process.returncode == interrupt.EXIT_CODE and "SIGTERM: stopped. Completed work is saved." in output


def test_signal_in_a_finalizer_stops_the_run() -> None:
    """Python prints what a finalizer raises, and goes on."""
    body = [
        "class Closed:",
        "    def __del__(self):",
        "        print('ready', flush=True)",
        "        time.sleep(30)",
        "Closed()",
        "time.sleep(30)",
    ]
    process = script("\n".join(body))
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=10)
    assert process.returncode == interrupt.EXIT_CODE and "Traceback" not in output
    assert "SIGTERM: stopped. Completed work is saved." in output


def test_previous_handlers_are_restored_and_ignored_signals_stay_ignored() -> None:
    received: list[int] = []

    def own(number: int, _frame: object) -> None:
        received.append(number)

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, own),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    }
    try:
        with interrupt.handle_signals():
            assert signal.getsignal(signal.SIGTERM) is not own and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            with interrupt.handle_signals():
                pass
            assert signal.getsignal(signal.SIGTERM) is not own, "the outermost block listens"
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        with pytest.raises(interrupt.Stopped), interrupt.handle_signals():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert len(received) == 2 and not interrupt.stop_requested()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_no_signal_handling_outside_the_main_thread() -> None:
    requested: list[object] = []

    def work() -> None:
        with interrupt.handle_signals(), interrupt.defer_signals(), interrupt.allow_signals():
            requested.append(interrupt.stop_requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert requested == [False]
