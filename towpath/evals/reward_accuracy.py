"""Accuracy and calibration of a reward model, and how much of it is explained by length."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from towpath.data.draws import generator
from towpath.data.intervals import wilson
from towpath.evals.winrate import fit_logistic


def accuracy_by_group(names: Sequence[str], right: np.ndarray) -> dict[str, dict[str, float]]:
    """Accuracy and count for each group name."""
    groups: dict[str, dict[str, float]] = {}
    for name in sorted(set(names)):
        group = right[[i for i, other in enumerate(names) if other == name]]
        groups[name] = {"accuracy": float(group.mean()), "n": len(group)}
    return groups


def pair_accuracy(gap: np.ndarray, prompts: Sequence[str], seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """Share of pairs ranked as labelled; pairs of one prompt are dependent, so the bootstrap resamples prompts."""
    right = (gap > 0).astype(float) + 0.5 * (gap == 0)
    names = sorted(set(prompts))
    index = {name: i for i, name in enumerate(names)}
    sums = np.zeros(len(names))
    counts = np.zeros(len(names))
    for name, hit in zip(prompts, right, strict=True):
        sums[index[name]] += hit
        counts[index[name]] += 1
    draws = generator(seed, "bootstrap/reward").integers(0, len(names), (resamples, len(names)))
    rates = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.quantile(rates, [0.025, 0.975])
    if low == high:  # all pairs right (or all wrong): all resamples are equal
        low, high = wilson(float(right.sum()), len(right))
    return {
        "accuracy": float(right.mean()),
        "interval": [float(low), float(high)],
        "n": len(gap),
        "prompts": len(names),
    }


def calibration_error(gap: np.ndarray, bins: int = 5) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error of P(chosen) = sigmoid(gap), folded to the confidence in the predicted winner, and its
    bins."""
    confidence = 1 / (1 + np.exp(-np.abs(gap)))
    right = (gap > 0).astype(float)
    edges = np.quantile(confidence, np.linspace(0, 1, bins + 1))
    bin_of = np.clip(np.searchsorted(edges[1:-1], confidence, side="right"), 0, bins - 1)
    rows = []
    for index in range(bins):
        inside = bin_of == index
        if inside.any():
            rows.append(
                {
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": float(right[inside].mean()),
                    "n": int(inside.sum()),
                }
            )
    error = sum(abs(row["confidence"] - row["accuracy"]) * row["n"] for row in rows) / max(len(gap), 1)
    return float(error), rows


def length_features(lengths: np.ndarray) -> np.ndarray:
    """Features of length: itself, its logarithm and its square."""
    return np.stack([lengths / 50, np.log1p(lengths), (lengths / 50) ** 2], axis=-1)


def length_only_accuracy(
    chosen: np.ndarray, rejected: np.ndarray, chosen_held: np.ndarray, rejected_held: np.ndarray
) -> float:
    """Held-out accuracy of the best of three length-only models: longer wins, shorter wins, and a fitted curve."""
    delta = length_features(chosen) - length_features(rejected)
    sign = np.where(np.arange(len(delta)) % 2 == 0, 1.0, -1.0)
    weights = fit_logistic(delta * sign[:, None], (sign > 0).astype(float), ridge=1e-3)
    fitted = (length_features(chosen_held) - length_features(rejected_held)) @ weights
    gap = chosen_held - rejected_held

    def right(score: np.ndarray) -> float:
        return float(((score > 0) + 0.5 * (score == 0)).mean())

    return max(right(gap), right(-gap), right(fitted))


def within_prompt_correlation(prompts: Sequence[str], scores: np.ndarray, lengths: np.ndarray) -> float:
    """Correlation of reward and length after subtracting each prompt's means."""
    scores = scores.astype(float).copy()
    lengths = lengths.astype(float).copy()
    for name in set(prompts):
        index = [i for i, other in enumerate(prompts) if other == name]
        scores[index] -= scores[index].mean()
        lengths[index] -= lengths[index].mean()
    if scores.std() == 0 or lengths.std() == 0:
        return 0.0
    return float(np.corrcoef(scores, lengths)[0, 1])
