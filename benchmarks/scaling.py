"""Scaling of time and memory of a PPO run with prompts, answer length, model size and vocabulary.

Small Llamas with random weights, LoRA, rollouts of 32 answers; one value at a time is doubled. The exponent is the
slope in log-log scale: 1 is linear growth, 0 is no growth.

python -m benchmarks.scaling [--json OUT] [--svg OUT]
"""

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.models import prepare_model
from benchmarks.run import ENVIRONMENTS, run_once
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
    """The exponent between the last two values, where constant cost matters least."""
    a, b = rows[-2:]
    return math.log(b[key] / a[key]) / math.log(b["value"] / a["value"])


def measure(what: str) -> list[dict[str, float]]:
    """Seconds and memory at every value."""
    rows = []
    for value in VALUES[what]:
        workload_ = workload(what, value)
        result = run_once("towpath", workload_, prepare_model(workload_.model, ENVIRONMENTS / "models"), 1800)
        rows.append(
            {
                "value": value,
                "seconds": result["seconds"],
                "peak_memory_bytes": result["peak_memory_bytes"],
                **result["phases"],
            }
        )
        print(
            f"  {what} {value}: {result['seconds']:.1f} s, {result['peak_memory_bytes'] / 2**30:.2f} GiB",
            file=sys.stderr,
            flush=True,
        )
    return rows


def svg(results: dict[str, list[dict[str, float]]]) -> str:
    """A log-log panel of seconds for each value, with a line of linear growth."""
    panel = 190
    height = 220
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {panel * len(results)} {height}" '
        'font-family="sans-serif" font-size="11">'
    ]
    parts.append(f'<rect width="{panel * len(results)}" height="{height}" fill="white"/>')
    for number, (what, rows) in enumerate(results.items()):
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
        for points, style in ((straight, dashed), ([at(row) for row in rows], solid)):
            line = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            parts.append(f'<path d="M{line}" fill="none" {style}/>')
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
    """Measure every value, print the exponents, and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {what: measure(what) for what in VALUES}
    for what, rows in results.items():
        print(
            f"{what}: seconds grow with exponent {slope(rows, 'seconds'):.2f}, memory with "
            f"{slope(rows, 'peak_memory_bytes'):.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.svg:
        options.svg.write_text(svg(results))


if __name__ == "__main__":
    main()
