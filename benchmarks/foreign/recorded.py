"""Recorded logs of other trainers, unpacked to the files that these trainers write."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.foreign.runs import RUNS, Run, slug

LOGS = Path(__file__).parent / "logs"
HALVES = ("tuning", "held-out", "fresh", "last")
LAST = 4
"""The variant that was recorded and evaluated after the last change of a detector."""
LEFT_OUT = (
    "num_tokens",
    "step_time",
    "epoch",
    "total_flos",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "eps",
    "episode",
)
EXTREMES = (
    "completions/min",
    "completions/max",
    "clip_ratio/low",
    "clip_ratio/high",
    "logits/",
    "eval_logits/",
    "eval_logps/",
)
"""Times, counts and extremes, which no detector reads."""


def packed(state: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer state with one list per column, which has a third of the size."""
    rows = state["log_history"]
    names = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if name not in LEFT_OUT and not name.startswith(EXTREMES) and not name.endswith("_per_second")
    ]
    columns = {name: [row.get(name) for row in rows] for name in names if not name.endswith("_runtime")}
    return {key: state[key] for key in ("run", "variant", "max_steps", "ended")} | {"columns": columns}


def unpacked(log: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `trainer_state.json`."""
    columns = log["columns"]
    length = len(log["columns"]["step"])
    rows = [{name: values[row] for name, values in columns.items() if values[row] is not None} for row in range(length)]
    return {"max_steps": log["max_steps"], "log_history": rows}


def half_of(run: Run, variant: int) -> str:
    """The half of a log."""
    if variant > 1:
        return "last" if variant == LAST else "fresh"
    return HALVES[run.held_out(variant)]


def record(source: Path) -> None:
    """Pack the logs of the trainings into the files of their halves."""
    by_half: dict[str, list[str]] = {half: [] for half in HALVES}
    for run in RUNS:
        for path in sorted(source.glob(f"{slug(run, 0)[:-2]}-[0-9].json")):
            state = json.loads(path.read_text())
            by_half[half_of(run, state["variant"])].append(json.dumps(packed(state), separators=(",", ":")))
    for half, lines in by_half.items():
        LOGS.mkdir(exist_ok=True)
        (LOGS / f"{half}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def logs(half: str) -> Iterator[tuple[Run, int, dict[str, Any]]]:
    """Run, variant and trainer state of every recorded log of one half."""
    runs = {run.name: run for run in RUNS}
    for line in (LOGS / f"{half}.jsonl").read_text(encoding="utf-8").splitlines():
        log = json.loads(line)
        yield runs[log["run"]], log["variant"], unpacked(log)
