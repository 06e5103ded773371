"""What a diagnosis of the labels stands on: linear readings of the reward model's frozen features, on all pairs and
on parts of them.

S shown pairs, H held-out pairs, D features. A pair is the difference of its answers' features, chosen less rejected.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from zlib import crc32

import numpy as np

from towpath.data.draws import permutation
from towpath.evals.winrate import fit_logistic
from towpath.feedback.reward_diagnosis import RewardEvidence, TrainingResult, diagnose_reward_model
from towpath.feedback.rubric import lower_words

PARTS = (0.25, 0.5)
AGAIN = 3
FOLDS = 5
HASHED = 512
BAG_RIDGE = 10.0
LEAST = 40
"""Pairs, shown and held out alike, below which nothing can be said."""


@dataclass(frozen=True)
class Read:
    """Pairs as a linear reading sees them."""

    names: Sequence[str]
    gap_ND: np.ndarray
    longer_N: np.ndarray
    strength_N: np.ndarray
    bag_NW: np.ndarray


def read(
    names: Sequence[str], gap_ND: np.ndarray, texts: Sequence[tuple[str, str]], strengths: Sequence[float]
) -> Read:
    """Pairs with (chosen, rejected) texts."""
    bags = np.stack([_bag(chosen) - _bag(rejected) for chosen, rejected in texts])
    longer = np.sign([len(lower_words(chosen)) - len(lower_words(rejected)) for chosen, rejected in texts])
    return Read(names, gap_ND, longer, np.array(strengths, float), bags)


def diagnosed(
    training: Read, held: Read, agreement: tuple[float, int] | None, target: float, ridge: float, seed: int
) -> dict[str, Any] | None:
    """One verdict on why the labels do not take the model further, with its evidence; None of too few pairs."""
    count = len(training.names)
    if min(count, len(held.names)) < LEAST:
        return None
    spread_D = training.gap_ND.std(0) + 1e-6
    gap_SD = training.gap_ND / spread_D
    gap_HD = held.gap_ND / spread_D
    curve = []
    for part in PARTS:
        for number in range(AGAIN):
            some = permutation(count, seed, "diagnosis/part", str(part), number)[: round(part * count)]
            curve.append(_trained(gap_SD[some], gap_HD, ridge * part))
    curve.append(_trained(gap_SD, gap_HD, ridge))
    bag = _right(held.bag_NW @ _fitted(training.bag_NW, BAG_RIDGE))
    margins = dict(zip(training.names, _out_of_fold(gap_SD, ridge, seed).tolist(), strict=True))
    evidence = RewardEvidence(
        tuple(curve), held.longer_N, agreement, held.strength_N, bag, margins=margins, target=target
    )
    return asdict(diagnose_reward_model(evidence, seed))


def _trained(gap_SD: np.ndarray, gap_HD: np.ndarray, ridge: float) -> TrainingResult:
    weights_D = _fitted(gap_SD, ridge)
    return TrainingResult(len(gap_SD), float(_right(gap_SD @ weights_D).mean()), _right(gap_HD @ weights_D))


def _fitted(gap_SD: np.ndarray, ridge: float) -> np.ndarray:
    """The direction along which the chosen lie above the rejected."""
    sign_S = np.where(np.arange(len(gap_SD)) % 2 == 0, 1.0, -1.0)
    return fit_logistic(gap_SD * sign_S[:, None], (sign_S > 0).astype(float), ridge)


def _right(margin_N: np.ndarray) -> np.ndarray:
    return (margin_N > 0) + 0.5 * (margin_N == 0)


def _out_of_fold(gap_SD: np.ndarray, ridge: float, seed: int) -> np.ndarray:
    """For each pair its margin by a reading that did not see it."""
    fold_S = permutation(len(gap_SD), seed, "diagnosis/fold") % FOLDS
    margin_S = np.zeros(len(gap_SD))
    for fold in range(FOLDS):
        margin_S[fold_S == fold] = gap_SD[fold_S == fold] @ _fitted(gap_SD[fold_S != fold], ridge)
    return margin_S


def _bag(text: str) -> np.ndarray:
    """Which words an answer has, as places of a table."""
    columns = np.zeros(HASHED)
    for word in set(lower_words(text)):
        columns[crc32(word.encode()) % HASHED] = 1.0
    return columns
