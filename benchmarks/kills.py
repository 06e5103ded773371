"""Kill runs of the tiny recipe repeatedly and resume them: the results must be bit-equal to those of an uninterrupted
run.

`python -m benchmarks.kills` kills at 200 random moments, at every named fault point (`fault_point(...)` in the code),
and sends SIGTERM at 20 moments. It continues where it stopped; the result is benchmarks/results/kills.json.
With `--workers 2` it is the controller of a group of workers that is killed.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import machine

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "kills.json"
SETTINGS = [
    "sft.epochs=0.3",
    "evaluate.prompts=12",
    "evaluate.jailbreak_prompts=2",
    "preferences.prompts=30",
    "preferences.min_labels=8",
    "policy.steps=4",
    "policy.validate_every=1",
    "evaluate.bootstrap=100",
    "policy.max_new_tokens=12",
    "evaluate.max_new_tokens=12",
    "preferences.max_new_tokens=12",
]
STAGES = ("sft", "baseline", "sample", "label", "reward", "policy", "evaluate")
TRAINED = ("sft", "reward", "policy")
LIMIT = 300.0
"""Seconds after which an attempt counts as hanging."""


@dataclass
class Tally:
    """Counts of kills and runs; stored after every run, so that the benchmark continues after a restart."""

    kills: int = 0
    terms: int = 0
    runs: int = 0
    equal: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    unequal: list[str] = field(default_factory=list)
    term_status: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def fault_points() -> list[str]:
    """The names of all fault points in the code, one per stage where the name contains a stage."""
    names: set[str] = set()
    for path in (ROOT / "towpath").rglob("*.py"):
        names |= set(re.findall(r'\bfault_point\(f?"([^"]+)"\)', path.read_text(encoding="utf-8")))
    points = []
    for name in sorted(names):
        stages = TRAINED if name.startswith("step-") else STAGES
        points += [re.sub(r"\{.*\}", stage, name) for stage in stages] if "{" in name else [name]
    return points


def run_once(run: Path, sent: int = 0, after: float = 0.0, **environment: str) -> int:
    """Run `towpath run` in a forked process, which saves the imports; return its exit status, or minus the signal."""
    pid = os.fork()
    if not pid:
        os.environ.update({"TOWPATH_CHECKPOINT_SECONDS": "0", **environment})
        log = os.open(run.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        sys.argv = [
            "towpath",
            "run",
            str(run),
            "--no-serve",
            *(part for value in SETTINGS for part in ("--set", value)),
        ]
        from towpath.cli.app import main

        try:
            main()
        except SystemExit as done:
            os._exit(done.code if isinstance(done.code, int) else 1)
        os._exit(0)
    start = time.monotonic()
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        now = time.monotonic() - start
        if sent and now >= after:
            os.kill(pid, sent)
            sent = 0
        if now > LIMIT:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"{run}: an attempt has not ended within {LIMIT:.0f} s")
        time.sleep(0.005)


def run_outcome(run: Path) -> dict[str, Any]:
    """The results of a run: digests of result files, stage results, and the content of the ledger."""
    from towpath.store import manifest
    from towpath.store.store import Store

    result: dict[str, Any] = {}
    for path in sorted(run.glob("stages/*/*/manifest.json")):
        manifest.verify(path.parent)
        content = manifest.read(path.parent)
        result[f"{content['stage']}/{content['fingerprint']}"] = [
            manifest.results_digest(path.parent),
            content["result"],
        ]
    with Store.open(run / "towpath.db") as store:
        rows = [store.prompts(), store.completions(), store.comparisons(), store.labels()]
        rows.append(sorted((j.comparison, j.rater, j.choice, j.strength) for j in store.judgements()))
    result["ledger"] = hashlib.sha256(repr(rows).encode()).hexdigest()
    return json.loads(json.dumps(result))


def new_run(work: Path, name: str) -> Path:
    """An empty run of the tiny recipe."""
    from towpath.run.new_run import create_run

    run = work / name
    shutil.rmtree(run, ignore_errors=True)
    run.with_suffix(".log").unlink(missing_ok=True)
    create_run(run, "tiny")
    return run


def run_reference(work: Path) -> tuple[dict[str, Any], float]:
    """The outcome of an uninterrupted run, and its seconds."""
    path = work / "reference.json"
    if path.is_file():
        result = json.loads(path.read_text())
        return result["outcome"], result["seconds"]
    run = new_run(work, "reference")
    start = time.monotonic()
    status = run_once(run)
    if status:
        raise SystemExit(f"the uninterrupted run ended with status {status}: {run.with_suffix('.log')}")
    result = {"seconds": time.monotonic() - start, "outcome": run_outcome(run)}
    path.write_text(json.dumps(result))
    return result["outcome"], result["seconds"]


def _when(fault: tuple[str, int]) -> tuple[int, bool]:
    """Sort key: approximate order in which fault points are passed, so that one run is killed at many of them."""
    name = "step-policy" if fault[0] == "rollout" else fault[0]
    return next((i for i, stage in enumerate(STAGES) if name.endswith(stage)), -1), name.startswith("end-")


class Proof:
    """Killed and resumed runs, compared with an uninterrupted run."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.tally_path = work / "tally.json"
        self.wanted, self.span = run_reference(work)
        self.tally = Tally(**json.loads(self.tally_path.read_text())) if self.tally_path.is_file() else Tally()

    def resume_and_compare(self, run: Path, start: float) -> None:
        """Resume a run to its end, compare its outcome, and store the tally."""
        status = run_once(run)
        same = not status and run_outcome(run) == self.wanted
        self.tally.runs += 1
        self.tally.equal += same
        if same:
            shutil.rmtree(run)
        else:
            self.tally.unequal.append(f"{run.name}: exit status {status}")
            run.rename(run.with_name(f"unequal-{self.tally.runs}"))
        self.tally.seconds += time.monotonic() - start
        self.tally_path.write_text(json.dumps(asdict(self.tally)))
        print(self.line(), flush=True)

    def random_kills(self, count: int, seed: int) -> None:
        """Send SIGKILL at random moments, repeatedly until a run reaches its end."""
        while self.tally.kills < count:
            draw = random.Random(f"{seed}/{self.tally.runs}")
            run = new_run(self.work, "killed")
            start = time.monotonic()
            killed = 0
            while self.tally.kills + killed < count:
                if run_once(run, signal.SIGKILL, draw.uniform(0.0, self.span)) != -signal.SIGKILL:
                    break
                killed += 1
            self.tally.kills += killed
            self.resume_and_compare(run, start)

    def faults(self, names: list[str]) -> None:
        """Kill at every fault point, at its first pass and for some at a later one."""
        later = {"write": 9, "fsync": 7, "rename": 8, "commit": 3, "rollout": 2, "step-sft": 2, "step-policy": 2}
        wanted = [(name, n) for name in names for n in (1, *([later[name]] if name in later else []))]
        todo = [(name, n) for name, n in wanted if not self.tally.faults.get(f"{name}:{n}")]
        todo.sort(key=_when)
        while todo:
            run = new_run(self.work, "faults")
            start = time.monotonic()
            missed = []
            for name, n in todo:
                status = run_once(run, TOWPATH_FAULT=f"{name}:{n}")
                if status == -signal.SIGKILL:
                    self.tally.faults[f"{name}:{n}"] = 1
                else:
                    missed.append((name, n))
            self.resume_and_compare(run, start)
            if len(missed) == len(todo):
                self.tally.unequal += [f"fault point {name}:{n} is never passed" for name, n in missed]
                break
            todo = missed

    def terms(self, count: int, seed: int) -> None:
        """Send SIGTERM at random moments: the run exits with status 75 and can be resumed."""
        draw = random.Random(f"{seed}/term")
        while self.tally.terms < count:
            run = new_run(self.work, "terms")
            start = time.monotonic()
            while self.tally.terms < count:
                status = run_once(run, signal.SIGTERM, draw.uniform(0.3, self.span))
                if status == 0:
                    break
                self.tally.terms += 1
                self.tally.term_status[str(status)] = self.tally.term_status.get(str(status), 0) + 1
            self.resume_and_compare(run, start)

    def line(self) -> str:
        """The result in one line."""
        t = self.tally
        return (
            f"{t.kills} random kills, {len(t.faults)} kills at fault points, {t.terms} SIGTERMs {t.term_status}: "
            f"{t.equal} of {t.runs} runs equal bit for bit; {t.seconds:.0f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--terms", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--work", type=Path, default=ROOT / ".bench" / "kills", help="where runs are made, and what was done is kept"
    )
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--workers", type=int, default=0, help="worker processes of each run; 0 for none")
    options = parser.parse_args()
    if options.workers:
        SETTINGS.extend([f"cluster.workers={options.workers}", "cluster.threads=1"])
    options.work.mkdir(parents=True, exist_ok=True)
    import transformers  # noqa: F401

    import towpath.run.pipeline
    import towpath.runtime.local  # noqa: F401

    names = fault_points()
    proof = Proof(options.work)
    proof.faults(names)
    proof.terms(options.terms, options.seed)
    proof.random_kills(options.kills, options.seed)
    options.json.write_text(
        json.dumps(
            asdict(proof.tally)
            | {"workers": options.workers}
            | {"fault_points": names, "machine": machine.describe_machine()},
            indent=1,
        )
        + "\n"
    )
    print(proof.line())
    sys.exit(bool(proof.tally.unequal or proof.tally.equal != proof.tally.runs))


if __name__ == "__main__":
    main()
