"""Sweep of the tiny recipe from a bad start against a grid by hand, random search and rules of thumb.

The recipe begins with a learning rate thirty times that of the grid's middle and a KL coefficient that is too small.
Settings that a sweep chooses, and those of the grid, are trained again with seeds that no sweep used, and valued as a
trial is: win rate over the SFT model at the target KL, by the rubric.

python -m benchmarks.sweep_tiny [--seeds 0,1,2] [--samplers rules,tpe,random] [--folder DIR] [--json OUT]

Restartable: run folders are kept in DIR, results in OUT.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sweep import Results, note
from towpath import recipe as recipes
from towpath.progress import prepare_libraries
from towpath.runtime.process import prepare_process
from towpath.store.location import ledger_location
from towpath.store.store import Store
from towpath.sweep.preparation import read_plan
from towpath.sweep.record import read_sweep
from towpath.sweep.run import run_sweep
from towpath.sweep.search import trial_job
from towpath.sweep.trial import run_trial

GOOD_RATE = 1e-3
RATE, COEF = "policy.learning_rate", "policy.kl.coef"
GRID = [{RATE: rate, COEF: coef} for rate, coef in product((1e-3, 3e-3), (0.03, 0.3))]
NEW_SEEDS = 101, 102
SETTINGS = (
    "policy.steps=16", "policy.rollout=32", "policy.batch=16", "policy.validation_prompts=128",
    "policy.validate_every=2", f"{RATE}={30 * GOOD_RATE}", f"{COEF}=0.001",
    "sweep.target_kl=0.3", "sweep.trials=20",
    f'sweep.space={{ "{RATE}" = {{ low = 3e-5, high = 6e-2, log = true }}, '
    f'"{COEF}" = {{ low = 0.001, high = 1.0, log = true }}, "policy.epochs" = {{ choices = [1, 2] }} }}',
)  # fmt: skip


def assignments(seed: int, sampler: str) -> list[str]:
    return [*SETTINGS, f"seed={seed}", f"sweep.sampler={sampler}"]


def sweep_result(run: Path, seed: int, sampler: str) -> dict[str, Any]:
    """Run or resume the sweep of a run; what it chose and what it cost."""
    words = assignments(seed, sampler)
    if not run.exists():
        subprocess.run([sys.executable, "-m", "towpath", "new", str(run), "--recipe", "tiny"], check=True)
    run_sweep(recipes.load(run, words), run, note, words, force=True)  # the rate is refused
    record = read_sweep(run)
    assert record is not None and record.verdict is not None
    chosen = record.winner() or record.trials[0]
    return {
        "verdict": record.verdict.text,
        "outcome": record.verdict.outcome,
        "chosen": chosen.number,
        "settings": chosen.settings,
        "values": [t.value.value for t in record.trials],
        "steps": sum(t.steps for t in record.trials),
        "confirmation_steps": sum(t.steps for t in record.confirmations),
        "seconds": record.seconds,
    }


def measure(run: Path, seed: int, sampler: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train with seeds that no trial used; the values at the target KL."""
    recipe = recipes.load(run, assignments(seed, sampler))
    values = []
    with Store.open(ledger_location(run, "")) as store:
        job = trial_job(read_plan(recipe, run, store), store)
        for new in NEW_SEEDS:
            name = "-".join(f"{item:g}" for item in settings.values())
            record = run_trial(job, 0, dict(settings), run / "measured" / f"{name}-{new}", new)
            values.append(record.value)
    return {
        "settings": dict(settings),
        "value": float(np.mean([value.value for value in values])),
        "values": [value.value for value in values],
        "intervals": [value.interval for value in values],
        "reached": [value.reached for value in values],
    }


def main() -> None:
    """Run everything that is missing and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--samplers", default="rules")
    parser.add_argument("--folder", type=Path, default=Path("sweep-tiny"))
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "sweep_tiny.json")
    options = parser.parse_args()
    prepare_libraries()
    prepare_process()
    results = Results(options.json)
    samplers = options.samplers.split(",")
    for seed in map(int, options.seeds.split(",")):
        for sampler in samplers:
            run = options.folder.resolve() / f"{sampler}-{seed}"
            sweep = results.get(f"sweep/{sampler}/{seed}", partial(sweep_result, run, seed, sampler))
            results.get(f"measured/{sampler}/{seed}", partial(measure, run, seed, sampler, sweep["settings"]))
        run = options.folder.resolve() / f"{samplers[0]}-{seed}"
        for settings in GRID:
            name = f"hand/{settings[RATE]:g}/{settings[COEF]:g}/{seed}"
            results.get(name, partial(measure, run, seed, samplers[0], settings))
        summarise(results.rows, seed, samplers)


def summarise(rows: Mapping[str, Any], seed: int, samplers: list[str]) -> None:
    """Print the best settings by hand, and each sampler's distance from them."""
    by_hand = [row for name, row in rows.items() if name.startswith("hand/") and name.endswith(f"/{seed}")]
    best = max(by_hand, key=lambda row: row["value"])
    print(f"seed {seed}: by hand {best['value']:.1%} with {best['settings']}")
    for sampler in samplers:
        sweep, row = rows[f"sweep/{sampler}/{seed}"], rows[f"measured/{sampler}/{seed}"]
        distance = 100 * (row["value"] - best["value"])
        steps = f"{sweep['steps']} + {sweep['confirmation_steps']} steps"
        print(f"  {sampler}: {row['value']:.1%} ({distance:+.1f}) with {row['settings']}; {steps}; {sweep['outcome']}")


if __name__ == "__main__":
    main()
