"""Time and memory of `towpath check`, `status`, `plan`, `report` and `data` on large sets of generated prompts.

The text is sampled from a bigram chain over the quickstart demonstrations, so that words and shingles have the
frequencies of English; with `--corpus` prompts are two to four sentences of a file, which are more alike than real
prompts are. One prompt in a hundred is an exact duplicate, one in a hundred a near duplicate, and a few held-out
prompts leak into training.

python -m benchmarks.large_data [--prompts 5000,50000] [--corpus ROWS.jsonl] [--folder FOLDER] [--root CHECKOUT]
[--json OUT] [--svg OUT]

"""

import argparse
import json
import math
import os
import random
import re
import shutil
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
        "cpu": used.ru_utime + used.ru_stime,
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


def measure(root: Path, folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """Each command on a folder: `check` without caches, with them, and after a hundredth of the rows was added."""
    report = folder / "reports"
    report.mkdir(exist_ok=True)
    for name, words in (
        ("check, first", ("check",)),
        ("check, again", ("check",)),
        ("check, 1 % added", ("check",)),
        ("status", ("status",)),
        ("plan", ("plan",)),
        ("report", ("report",)),
        ("data", ("data",)),
    ):
        if name == "check, first":
            shutil.rmtree(folder / ".cache", ignore_errors=True)
        if name == "check, 1 % added":
            with (folder / "data" / "prompts" / "more.jsonl").open("w", encoding="utf-8") as file:
                for row in prompts(count // 100, seed=count):
                    file.write(json.dumps(row | {"id": f"new-{row['id']}"}) + "\n")
        row = {"prompts": count, "name": name} | timed(root, words[0], str(folder))
        print(json.dumps(row), flush=True)
        yield row
    (folder / "data" / "prompts" / "more.jsonl").unlink()


def plot(rows: list[dict[str, Any]]) -> str:
    """Processor seconds, beside a dashed line of linear growth, and memory by number of prompts, log-log."""
    names = {
        "check, first": "#0b6e99",
        "check, again": "#b45f06",
        "data": "#38761d",
        "status": "#741b47",
        "plan": "#666",
    }
    parts = ['<rect width="760" height="300" fill="white"/>']
    panels = (
        ("cpu", "processor seconds", 0.3, 600.0, (1, 10, 100)),
        ("peak_mib", "peak memory, MiB", 60.0, 3000.0, (100, 1000)),
    )
    sizes = sorted({row["prompts"] for row in rows})
    for panel, (key, title, low, high, ticks) in enumerate(panels):
        left = 380 * panel + 46

        def x(value: float, left: int = left) -> float:
            return left + math.log(value / sizes[0]) / math.log(sizes[-1] / sizes[0]) * 220

        def y(value: float, low: float = low, high: float = high) -> float:
            return 250 - math.log(max(value, low) / low) / math.log(high / low) * 210

        parts.append(f'<text x="{left}" y="22" font-weight="bold">{title}</text>')
        for tick in ticks:
            parts.append(f'<path d="M{left} {y(tick):.1f}H{left + 220}" stroke="#ddd"/>')
            parts.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:,}</text>')
        for size in sizes:
            parts.append(f'<text x="{x(size):.1f}" y="268" text-anchor="middle">{size:,}</text>')
        for number, (name, colour) in enumerate(names.items()):
            points = [(x(row["prompts"]), y(row[key])) for row in rows if row["name"] == name]
            line = "L".join(f"{at:.1f} {height:.1f}" for at, height in points)
            parts.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
            parts += [f'<circle cx="{at:.1f}" cy="{height:.1f}" r="3" fill="{colour}"/>' for at, height in points]
            parts.append(f'<text x="{left + 232}" y="{60 + 18 * number}" fill="{colour}">{name}</text>')
        if key == "cpu":  # memory has a large part that does not grow
            start = next(row[key] for row in rows if row["name"] == "check, first" and row["prompts"] == sizes[1])
            ends = [(size, start * size / sizes[1]) for size in (sizes[1], sizes[-1])]
            line = "L".join(f"{x(size):.1f} {y(value):.1f}" for size, value in ends)
            parts.append(f'<path d="M{line}" fill="none" stroke="#999" stroke-dasharray="3 3"/>')
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 300" font-family="sans-serif" font-size="11">'
    foot = '<text x="46" y="290" fill="#555">prompts; dashed: linear growth</text>'
    return "\n".join([head, *parts, foot, "</svg>"]) + "\n"


def main() -> None:
    """Generate the data, time the commands, and print one row per command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", default="50000", help="numbers of prompts, with commas between them")
    parser.add_argument("--corpus", type=Path, help="JSON lines with prompt and response whose sentences are used")
    parser.add_argument("--folder", type=Path, help="where run folders are kept; generated where they are not there")
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).parent.parent, help="the checkout whose commands are timed"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in map(int, options.prompts.split(",")):
            folder = ((options.folder or Path(temporary)) / str(count)).resolve()
            if not (folder / "recipe.toml").is_file():
                write_run(folder, count, corpus=options.corpus)
            rows += measure(options.root.resolve(), folder, count)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.svg:
        options.svg.write_text(plot(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
