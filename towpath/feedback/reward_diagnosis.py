"""Why a reward model misses its target accuracy: label noise, too little data, too small a model, or a length
shortcut.

The shortfall from the target is divided among three causes: noise (accuracy above the agreement ceiling cannot be
learnt, and label errors lower the measured accuracy), data (what the learning curve predicts for at most sixteen
times the pairs, capped by the training accuracy) and capacity (the rest).

All inputs are resampled, and a cause is named if it is the largest in four of five resamples. Legend: H held-out
pairs, S trainings, G sizes, B resamples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, log10
from typing import Literal

import numpy as np

from towpath.data.draws import generator
from towpath.data.intervals import accuracy_ceiling
from towpath.errors import DataError
from towpath.feedback.agreement import Estimate, proportion

Cause = Literal["noise", "little data", "small capacity", "length shortcut", "healthy", "undetermined"]
HORIZON = 16  # largest multiple of the pairs that the curve is extrapolated to
MIN_CAUSE_SHARE = 0.8  # of resamples in which a cause is the largest, before it is named
MIN_MISS_SHARE = 0.95  # of resamples that miss the target, before any cause is named
RELABEL_COUNT = 40  # pairs to rate again
PARTS: tuple[Cause, ...] = ("noise", "little data", "small capacity")


@dataclass(frozen=True, slots=True, eq=False)
class TrainingResult:
    """One training: number of pairs, training accuracy, and correctness per held-out pair (0.5 for equal scores)."""

    pairs: int
    train: float
    right_H: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class RewardEvidence:
    """Measurements of a reward model and its labels; None where not measured."""

    curve: tuple[TrainingResult, ...]
    """Trainings on subsets and on all pairs; the last one of the largest size is the model in question."""
    longer_H: np.ndarray
    """1 if the preferred answer of a held-out pair is the longer one, −1 if the shorter, 0 if equal."""
    agreement: tuple[float, int] | None = None
    """Agreement of two raters on pairs that both decided, and the number of pairs."""
    strength_H: np.ndarray | None = None
    words_H: np.ndarray | None = None
    """Correctness of a bag-of-words model on each held-out pair."""
    larger_H: np.ndarray | None = None
    """Correctness of a larger model, trained on the same pairs, on each held-out pair."""
    margins: Mapping[str, float] = field(default_factory=dict)
    """Out-of-fold margin of each comparison towards its label; negative if the model disagrees."""
    target: float = 0.85


@dataclass(frozen=True, slots=True)
class RewardDiagnosis:
    """The cause, its evidence, and the cheapest next action."""

    verdict: Cause
    evidence: tuple[str, ...]
    action: str
    again: tuple[str, ...]
    """Comparisons whose labels the model contradicts most, worst first."""
    parts: dict[str, Estimate]
    """The parts of the shortfall, in accuracy."""


@dataclass(frozen=True, slots=True, eq=False)
class _Resamples:
    """The measured values, followed by their resamples."""

    accuracy_B: np.ndarray
    train_B: np.ndarray
    ceiling_B: np.ndarray | None
    curve_2B: np.ndarray
    """Parameters of the learning curve, see `learning_curve`."""
    rise_B: np.ndarray
    """Accuracy gained from the smallest to the largest number of pairs."""
    pairs: int

    def on_clean(self, accuracy_B: np.ndarray) -> np.ndarray:
        """Accuracy on clean labels: noisy labels of raters right in `ceiling` of pairs shrink it towards 0.5."""
        if self.ceiling_B is None:
            return accuracy_B
        return np.clip(0.5 + (accuracy_B - 0.5) / np.maximum(2 * self.ceiling_B - 1, 1e-3), accuracy_B, 1.0)

    def gain_B(self, times: float) -> np.ndarray:
        """Accuracy that the learning curve predicts from so many times the pairs."""
        return learning_curve(self.curve_2B, self.pairs * times) - learning_curve(self.curve_2B, self.pairs)


def diagnose_reward_model(evidence: RewardEvidence, seed: int = 0, resamples: int = 2000) -> RewardDiagnosis:
    """The cause of the shortfall; healthy if there is none, undetermined if the data allow several."""
    _validate(evidence)
    samples = _resample(evidence, seed, resamples)
    parts_BK = _shortfall_parts(samples, evidence.target)
    parts = {name: _estimate(parts_BK[:, k], len(evidence.longer_H)) for k, name in enumerate(PARTS)}
    verdict = _verdict(evidence, samples, parts_BK)
    doubtful = tuple(
        sorted(
            (name for name, margin in evidence.margins.items() if margin < 0), key=lambda name: evidence.margins[name]
        )[:RELABEL_COUNT]
    )
    if samples.ceiling_B is None:
        parts.pop("noise")
        parts["noise or small capacity"] = parts.pop("small capacity")
    return RewardDiagnosis(
        verdict,
        _evidence_sentences(evidence, samples),
        _action(verdict, evidence, samples, parts_BK, doubtful),
        doubtful,
        parts,
    )


def _validate(evidence: RewardEvidence) -> None:
    sizes = {result.pairs for result in evidence.curve}
    held = len(evidence.longer_H)
    if len(sizes) < 2:
        value = f"a learning curve of {len(sizes)} sizes"
        raise DataError(value, "at least two, the largest being all pairs", "train on a half and a quarter too")
    columns = [result.right_H for result in evidence.curve]
    columns += [x for x in (evidence.strength_H, evidence.words_H, evidence.larger_H) if x is not None]
    if not held or any(len(row) != held for row in columns):
        value = f"{held} held-out pairs against {sorted({len(row) for row in columns})}"
        raise DataError(value, "every training is measured on the same held-out pairs", "measure all on the same pairs")


def _resample(evidence: RewardEvidence, seed: int, resamples: int) -> _Resamples:
    """Resample held-out pairs, repeated trainings, training accuracy and agreement."""
    random = generator(seed, "diagnosis")
    held = len(evidence.longer_H)
    weight_BH = np.vstack([np.ones(held), random.multinomial(held, np.full(held, 1 / held), resamples)]) / held
    accuracy_SB = np.stack([result.right_H for result in evidence.curve]).astype(float) @ weight_BH.T
    sizes = np.array([result.pairs for result in evidence.curve])
    largest = int(sizes.max())
    model = evidence.curve[np.flatnonzero(sizes == largest)[-1]]
    number_G = np.unique(sizes)
    y_GB = []
    noise = _training_noise([accuracy_SB[sizes == size, 0] for size in number_G], held)
    for size in number_G:
        of_size = accuracy_SB[sizes == size]
        weight_BR = np.vstack(
            [
                np.ones(len(of_size)),
                random.multinomial(len(of_size), np.full(len(of_size), 1 / len(of_size)), resamples),
            ]
        )
        noise_B = np.concatenate([[0.0], random.normal(0, noise if len(of_size) == 1 else 0.0, resamples)])
        y_GB.append((weight_BR.T * of_size).sum(0) / len(of_size) + noise_B)
    error_G = noise / np.sqrt([(sizes == size).sum() for size in number_G])
    hits = model.train * largest
    train_B = np.concatenate([[model.train], random.beta(hits + 0.5, largest - hits + 0.5, resamples)])
    ceiling_B = None
    if evidence.agreement is not None:
        rate, n = evidence.agreement
        agreement_B = np.concatenate([[rate], random.beta(rate * n + 0.5, (1 - rate) * n + 0.5, resamples)])
        ceiling_B = np.array([accuracy_ceiling(value) for value in agreement_B])
    accuracy_B = accuracy_SB[np.flatnonzero(sizes == largest)[-1]]
    return _Resamples(
        accuracy_B,
        train_B,
        ceiling_B,
        fit_learning_curve(number_G, np.stack(y_GB), error_G),
        y_GB[-1] - y_GB[0],
        largest,
    )


def learning_curve(numbers_2B: np.ndarray, pairs: float) -> np.ndarray:
    """Accuracy of a linear learner after so many pairs: ½ + asin(ρ)/π with 1/ρ² = α + κ/pairs.

    ρ is the cosine between the learnt and the true direction (Engel and Van den Broeck 2001, chapter 1): κ is the
    cost of few pairs, α (1 at best) the limit that no number of pairs removes.
    """
    return 0.5 + np.arcsin((numbers_2B[0] + numbers_2B[1] / pairs) ** -0.5) / np.pi


def fit_learning_curve(pairs_G: np.ndarray, accuracy_GB: np.ndarray, error_G: np.ndarray) -> np.ndarray:
    """α and κ of the most optimistic curve within two standard errors of the best fit, by grid search.

    The optimistic curve is used so that more data is ruled out only if no plausible curve reaches the target.
    """
    limits = np.linspace(0.505, 1.0, 100)
    costs = np.concatenate([[0.0], np.geomspace(1e-3, 1e3, 99)]) * pairs_G.max()
    cells_2N = np.stack(
        [mesh.ravel() for mesh in np.meshgrid(np.sin(np.pi * (limits - 0.5)) ** -2, costs, indexing="ij")]
    )
    predicted_NG = np.stack([learning_curve(cells_2N, pairs) for pairs in pairs_G], axis=1) / error_G
    gain_N = learning_curve(cells_2N, HORIZON * pairs_G.max()) - learning_curve(cells_2N, pairs_G.max())
    norm_N = (predicted_NG**2).sum(1)
    best = []
    for accuracy_G in (accuracy_GB / error_G[:, None]).T:
        error_N = norm_N - 2 * predicted_NG @ accuracy_G
        best.append(np.where(error_N <= error_N.min() + 4, gain_N, -1).argmax())
    return cells_2N[:, best]


def _training_noise(accuracies: list[np.ndarray], held: int) -> float:
    """Standard deviation of accuracy between trainings of one size, from repeats; without repeats, that of the held-out
    pairs."""
    repeats = sum(len(of_size) - 1 for of_size in accuracies)
    if not repeats:
        return 0.5 * held**-0.5
    return max(float(np.sqrt(sum(((of_size - of_size.mean()) ** 2).sum() for of_size in accuracies) / repeats)), 1e-3)


def _shortfall_parts(samples: _Resamples, target: float) -> np.ndarray:
    """Shortfall by noise, data and capacity. Without a ceiling noise is 0 and capacity includes it.

    If the ceiling allows the target, the labels are good enough and the shortfall is the model's. Otherwise both
    must improve, and the parts are the mean over improving the model first and the labels first (Shapley value).
    """
    now_B = np.minimum(samples.accuracy_B, target)
    predicted_B = np.maximum(
        np.minimum(samples.accuracy_B + samples.gain_B(HORIZON), samples.train_B), samples.accuracy_B
    )
    reachable_B = (
        np.maximum(np.minimum(samples.ceiling_B, target), now_B)
        if samples.ceiling_B is not None
        else np.full(len(now_B), target)
    )
    more_B = np.minimum(predicted_B, reachable_B)
    model_first = np.stack([target - reachable_B, more_B - now_B, reachable_B - more_B], axis=1)
    clean_B, both_B = (np.minimum(samples.on_clean(x_B), target) for x_B in (samples.accuracy_B, predicted_B))
    labels_first = np.stack([clean_B - now_B, both_B - clean_B, target - both_B], axis=1)
    return np.where((reachable_B < target)[:, None], (model_first + labels_first) / 2, model_first)


def _verdict(evidence: RewardEvidence, samples: _Resamples, parts_BK: np.ndarray) -> Cause:
    if _uses_length(evidence):
        return "length shortcut"
    if (samples.accuracy_B[1:] < evidence.target).mean() < MIN_MISS_SHARE:
        return "healthy" if samples.accuracy_B[0] >= evidence.target else "undetermined"
    largest = np.bincount(parts_BK[1:].argmax(1), minlength=len(PARTS)) / (len(parts_BK) - 1)
    if largest.max() < MIN_CAUSE_SHARE:
        return "undetermined"
    cause = PARTS[int(largest.argmax())]
    if cause == "little data" and (samples.rise_B[1:] > 0).mean() < MIN_MISS_SHARE:
        return "undetermined"
    if cause != "small capacity" or samples.ceiling_B is not None:
        return cause
    return _plateau_cause(evidence)


def _uses_length(evidence: RewardEvidence) -> bool:
    """The model is wrong more often than right where length misleads, and right where it helps."""
    longer, shorter = _by_length(evidence)
    known = longer.n > 0 and shorter.n > 0
    return known and min(longer.high, shorter.high) < 0.5 < max(longer.low, shorter.low)


def _by_length(evidence: RewardEvidence) -> tuple[Estimate, Estimate]:
    """Accuracy where the preferred answer is longer, and where it is shorter."""
    right_H = _model(evidence).right_H
    longer = right_H[evidence.longer_H > 0]
    shorter = right_H[evidence.longer_H < 0]
    return proportion(float(longer.sum()), len(longer)), proportion(float(shorter.sum()), len(shorter))


def _plateau_cause(evidence: RewardEvidence) -> Cause:
    """Cause of a plateau with unknown agreement: capacity if a larger model does better, noise if strong labels are
    learnt."""
    if evidence.larger_H is not None:
        gain_H = evidence.larger_H.astype(float) - _model(evidence).right_H
        if gain_H.mean() > 1.96 * gain_H.std() / len(gain_H) ** 0.5:
            return "small capacity"
    strengths = _by_strength(evidence)
    if len(strengths) > 1 and strengths[max(strengths)].low >= evidence.target:
        return "noise"
    return "undetermined"


def _by_strength(evidence: RewardEvidence) -> dict[int, Estimate]:
    if evidence.strength_H is None:
        return {}
    right_H = _model(evidence).right_H
    estimates = {}
    for strength in np.unique(np.round(evidence.strength_H).astype(int)):
        subset = right_H[np.round(evidence.strength_H).astype(int) == strength]
        estimates[int(strength)] = proportion(float(subset.sum()), len(subset))
    return estimates


def _model(evidence: RewardEvidence) -> TrainingResult:
    largest = max(result.pairs for result in evidence.curve)
    return [result for result in evidence.curve if result.pairs == largest][-1]


def _estimate(value_B: np.ndarray, n: int) -> Estimate:
    low, high = np.quantile(value_B[1:], [0.025, 0.975])
    return Estimate(float(value_B[0]), float(low), float(high), n)


def _format(e: Estimate) -> str:
    return f"{e.value:.1%} [{e.low:.1%}, {e.high:.1%}]"


def _evidence_sentences(evidence: RewardEvidence, samples: _Resamples) -> tuple[str, ...]:
    """The measurements, one sentence each."""
    held = len(evidence.longer_H)
    model = _model(evidence)
    accuracy = _format(_estimate(samples.accuracy_B, held))
    overfit = (model.train - model.right_H.mean()) * 100
    gain = _estimate(samples.gain_B(HORIZON) * 100, held)
    gain_text = f"{gain.value:+.1f} points [{gain.low:+.1f}, {gain.high:+.1f}]"
    sentences = [
        f"accuracy {accuracy} of {held} held-out pairs; target {evidence.target:.0%}",
        f"{model.train:.1%} on the {model.pairs} training pairs: {overfit:.1f} points above held-out",
        f"the learning curve predicts {gain_text} from {HORIZON} times the pairs",
    ]
    if evidence.agreement is None or samples.ceiling_B is None:
        sentences.append("rater agreement is unknown: no pair was rated twice")
    else:
        rate, n = evidence.agreement
        ceiling = _format(_estimate(samples.ceiling_B, n))
        sentences.append(f"raters agree on {rate:.1%} of {n} pairs: accuracy against such labels is at most {ceiling}")
    longer, shorter = _by_length(evidence)
    if longer.n and shorter.n:
        share = longer.n / (longer.n + shorter.n)
        accuracies = f"accuracy {_format(longer)} there, {_format(shorter)} where the shorter won"
        sentences.append(f"the longer answer won {share:.0%}: {accuracies}")
    for name, right_H in (("a bag of words", evidence.words_H), ("a larger model", evidence.larger_H)):
        if right_H is not None:
            sentences.append(f"{name} is right on {_format(proportion(float(right_H.sum()), held))}")
    for strength, e in _by_strength(evidence).items():
        sentences.append(f"labels of strength {strength}: {_format(e)} of {e.n}")
    return tuple(sentences)


def _action(
    verdict: Cause, evidence: RewardEvidence, samples: _Resamples, parts_BK: np.ndarray, doubtful: tuple[str, ...]
) -> str:
    """The cheapest next action that helps or distinguishes causes."""
    if verdict == "healthy":
        return "none"
    if verdict == "length shortcut":
        return (
            "balance lengths: label pairs of similar length, and drop pairs until longer and shorter win equally often"
        )
    if verdict == "undetermined" and evidence.agreement is None:
        gap = max(evidence.target - samples.accuracy_B[0], 0.02)
        pairs = min(400, max(RELABEL_COUNT, _round_up(0.19 * (4 / gap) ** 2)))
        return f"have {pairs} pairs rated by a second person: that distinguishes noise from capacity"
    if verdict == "undetermined":
        candidates = np.argsort(-parts_BK[0])[:2]
        verdict = "noise" if 0 in candidates and parts_BK[0, 0] > 0 else PARTS[int(candidates[0])]
    if verdict == "noise" and doubtful:
        return f"rate these {len(doubtful)} again"
    if verdict == "noise":
        return f"have {RELABEL_COUNT} pairs rated by a second person, and keep those on which they agree"
    if verdict == "little data":
        return _more_pairs_action(evidence, samples)
    return "train a larger model, or more of its weights (full fine-tuning, a higher rank), on the same pairs"


def _more_pairs_action(evidence: RewardEvidence, samples: _Resamples) -> str:
    """How many more pairs the learning curve asks for."""
    goal = min(evidence.target, samples.train_B[0], samples.ceiling_B[0] if samples.ceiling_B is not None else 1.0)
    times = np.geomspace(1, HORIZON, 200)
    sufficient = [factor for factor in times if samples.accuracy_B[0] + samples.gain_B(factor)[0] >= goal]
    factor = sufficient[0] if sufficient else HORIZON
    return f"label {'' if sufficient else 'at least '}{_round_up(max((factor - 1) * samples.pairs, 10)):,} more"


def _round_up(value: float) -> int:
    """Round up to two digits."""
    unit = 10 ** max(0, int(log10(value)) - 1)
    return ceil(value / unit) * unit
