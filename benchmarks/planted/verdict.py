"""The findings of the health detectors on a finished run, replayed step by step."""

import json
import statistics
from pathlib import Path
from typing import Any

from towpath.health.diagnosis import diagnose
from towpath.health.history import history_from_rows
from towpath.store import jsonl

TOP = 2
"""A fault counts as found if one of its codes is among this many first findings."""


def judge(folder: Path) -> dict[str, Any]:
    """The step of the first correct finding, the first findings at the end, and all critical findings of any step."""
    record = json.loads((folder / "record.json").read_text())
    rows = jsonl.read(folder / "policy" / "metrics.jsonl")
    history = history_from_rows(rows, record["facts"])
    first = None
    critical = {}
    last = ()
    for step in range(-1, max(history.steps, 1)):
        last = diagnose(history.until(step))
        codes = [f.code for f in last if f.severity != "info"]
        if first is None and set(codes[:TOP]) & set(record["codes"]):
            first = step
        critical |= {f.code: step for f in last if f.severity == "critical" and f.code not in critical}
    end = [f.code for f in last if f.severity != "info"]
    planned = int(record["facts"]["steps"])
    return {
        "name": record["name"],
        "seed": record["seed"],
        "expects": record["codes"],
        "win_rate": record["win_rate"],
        "ended": record["ended"],
        "found_at": first,
        "found_share": None if first is None else (first + 1) / planned,
        "at_end": end,
        "right_at_end": bool(set(end[:TOP]) & set(record["codes"])),
        "critical": critical,
        "steps": history.steps,
    }


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Share and delay of found faults, and healthy runs with findings."""
    faults = [r for r in records if r["expects"]]
    healthy = [r for r in records if not r["expects"]]
    shares = [r["found_share"] for r in faults if r["found_share"] is not None]
    return {
        "faults": len(faults),
        "found": sum(r["found_at"] is not None for r in faults),
        "right_at_end": sum(r["right_at_end"] for r in faults),
        "median_share_of_run": statistics.median(shares) if shares else None,
        "healthy": len(healthy),
        "healthy_with_critical": sum(bool(r["critical"]) for r in healthy),
        "healthy_with_warning": sum(bool(r["at_end"]) for r in healthy),
    }


def table(records: list[dict[str, Any]]) -> str:
    """One line per run, and totals."""
    lines = []
    for r in records:
        at = "–" if r["found_at"] is None else f"{r['found_at'] + 1:>3}"
        rate = "–" if r["win_rate"] is None else f"{r['win_rate']:.2f}"
        note = "" if not r["expects"] else "found" if r["found_at"] is not None else "MISSED"
        note = note or (
            "CRITICAL " + ", ".join(r["critical"]) if r["critical"] else "clean" if not r["at_end"] else "warned"
        )
        lines.append(
            f"{r['name']:<34} seed {r['seed']:<3} win {rate:<5} {note:<8} at {at} of {r['steps']:<4} "
            f"{', '.join(r['at_end'])}"
        )
    return "\n".join([*lines, json.dumps(summary(records))])
