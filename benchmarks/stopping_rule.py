"""Error rate and sample size of the anytime-valid stopping rule: `python -m benchmarks.stopping_rule [--json FILE]`.

At a true rate that equals the threshold every decision is wrong. Three rules are applied after every comparison: the
anytime-valid one, Wilson's interval, and a normal test at 5 % (the last two from the tenth comparison on). Clusters
are prompts judged by three raters with correlated verdicts, counted by prompt and as independent verdicts.
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
DECISION_LOG_WEALTH = np.log(2 / (1 - sequential.LEVEL))


def outcomes(rate: float, ties: float, shape: tuple[int, ...], stream: str) -> np.ndarray:
    """Outcomes 1, 0 and 0.5 with this mean and this share of ties."""
    uniform = generator(0, "stopping", stream).random(shape)
    win = rate - ties / 2
    return np.where(uniform < win, 1.0, np.where(uniform < win + ties, 0.5, 0.0))


def clustered_outcomes(rate: float, size: int, shape: tuple[int, int], stream: str) -> np.ndarray:
    """Verdicts [sequences, prompts, raters]; each prompt has its own rate, and these have the given mean."""
    draws = generator(0, "stopping/clusters", stream)
    own = draws.beta(rate, 1 - rate, shape)[:, :, None]
    return (draws.random((*shape, size)) < own).astype(float)


def anytime_decides(x_RN: np.ndarray, threshold: float) -> np.ndarray:
    """Whether the anytime-valid rule ever decides, per sequence."""
    return (
        (sequential.log_wealth(x_RN, threshold) >= DECISION_LOG_WEALTH)
        | (sequential.log_wealth(x_RN, threshold, False) >= DECISION_LOG_WEALTH)
    ).any(1)


def fixed_n_decides(x_RN: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
    """Whether rules for a fixed n ever decide if they are applied after every comparison, per sequence."""
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
    """Wrong decisions at a true rate that equals the threshold, in `sequences` sequences of `longest` comparisons."""
    rows = []
    for threshold in (0.5, 0.7):
        for ties in (0.0, 0.3):
            x_RN = outcomes(threshold, ties, (sequences, longest), f"{threshold}/{ties}")
            rows.append(
                _row(threshold, f"{ties:.0%} ties", anytime_decides(x_RN, threshold), fixed_n_decides(x_RN, threshold))
            )
        verdicts_RPK = clustered_outcomes(threshold, 3, (sequences, longest // 3), str(threshold))
        rows.append(
            _row(
                threshold,
                "three raters a prompt, by prompt",
                anytime_decides(verdicts_RPK.mean(2), threshold),
                fixed_n_decides(verdicts_RPK.mean(2), threshold),
            )
        )
        flat_RN = verdicts_RPK.reshape(sequences, -1)
        rows.append(
            _row(
                threshold,
                "three raters a prompt, by verdict",
                anytime_decides(flat_RN, threshold),
                fixed_n_decides(flat_RN, threshold),
            )
        )
    return rows


def _row(threshold: float, what: str, ours: np.ndarray, others: dict[str, np.ndarray]) -> dict[str, Any]:
    rules = {"anytime": ours, **others}
    return {
        "threshold": threshold,
        "outcomes": what,
        **{name: {"rate": float(x.mean()), "interval": wilson(float(x.sum()), len(x))} for name, x in rules.items()},
    }


def comparisons_until_pass(sequences: int, longest: int, threshold: float = 0.7) -> list[dict[str, Any]]:
    """Comparisons until PASS at true rates above the threshold: median, 90 % quantile, and the estimate in advance."""
    rows = []
    for rate in (0.75, 0.8, 0.85):
        for ties in (0.0, 0.2):
            won = (
                sequential.log_wealth(outcomes(rate, ties, (sequences, longest), f"power/{rate}/{ties}"), threshold)
                >= DECISION_LOG_WEALTH
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
                    "fixed_n_80": fixed_sample_size(rate, threshold) if not ties else None,
                }
            )
    return rows


def fixed_sample_size(rate: float, threshold: float, power: float = 0.8) -> int:
    """The fixed number of comparisons at which Wilson's interval is above the threshold with probability `power`."""
    low = 10
    high = 5000
    while high - low > 1:
        n = (low + high) // 2
        wins = next(k for k in range(n + 1) if wilson(k, n)[0] > threshold)
        low, high = (low, n) if binom.sf(wins - 1, n, rate) >= power else (n, high)
    return high


def coverage() -> list[dict[str, Any]]:
    """Exact coverage of Wilson's interval at fixed n."""
    rows = []
    for n in (50, 100, 200, 400):
        ends = [wilson(k, n) for k in range(n + 1)]
        row: dict[str, Any] = {"n": n}
        for rate in (0.5, 0.7, 0.85):
            chance = binom.pmf(np.arange(n + 1), n, rate)
            row[str(rate)] = float(sum(p for p, (low, high) in zip(chance, ends, strict=True) if low <= rate <= high))
        rows.append(row)
    return rows


def measure(sequences: int, longest: int) -> dict[str, Any]:
    """Run all simulations."""
    start = perf_counter()
    results = {
        "sequences": sequences,
        "longest": longest,
        "errors": errors(sequences, longest),
        "decided": comparisons_until_pass(max(200, sequences // 4), 4000),
        "wilson_coverage": coverage(),
    }
    return results | {"seconds": round(perf_counter() - start, 1)}


def markdown_tables(results: dict[str, Any]) -> str:
    """The results as Markdown tables."""
    rows = [
        "| threshold = true rate | outcomes | anytime-valid | Wilson, at every look | normal test, at every look |",
        "|---|---|---|---|---|",
    ]
    for row in results["errors"]:
        cells = " | ".join(f"{row[name]['rate']:.1%}" for name in ("anytime", "wilson", "normal"))
        rows.append(f"| {row['threshold']:.2f} | {row['outcomes']} | {cells} |")
    rows += [
        "",
        "| true rate | ties | median until PASS at 0.70 | nine in ten | expected beforehand | fixed n, 80 % power |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["decided"]:
        fixed_n = row["fixed_n_80"] if row["fixed_n_80"] is not None else ""
        rows.append(
            f"| {row['rate']:.2f} | {row['ties']:.0%} | {row['median']:g} | {row['nine_in_ten']:g} | "
            f"{row['expected']} | {fixed_n} |"
        )
    rows += ["", "| n, fixed | true 0.50 | true 0.70 | true 0.85 |", "|---|---|---|---|"]
    rows += [
        f"| {row['n']} | {row['0.5']:.1%} | {row['0.7']:.1%} | {row['0.85']:.1%} |"
        for row in results["wilson_coverage"]
    ]
    return "\n".join(rows)


def main() -> None:
    """Run the simulations, print and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=4000)
    parser.add_argument("--longest", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    options = parser.parse_args()
    results = measure(options.sequences, options.longest)
    print(markdown_tables(results))
    print(
        f"{results['sequences']} sequences of {results['longest']} comparisons, {results['seconds']} s", file=sys.stderr
    )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
