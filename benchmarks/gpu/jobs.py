"""Jobs, each in a process of its own with a time limit, so that one failure loses nothing.

Processes are forked: torch is imported once. The parent never touches the GPU, which a child could not use then.
"""

import json
import multiprocessing
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.models import Setting

Job = Callable[[Setting], dict[str, Any]]
STOPPING = 5.0
"""Seconds that a process has to end once it is asked to."""


def run(job: Job, setting: Setting, limit: float, scratch: Path) -> dict[str, Any]:
    """The figures of a job, or the reason why there are none, and its seconds."""
    path = scratch / f"{job.__name__}.json"
    path.unlink(missing_ok=True)
    begin = time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=_work, args=(job, setting, path))
    process.start()
    process.join(limit)
    result: dict[str, Any] = {"status": "failed", "reason": f"the process ended with status {process.exitcode}"}
    if process.is_alive():
        result = {"status": "stopped", "reason": f"not done after {limit:.0f} s"}
        process.terminate()
        process.join(STOPPING)
        if process.is_alive():
            process.kill()
            process.join(STOPPING)
    elif path.is_file():
        result = json.loads(path.read_text(encoding="utf-8"))
    return result | {"seconds": round(time.monotonic() - begin, 1)}


def _work(job: Job, setting: Setting, path: Path) -> None:
    """Run a job and write its result; only in a process of its own."""
    try:
        result: dict[str, Any] = {"status": "done", "figures": job(setting)}
    except Exception as error:  # whatever a job raises is its result
        reason = f"{type(error).__name__}: {error}"[:500]
        result = {"status": "failed", "reason": reason, "traceback": traceback.format_exc()[-4000:]}
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(result), encoding="utf-8")
    partial.rename(path)
