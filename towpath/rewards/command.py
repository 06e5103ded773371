"""The reward source `command:COMMAND`: a program of the user scores each answer, in a process with limits.

The program reads one JSON object from standard input: {"prompt", "messages", "answer"} and the columns of the prompt's
row. The last line that it writes is the score, a number or {"score": NUMBER}. A program that fails, or exceeds a limit,
leaves the answer unscored.
"""

import contextlib
import json
import math
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from towpath.errors import RecipeError
from towpath.progress import print_note, progress
from towpath.recipe.rewards import CommandLimits
from towpath.rewards.call_adapter import NO_COLUMNS, Columns, Prompts, message_rows, prompt_texts

RULE = "command:PROGRAM ARGUMENTS names a program that reads an answer as JSON and writes a score"
FAILED = math.nan
"""The score of an answer that was not scored."""
QUOTED = 120


def load_command(source: str, limits: CommandLimits) -> Callable[..., list[float]]:
    """The scorer of a source; RecipeError if the program does not exist."""
    words = program_words(source)
    if not words or shutil.which(words[0]) is None:
        value = f"{source!r}: no program {words[0] if words else ''!r}"
        raise RecipeError(value, RULE, "give the program's path, or install it")

    def score(prompts: Prompts, answers: Sequence[str], columns: Columns = NO_COLUMNS) -> list[float]:
        rows = _inputs(prompts, answers, columns)
        problems: Counter[str] = Counter()
        with (
            ThreadPoolExecutor(limits.parallel or os.cpu_count() or 1) as pool,
            progress("command", len(rows), "answers") as work,
        ):
            scores = []
            for value in pool.map(lambda row: run_command(words, row, limits), rows):
                work.advance(1)
                scores.append(value if isinstance(value, float) else FAILED)
                if isinstance(value, str):
                    problems[value] += 1
        for problem, count in problems.most_common(3):
            print_note(f"{source[:QUOTED]}: {count} of {len(rows)} answers not scored: {problem}")
        return scores

    return score


def program_words(source: str) -> list[str]:
    """The program of a source and its arguments; RecipeError for an open quote."""
    try:
        return shlex.split(source.partition(":")[2])
    except ValueError as error:
        raise RecipeError(f"{source!r}: {error}", RULE, "close the quote") from None


def _inputs(prompts: Prompts, answers: Sequence[str], columns: Columns) -> list[str]:
    return [
        json.dumps(
            {name: values[i] for name, values in columns.items()}
            | {"prompt": prompt, "messages": messages, "answer": answer},
            ensure_ascii=False,
            default=str,
        )
        for i, (prompt, messages, answer) in enumerate(
            zip(prompt_texts(prompts), message_rows(prompts), answers, strict=True)
        )
    ]


def run_command(words: Sequence[str], row: str, limits: CommandLimits) -> float | str:
    """The score that the program gives, or why there is none."""
    shell = f'ulimit -v {limits.memory * 1024} 2>/dev/null; ulimit -t {math.ceil(limits.seconds) + 1}; exec "$@"'
    with tempfile.TemporaryFile() as stdin:
        stdin.write(row.encode())
        stdin.seek(0)
        process = subprocess.Popen(
            ["/bin/sh", "-c", shell, "sh", *words],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that its children are killed with it
        )
        try:
            output, errors, problem = _read(process, limits)
        finally:
            _kill(process)
    if problem:
        return problem
    return _failure(process.returncode, errors) if process.returncode else _parse(output.decode(errors="replace"))


def _read(process: "subprocess.Popen[bytes]", limits: CommandLimits) -> tuple[bytes, bytes, str]:
    """Output and error output until both end, or the reason why the program is stopped."""
    assert process.stdout and process.stderr
    deadline = time.monotonic() + limits.seconds
    parts: dict[int, bytearray] = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    problem = ""
    with process.stdout, process.stderr, selectors.DefaultSelector() as selector:
        for number in parts:
            selector.register(number, selectors.EVENT_READ)
        while selector.get_map() and not problem:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                problem = f"longer than {limits.seconds:g} s"
            for key, _ in ready:
                data = os.read(key.fd, 2**16)
                parts[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
                if len(parts[key.fd]) > limits.output * 1024:
                    problem = f"more than {limits.output} KiB of output"
    if not problem:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            problem = f"longer than {limits.seconds:g} s"
    output, errors = parts.values()
    return bytes(output), bytes(errors), problem


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill the program and its children; no effect if they have ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failure(status: int, errors: bytes) -> str:
    """The exit status, and the last line of the error output."""
    lines = errors[-4096:].decode(errors="replace").strip().splitlines()
    text = f"exit status {status}"
    return f"{text}: {lines[-1][:QUOTED]}" if lines else text


def _parse(output: str) -> float | str:
    """The number in the last line that is not blank."""
    line = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "")
    try:
        value = json.loads(line)
        number = float(value["score"] if isinstance(value, dict) else value)
    except (ValueError, TypeError, KeyError):
        return f"no score in its last line: {line[:QUOTED]!r}"
    return number if math.isfinite(number) else f"a score of {line[:QUOTED]}"
