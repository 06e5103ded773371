"""The quickstart with several seeds: the median must pass every gate, and no seed may collapse. Restartable: a finished
seed is not run again.

python -m benchmarks.quickstart_seeds [SEED ...]
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs")


def run(seed: int) -> dict:
    """Run one seed to its end; gates only warn, so that a poor seed is measured, too."""
    folder = RUNS / f"quickstart-seed{seed}"
    towpath = [sys.executable, "-m", "towpath"]
    if not (folder / "recipe.toml").exists():
        subprocess.run([*towpath, "new", folder, "--recipe", "quickstart"], check=True)
    settings = [
        f"seed={seed}",
        *(f"gates.{gate}.action=warn" for gate in ("sft", "reward", "policy", "evaluate", "safety")),
    ]
    subprocess.run([*towpath, "run", folder, *(part for value in settings for part in ("--set", value))], check=True)
    summary = json.loads((folder / "reports" / "summary.json").read_text())
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"quickstart-seed{seed}.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def main() -> None:
    """Run every seed and print the medians."""
    seeds = [int(word) for word in sys.argv[1:]] or [0, 1, 2]
    summaries = [run(seed) for seed in seeds]
    for name in ("win_rate_policy_over_sft", "length_controlled_win_rate", "win_rate_sft_over_base", "reward_accuracy"):
        rates = [summary[name]["rate"] if isinstance(summary[name], dict) else summary[name] for summary in summaries]
        print(f"{name}: median {statistics.median(rates):.3f}  of {[round(rate, 3) for rate in rates]}")
    for name in ("kl_per_prompt", "length_only_accuracy", "seconds", "peak_memory_bytes"):
        print(f"{name}: {[summary[name] for summary in summaries]}")


if __name__ == "__main__":
    main()
