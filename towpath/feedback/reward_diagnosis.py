"""Why a reward model falls short of its target: noisy labels, too few, too small a model, or a shortcut through
length.

The shortfall of the measured accuracy from the target is parted among three causes:
noise      what lies above the agreement ceiling, which no model can learn, and what raters' errors take off the
accuracy of this one;
data       what the learning curve promises at most of sixteen times the pairs, though never more than today's accuracy
on the training pairs;
capacity   what is left: the model cannot fit even what it was shown, or does not come nearer with more.
All of it is resampled, and a cause is named when it has the largest part in four of five resamples.
Legend: H held-out pairs, S trainings, G sizes, B resamples.

"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, log10
from typing import Literal

import numpy as np

from towpath.data.draws import generator
from towpath.errors import DataError
from towpath.feedback.agreement import Estimate, accuracy_ceiling, proportion

Cause = Literal["noise", "little data", "small capacity", "length shortcut", "healthy", "undetermined"]
HORIZON = 16  # times the pairs: beyond that more data is another project
SURE = 0.8  # of resamples in which the named cause is the largest
SHORT = 0.95  # of resamples in which the target is missed at all, before anything is blamed
AGAIN = 40  # pairs to rate again at once
PARTS: tuple[Cause, ...] = ("noise", "little data", "small capacity")


@dataclass(frozen=True, slots=True, eq=False)
class TrainingResult:
    """One training: on how many pairs, how often right on those, and on each held-out pair whether right (a half
    where its scores are equal)."""

    pairs: int
    train: float
    right_H: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class RewardEvidence:
    """What is known of a reward model and its labels; what is not measured stays None."""

    curve: tuple[TrainingResult, ...]
    """Trainings on parts of the pairs and on all of them; the last of the largest is the model in question."""
    longer_H: np.ndarray
    """1 where the labelled winner of a held-out pair is the longer answer, −1 where the shorter, 0 where they are
    equal."""
    agreement: tuple[float, int] | None = None
    """How often two raters agree on pairs both decided, and on how many."""
    strength_H: np.ndarray | None = None
    words_H: np.ndarray | None = None
    """Whether a bag of words is right on each held-out pair."""
    larger_H: np.ndarray | None = None
    """Whether a larger model trained on the same pairs is right on each."""
    margins: Mapping[str, float] = field(default_factory=dict)
    """Out-of-fold margin of each comparison towards its label: below zero the model says otherwise."""
    target: float = 0.85


@dataclass(frozen=True, slots=True)
class RewardDiagnosis:
    """One verdict, what speaks for it, and the cheapest next thing to do."""

    verdict: Cause
    evidence: tuple[str, ...]
    action: str
    again: tuple[str, ...]
    """Comparisons whose label the model doubts most, worst first."""
    parts: dict[str, Estimate]
    """The shortfall's parts, in accuracy."""


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """The measured value first, then its resamples."""

    accuracy_B: np.ndarray
    train_B: np.ndarray
    ceiling_B: np.ndarray | None
    curve_2B: np.ndarray
    """The learning curve's two numbers: see `curve`."""
    rise_B: np.ndarray
    """Accuracy gained from the smallest part of the pairs to the largest."""
    pairs: int

    def on_clean(self, accuracy_B: np.ndarray) -> np.ndarray:
        """What an accuracy against noisy labels would be against clean ones: a rater right in `ceiling` of pairs
        shrinks it towards a half."""
        if self.ceiling_B is None:
            return accuracy_B
        return np.clip(0.5 + (accuracy_B - 0.5) / np.maximum(2 * self.ceiling_B - 1, 1e-3), accuracy_B, 1.0)

    def gain_B(self, times: float) -> np.ndarray:
        """What the curve promises of so many times the pairs."""
        return learning_curve(self.curve_2B, self.pairs * times) - learning_curve(self.curve_2B, self.pairs)


def diagnose_reward_model(evidence: RewardEvidence, seed: int = 0, resamples: int = 2000) -> RewardDiagnosis:
    """The cause of the shortfall, healthy where there is none, undetermined where the numbers allow several."""
    _require(evidence)
    drawn = _draw(evidence, seed, resamples)
    parts_BK = _parts(drawn, evidence.target)
    parts = {name: _estimate(parts_BK[:, k], len(evidence.longer_H)) for k, name in enumerate(PARTS)}
    verdict = _verdict(evidence, drawn, parts_BK)
    again = tuple(
        sorted(
            (name for name, margin in evidence.margins.items() if margin < 0), key=lambda name: evidence.margins[name]
        )[:AGAIN]
    )
    if drawn.ceiling_B is None:
        parts.pop("noise")
        parts["noise or small capacity"] = parts.pop("small capacity")
    return RewardDiagnosis(
        verdict, _sentences(evidence, drawn), _action(verdict, evidence, drawn, parts_BK, again), again, parts
    )


