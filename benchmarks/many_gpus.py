"""A model, not a measurement, of one PPO iteration with LoRA on one and on many GPUs.

python -m benchmarks.many_gpus     prints the table of docs/performance.md

seconds = imbalance · (sample + score + train) / N + reduce + fit + sync
    sample  answers · T / s                             s: sampled tokens a second on a GPU
    score   4 roles · answers · (P + T) · 2 n / (u F)   n: parameters, u F: useful floating-point operations a second
    train   epochs · answers · (P + T) · 4 n / (u F)    2 n forward, 2 n backward: weights of the model are frozen
    reduce  steps · (2 (N - 1) / N · bytes / bandwidth + latency · 2 log2 N)
    fit     2 (N - 1) / N · 8 E² / bandwidth + (R E³ / 3) / (N G) + (E³ / 3) / G
            E: features of the critic, R: ridges, G: float64 operations a second
    sync    2 n bytes / copies                          weights merged and copied to the engine on the same GPU
"""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Machine:
    """GPUs and what connects them; bytes and operations a second."""

    gpus: int
    bandwidth: float
    latency: float = 2e-5
    operations: float = 0.40 * 770e12
    """40 % of what a square product reaches on an H200 in bfloat16 (770e12 measured)."""
    float64: float = 30e12
    sampled_tokens: float = 30_000
    """Of a 1.3B model by vLLM, 256 rows: an estimate."""
    copies: float = 300e9


@dataclass(frozen=True)
class Iteration:
    """One rollout and its updates."""

    answers: int = 1024
    prompt_tokens: int = 256
    answer_tokens: int = 256
    parameters: float = 1.3e9
    width: int = 2048
    adapter_parameters: float = 15e6
    epochs: int = 4
    steps: int = 32
    ridges: int = 6
    imbalance: float = 1.12
    """The slowest worker over the mean, with minibatches of 128 rows on eight."""


def seconds(work: Iteration, machine: Machine) -> dict[str, float]:
    """Each part of an iteration."""
    count = machine.gpus
    tokens = work.answers * (work.prompt_tokens + work.answer_tokens)
    share = (work.imbalance if count > 1 else 1.0) / count
    features = work.width + 1025
    ring = 2 * (count - 1) / count
    reduce_once = ring * 4 * work.adapter_parameters / machine.bandwidth
    reduce_once += machine.latency * 2 * math.log2(count) if count > 1 else 0.0
    fit = ring * 8 * features**2 / machine.bandwidth
    fit += (work.ridges / count + 1) * features**3 / 3 / machine.float64
    return {
        "sample": share * work.answers * work.answer_tokens / machine.sampled_tokens,
        "score": share * 4 * tokens * 2 * work.parameters / machine.operations,
        "train": share * work.epochs * tokens * 4 * work.parameters / machine.operations,
        "reduce": work.steps * reduce_once,
        "fit": fit,
        "sync": 2 * work.parameters / machine.copies,
    }


ONE = Machine(1, math.inf)
EIGHT = Machine(8, 300e9)
"""NVLink: 900 GB/s both ways, two thirds of one way reached by a ring."""
TWO_BY_EIGHT = replace(EIGHT, gpus=16, bandwidth=40e9, latency=5e-5)
"""Two hosts by 400 Gb/s, four fifths of it reached: the slowest link of the ring."""


def main() -> None:
    work = Iteration()
    columns = {"1 GPU": ONE, "8 GPUs": EIGHT, "2 × 8 GPUs": TWO_BY_EIGHT}
    parts = {name: seconds(work, machine) for name, machine in columns.items()}
    print(f"| seconds | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for part in next(iter(parts.values())):
        print(f"| {part} | {' | '.join(f'{own[part]:.3f}' for own in parts.values())} |")
    totals = {name: sum(own.values()) for name, own in parts.items()}
    alone = totals["1 GPU"]
    print(f"| all | {' | '.join(f'{total:.2f}' for total in totals.values())} |")
    print(f"| times as fast | {' | '.join(f'{alone / total:.1f}' for total in totals.values())} |")
    hours = {name: total * 131_900 / work.answers / 3600 for name, total in totals.items()}
    print(f"| hours for 131,900 prompts | {' | '.join(f'{hour:.2f}' for hour in hours.values())} |")


if __name__ == "__main__":
    main()
