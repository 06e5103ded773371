"""Faults of a worker that tests ask for: TOWPATH_WORKER_FAULT=RANK:POINT:N:ACTION:FILE.

At the N-th pass of a point the worker of that rank is killed, stops, hangs, raises or sends garbage; once, since FILE
then exists.
"""

import os
import signal
import time
from collections import Counter
from pathlib import Path

_counts: Counter[str] = Counter()


def worker_fault(rank: int, point: str, connection: int) -> None:
    """A point where tests break the worker."""
    wanted = os.environ.get("TOWPATH_WORKER_FAULT", "")
    if not wanted:
        return
    wanted_rank, wanted_point, number, action, file = wanted.split(":", 4)
    if point != wanted_point or rank != int(wanted_rank) or Path(file).exists():
        return
    _counts[point] += 1
    if _counts[point] != int(number):
        return
    if Path(file).parent.is_dir():  # else the fault comes each time
        Path(file).touch()
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "hang":
        time.sleep(3600)
    elif action == "garbage":
        os.write(connection, b"HTTP/1.1 400 Bad Request\r\n\r\n")
    elif action == "half":
        os.write(connection, b"TWP1\x10\x00\x00\x00")
        time.sleep(3600)
    else:
        raise ValueError(f"a fault at {point}")
