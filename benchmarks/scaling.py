"""How the cost of a PPO run grows with prompts, length, model and vocabulary, and its memory with prompts.

Small Llamas of random weights, LoRA, rollouts of 32 answers; one value at a time is doubled. The exponent is the
slope in logarithms: 1 doubles with the value, 0 does not grow.

python -m benchmarks.scaling [--json OUT] [--svg OUT]

"""

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.models import prepared
from benchmarks.run import ENVIRONMENTS, turn
from benchmarks.workload import Workload

SHAPE = {"layers": 4, "width": 256, "heads": 4, "inner": 768, "vocabulary": 16384}
ROLLOUT = 32
START = Workload(
    "scaling",
    "ppo",
    SHAPE,
    prompts=ROLLOUT,
    prompt_tokens=32,
    new_tokens=(32, 32),
    epochs=2,
    minibatch=16,
    method="lora",
)
VALUES = {
    "prompts": (32, 64, 128, 256),
    "answer tokens": (32, 64, 128, 256),
    "layers": (2, 4, 8, 16),
    "width": (128, 256, 512, 1024),
    "vocabulary": (8192, 16384, 32768, 65536),
}


def workload(what: str, value: int) -> Workload:
    """The starting workload with one value changed."""
    if what == "prompts":
        return replace(START, prompts=value, options={"towpath": {"rollout": ROLLOUT, "steps": value // ROLLOUT}})
    if what == "answer tokens":
        return replace(START, new_tokens=(value, value))
    shape = SHAPE | {what: value} | ({"heads": value // 64, "inner": 3 * value} if what == "width" else {})
    return replace(START, model=shape)


def slope(rows: list[dict[str, float]], key: str) -> float:
    """The exponent between the last two values, where what is constant weighs least."""
    a, b = rows[-2:]
    return math.log(b[key] / a[key]) / math.log(b["value"] / a["value"])


def measured(what: str) -> list[dict[str, float]]:
    """Seconds and memory at every value."""
    rows = []
    for value in VALUES[what]:
        asked = workload(what, value)
        told = turn("towpath", asked, prepared(asked.model, ENVIRONMENTS / "models"), 1800)
        rows.append(
            {
                "value": value,
                "seconds": told["seconds"],
                "peak_memory_bytes": told["peak_memory_bytes"],
                **told["phases"],
            }
        )
        print(
            f"  {what} {value}: {told['seconds']:.1f} s, {told['peak_memory_bytes'] / 2**30:.2f} GiB",
            file=sys.stderr,
            flush=True,
        )
    return rows


def svg(found: dict[str, list[dict[str, float]]]) -> str:
    """A panel for each value: seconds, in logarithms on both axes, beside a straight doubling."""
    panel = 190
    height = 220
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {panel * len(found)} {height}" '
        'font-family="sans-serif" font-size="11">'
    ]
    parts.append(f'<rect width="{panel * len(found)}" height="{height}" fill="white"/>')
    for number, (what, rows) in enumerate(found.items()):
        left = panel * number + 34
        low = math.log2(rows[0]["seconds"])
        span = max(3.2, math.log2(max(row["seconds"] for row in rows)) - low)

        def at(
            row: dict[str, float],
            left: int = left,
            low: float = low,
            span: float = span,
            first: float = rows[0]["value"],
        ) -> tuple[float, float]:
            return left + math.log2(row["value"] / first) * 46, 180 - (math.log2(row["seconds"]) - low) / span * 140

        straight = [at({"value": row["value"], "seconds": 2**low * row["value"] / rows[0]["value"]}) for row in rows]
        dashed = 'stroke="#bbb" stroke-dasharray="3 3"'
        solid = 'stroke="#0b6e99" stroke-width="1.5"'
        for points, look in ((straight, dashed), ([at(row) for row in rows], solid)):
            line = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            parts.append(f'<path d="M{line}" fill="none" {look}/>')
        for row in rows:
            x, y = at(row)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#0b6e99"/>')
            parts.append(f'<text x="{x:.1f}" y="{y - 7:.1f}" text-anchor="middle">{row["seconds"]:.1f} s</text>')
            parts.append(f'<text x="{x:.1f}" y="196" text-anchor="middle" fill="#555">{row["value"]:,.0f}</text>')
        parts.append(
            f'<text x="{left}" y="212">{what}: s {slope(rows, "seconds"):.2f}, GiB '
            f"{slope(rows, 'peak_memory_bytes'):.2f}</text>"
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Every value in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    told = parser.parse_args()
    found: dict[str, Any] = {what: measured(what) for what in VALUES}
    for what, rows in found.items():
        print(
            f"{what}: seconds grow with exponent {slope(rows, 'seconds'):.2f}, memory with "
            f"{slope(rows, 'peak_memory_bytes'):.2f}"
        )
    if told.json:
        told.json.write_text(json.dumps(found, indent=1) + "\n")
    if told.svg:
        told.svg.write_text(svg(found))


if __name__ == "__main__":
    main()
