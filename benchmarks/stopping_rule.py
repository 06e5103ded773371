"""How often a rule that looks after every comparison decides wrongly, and how soon it decides: `python -m
benchmarks.stopping_rule [--json FILE]`.

At a true rate that equals the threshold every decision is wrong. Three rules look after every comparison from the tenth
on: the anytime-valid one,
Wilson's interval, and a normal test of "the rate is the threshold" at 5 %. Clusters are prompts that three raters
judged, whose verdicts hang
together: counted by prompt, and as if each verdict stood alone.

"""

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from scipy.stats import binom

from towpath.data.draws import generator
from towpath.data.intervals import Z, wilson
from towpath.evals import sequential

FIRST = 10
PRIZE = np.log(2 / (1 - sequential.LEVEL))


def outcomes(rate: float, ties: float, shape: tuple[int, ...], stream: str) -> np.ndarray:
    """Outcomes 1, 0 and a half with this mean and this share of ties."""
    drawn = generator(0, "stopping", stream).random(shape)
    win = rate - ties / 2
    return np.where(drawn < win, 1.0, np.where(drawn < win + ties, 0.5, 0.0))


def clustered(rate: float, size: int, shape: tuple[int, int], stream: str) -> np.ndarray:
    """Verdicts [sequences, prompts, raters]: each prompt has a rate of its own, and these have the given mean."""
    draws = generator(0, "stopping/clusters", stream)
    own = draws.beta(rate, 1 - rate, shape)[:, :, None]
    return (draws.random((*shape, size)) < own).astype(float)


def crossed(x_RN: np.ndarray, threshold: float) -> np.ndarray:
    """For every sequence whether the anytime-valid rule ever decides."""
    return (
        (sequential.log_wealth(x_RN, threshold) >= PRIZE) | (sequential.log_wealth(x_RN, threshold, False) >= PRIZE)
    ).any(1)


