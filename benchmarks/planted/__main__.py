"""Train every planted fault and every healthy run on several seeds, and report the findings of the health detectors.

Finished runs are cached in CACHE; `--judge` only evaluates them again. Thresholds were set on the seeds of `dev`;
`report` has other seeds.

python -m benchmarks.planted [--half dev|report] [--only NAME] [--judge] [--processes 2] [--json OUT]

"""

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.planted import verdict
from benchmarks.planted.faults import FAULTS, HEALTHY
from benchmarks.planted.running import CACHE, SEEDS, run, run_folder


def main() -> None:
    """Run the benchmark, print and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("dev", "report"), default="report")
    parser.add_argument("--only", default="", help="runs whose name holds this")
    parser.add_argument("--judge", action="store_true", help="train nothing")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    sound = SEEDS["healthy" if options.half == "report" else options.half]
    kinds = [(p, SEEDS[options.half]) for p in FAULTS] + [(p, sound) for p in HEALTHY]
    wanted = [(p, seed) for p, seeds in kinds if options.only in p.name for seed in seeds]
    if not options.judge:
        from benchmarks.planted import world

        for size in {p.size for p, _ in wanted}:
            world.taught(size, options.cache)
        with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
            for (p, seed), task in [((p, seed), pool.submit(run, p.name, seed, options.cache)) for p, seed in wanted]:
                record = json.loads((task.result() / "record.json").read_text())
                print(
                    f"{p.name}, seed {seed}: win rate {record['win_rate']}  {record['ended'][:90]}",
                    file=sys.stderr,
                    flush=True,
                )
    records: list[dict[str, Any]] = [verdict.judge(run_folder(p, seed, options.cache)) for p, seed in wanted]
    print(verdict.table(records))
    if options.json:
        options.json.write_text(
            json.dumps(verdict.summary(records) | {"half": options.half, "runs": records}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
