"""Time of `towpath check` and `towpath status` on a large set of generated prompts.

The text is sampled from a bigram chain over the quickstart demonstrations, so that words and shingles have the
frequencies of English; with `--corpus` prompts are two to four sentences of a file, which are more alike than real
prompts are. One prompt in a hundred is an exact duplicate, one in a hundred a near duplicate, and a few held-out
prompts leak into training.

python -m benchmarks.large_data [--prompts 50000] [--corpus ROWS.jsonl] [--folder RUN] [--root CHECKOUT] [--json OUT]

"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
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
RECENT = 10_000
"""Rows that duplicates are drawn from."""
RECIPE = 'name = "large"\n[data]\nmax_prompt_tokens = 768\n'


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


def sentences(path: Path) -> list[str]:
    """The sentences of all prompts and responses of a file, each once."""
    texts = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts += re.split(r"(?<=[.!?])\s+|\n+", f"{row['prompt']}\n{row['response']}")
    return list(dict.fromkeys(text.strip() for text in texts if len(text.split()) > 3))


def composer(draw: random.Random, corpus: Path | None) -> Callable[[], str]:
    """A function that makes one new prompt."""
    if corpus:
        pool = sentences(corpus)
        return lambda: " ".join(draw.choices(pool, k=draw.randint(2, 4)))
    follows = chain()
    starts = list(follows)
    return lambda: text(draw, follows, starts)


def prompts(count: int, seed: int = 0, corpus: Path | None = None) -> Iterator[dict[str, Any]]:
    """Prompt rows: new ones, and exact and near duplicates of recent rows on both sides of the split."""
    draw = random.Random(seed)
    compose = composer(draw, corpus)
    recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
    for number in range(count):
        chance = draw.random()
        earlier = recent[draw.randrange(len(recent))] if recent else None
        split = "heldout" if draw.random() < 0.1 else "train"
        if earlier and chance < REPEATED:
            row = {"prompt": f" {earlier['prompt']}?", "split": earlier["split"]}
        elif earlier and chance < REPEATED + NEARLY:
            row = {"prompt": changed(draw, earlier["prompt"]), "split": earlier["split"]}
        elif earlier and chance < REPEATED + NEARLY + LEAKED:
            other = "train" if earlier["split"] == "heldout" else "heldout"
            copied = earlier["prompt"] if draw.random() < 0.5 else changed(draw, earlier["prompt"])
            row = {"prompt": copied, "split": other}
        else:
            row = {"prompt": compose(), "split": split}
        row = {"id": f"p{number}", "domain": draw.choice(["cooking", "science", "travel"])} | row
        recent.append(row)
        yield row


def write_run(folder: Path, count: int, seed: int = 0, corpus: Path | None = None) -> None:
    """Write a run folder with `count` prompts, and demonstrations and a safety set in proportion."""
    draw = random.Random(seed + 1)
    files = {}
    for name in ("prompts", "demonstrations", "safety"):
        path = folder / "data" / name / "all.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        files[name] = path.open("w", encoding="utf-8")
    for row in prompts(count, seed, corpus):
        files["prompts"].write(json.dumps(row) + "\n")
        if draw.random() < DEMONSTRATIONS:
            answer = {"prompt_id": row["id"], "prompt": row["prompt"], "response": f"{row['prompt']} Yes."}
            files["demonstrations"].write(json.dumps(answer) + "\n")
    for row in prompts(round(SAFETY * count), seed + 2, corpus):
        files["safety"].write(json.dumps({"prompt": row["prompt"], "harmful": draw.random() < 0.5}) + "\n")
    for file in files.values():
        file.close()
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")


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
    parser.add_argument("--corpus", type=Path, help="JSON lines with prompt and response whose sentences are used")
    parser.add_argument("--folder", type=Path, help="a run folder to use and keep; generated where it is not there")
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).parent.parent, help="the checkout whose commands are timed"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary) / "large").resolve()
        if not (folder / "recipe.toml").is_file():
            write_run(folder, options.prompts, corpus=options.corpus)
        rows = list(measure(options.root.resolve(), folder))
    if options.json:
        options.json.write_text(json.dumps({"prompts": options.prompts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
