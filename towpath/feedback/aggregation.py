"""Majority labels, and judgements as arrays for the statistical models."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from towpath.records import Choice, Judgement, Label

CHOICES: tuple[Choice, ...] = ("a", "b", "tie", "both_bad")
PREFERENCE = {"a": 1.0, "b": 0.0, "tie": 0.5, "both_bad": 0.5}
"""P(a is better) that a choice stands for; a tie counts half."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedJudgements:
    """Judgements as numbers. N judgements: item, rater and index into CHOICES of each."""

    items: tuple[str, ...]
    raters: tuple[str, ...]
    item_N: np.ndarray
    rater_N: np.ndarray
    choice_N: np.ndarray


def latest_judgements(judgements: Iterable[Judgement]) -> dict[str, dict[str, Judgement]]:
    """The latest judgement by comparison and rater; a later round replaces an earlier one."""
    latest: dict[str, dict[str, Judgement]] = {}
    for judgement in judgements:
        by_rater = latest.setdefault(judgement.comparison, {})
        if judgement.rater not in by_rater or judgement.round >= by_rater[judgement.rater].round:
            by_rater[judgement.rater] = judgement
    return latest


def encode_judgements(judgements: Iterable[Judgement]) -> EncodedJudgements:
    """The latest judgements as arrays; items and raters in order of first appearance."""
    last = [j for by_rater in latest_judgements(judgements).values() for j in by_rater.values()]
    items = {name: number for number, name in enumerate(dict.fromkeys(j.comparison for j in last))}
    raters = {name: number for number, name in enumerate(dict.fromkeys(j.rater for j in last))}
    rows = [(items[j.comparison], raters[j.rater], CHOICES.index(j.choice)) for j in last]
    numbers = np.array(rows, dtype=np.intp).reshape(-1, 3)
    return EncodedJudgements(tuple(items), tuple(raters), numbers[:, 0], numbers[:, 1], numbers[:, 2])


def majority_choice(choices: Iterable[Choice]) -> Choice:
    """The most frequent choice; an even split is a tie."""
    ranked = Counter(choices).most_common()
    tied = len(ranked) > 1 and ranked[0][1] == ranked[1][1]
    choice = "tie" if tied else ranked[0][0]
    return choice


def majority_labels(judgements: Iterable[Judgement]) -> list[Label]:
    """The majority choice of each comparison; strength is the mean over those who chose it."""
    labels = []
    for comparison, by_rater in latest_judgements(judgements).items():
        last = list(by_rater.values())
        choice = majority_choice(j.choice for j in last)
        labels.append(Label(comparison, choice, mean_strength(last, choice), len(last)))
    return labels


def mean_strength(judgements: Iterable[Judgement], choice: Choice) -> float:
    """The mean strength of the judgements with this choice; 1 if there are none."""
    strengths = [j.strength for j in judgements if j.choice == choice] or [1]
    return sum(strengths) / len(strengths)
