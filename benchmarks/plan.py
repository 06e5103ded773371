"""Plan against actual: time and memory of each stage, planned after a trial of about a minute, and what the run took.

Each shape is the quickstart with other lengths, methods or workers, and fewer rows where that saves time alone. A shape
that the results have is not run again.

python -m benchmarks.plan [--shapes quickstart,short] [--work .bench/plan] [--json benchmarks/results/plan.json]
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine

LESS = (
    "preferences.prompts=200",
    "preferences.min_labels=20",
    "evaluate.prompts=120",
    "evaluate.jailbreak_prompts=4",
    "sft.epochs=1",
    "policy.steps=3",
)
FULL = (
    "sft.method=full",
    "reward.method=full",
    "policy.method=full",
    "policy.learning_rate=2e-6",
    "sft.learning_rate=2e-5",
)
ANSWERS = "preferences.max_new_tokens={0}", "policy.max_new_tokens={0}", "evaluate.max_new_tokens={0}"


def answers_of(tokens: int) -> tuple[str, ...]:
    """Settings of the longest answer."""
    return tuple(setting.format(tokens) for setting in ANSWERS)


SHAPES: dict[str, tuple[str, ...]] = {
    "quickstart": (),
    "short": (*LESS, *answers_of(32)),
    "long": (*LESS, *answers_of(160)),
    "grpo": (*LESS, "policy.algo=grpo", "policy.lora.rank=64", "policy.batch=16", "sft.lora.rank=8"),
    "full": (*LESS, *FULL),
    "full-workers": (*LESS, *FULL, "cluster.workers=2", "cluster.threads=1"),
}


def command(*words: object) -> subprocess.CompletedProcess[str]:
    """One command of towpath, which must succeed but for gates."""
    line = [sys.executable, "-m", "towpath", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Plan and run one shape."""
    shutil.rmtree(folder, ignore_errors=True)
    settings = [word for setting in SHAPES[name] for word in ("--set", setting)]
    command("new", folder, "--recipe", "quickstart")
    begin = time.monotonic()
    planned = command("plan", folder, "--measure", *settings)
    trial = time.monotonic() - begin
    if planned.returncode:
        raise SystemExit(f"{name}: {planned.stderr[-2000:]}")
    done = command("run", folder, "--force", "--no-serve", *settings)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    status = json.loads(command("status", folder, "--json", *settings).stdout)
    rows = {}
    for stage in status["progress"]["stages"]:
        if not stage["planned"] or not stage["planned"]["high"]:
            continue
        row = {"planned_seconds": stage["planned"]["likely"], "seconds": stage["actual"]}
        row |= {"expected_seconds": stage["expected"], "expected_ratio": stage["expected"] / stage["actual"]}
        row |= {"low": stage["planned"]["low"], "high": stage["planned"]["high"]}
        row["time_ratio"] = row["planned_seconds"] / row["seconds"]
        row |= {"planned_memory": stage["planned_memory"], "memory": stage["actual_memory"]}
        row["memory_ratio"] = row["planned_memory"] / row["memory"]
        rows[stage["name"]] = row
    whole = sum(row["planned_seconds"] for row in rows.values()) / sum(row["seconds"] for row in rows.values())
    return {"settings": SHAPES[name], "trial_seconds": trial, "stages": rows, "whole": whole}


def main() -> None:
    """Measure the shapes that the results do not have, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--work", type=Path, default=Path(".bench/plan"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/plan.json"))
    options = parser.parse_args()
    results = (
        json.loads(options.json.read_text())
        if options.json.is_file()
        else {"machine": describe_machine(), "shapes": {}}
    )
    for name in options.shapes.split(","):
        if name not in results["shapes"]:
            results["shapes"][name] = measure(name, options.work / name)
            options.json.write_text(json.dumps(results, indent=1) + "\n")
        shape = results["shapes"][name]
        for stage, row in shape["stages"].items():
            times = f"{row['planned_seconds']:7.1f} of {row['seconds']:7.1f} s  {row['time_ratio']:.2f}"
            times += f" (at its start {row['expected_ratio']:.2f})"
            memory = f"{row['planned_memory'] / 1e9:5.2f} of {row['memory'] / 1e9:5.2f} GB  {row['memory_ratio']:.2f}"
            print(f"{name:<14}{stage:<10}{times}   {memory}")
        print(f"{name:<14}{'all':<10}{shape['whole']:.2f}, after a trial of {shape['trial_seconds']:.0f} s")


if __name__ == "__main__":
    main()
