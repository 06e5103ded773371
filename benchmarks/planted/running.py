"""Cached runs by name and seed."""

import json
import re
from pathlib import Path

from benchmarks.planted.faults import FAULTS, HEALTHY, Planted

SEEDS = {"dev": (0,), "report": (20, 21), "healthy": (26, 27), "remedies": (22, 23)}
CACHE = Path(".bench/planted")


def run(name: str, seed: int, cache: Path) -> Path:
    """Train a run unless it is cached; return the path of its record."""
    from benchmarks.planted.training import trained
    from towpath.runtime.process import prepare_process

    planted = next(p for p in (*FAULTS, *HEALTHY) if p.name == name)
    folder = run_folder(planted, seed, cache)
    if not (folder / "record.json").is_file():
        prepare_process()
        record = trained(planted, seed, folder, cache)
        (folder / "record.json").write_text(json.dumps({"name": name, "seed": seed, "codes": planted.codes, **record}))
    return folder


def run_folder(planted: Planted, seed: int, cache: Path) -> Path:
    """The folder of a run."""
    kind = "fault" if planted.codes else "healthy"
    return cache / f"{kind}-{re.sub('[^a-z0-9]+', '-', planted.name.lower()).strip('-')}-{seed}"
