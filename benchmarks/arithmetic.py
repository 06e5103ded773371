"""Data of the recipe checkable-arithmetic: `python -m benchmarks.arithmetic` writes recipes/checkable-arithmetic/.

Questions about sums, differences and products with their answers in the column `reference`, and demonstrations that
write the calculation out. No two questions are nearly the same.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from towpath.data.draws import generator
from towpath.data.near_duplicates import near_pairs
from towpath.data.texts import normalise

FOLDER = Path(__file__).parent.parent / "recipes" / "checkable-arithmetic"
COUNTS = {"heldout": 300, "train": 900}
SPARE = 100
DEMONSTRATIONS = 240
"""Training questions with a demonstration."""
FORMS = ("What is {a} {sign} {b}?", "Calculate {a} {sign} {b}.", "{a} {sign} {b} = ?")
SIGNS = {"addition": "+", "subtraction": "-", "multiplication": "*"}


def questions(count: int) -> Iterator[dict[str, Any]]:
    """Different questions with their answers, as many of each operation."""
    draw = generator(0, "arithmetic")
    known = set[tuple[str, int, int]]()
    while len(known) < count:
        name = list(SIGNS)[len(known) % len(SIGNS)]
        digits = int(draw.integers(1, 3))
        a = int(draw.integers(10 ** (digits - 1), 10**digits))
        b = int(draw.integers(2, 10 if name == "multiplication" else 10**digits))
        if name == "subtraction":
            a, b = max(a, b), min(a, b)
        if (name, a, b) in known:
            continue
        known.add((name, a, b))
        answer = {"addition": a + b, "subtraction": a - b, "multiplication": a * b}[name]
        form = FORMS[int(draw.integers(len(FORMS)))]
        yield {
            "prompt": form.format(a=a, sign=SIGNS[name], b=b),
            "reference": str(answer),
            "domain": name,
            "difficulty": "easy" if digits == 1 else "medium",
            "calculation": f"{a} {SIGNS[name]} {b} = {answer}",
        }


def main() -> None:
    """Write the files."""
    count = sum(COUNTS.values())
    rows = list(questions(count + SPARE))
    pairs = near_pairs([normalise(row["prompt"]) for row in rows]).pairs
    similar = {second for _, second in pairs}
    rows = [row for number, row in enumerate(rows) if number not in similar][:count]
    begin = 0
    parts: dict[str, list[dict[str, Any]]] = {}
    for part, count in COUNTS.items():
        parts[part] = rows[begin : begin + count]
        begin += count
    columns = ("prompt", "reference", "domain", "difficulty")
    prompts = [
        {name: row[name] for name in columns} | {"split": part} for part in ("train", "heldout") for row in parts[part]
    ]
    demonstrations = [
        {"prompt": row["prompt"], "response": f"{row['calculation']}", "domain": row["domain"], "split": "train"}
        for row in parts["train"][:DEMONSTRATIONS]
    ]
    for name, content in (("prompts", prompts), ("demonstrations", demonstrations)):
        path = FOLDER / name / "arithmetic.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        print(f"{path.relative_to(FOLDER.parent.parent)}: {len(content)} rows")


if __name__ == "__main__":
    main()
