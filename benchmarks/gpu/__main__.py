"""Check and measure one GPU: `python -m benchmarks.gpu [--out FOLDER]`; with `--tiny --device cpu` the same on small
shapes without one.

Needs torch, transformers, safetensors, numpy and pydantic, no network and no model. First the correctness of every
path that only a GPU takes, then speed and memory against targets. Every result is written as soon as it is there.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NEEDED = ("torch", "transformers", "safetensors", "numpy", "pydantic")
BUDGET = 560.0
"""Seconds of the whole command."""
RESULTS = Path(__file__).parent.parent / "results"
LONG = {"compilation": 120.0, "graphs": 120.0, "variants": 180.0, "policy_4b": 120.0, "ppo_iteration": 120.0}
LIMIT = 75.0
"""Seconds of a job, where `LONG` has no other."""


def require_packages() -> None:
    """Stop if a package is missing, with all their names."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"missing: {', '.join(missing)}\n  rule: benchmarks.gpu needs {', '.join(NEEDED)}\n"
            f"  fix:  pip install {' '.join(missing)}, from wheels where there is no network"
        )


def arguments() -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the command")
    parser.add_argument("--tiny", action="store_true", help="small shapes, on which times mean nothing")
    parser.add_argument("--only", nargs="+", default=[], metavar="JOB", help="some checks and marks by name")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of the whole command")
    parser.add_argument(
        "--out",
        type=Path,
        action="append",
        help="folder of the results, benchmarks/results by default; may be repeated",
    )
    return parser.parse_args()


def run_all(options: argparse.Namespace, begin: float, scratch: Path) -> dict[str, Any]:
    """Results of all jobs, written after each of them."""
    import torch

    from benchmarks.gpu import checks, jobs, marks, measure
    from benchmarks.gpu.models import Setting
    from benchmarks.gpu.targets import targets, unmeasured

    setting = Setting(torch.device(options.device), options.tiny)

    def machine(_setting: Setting) -> dict[str, Any]:
        return measure.machine(setting.device)

    results: dict[str, Any] = {"tiny": options.tiny, "checks": {}, "marks": {}}
    hardware = jobs.run(machine, setting, LIMIT, scratch)
    results["machine"] = hardware.get("figures") or {"reason": hardware["reason"]}
    reached = unmeasured("not run")
    peak = results["machine"].get("datasheet_flops") or results["machine"].get("gemm_flops")
    for kind, functions in (("checks", checks.CHECKS), ("marks", marks.MARKS)):
        for job in functions:
            name = job.__name__
            if options.only and name not in options.only:
                continue
            left = options.budget - (time.monotonic() - begin)
            if left > 10:
                result = jobs.run(job, setting, min(left, LONG.get(name, LIMIT)), scratch)
            else:
                result = {"status": "not run", "reason": f"the {options.budget:.0f} s were used up", "seconds": 0.0}
            results[kind][name] = result
            print(_line(name, result), flush=True)
            reached = unmeasured("tiny shapes") if options.tiny else targets(results["marks"], peak)
            results["targets"] = [target.record() for target in reached]
            _write(options, results)
    print("\n".join(["", *(target.line() for target in reached)]))
    return results


def _line(name: str, result: dict[str, Any]) -> str:
    """One line of a job."""
    figures = result.get("figures") or {}
    brief = ", ".join(f"{key} {value:.4g}" for key, value in figures.items() if isinstance(value, int | float))
    return f"  {name:<28} {result['status']:<8} {result['seconds']:6.1f} s  {brief or result.get('reason', '')}"[:200]


def _write(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """All results so far, in every folder of the results."""
    name = f"gpu-{'tiny-' if options.tiny else ''}{options.device}.json"
    for folder in options.out or [RESULTS]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run all jobs; the status is 1 where a check failed."""
    begin = time.monotonic()
    options = arguments()
    require_packages()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # a library that only asks whether there is a GPU must not bar forked processes from it
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    with tempfile.TemporaryDirectory() as scratch:
        results = run_all(options, begin, Path(scratch))
    failed = [name for name, result in results["checks"].items() if result["status"] != "done"]
    print(f"\n{len(results['checks']) - len(failed)} of {len(results['checks'])} checks passed", *failed)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
