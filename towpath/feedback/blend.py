"""People, judges and rules in one label: the people's consensus where people judged, calibrated verdicts elsewhere,
both where there are both."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from towpath.errors import DataError
from towpath.feedback import dawid_skene
from towpath.feedback.aggregation import CHOICES, latest_judgements, mean_strength
from towpath.feedback.calibration import Calibration, certainty
from towpath.feedback.rater_quality import PEOPLE
from towpath.records import Choice, Judgement, Label

CERTAIN = 0.99  # no verdict of a machine is believed beyond this


@dataclass(frozen=True, slots=True)
class Dispute:
    """A comparison whose people disagree and no majority of three or more has settled."""

    comparison: str
    said: dict[str, Choice]
    chance: float


def blend_labels(
    judgements: Iterable[Judgement],
    calibrations: Mapping[str, Calibration],
    gold: Mapping[str, Choice] | None = None,
    rater_accuracy: float = 1.0,
    gaps: Mapping[str, float] | None = None,
) -> list[Label]:
    """A label with P(a is better) and its provenance for every comparison; `calibrations` are by judge or rule.

    A calibration tells how often *a person* agrees. Given how often a person is right (the agreement ceiling), their
    own errors are taken out of it, so that a verdict of a machine and one of a person are weighed alike. `gaps` tell
    how much longer a is than b in parts of their mean, for judges who like length. A verdict without a calibration
    is kept as it was said, without a chance.
    """
    if not 0.5 < rater_accuracy <= 1:
        raise DataError(
            f"a person is right {rater_accuracy}", "above 0.5 and at most 1", "take the agreement ceiling, or 1"
        )
    said = latest_judgements(judgements)
    known = gold or {}
    people = dawid_skene.consensus(
        [j for by_rater in said.values() for j in by_rater.values() if j.kind in PEOPLE], known
    )
    truth = dict(zip(people.items, people.chance_IC, strict=True))
    found = []
    for comparison, by_rater in said.items():
        everyone = list(by_rater.values())
        machines = [j for j in everyone if j.kind not in PEOPLE]
        heard = [j for j in machines if j.rater in calibrations]
        gap = (gaps or {}).get(comparison, 0.0)
        tells = [_chance_a(j, calibrations[j.rater], gap, rater_accuracy) for j in heard if j.choice in ("a", "b")]
        if comparison in known:
            found.append(_label(comparison, _of_gold(known[comparison]), everyone, "gold"))
        elif comparison in truth:
            chance_C = _weighed(truth[comparison], tells)
            found.append(_label(comparison, chance_C, everyone, "+".join(["people", *(j.rater for j in heard)])))
        elif heard:
            start = np.array([0.5, 0.5, 0.0, 0.0])
            chance_C = _weighed(start, tells) if tells else _of_gold(heard[0].choice)
            found.append(_label(comparison, chance_C, everyone, "+".join(j.rater for j in heard)))
        else:
            found.append(_as_said(comparison, machines))
    return found


def find_disputes(judgements: Iterable[Judgement], labels: Iterable[Label]) -> list[Dispute]:
    """The adjudication queue, the most even first: people chose differently, and no choice has over half of them."""
    chances = {label.comparison: label.chance for label in labels}
    queue = []
    for comparison, by_rater in latest_judgements(judgements).items():
        said: dict[str, Choice] = {rater: j.choice for rater, j in by_rater.items() if j.kind in PEOPLE}
        counted = Counter(said.values())
        if len(counted) > 1 and max(counted.values()) <= len(said) / 2:
            chance = chances.get(comparison)
            queue.append(Dispute(comparison, said, 0.5 if chance is None else chance))
    return sorted(queue, key=lambda dispute: (abs(dispute.chance - 0.5), dispute.comparison))


def without_rater_error(agrees: float, rater_accuracy: float) -> float:
    """How often a verdict is right, from how often a person agrees with it and how often that person is right."""
    right = (agrees - (1 - rater_accuracy)) / (2 * rater_accuracy - 1)
    return min(max(right, 1 - CERTAIN), CERTAIN)


def _chance_a(judgement: Judgement, fitted: Calibration, gap: float, rater_accuracy: float) -> float:
    """P(a is better) by one machine's verdict alone."""
    longer = gap if judgement.choice == "a" else -gap
    right = without_rater_error(fitted.chance(certainty(judgement), longer), rater_accuracy)
    return right if judgement.choice == "a" else 1 - right


def _weighed(chance_C: np.ndarray, tells: list[float]) -> np.ndarray:
    """What was thought of the truth, times what each decided verdict says of a and b; of ties it says nothing."""
    for chance_a in tells:
        chance_C = chance_C * np.array([chance_a, 1 - chance_a, 0.5, 0.5])
    return chance_C / chance_C.sum()


def _of_gold(choice: Choice) -> np.ndarray:
    return np.array([float(choice == other) for other in CHOICES])


def _label(comparison: str, chance_C: np.ndarray, said: list[Judgement], by: str) -> Label:
    choice = CHOICES[int(chance_C.argmax())]
    return Label(
        comparison, choice, mean_strength(said, choice), len(said), float(chance_C @ dawid_skene.PREFERENCE_C), by
    )


def _as_said(comparison: str, machines: list[Judgement]) -> Label:
    """The most frequent verdict of machines that nobody has held against people; a tie where they are even."""
    counted: Counter[Choice] = Counter(j.choice for j in machines)
    ranked = counted.most_common()
    choice = "tie" if len(ranked) > 1 and ranked[0][1] == ranked[1][1] else ranked[0][0]
    names = "+".join(j.rater for j in machines)
    return Label(comparison, choice, mean_strength(machines, choice), len(machines), None, f"{names}, uncalibrated")
