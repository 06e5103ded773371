"""Run the doctor over the recorded logs of other trainers: the findings on each fault and on healthy runs.

python -m benchmarks.foreign [--half tuning|held-out|all] [--record .bench/foreign/logs] [--json OUT]

"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.foreign import recorded
from benchmarks.foreign.runs import Run
from towpath.view.doctor import examine

TOP = 2
"""A fault counts as named if one of its codes is among this many first findings."""


def judge(run: Run, variant: int, state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The doctor's findings on one log, read from the file format of its trainer."""
    path = folder / "trainer_state.json"
    path.write_text(json.dumps(state))
    (report,) = examine(path)
    findings = [(finding.code, finding.severity) for finding in report.findings if finding.severity != "info"]
    top = [code for code, _ in findings[:TOP]]
    return {
        "run": run.name,
        "variant": variant,
        "trainer": run.trainer,
        "expects": list(run.codes),
        "findings": findings,
        "named": bool(set(top) & set(run.codes)),
        "critical": [code for code, severity in findings if severity == "critical"],
    }


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The share of faults named among the first two findings, and healthy runs with critical findings."""
    faults = [r for r in results if r["expects"]]
    healthy = [r for r in results if not r["expects"]]
    return {
        "faults": len(faults),
        "named": sum(r["named"] for r in faults),
        "share": sum(r["named"] for r in faults) / max(len(faults), 1),
        "healthy": len(healthy),
        "healthy_with_critical": sum(bool(r["critical"]) for r in healthy),
        "healthy_with_warning": sum(bool(r["findings"]) for r in healthy),
    }


def diagnose_half(half: str) -> list[dict[str, Any]]:
    """The doctor's findings on every log of one half."""
    with tempfile.TemporaryDirectory() as folder:
        return [judge(run, variant, state, Path(folder)) for run, variant, state in recorded.logs(half)]


def table(results: list[dict[str, Any]]) -> str:
    """One line per log."""
    lines = []
    for r in results:
        verdict = (
            ("named" if r["named"] else "MISSED")
            if r["expects"]
            else "ACCUSED"
            if r["critical"]
            else "warned"
            if r["findings"]
            else "clean"
        )
        says = ", ".join(f"{code} ({severity})" for code, severity in r["findings"][:4])
        lines.append(f"{verdict:<8} {r['run']:<36} {r['variant']}  {says}")
    return "\n".join([*lines, json.dumps(summary(results))])


def main() -> None:
    """Print the table and the summary of the selected halves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=(*recorded.HALVES, "all"), default="all")
    parser.add_argument("--record", type=Path, help="first pack the logs of this folder into benchmarks/foreign/logs")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.record:
        recorded.record(arguments.record)
    results = {half: diagnose_half(half) for half in recorded.HALVES if arguments.half in (half, "all")}
    for half, rows in results.items():
        print(f"{half}\n{table(rows)}\n")
    if arguments.json:
        report = {half: {"marks": summary(rows), "logs": rows} for half, rows in results.items()}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