def _require(evidence: RewardEvidence) -> None:
    sizes = {one.pairs for one in evidence.curve}
    held = len(evidence.longer_H)
    if len(sizes) < 2:
        raise DataError(
            f"a learning curve of {len(sizes)} sizes",
            "at least two, the largest being all pairs",
            "train on a half and a quarter too",
        )
    given = [one.right_H for one in evidence.curve] + [
        x for x in (evidence.strength_H, evidence.words_H, evidence.larger_H) if x is not None
    ]
    if not held or any(len(row) != held for row in given):
        raise DataError(
            f"{held} held-out pairs against {sorted({len(row) for row in given})}",
            "every training is measured on the same ones",
            "mend",
        )


def _draw(evidence: RewardEvidence, seed: int, resamples: int) -> _Drawn:
    """Held-out pairs, repeated trainings, training accuracy and agreement, each resampled."""
    draws = generator(seed, "diagnosis")
    held = len(evidence.longer_H)
    weight_BH = np.vstack([np.ones(held), draws.multinomial(held, np.full(held, 1 / held), resamples)]) / held
    accuracy_SB = np.stack([one.right_H for one in evidence.curve]).astype(float) @ weight_BH.T
    sizes = np.array([one.pairs for one in evidence.curve])
    largest = int(sizes.max())
    model = evidence.curve[np.flatnonzero(sizes == largest)[-1]]
    number_G = np.unique(sizes)
    y_GB = []
    luck = _luck([accuracy_SB[sizes == size, 0] for size in number_G], held)
    for size in number_G:
        of_size = accuracy_SB[sizes == size]
        kept_BR = np.vstack(
            [np.ones(len(of_size)), draws.multinomial(len(of_size), np.full(len(of_size), 1 / len(of_size)), resamples)]
        )
        once_B = np.concatenate([[0.0], draws.normal(0, luck if len(of_size) == 1 else 0.0, resamples)])
        y_GB.append((kept_BR.T * of_size).sum(0) / len(of_size) + once_B)
    error_G = luck / np.sqrt([(sizes == size).sum() for size in number_G])
    hits = model.train * largest
    train_B = np.concatenate([[model.train], draws.beta(hits + 0.5, largest - hits + 0.5, resamples)])
    ceiling_B = None
    if evidence.agreement is not None:
        rate, n = evidence.agreement
        drawn_B = np.concatenate([[rate], draws.beta(rate * n + 0.5, (1 - rate) * n + 0.5, resamples)])
        ceiling_B = np.array([accuracy_ceiling(value) for value in drawn_B])
    accuracy_B = accuracy_SB[np.flatnonzero(sizes == largest)[-1]]
    return _Drawn(
        accuracy_B,
        train_B,
        ceiling_B,
        fit_learning_curve(number_G, np.stack(y_GB), error_G),
        y_GB[-1] - y_GB[0],
        largest,
    )


def learning_curve(numbers_2B: np.ndarray, pairs: float) -> np.ndarray:
    """Accuracy after so many pairs, of a learner whose direction has cosine ρ with the true one: ½ + asin(ρ)/π,
    where 1/ρ² = α + κ/pairs.

    That is how a linear learner finds a direction (Engel and Van den Broeck 2001, chapter 1): κ is what few pairs
    cost, α (1 at best) what no number of them mends.
    """
    return 0.5 + np.arcsin((numbers_2B[0] + numbers_2B[1] / pairs) ** -0.5) / np.pi


