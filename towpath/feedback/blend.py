"""Blend people, judges and rules into one label: people's consensus times the odds of calibrated verdicts."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from towpath.errors import DataError
from towpath.feedback import dawid_skene
from towpath.feedback.aggregation import CHOICES, latest_judgements, majority_choice, mean_strength
from towpath.feedback.calibration import Calibration, certainty
from towpath.feedback.rater_quality import PEOPLE
from towpath.records import Choice, Judgement, Label

MAX_CHANCE = 0.99
"""Upper bound of the accuracy of a judge or rule."""


@dataclass(frozen=True, slots=True)
class Dispute:
    """A comparison on which people disagree and no choice has a majority; `chance` is P(a is better)."""

    comparison: str
    choices: dict[str, Choice]
    chance: float


def blend_labels(
    judgements: Iterable[Judgement],
    calibrations: Mapping[str, Calibration],
    gold: Mapping[str, Choice] | None = None,
    rater_accuracy: float = 1.0,
    gaps: Mapping[str, float] | None = None,
) -> list[Label]:
    """A label with P(a is better) and its provenance for every comparison.

    `calibrations` by judge or rule give the probability that *a person* agrees; `rater_accuracy`, the accuracy of a
    person, removes people's own errors from it. `gaps` are relative length differences (a minus b), for judges with
    a length bias. Without a calibration the verdict is used as it is, without a probability.
    """
    if not 0.5 < rater_accuracy <= 1:
        value = f"rater_accuracy = {rater_accuracy}"
        raise DataError(value, "above 0.5 and at most 1", "use the agreement ceiling, or 1")
    latest = latest_judgements(judgements)
    gold_choices = gold or {}
    human = [j for by_rater in latest.values() for j in by_rater.values() if j.kind in PEOPLE]
    people = dawid_skene.consensus(human, gold_choices)
    consensus = dict(zip(people.items, people.chance_IC, strict=True))
    labels = []
    for comparison, by_rater in latest.items():
        every = list(by_rater.values())
        machines = [j for j in every if j.kind not in PEOPLE]
        calibrated = [j for j in machines if j.rater in calibrations]
        names = [j.rater for j in calibrated]
        gap = (gaps or {}).get(comparison, 0.0)
        decided = [j for j in calibrated if j.choice in ("a", "b")]
        chances_a = [_chance_a(j, calibrations[j.rater], gap, rater_accuracy) for j in decided]
        if comparison in gold_choices:
            labels.append(_label(comparison, _one_hot(gold_choices[comparison]), every, "gold"))
        elif comparison in consensus:
            chance_C = _multiply_odds(consensus[comparison], chances_a)
            labels.append(_label(comparison, chance_C, every, "+".join(["people", *names])))
        elif calibrated:
            even = np.array([0.5, 0.5, 0.0, 0.0])
            chance_C = _multiply_odds(even, chances_a) if decided else _one_hot(calibrated[0].choice)
            labels.append(_label(comparison, chance_C, every, "+".join(names)))
        else:
            labels.append(_uncalibrated_label(comparison, machines))
    return labels


def find_disputes(judgements: Iterable[Judgement], labels: Iterable[Label]) -> list[Dispute]:
    """The adjudication queue, the most even first: comparisons where no choice has more than half of the people."""
    chances = {label.comparison: label.chance for label in labels}
    queue = []
    for comparison, by_rater in latest_judgements(judgements).items():
        choices: dict[str, Choice] = {rater: j.choice for rater, j in by_rater.items() if j.kind in PEOPLE}
        count = Counter(choices.values())
        if len(count) > 1 and max(count.values()) <= len(choices) / 2:
            chance = chances.get(comparison)
            queue.append(Dispute(comparison, choices, 0.5 if chance is None else chance))
    return sorted(queue, key=lambda dispute: (abs(dispute.chance - 0.5), dispute.comparison))


def without_rater_error(agreement: float, rater_accuracy: float) -> float:
    """Accuracy of a verdict, from people's agreement with it and people's own accuracy."""
    right = (agreement - (1 - rater_accuracy)) / (2 * rater_accuracy - 1)
    return min(max(right, 1 - MAX_CHANCE), MAX_CHANCE)


def _chance_a(judgement: Judgement, calibration: Calibration, gap: float, rater_accuracy: float) -> float:
    """P(a is better) from one verdict alone."""
    longer = gap if judgement.choice == "a" else -gap
    right = without_rater_error(calibration.chance(certainty(judgement), longer), rater_accuracy)
    return right if judgement.choice == "a" else 1 - right


def _multiply_odds(chance_C: np.ndarray, chances_a: list[float]) -> np.ndarray:
    """The consensus times the odds of each decided verdict; a verdict does not change the share of ties."""
    for chance_a in chances_a:
        chance_C = chance_C * np.array([chance_a, 1 - chance_a, 0.5, 0.5])
    return chance_C / chance_C.sum()


def _one_hot(choice: Choice) -> np.ndarray:
    return np.array([float(choice == other) for other in CHOICES])


def _label(comparison: str, chance_C: np.ndarray, judgements: list[Judgement], by: str) -> Label:
    choice = CHOICES[int(chance_C.argmax())]
    return Label(
        comparison,
        choice,
        mean_strength(judgements, choice),
        len(judgements),
        float(chance_C @ dawid_skene.PREFERENCE_C),
        by,
    )


def _uncalibrated_label(comparison: str, machines: list[Judgement]) -> Label:
    """The most frequent verdict of uncalibrated judges and rules; an even split is a tie."""
    choice = majority_choice(j.choice for j in machines)
    names = "+".join(j.rater for j in machines)
    return Label(comparison, choice, mean_strength(machines, choice), len(machines), None, f"{names}, uncalibrated")
