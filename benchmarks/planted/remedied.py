"""Recoverable faults with and without remedies, and the same training without the fault, on the same seeds: win rates
by the gold reward at the end.

python -m benchmarks.planted.remedied [--half dev|remedies] [--processes 2] [--json OUT]

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
from benchmarks.planted.faults import FAULTS, HEALTHY, Planted
from benchmarks.planted.running import CACHE, SEEDS, run_folder

STOP = ("policy.kl.stop=4",)
"""The default limit: training stops above it, or with remedies returns to the best weights."""
ARMS = ("sound", "off", "auto")
"""Without the fault; with the fault; with the fault and remedies."""
SOUND = {"tiny": "PPO", "larger": "PPO, larger"}
"""The healthy run that differs from a fault only by the fault, by model size."""


def arm(name: str, seed: int, cache: Path, which: str) -> Path:
    """Train one of the three runs unless it is cached."""
    from benchmarks.planted.training import trained
    from towpath.runtime.process import prepare_process

    planted = next(p for p in FAULTS if p.name == name)
    folder = _folder(planted, seed, cache, which)
    if not (folder / "record.json").is_file():
        prepare_process()
        run = _twin(planted) if which == "sound" else planted
        record = trained(run, seed, folder, cache, "auto" if which == "auto" else "off", STOP)
        (folder / "record.json").write_text(json.dumps({"name": run.name, "seed": seed, "codes": run.codes, **record}))
    return folder


def compared(planted: Planted, seed: int, cache: Path) -> dict[str, Any]:
    """Win rates over the start model, and the difference made by remedies, paired by prompt, with its interval."""
    folders = {which: _folder(planted, seed, cache, which) for which in ARMS}
    records = {which: json.loads((folder / "record.json").read_text()) for which, folder in folders.items()}
    # a failed run has the start model as its result
    wins = {which: np.array(r["wins"] or [0.5] * len(world.prompts())) for which, r in records.items()}
    gap = wins["auto"] - wins["off"]
    mean = float(gap.mean())
    error = float(gap.std(ddof=1) / len(gap) ** 0.5)
    turns = [json.loads(line) for line in (folders["auto"] / "policy" / "interventions.jsonl").read_text().splitlines()]
    lines = [f"{t['step'] + 1}: {t['knob'] or 'stop'} {t['from']:g}→{t['to']:g}" for t in turns]
    rates = {which: float(won.mean()) for which, won in wins.items()}
    return {
        "name": planted.name,
        "seed": seed,
        **rates,
        "gain": mean,
        "interval": [mean - 1.96 * error, mean + 1.96 * error],
        "turns": lines,
    }


def _twin(planted: Planted) -> Planted:
    return next(p for p in HEALTHY if p.name == SOUND[planted.size])


def _folder(planted: Planted, seed: int, cache: Path, which: str) -> Path:
    return cache / f"remedied-{which}" / run_folder(_twin(planted) if which == "sound" else planted, seed, cache).name


def main() -> None:
    """Run the benchmark, print and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("dev", "remedies"), default="remedies")
    parser.add_argument("--only", default="")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    wanted = [(p, seed) for p in FAULTS if p.recoverable and options.only in p.name for seed in SEEDS[options.half]]
    for size in {p.size for p, _ in wanted}:
        world.taught(size, options.cache)
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        once = {
            _folder(p, seed, options.cache, which): (p.name, seed, options.cache, which)
            for p, seed in wanted
            for which in ARMS
        }
        for task in [pool.submit(arm, *what) for what in once.values()]:
            task.result()
    rows = [compared(p, seed, options.cache) for p, seed in wanted]
    for r in rows:
        low, high = r["interval"]
        gain = f"sound {r['sound']:.3f}  {r['off']:.3f} → {r['auto']:.3f}  {r['gain']:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(f"{r['name']:<34} seed {r['seed']:<3} {gain}  {'; '.join(r['turns'])}")
    better = sum(r["gain"] > 0 for r in rows)
    worse = sum(r["interval"][1] < 0 for r in rows)
    print(
        f"better in {better} of {len(rows)}, clearly better in {sum(r['interval'][0] > 0 for r in rows)}, clearly "
        f"worse in {worse}"
    )
    if options.json:
        options.json.write_text(
            json.dumps(
                {"half": options.half, "better": better, "clearly_worse": worse, "of": len(rows), "runs": rows},
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