def fit_learning_curve(pairs_G: np.ndarray, accuracy_GB: np.ndarray, error_G: np.ndarray) -> np.ndarray:
    """α and κ of the curve that promises most among those within two standard errors of the nearest, by search on a
    grid of limits and of costs.

    The benefit of the doubt is the data's: that more pairs would not help is said only where no such curve reaches
    the goal.
    """
    ends = np.linspace(0.505, 1.0, 100)
    costs = np.concatenate([[0.0], np.geomspace(1e-3, 1e3, 99)]) * pairs_G.max()
    cells_2N = np.stack(
        [mesh.ravel() for mesh in np.meshgrid(np.sin(np.pi * (ends - 0.5)) ** -2, costs, indexing="ij")]
    )
    told_NG = np.stack([learning_curve(cells_2N, pairs) for pairs in pairs_G], axis=1) / error_G
    gain_N = learning_curve(cells_2N, HORIZON * pairs_G.max()) - learning_curve(cells_2N, pairs_G.max())
    size_N = (told_NG**2).sum(1)
    best = []
    for accuracy_G in (accuracy_GB / error_G[:, None]).T:
        off_N = size_N - 2 * told_NG @ accuracy_G
        best.append(np.where(off_N <= off_N.min() + 4, gain_N, -1).argmax())
    return cells_2N[:, best]


def _luck(accuracies: list[np.ndarray], held: int) -> float:
    """How much one training of a size differs from the next, in accuracy: from repeats; without any, what the
    held-out pairs do by chance."""
    repeats = sum(len(of_size) - 1 for of_size in accuracies)
    if not repeats:
        return 0.5 * held**-0.5
    return max(float(np.sqrt(sum(((of_size - of_size.mean()) ** 2).sum() for of_size in accuracies) / repeats)), 1e-3)


def _parts(drawn: _Drawn, target: float) -> np.ndarray:
    """Of the shortfall: noise, data, capacity. Without a ceiling noise is nil and capacity stands for both.

    Where the ceiling allows the target, labels are good enough and the shortfall is the model's. Where it does not,
    both must be mended: the parts are then the mean of mending the model first and the labels first (Shapley's
    value).
    """
    now_B = np.minimum(drawn.accuracy_B, target)
    promised_B = np.maximum(np.minimum(drawn.accuracy_B + drawn.gain_B(HORIZON), drawn.train_B), drawn.accuracy_B)
    reach_B = (
        np.maximum(np.minimum(drawn.ceiling_B, target), now_B)
        if drawn.ceiling_B is not None
        else np.full(len(now_B), target)
    )
    more_B = np.minimum(promised_B, reach_B)
    model_first = np.stack([target - reach_B, more_B - now_B, reach_B - more_B], axis=1)
    clean_B, both_B = (np.minimum(drawn.on_clean(x_B), target) for x_B in (drawn.accuracy_B, promised_B))
    labels_first = np.stack([clean_B - now_B, both_B - clean_B, target - both_B], axis=1)
    return np.where((reach_B < target)[:, None], (model_first + labels_first) / 2, model_first)


def _verdict(evidence: RewardEvidence, drawn: _Drawn, parts_BK: np.ndarray) -> Cause:
    if _through_length(evidence):
        return "length shortcut"
    if (drawn.accuracy_B[1:] < evidence.target).mean() < SHORT:
        return "healthy" if drawn.accuracy_B[0] >= evidence.target else "undetermined"
    largest = np.bincount(parts_BK[1:].argmax(1), minlength=len(PARTS)) / (len(parts_BK) - 1)
    if largest.max() < SURE:
        return "undetermined"
    cause = PARTS[int(largest.argmax())]
    if cause == "little data" and (drawn.rise_B[1:] > 0).mean() < SHORT:
        return "undetermined"
    if cause != "small capacity" or drawn.ceiling_B is not None:
        return cause
    return _without_ceiling(evidence)


def _through_length(evidence: RewardEvidence) -> bool:
    """The model is wrong more often than right where length misleads, and right where it leads: it goes by length
    and by little else."""
    longer, shorter = _by_length(evidence)
    known = longer.n > 0 and shorter.n > 0
    return known and min(longer.high, shorter.high) < 0.5 < max(longer.low, shorter.low)


def _by_length(evidence: RewardEvidence) -> tuple[Estimate, Estimate]:
    """Accuracy where the labelled winner is the longer answer, and where it is the shorter."""
    right_H = _model(evidence).right_H
    longer = right_H[evidence.longer_H > 0]
    shorter = right_H[evidence.longer_H < 0]
    return proportion(float(longer.sum()), len(longer)), proportion(float(shorter.sum()), len(shorter))


def _without_ceiling(evidence: RewardEvidence) -> Cause:
    """A plateau when nobody knows how far raters agree: a larger model that does better tells of capacity, clear
    pairs all right of noise."""
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
    found = {}
    for strength in np.unique(np.round(evidence.strength_H).astype(int)):
        of_it = right_H[np.round(evidence.strength_H).astype(int) == strength]
        found[int(strength)] = proportion(float(of_it.sum()), len(of_it))
    return found


