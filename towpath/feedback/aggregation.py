"""Many judgements to one label, and to arrays for those who weigh the raters."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from towpath.records import Choice, Judgement, Label

CHOICES: tuple[Choice, ...] = ("a", "b", "tie", "both_bad")
PREFERENCE = {"a": 1.0, "b": 0.0, "tie": 0.5, "both_bad": 0.5}
"""What a choice says of P(a is better): who sees no difference counts half for either."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedJudgements:
    """Judgements as numbers. N judgements: which item, by which rater, which of CHOICES."""

    items: tuple[str, ...]
    raters: tuple[str, ...]
    item_N: np.ndarray
    rater_N: np.ndarray
    choice_N: np.ndarray


def latest_judgements(judgements: Iterable[Judgement]) -> dict[str, dict[str, Judgement]]:
    """By comparison and rater, what was said last: a later round takes back an earlier one."""
    found: dict[str, dict[str, Judgement]] = {}
    for judgement in judgements:
        said = found.setdefault(judgement.comparison, {})
        if judgement.rater not in said or judgement.round >= said[judgement.rater].round:
            said[judgement.rater] = judgement
    return found


def encode_judgements(judgements: Iterable[Judgement]) -> EncodedJudgements:
    """What was said last, as arrays; items and raters in the order in which they first appear."""
    said = [j for by_rater in latest_judgements(judgements).values() for j in by_rater.values()]
    items = {name: number for number, name in enumerate(dict.fromkeys(j.comparison for j in said))}
    raters = {name: number for number, name in enumerate(dict.fromkeys(j.rater for j in said))}
    rows = [(items[j.comparison], raters[j.rater], CHOICES.index(j.choice)) for j in said]
    numbers = np.array(rows, dtype=np.intp).reshape(-1, 3)
    return EncodedJudgements(tuple(items), tuple(raters), numbers[:, 0], numbers[:, 1], numbers[:, 2])


def majority_labels(judgements: Iterable[Judgement]) -> list[Label]:
    """Each comparison's most frequent choice; an even split is a tie. Strength is the mean of those who chose it."""
    labels = []
    for comparison, by_rater in latest_judgements(judgements).items():
        said = list(by_rater.values())
        counted: Counter[Choice] = Counter(j.choice for j in said)
        ranked = counted.most_common()
        even = len(ranked) > 1 and ranked[0][1] == ranked[1][1]
        choice = "tie" if even else ranked[0][0]
        labels.append(Label(comparison, choice, mean_strength(said, choice), len(said)))
    return labels


def mean_strength(said: Iterable[Judgement], choice: Choice) -> float:
    """How clearly those who made this choice saw it; 1 where nobody made it."""
    strengths = [j.strength for j in said if j.choice == choice] or [1]
    return sum(strengths) / len(strengths)
