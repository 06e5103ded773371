"""Compare this checkout with another revision: the same runs must give bit-equal weights and metric values.

`python -m benchmarks.bit_equal REVISION` runs the tiny recipe with every algorithm, and the first step of the
quickstart, with the code of both sides on this machine. Names may differ between the two (metrics, files, recipe
keys); values may not.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RENAMED: dict[str, str] = {"reward.ensemble_size": "reward.members", "policy.lora.last_n_layers": "policy.lora.top"}
"""Recipe keys of this checkout and their names in earlier revisions."""
TIMED = ("seconds", "memory", "tokens_per_second", "time", "sync_bytes", "collective_bytes")
"""Prefixes of metrics that measure the machine."""
COMMAND = """
import sys
import towpath.data.corpus as corpus

whole = corpus.digest


def digest(content):
    is_stage = isinstance(content, dict) and "stage" in content
    return whole({"stage": content["stage"]} if is_stage else content)


corpus.digest = digest
try:
    from towpath.cli.app import main
except ImportError:
    from towpath.cli import main
main()
"""
"""The command line with stage fingerprints that depend on the stage names only, as random streams include them."""
SHORT = [
    "sft.epochs=0.3",
    "evaluate.prompts=12",
    "preferences.prompts=30",
    "preferences.min_labels=8",
    "evaluate.bootstrap=100",
    "policy.steps=2",
    "policy.max_new_tokens=12",
    "evaluate.max_new_tokens=12",
    "preferences.max_new_tokens=12",
]
QUICKSTART = [
    "sft.epochs=0.1",
    "preferences.prompts=24",
    "preferences.min_labels=8",
    "preferences.max_new_tokens=16",
    "policy.steps=1",
    "policy.rollout=32",
    "policy.batch=16",
    "policy.max_new_tokens=24",
    "policy.validation_prompts=8",
    "evaluate.prompts=8",
    "evaluate.max_new_tokens=16",
    "evaluate.bootstrap=100",
    "evaluate.jailbreak_prompts=2",
]
RUNS: dict[str, tuple[str, list[str]]] = {
    **{
        algo: ("tiny", [f"policy.algo={algo}"])
        for algo in ("ppo", "grpo", "rloo", "reinforce", "dpo", "ipo", "kto", "orpo")
    },
    "ppo-critic-adapter": ("tiny", ["policy.ppo.critic=adapter"]),
    "ppo-full": ("tiny", ["policy.method=full", "sft.method=full", "reward.method=full"]),
    "ppo-bfloat16": ("tiny", ["model.dtype=bfloat16", "policy.method=full", "sft.method=full", "reward.method=full"]),
    "ppo-last-layer": ("tiny", ["policy.lora.last_n_layers=1"]),
    "ppo-ensemble": ("tiny", ["reward.ensemble_size=2", "policy.rewards.ensemble=min"]),
    "quickstart": ("quickstart", []),
}


def digest(run: Path) -> dict[str, Any]:
    """Hashes of the final tensors and the metric values of every stage, without names."""
    stages: dict[str, Any] = {}
    for folder in sorted(run.glob("stages/*/*")):
        tensors = sorted(
            h for path in sorted(folder.rglob("*.safetensors")) if _is_result(path) for h in _tensors(path)
        )
        stages.setdefault(folder.parent.name, []).append(
            {"tensors": tensors, "metrics": list(_metrics(folder / "metrics.jsonl"))}
        )
    return stages


def _is_result(path: Path) -> bool:
    """Checkpoints and saved rollouts hold optimizer state under names that may change; the results follow from them."""
    return not {"checkpoints", "in-flight", "pending_rollouts"} & set(path.parts)


def _tensors(path: Path) -> Iterator[str]:
    import torch
    from safetensors.torch import load_file

    for tensor in load_file(path).values():
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        yield hashlib.sha256(repr((tuple(tensor.shape), str(tensor.dtype))).encode() + raw).hexdigest()[:16]


def _metrics(path: Path) -> Iterator[list[str]]:
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            numbers = [(k, v) for k, v in _flat(json.loads(line)) if not k.split("/")[-1].startswith(TIMED)]
            yield sorted(repr(v) for _, v in numbers if isinstance(v, int | float))


def _flat(row: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def _is_key(key: str) -> bool:
    """Whether the recipe of the imported code has this key."""
    explained = subprocess.run(
        [sys.executable, "-m", "towpath", "explain", key, "--json"], capture_output=True, text=True
    )
    return explained.returncode == 0 and any(row["key"] == key for row in json.loads(explained.stdout))


def run_all(work: Path, names: list[str]) -> None:
    """Run every recipe with the code of the current folder and write a digest of each."""
    known = {key: _is_key(key) for key in RENAMED}
    for name in names:
        recipe, settings = RUNS[name]
        settings = settings + (SHORT if recipe == "tiny" else QUICKSTART)
        for key, old in RENAMED.items():
            settings = settings if known[key] else [s.replace(f"{key}=", f"{old}=") for s in settings]
        target = work / f"{name}.json"
        run = work / name
        if target.is_file():
            continue
        shutil.rmtree(run, ignore_errors=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        sets = [part for value in settings for part in ("--set", value)]
        steps = (["new", str(run), "--recipe", recipe], ["run", str(run), "--no-serve", "--force", *sets])
        for step in steps:
            done = subprocess.run(
                [sys.executable, "-c", COMMAND, *step], capture_output=True, text=True, env=environment
            )
            if done.returncode:
                raise SystemExit(
                    f"{name}: {' '.join(step)} ended with status "
                    f"{done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
                )
        target.write_text(json.dumps(digest(run)), encoding="utf-8")
        shutil.rmtree(run)


def compare(ours: Path, theirs: Path, names: list[str]) -> list[str]:
    """One line for every stage that differs."""
    wrong = []
    for name in names:
        mine, other = (json.loads((side / f"{name}.json").read_text(encoding="utf-8")) for side in (ours, theirs))
        for stage in sorted({*mine, *other}):
            for what in ("tensors", "metrics"):
                if [one[what] for one in mine.get(stage, [])] != [one[what] for one in other.get(stage, [])]:
                    wrong.append(f"{name}: {what} of {stage} differ")
        tensors = sum(len(one["tensors"]) for stage in mine.values() for one in stage)
        values = sum(len(row) for stage in mine.values() for one in stage for row in one["metrics"])
        print(
            f"{name:20} {tensors:6} tensors {values:6} values  "
            f"{'DIFFERENT' if any(w.startswith(name + ':') for w in wrong) else 'equal'}"
        )
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="the revision to compare with; its digests are stored in .bench/bit_equal")
    parser.add_argument(
        "--only", nargs="+", choices=list(RUNS), default=list(RUNS), metavar="RUN", help="some of the runs"
    )
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / "bit_equal", help="where runs are kept")
    parser.add_argument("--run-in", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_in:
        run_all(arguments.run_in, arguments.only)
        return
    revision = subprocess.check_output(["git", "rev-parse", arguments.revision], cwd=ROOT, text=True).strip()
    work = arguments.work.resolve()
    tree = work / revision / "tree"
    theirs = work / revision
    ours = work / "here"
    if not tree.is_dir():
        tree.mkdir(parents=True)
        archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
    shutil.rmtree(ours, ignore_errors=True)
    ours.mkdir(parents=True)
    for code, side in ((tree, theirs), (ROOT, ours)):
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            revision,
            "--run-in",
            str(side),
            "--only",
            *arguments.only,
        ]
        subprocess.run(command, cwd=code, env={**os.environ, "PYTHONPATH": str(code)}, check=True)
    wrong = compare(ours, theirs, arguments.only)
    print("\n".join(wrong) or f"all equal to {revision[:10]}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
