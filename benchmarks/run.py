"""One workload by several implementations, each in its own environment, alternating within one run; the result is
their ratio.

python -m benchmarks.run WORKLOAD [--implementations towpath,trl] [--turns 2] [--warm] [--json OUT]

An implementation is a module of benchmarks.implementations; the suffix `@medium` lets oneDNN round float32 products
(of transformers: `@compiled`, `@continuous`). Its Python is .bench/NAME/bin/python if that exists, else this one;
`make bench` makes these environments.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import optimise_flops
from benchmarks.models import prepare_model
from benchmarks.workload import Workload

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parent / ".bench"


def python_of(implementation: str) -> str:
    """The interpreter of an implementation's environment."""
    own = ENVIRONMENTS / implementation / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def run_once(implementation: str, workload: Workload, model: Path, limit: float, warm: bool = False) -> dict[str, Any]:
    """One run of one implementation in its own process; warm: the second run of the work within the process."""
    name, _, how = implementation.partition("@")
    with tempfile.TemporaryDirectory() as scratch:
        workload_path = Path(scratch) / f"{workload.name}.json"
        out = Path(scratch) / "result.json"
        workload.write(workload_path)
        environment = {
            **os.environ,
            "BENCH_HOW": how,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "BENCH_WARM": "1" if warm else "",
        }
        command = [
            python_of(name),
            "-m",
            f"benchmarks.implementations.{name}",
            str(workload_path),
            str(model),
            str(out),
        ]
        done = subprocess.run(
            command, env=environment, cwd=HERE.parent, capture_output=True, text=True, timeout=limit, check=False
        )
        if done.returncode:
            raise SystemExit(f"{implementation} on {workload.name} failed:\n{done.stderr[-3000:]}")
        return json.loads(out.read_text())


def compare_runs(workload: Workload, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of each implementation, and ratios to the first; unequal work is an error."""
    work = {name: results[0]["work"] for name, results in runs.items()}
    for name, results in runs.items():
        shared = {key for key in results[0]["work"] if all(key in other for other in work.values())}
        for one in results:
            for key in shared:
                if one["work"][key] != work[next(iter(work))][key]:
                    raise SystemExit(
                        f"{workload.name}: unequal work: {key} is {one['work'][key]} with {name}, else {work}"
                    )
    medians = {
        name: {
            "seconds": statistics.median(one["seconds"] for one in results),
            **{phase: statistics.median(one["phases"][phase] for one in results) for phase in results[0]["phases"]},
            "peak_memory_bytes": max(one["peak_memory_bytes"] for one in results),
        }
        for name, results in runs.items()
    }
    ours, *others = medians
    ratios = {
        name: {
            "speed": medians[name]["seconds"] / medians[ours]["seconds"],
            "memory": medians[ours]["peak_memory_bytes"] / medians[name]["peak_memory_bytes"],
        }
        for name in others
    }
    return {"medians": medians, "ratios": ratios, "work": work}


def rates(workload: Workload, model: Path, machine: dict[str, Any], result: dict[str, Any]) -> None:
    """Add tokens and completions per second to every median, and the updates' share of the machine's peak rate in the
    workload's precision."""
    peak = max(machine["gemm_flops"].get(name, 0.0) for name in (workload.precision, f"{workload.precision}, medium"))
    for name, row in result["medians"].items():
        work = result["work"][name]
        if "generate" in row:
            row["tokens_per_second_generate"] = work["answer_tokens"] / row["generate"]
            row["completions_per_second"] = work["answers"] / row["seconds"]
            if workload.projected_to:
                row["projected_hours"] = row["seconds"] * workload.projected_to / work["answers"] / 3600
        if "optimise" in row:
            flops = optimise_flops(workload, model, work) / row["optimise"]
            row["tokens_per_second_optimise"] = work["tokens_optimised"] / row["optimise"]
            row["flops_optimise"], row["share_of_peak"] = flops, flops / peak


def format_table(result: dict[str, Any]) -> str:
    """The result as a text table."""
    lines = [f"{result['workload']['name']}: {result['machine']['device']}"]
    for name, row in result["medians"].items():
        phases = "  ".join(f"{phase} {row[phase]:.1f}" for phase in ("generate", "score", "optimise") if phase in row)
        ratio = result["ratios"].get(name)
        phases += (
            f"  {row['projected_hours']:.2f} h for {result['workload']['projected_to']:,}"
            if "projected_hours" in row
            else ""
        )
        against = f"  {ratio['speed']:.2f} x the time, we take {ratio['memory']:.2f} x its memory" if ratio else ""
        share = f"  {row['share_of_peak']:.0%} of peak" if "share_of_peak" in row else ""
        lines.append(
            f"  {name:<16} {row['seconds']:7.1f} s  ({phases}){share}  {row['peak_memory_bytes'] / 2**30:.1f} "
            f"GiB{against}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the implementations in turn, compare them, and store the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", help="a name of benchmarks/workloads, or a path")
    parser.add_argument(
        "--implementations",
        default="",
        help="comma-separated; ratios are to the first; default: towpath and those of the workload",
    )
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument(
        "--warm",
        action="store_true",
        help="time the second run within each process, when memory is allocated as in a long run",
    )
    parser.add_argument("--limit", type=float, default=3600, help="time limit of one run in seconds")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    path = Path(options.workload)
    workload = Workload.read(path if path.is_file() else HERE / "workloads" / f"{options.workload}.json")
    model = prepare_model(workload.model, ENVIRONMENTS / "models")
    measured = subprocess.run(
        [sys.executable, "-m", "benchmarks.machine"], cwd=HERE.parent, capture_output=True, text=True, check=True
    )
    names = options.implementations.split(",") if options.implementations else ["towpath", *workload.against]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(options.turns):
        for name in names:
            runs[name].append(run_once(name, workload, model, options.limit, options.warm))
            print(f"  turn {number + 1}, {name}: {runs[name][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    result = {
        "warm": options.warm,
        "workload": {"name": workload.name, **json.loads(json.dumps(workload.__dict__))},
        "machine": json.loads(measured.stdout),
        **compare_runs(workload, runs),
        "turns": runs,
    }
    rates(workload, model, result["machine"], result)
    print(format_table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