def naive(x_RN: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
    """For every sequence whether rules made for one look ever decide, looked at after every comparison."""
    n_N = np.arange(1, x_RN.shape[1] + 1)
    rate_RN = np.cumsum(x_RN, 1) / n_N
    spread_RN = np.sqrt(np.maximum(rate_RN * (1 - rate_RN), 0.25 / n_N) / n_N)
    centre = rate_RN + Z**2 / (2 * n_N)
    half = Z * np.sqrt(rate_RN * (1 - rate_RN) / n_N + Z**2 / (4 * n_N**2))
    low = (centre - half) / (1 + Z**2 / n_N)
    high = (centre + half) / (1 + Z**2 / n_N)
    late = n_N >= FIRST
    return {
        "wilson": (((low > threshold) | (high < threshold)) & late).any(1),
        "normal": ((np.abs(rate_RN - threshold) > Z * spread_RN) & late).any(1),
    }


def errors(sequences: int, longest: int) -> list[dict[str, Any]]:
    """Wrong decisions at a true rate that equals the threshold, of `sequences` sequences that go on for `longest`
    comparisons."""
    rows = []
    for threshold in (0.5, 0.7):
        for ties in (0.0, 0.3):
            x_RN = outcomes(threshold, ties, (sequences, longest), f"{threshold}/{ties}")
            rows.append(_row(threshold, f"{ties:.0%} ties", crossed(x_RN, threshold), naive(x_RN, threshold)))
        said_RPK = clustered(threshold, 3, (sequences, longest // 3), str(threshold))
        rows.append(
            _row(
                threshold,
                "three raters a prompt, by prompt",
                crossed(said_RPK.mean(2), threshold),
                naive(said_RPK.mean(2), threshold),
            )
        )
        flat_RN = said_RPK.reshape(sequences, -1)
        rows.append(
            _row(threshold, "three raters a prompt, by verdict", crossed(flat_RN, threshold), naive(flat_RN, threshold))
        )
    return rows


def _row(threshold: float, what: str, ours: np.ndarray, others: dict[str, np.ndarray]) -> dict[str, Any]:
    told = {"anytime": ours, **others}
    return {
        "threshold": threshold,
        "outcomes": what,
        **{name: {"rate": float(x.mean()), "interval": wilson(float(x.sum()), len(x))} for name, x in told.items()},
    }


def decided(sequences: int, longest: int, threshold: float = 0.7) -> list[dict[str, Any]]:
    """Comparisons until PASS at true rates above the threshold: median, nine in ten, and what the estimate says
    beforehand."""
    rows = []
    for rate in (0.75, 0.8, 0.85):
        for ties in (0.0, 0.2):
            won = (
                sequential.log_wealth(outcomes(rate, ties, (sequences, longest), f"power/{rate}/{ties}"), threshold)
                >= PRIZE
            )
            at = np.where(won.any(1), won.argmax(1) + 1.0, np.inf)
            median, most = (float(q) for q in np.quantile(at, [0.5, 0.9], method="higher"))
            rows.append(
                {
                    "rate": rate,
                    "ties": ties,
                    "median": median,
                    "nine_in_ten": most,
                    "expected": sequential.required_comparisons(rate, threshold, ties),
                    "fixed_n_80": fixed(rate, threshold) if not ties else None,
                }
            )
    return rows


def fixed(rate: float, threshold: float, power: float = 0.8) -> int:
    """The number of comparisons, fixed before, at which Wilson's interval lies above the threshold with this chance;
    one look only."""
    low = 10
    high = 5000
    while high - low > 1:
        n = (low + high) // 2
        wins = next(k for k in range(n + 1) if wilson(k, n)[0] > threshold)
        low, high = (low, n) if binom.sf(wins - 1, n, rate) >= power else (n, high)
    return high


def coverage() -> list[dict[str, Any]]:
    """How often Wilson's interval holds the true rate where n is fixed and one looks once, exactly."""
    rows = []
    for n in (50, 100, 200, 400):
        ends = [wilson(k, n) for k in range(n + 1)]
        row: dict[str, Any] = {"n": n}
        for rate in (0.5, 0.7, 0.85):
            chance = binom.pmf(np.arange(n + 1), n, rate)
            row[str(rate)] = float(sum(p for p, (low, high) in zip(chance, ends, strict=True) if low <= rate <= high))
        rows.append(row)
    return rows


def measured(sequences: int, longest: int) -> dict[str, Any]:
    """Everything."""
    begun = perf_counter()
    found = {
        "sequences": sequences,
        "longest": longest,
        "errors": errors(sequences, longest),
        "decided": decided(max(200, sequences // 4), 4000),
        "wilson_coverage": coverage(),
    }
    return found | {"seconds": round(perf_counter() - begun, 1)}


def lines(found: dict[str, Any]) -> str:
    """Tables in Markdown."""
    shown = [
        "| threshold = true rate | outcomes | anytime-valid | Wilson, at every look | normal test, at every look |",
        "|---|---|---|---|---|",
    ]
    for row in found["errors"]:
        cells = " | ".join(f"{row[name]['rate']:.1%}" for name in ("anytime", "wilson", "normal"))
        shown.append(f"| {row['threshold']:.2f} | {row['outcomes']} | {cells} |")
    shown += [
        "",
        "| true rate | ties | median until PASS at 0.70 | nine in ten | expected beforehand | fixed n, 80 % power |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["decided"]:
        fixed_n = row["fixed_n_80"] if row["fixed_n_80"] is not None else ""
        shown.append(
            f"| {row['rate']:.2f} | {row['ties']:.0%} | {row['median']:g} | {row['nine_in_ten']:g} | "
            f"{row['expected']} | {fixed_n} |"
        )
    shown += ["", "| n, fixed | true 0.50 | true 0.70 | true 0.85 |", "|---|---|---|---|"]
    shown += [
        f"| {row['n']} | {row['0.5']:.1%} | {row['0.7']:.1%} | {row['0.85']:.1%} |" for row in found["wilson_coverage"]
    ]
    return "\n".join(shown)


def main() -> None:
    """Simulate, print, and keep where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=4000)
    parser.add_argument("--longest", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    asked = parser.parse_args()
    found = measured(asked.sequences, asked.longest)
    print(lines(found))
    print(f"{found['sequences']} sequences of {found['longest']} comparisons, {found['seconds']} s", file=sys.stderr)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
