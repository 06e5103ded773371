"""The recipes of docs/cases.md with a real model:

python -m benchmarks.cases CASE FOLDER [--data FILE] [--set KEY=VALUE] [--name NAME]

A folder that exists is continued; results are added to results/cases.json.

The people of assistant-oasst are simulated: simulated_people.py. The minutes count the run's stages, not the rating.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.simulated_people import rate_everything
from towpath import recipe
from towpath.store.location import ledger_location
from towpath.store.store import Store

RESULTS = Path(__file__).parent / "results" / "cases.json"
TOWPATH = (sys.executable, "-m", "towpath")
MAX_WAITS = 20


def run_case(case: str, folder: Path, data: str, overrides: list[str]) -> dict[str, Any]:
    """Run a case to its end; simulated people rate whenever it waits."""
    if not (folder / "recipe.toml").is_file():
        subprocess.run([*TOWPATH, "new", folder, "--recipe", case, *(["--data", data] if data else [])], check=True)
    options = [word for setting in overrides for word in ("--set", setting)]
    ledger = ledger_location(folder, recipe.load(folder, overrides).store.url)
    for _ in range(MAX_WAITS):
        subprocess.run([*TOWPATH, "run", folder, *options], check=True, stdin=subprocess.DEVNULL)
        status = subprocess.run(
            [*TOWPATH, "status", folder, "--json", *options], check=True, capture_output=True, text=True
        )
        if all(stage["state"] == "done" for stage in json.loads(status.stdout)["stages"]):
            break
        rate_everything(folder, ledger)
    with Store.open(ledger) as store:
        judgements = store.counts()["judgements"]
    summary = json.loads((folder / "reports" / "summary.json").read_text(encoding="utf-8"))
    return {
        "settings": overrides,
        "minutes": round(sum(stage["seconds"] for stage in summary["stages"].values()) / 60, 1),
        "peak_gib": round(max(stage["peak_memory_bytes"] for stage in summary["stages"].values()) / 2**30, 2),
        "judgements": judgements,
        "machine": describe_machine(),
        "summary": summary,
    }


def main() -> None:
    """Run one case and store its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["harmless-dialogue", "assistant-oasst", "checkable-arithmetic"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", default="", help="the file of the case's data")
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe, KEY=VALUE")
    parser.add_argument("--name", default="", help="name of the result; the case's by default")
    options = parser.parse_args()
    result = run_case(options.case, options.folder, options.data, options.set)
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    RESULTS.write_text(json.dumps(known | {options.name or options.case: result}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
