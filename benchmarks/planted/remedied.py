"""Recoverable faults with remedies and without, the same seeds: what is left at the end, by gold.

python -m benchmarks.planted.remedied [--half dev|remedies|again|third] [--processes 2] [--json OUT]
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.planted import world
from benchmarks.planted.faults import FAULTS, Planted
from benchmarks.planted.running import CACHE, SEEDS, place

STOP = ("policy.kl.stop=4",)
"""As by default: beyond it training ends, and with remedies goes back."""


def arm(name: str, seed: int, cache: Path, act: str) -> Path:
    """The same run with remedies or without, unless it was done before."""
    from benchmarks.planted.training import trained
    from towpath.runtime.local import prepare_process

    planted = next(p for p in FAULTS if p.name == name)
    folder = _folder(planted, seed, cache, act)
    if not (folder / "record.json").is_file():
        prepare_process()
        record = trained(planted, seed, folder, cache, act, STOP)
        (folder / "record.json").write_text(json.dumps({"name": name, "seed": seed, "codes": planted.codes, **record}))
    return folder


def compared(planted: Planted, seed: int, cache: Path) -> dict[str, Any]:
    """Win rates over the start with and without, and the paired difference by prompt with its interval."""
    without, with_ = (json.loads((folder / "record.json").read_text()) for folder in (_folder(planted, seed, cache, act) for act in ("off", "auto")))
    a, b = (np.array(record["wins"] or [0.5] * len(world.prompts())) for record in (without, with_))  # a run that broke leaves the start
    gap = b - a
    error = float(gap.std(ddof=1) / len(gap) ** 0.5)
    turns = [json.loads(line) for line in (_folder(planted, seed, cache, "auto") / "policy" / "knobs.jsonl").read_text().splitlines()]
    told = [f"{t['step'] + 1}: {t['knob'] or 'stop'} {t['from']:g}→{t['to']:g}" for t in turns]
    found = {"name": planted.name, "seed": seed, "without": float(a.mean()), "with": float(b.mean()), "gain": float(gap.mean())}
    of_food = np.array([p.domain == "food" for p in world.prompts()])
    found["gain_in_food"] = float(gap[of_food].mean())
    return found | {"interval": [float(gap.mean()) - 1.96 * error, float(gap.mean()) + 1.96 * error], "turns": told}


def _folder(planted: Planted, seed: int, cache: Path, act: str) -> Path:
    return cache / f"remedied-{act}" / place(planted, seed, cache).name


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=SEEDS, default="remedies")
    parser.add_argument("--only", default="")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    wanted = [(p, seed) for p in FAULTS if p.recoverable and told.only in p.name for seed in SEEDS[told.half]]
    for size in {p.size for p, _ in wanted}:
        world.taught(size, told.cache)
    with ProcessPoolExecutor(told.processes, get_context("spawn")) as pool:
        tasks = [pool.submit(arm, p.name, seed, told.cache, act) for p, seed in wanted for act in ("off", "auto")]
        for task in tasks:
            task.result()
    rows = [compared(p, seed, told.cache) for p, seed in wanted]
    for r in rows:
        low, high = r["interval"]
        gain = f"{r['without']:.3f} → {r['with']:.3f}  {r['gain']:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(f"{r['name']:<34} seed {r['seed']:<3} {gain}  food {r['gain_in_food']:+.2f}  {'; '.join(r['turns'])}")
    better, worse = sum(r["gain"] > 0 for r in rows), sum(r["interval"][1] < 0 for r in rows)
    print(f"better in {better} of {len(rows)}, clearly better in {sum(r['interval'][0] > 0 for r in rows)}, clearly worse in {worse}")
    if told.json:
        told.json.write_text(
            json.dumps({"half": told.half, "better": better, "clearly_worse": worse, "of": len(rows), "runs": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
