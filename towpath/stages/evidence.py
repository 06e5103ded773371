"""Evidence for the diagnosis of a reward model: linear probes on its frozen features, trained on all pairs and on parts
of them.

S training pairs, H held-out pairs, N either, D features, W words. The features of a pair are those of the chosen answer
minus those of the rejected one.
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
"""Shares of the training pairs in the learning curve."""
REPEATS = 3
FOLDS = 5
HASH_COLUMNS = 512
WORD_RIDGE = 10.0
MIN_PAIRS = 40
"""Training pairs, and held-out pairs, below which there is no diagnosis."""


@dataclass(frozen=True)
class PairFeatures:
    """Pairs as inputs of a linear probe."""

    names: Sequence[str]
    gap_ND: np.ndarray
    longer_N: np.ndarray
    """1 where the chosen answer has more words, -1 where it has fewer, else 0."""
    strength_N: np.ndarray
    words_NW: np.ndarray
    """Hashed bag of words."""


def pair_features(
    names: Sequence[str], gap_ND: np.ndarray, texts: Sequence[tuple[str, str]], strengths: Sequence[float]
) -> PairFeatures:
    """Features of pairs with (chosen, rejected) texts."""
    words = np.stack([_word_columns(chosen) - _word_columns(rejected) for chosen, rejected in texts])
    longer = np.sign([len(lower_words(chosen)) - len(lower_words(rejected)) for chosen, rejected in texts])
    return PairFeatures(names, gap_ND, longer, np.array(strengths, float), words)


def diagnose_labels(
    training: PairFeatures,
    held_out: PairFeatures,
    agreement: tuple[float, int] | None,
    target: float,
    ridge: float,
    seed: int,
) -> dict[str, Any] | None:
    """The most likely reason why accuracy is below the target, with its evidence; None for too few pairs."""
    count = len(training.names)
    if min(count, len(held_out.names)) < MIN_PAIRS:
        return None
    spread_D = training.gap_ND.std(0) + 1e-6
    gap_SD = training.gap_ND / spread_D
    gap_HD = held_out.gap_ND / spread_D
    curve = []
    for part in PARTS:
        for number in range(REPEATS):
            subset = permutation(count, seed, "diagnosis/part", str(part), number)[: round(part * count)]
            curve.append(_train_probe(gap_SD[subset], gap_HD, ridge * part))
    curve.append(_train_probe(gap_SD, gap_HD, ridge))
    words = _correct(held_out.words_NW @ _fit(training.words_NW, WORD_RIDGE))
    margins = dict(zip(training.names, _out_of_fold(gap_SD, ridge, seed).tolist(), strict=True))
    evidence = RewardEvidence(
        tuple(curve), held_out.longer_N, agreement, held_out.strength_N, words, margins=margins, target=target
    )
    return asdict(diagnose_reward_model(evidence, seed))


def _train_probe(gap_SD: np.ndarray, gap_HD: np.ndarray, ridge: float) -> TrainingResult:
    weights_D = _fit(gap_SD, ridge)
    return TrainingResult(len(gap_SD), float(_correct(gap_SD @ weights_D).mean()), _correct(gap_HD @ weights_D))


def _fit(gap_SD: np.ndarray, ridge: float) -> np.ndarray:
    """Weights of a logistic regression that gives the chosen answer the higher score."""
    # alternating signs balance the two classes
    sign_S = np.where(np.arange(len(gap_SD)) % 2 == 0, 1.0, -1.0)
    return fit_logistic(gap_SD * sign_S[:, None], (sign_S > 0).astype(float), ridge)


def _correct(margin_N: np.ndarray) -> np.ndarray:
    """1 where the margin is positive, ½ where it is 0."""
    return (margin_N > 0) + 0.5 * (margin_N == 0)


def _out_of_fold(gap_SD: np.ndarray, ridge: float, seed: int) -> np.ndarray:
    """The margin of each pair, by a probe that was not trained on it."""
    fold_S = permutation(len(gap_SD), seed, "diagnosis/fold") % FOLDS
    margin_S = np.zeros(len(gap_SD))
    for fold in range(FOLDS):
        margin_S[fold_S == fold] = gap_SD[fold_S == fold] @ _fit(gap_SD[fold_S != fold], ridge)
    return margin_S


def _word_columns(text: str) -> np.ndarray:
    """A hashed bag of the words of an answer."""
    columns = np.zeros(HASH_COLUMNS)
    for word in set(lower_words(text)):
        columns[crc32(word.encode()) % HASH_COLUMNS] = 1.0
    return columns
