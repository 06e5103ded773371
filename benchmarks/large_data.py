"""Time of `towpath check` and `towpath status` on a large set of generated prompts.

The text is sampled from a bigram chain over the quickstart demonstrations, so that words and shingles have the
frequencies of English. One prompt in a hundred is an exact duplicate, one in a hundred a near duplicate, and a few
held-out prompts leak into training.

python -m benchmarks.large_data [--prompts 50000] [--folder RUN] [--root CHECKOUT] [--json OUT]

"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart" / "demonstrations"
WORDS = (20, 100)
REPEATED = 0.01
NEARLY = 0.01
LEAKED = 0.001
DEMONSTRATIONS = 0.1
SAFETY = 0.01
"""Shares of the number of prompts."""


def chain() -> dict[str, list[str]]:
    """The words that follow each word in the quickstart demonstrations."""
    follows: dict[str, list[str]] = {}
    for path in sorted(QUICKSTART.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            words = f"{row['prompt']} {row['response']}".split()
            for word, following in pairwise(words):
                follows.setdefault(word, []).append(following)
    return follows


def text(draw: random.Random, follows: dict[str, list[str]], starts: list[str]) -> str:
    """One prompt of usual length."""
    words = [draw.choice(starts)]
    for _ in range(draw.randint(*WORDS) - 1):
        words.append(draw.choice(follows.get(words[-1]) or starts))
    return " ".join(words)


def changed(draw: random.Random, prompt: str) -> str:
    """The prompt with one word reversed: usually a near duplicate."""
    words = prompt.split()
    position = draw.randrange(len(words))
    words[position] = words[position][::-1]
    return " ".join(words)


def prompts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Prompt rows: new ones, and exact and near duplicates of earlier rows on both sides of the split."""
    draw = random.Random(seed)
    follows = chain()
    starts = list(follows)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        chance = draw.random()
        earlier = draw.choice(rows) if rows else None
        split = "heldout" if draw.random() < 0.1 else "train"
        if earlier and chance < REPEATED:
            row = {"prompt": f" {earlier['prompt']}?", "split": earlier["split"]}
        elif earlier and chance < REPEATED + NEARLY:
            row = {"prompt": changed(draw, earlier["prompt"]), "split": earlier["split"]}
        elif earlier and chance < REPEATED + NEARLY + LEAKED:
            other = "train" if earlier["split"] == "heldout" else "heldout"
            row = {
                "prompt": earlier["prompt"] if draw.random() < 0.5 else changed(draw, earlier["prompt"]),
                "split": other,
            }
        else:
            row = {"prompt": text(draw, follows, starts), "split": split}
        rows.append({"id": f"p{number}", "domain": draw.choice(["cooking", "science", "travel"])} | row)
    return rows


def write_run(folder: Path, count: int, seed: int = 0) -> None:
    """Write a run folder with `count` prompts, and demonstrations and a safety set in proportion."""
    draw = random.Random(seed + 1)
    rows = prompts(count, seed)
    answered = draw.sample(rows, round(DEMONSTRATIONS * count))
    demonstrations = [
        {"prompt_id": row["id"], "prompt": row["prompt"], "response": f"{row['prompt']} Yes."} for row in answered
    ]
    safety = [
        {"prompt": row["prompt"], "harmful": draw.random() < 0.5} for row in prompts(round(SAFETY * count), seed + 2)
    ]
    for name, content in (("prompts", rows), ("demonstrations", demonstrations), ("safety", safety)):
        path = folder / "data" / name / "all.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    (folder / "recipe.toml").write_text('name = "large"\n[data]\nmax_prompt_tokens = 512\n', encoding="utf-8")


def timed(root: Path, *words: str) -> dict[str, Any]:
    """Wall and processor seconds, and peak memory, of one command."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "towpath", *words]
    process = subprocess.Popen(
        command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    printed = process.stdout.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    row = {
        "seconds": seconds,
        "user": used.ru_utime,
        "system": used.ru_stime,
        "peak_mib": used.ru_maxrss / 1024,
        "exit": process.returncode,
    }
    return (
        {"command": " ".join(words[:1])}
        | {key: round(value, 2) for key, value in row.items()}
        | {"lines": len(printed.splitlines())}
    )


def measure(root: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Run each command twice on a folder: without and with caches."""
    for command in ("check", "check", "status", "status"):
        row = timed(root, command, str(folder))
        print(json.dumps(row), flush=True)
        yield row


def main() -> None:
    """Generate the data, time the commands, and print one row per command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, help="a run folder to use and keep; generated where it is not there")
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).parent.parent, help="the checkout whose commands are timed"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary) / "large").resolve()
        if not (folder / "recipe.toml").is_file():
            write_run(folder, options.prompts)
        rows = list(measure(options.root.resolve(), folder))
    if options.json:
        options.json.write_text(json.dumps({"prompts": options.prompts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