def _model(evidence: RewardEvidence) -> TrainingResult:
    largest = max(one.pairs for one in evidence.curve)
    return [one for one in evidence.curve if one.pairs == largest][-1]


def _estimate(value_B: np.ndarray, n: int) -> Estimate:
    low, high = np.quantile(value_B[1:], [0.025, 0.975])
    return Estimate(float(value_B[0]), float(low), float(high), n)


def _told(e: Estimate) -> str:
    return f"{e.value:.1%} [{e.low:.1%}, {e.high:.1%}]"


def _sentences(evidence: RewardEvidence, drawn: _Drawn) -> tuple[str, ...]:
    """What was measured, a sentence each."""
    held = len(evidence.longer_H)
    model = _model(evidence)
    told = [
        f"accuracy {_told(_estimate(drawn.accuracy_B, held))} of {held} held-out pairs; target {evidence.target:.0%}"
    ]
    told.append(
        f"{model.train:.1%} on the {model.pairs} training pairs: {(model.train - model.right_H.mean()) * 100:.1f} "
        "points above held-out"
    )
    gain = _estimate(drawn.gain_B(HORIZON) * 100, held)
    told.append(
        f"the learning curve promises {gain.value:+.1f} points [{gain.low:+.1f}, {gain.high:+.1f}] of {HORIZON} "
        "times the pairs"
    )
    if evidence.agreement is None or drawn.ceiling_B is None:
        told.append("nobody knows how far raters agree: no pair was rated twice")
    else:
        rate, n = evidence.agreement
        told.append(
            f"raters agree on {rate:.1%} of {n} pairs: accuracy against such labels ends at "
            f"{_told(_estimate(drawn.ceiling_B, n))}"
        )
    longer, shorter = _by_length(evidence)
    if longer.n and shorter.n:
        told.append(
            f"the longer answer won {longer.n / (longer.n + shorter.n):.0%}: right there on {_told(longer)}, the "
            f"shorter on {_told(shorter)}"
        )
    for name, right_H in (("a bag of words", evidence.words_H), ("a larger model", evidence.larger_H)):
        if right_H is not None:
            told.append(f"{name} is right on {_told(proportion(float(right_H.sum()), held))}")
    told += [f"labels of strength {strength}: {_told(e)} of {e.n}" for strength, e in _by_strength(evidence).items()]
    return tuple(told)


def _action(
    verdict: Cause, evidence: RewardEvidence, drawn: _Drawn, parts_BK: np.ndarray, again: tuple[str, ...]
) -> str:
    """The cheapest next thing that would help, or tell more."""
    if verdict == "healthy":
        return "nothing: go on"
    if verdict == "length shortcut":
        return (
            "balance lengths: label pairs of like length, and leave out pairs until longer and shorter answers win "
            "equally often"
        )
    if verdict == "undetermined" and evidence.agreement is None:
        gap = max(evidence.target - drawn.accuracy_B[0], 0.02)
        return (
            f"have {min(400, max(AGAIN, _rounded(0.19 * (4 / gap) ** 2)))} pairs rated by a second person: that "
            "tells noise from capacity"
        )
    if verdict == "undetermined":
        candidates = np.argsort(-parts_BK[0])[:2]
        verdict = "noise" if 0 in candidates and parts_BK[0, 0] > 0 else PARTS[int(candidates[0])]
    if verdict == "noise":
        return (
            f"rate these {len(again)} again"
            if again
            else f"have {AGAIN} pairs rated by a second person, and keep what they agree on"
        )
    if verdict == "little data":
        return _more(evidence, drawn)
    return "train a larger model, or more of this one (all weights, a higher rank), on the same pairs"


def _more(evidence: RewardEvidence, drawn: _Drawn) -> str:
    """How many more pairs the learning curve asks for."""
    goal = min(evidence.target, drawn.train_B[0], drawn.ceiling_B[0] if drawn.ceiling_B is not None else 1.0)
    times = np.geomspace(1, HORIZON, 200)
    enough = [factor for factor in times if drawn.accuracy_B[0] + drawn.gain_B(factor)[0] >= goal]
    factor = enough[0] if enough else HORIZON
    return f"label {'' if enough else 'at least '}{_rounded(max((factor - 1) * drawn.pairs, 10)):,} more"


def _rounded(value: float) -> int:
    """Up, to two digits."""
    unit = 10 ** max(0, int(log10(value)) - 1)
    return ceil(value / unit) * unit
