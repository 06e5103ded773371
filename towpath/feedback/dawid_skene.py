"""Who is right how often, and so what is true: Dawid and Skene 1979, by expectation-maximisation with a prior.

Legend: I items, R raters, C choices (of the truth, or said), N judgements. confusion_RCC[r, k, c] is how often rater
r says c where k is true.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp

from towpath.errors import DataError
from towpath.feedback.aggregation import (
    CHOICES,
    PREFERENCE,
    EncodedJudgements,
    encode_judgements,
    latest_judgements,
    mean_strength,
)
from towpath.records import Choice, Judgement, Label

MIRROR = np.array([CHOICES.index("b"), CHOICES.index("a"), CHOICES.index("tie"), CHOICES.index("both_bad")])
PREFERENCE_C = np.array([PREFERENCE[choice] for choice in CHOICES])
BEFORE_CC = 8 * np.eye(len(CHOICES)) + 2 / (len(CHOICES) - 1) * (1 - np.eye(len(CHOICES)))
"""What is thought of raters before any was heard, in judgements at each truth: right in eight of ten, as published
agreement of people allows."""


@dataclass(frozen=True, slots=True, eq=False)
class Consensus:
    """What is likely true of each item and of each rater; `objective` is the log posterior after each round, and
    only rises."""

    items: tuple[str, ...]
    raters: tuple[str, ...]
    chance_IC: np.ndarray
    confusion_RCC: np.ndarray
    prior_C: np.ndarray
    objective: tuple[float, ...]
    converged: bool


def consensus(
    judgements: Iterable[Judgement],
    gold: Mapping[str, Choice] | None = None,
    smoothing: float = 10.0,
    mirrored: bool = True,
    rounds: int = 500,
    tolerance: float = 1e-7,
) -> Consensus:
    """Truth and raters' errors from who said what, ties and bad pairs as choices of their own.

    First all raters are taken for one, then each is thought to be like all, with the weight of `smoothing`
    judgements at each truth. Errors are learnt from items that two judged or whose truth is known (`gold`): one
    judgement alone cannot be wrong. `mirrored`: which answer is called a is chance, so an error from a to b is as
    frequent as one from b to a. It has converged when a round gains less than `tolerance`.
    """
    if smoothing <= 0:
        raise DataError(f"smoothing {smoothing}", "above 0, or a rater seen once is never doubted", "use 10.0")
    said = encode_judgements(judgements)
    known_IC = _known(said, gold or {})
    some, inside = _telling(said, known_IC)
    chance_IC = _counted(some.item_N, some.choice_N, len(some.items))
    chance_IC = _clamped(chance_IC / np.maximum(chance_IC.sum(1, keepdims=True), 1), known_IC[inside])
    as_one = replace(some, raters=("all",), rater_N=np.zeros_like(some.rater_N))
    settings = (known_IC[inside], mirrored, rounds, tolerance)
    all_CC, _, chance_IC, _, _ = _fitted(as_one, chance_IC, BEFORE_CC[None], *settings)
    prior_RCC = np.repeat(smoothing * all_CC, len(said.raters), axis=0)
    confusion_RCC, prior_C, _, objective, converged = _fitted(some, chance_IC, prior_RCC, *settings)
    chance_IC, _ = _truth(said, confusion_RCC, prior_C, known_IC)
    return Consensus(said.items, said.raters, chance_IC, confusion_RCC, prior_C, objective, converged)


def rater_accuracy(found: Consensus) -> dict[str, float]:
    """How often each rater is right, by the truth as it was found."""
    right_RC = np.diagonal(found.confusion_RCC, axis1=1, axis2=2)
    return {rater: float(right) for rater, right in zip(found.raters, right_RC @ found.prior_C, strict=True)}


def preference_by_item(found: Consensus) -> dict[str, float]:
    """P(a is better) of each item; a tie and a bad pair count half."""
    return dict(zip(found.items, (found.chance_IC @ PREFERENCE_C).tolist(), strict=True))


def consensus_labels(judgements: Iterable[Judgement], gold: Mapping[str, Choice] | None = None) -> list[Label]:
    """Each comparison's likeliest truth, with P(a is better)."""
    said = latest_judgements(judgements)
    found = consensus([j for by_rater in said.values() for j in by_rater.values()], gold)
    chances = preference_by_item(found)
    best = {item: CHOICES[k] for item, k in zip(found.items, found.chance_IC.argmax(1), strict=True)}
    return [
        Label(
            item, best[item], mean_strength(by_rater.values(), best[item]), len(by_rater), chances[item], "dawid_skene"
        )
        for item, by_rater in said.items()
    ]


Fitted = tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, ...], bool]


def _fitted(
    said: EncodedJudgements,
    chance_IC: np.ndarray,
    prior_RCC: np.ndarray,
    known_IC: np.ndarray,
    mirrored: bool,
    rounds: int,
    tolerance: float,
) -> Fitted:
    """Raters and truth in turn until neither moves: confusions, shares of truth, chances, the objective by round,
    and whether it came to rest."""
    objective: list[float] = []
    converged = False
    confusion_RCC = prior_RCC / prior_RCC.sum(2, keepdims=True)
    prior_C = np.full(len(CHOICES), 1 / len(CHOICES))
    while not converged and len(objective) < rounds:
        confusion_RCC, prior_C = _raters(said, chance_IC, prior_RCC, mirrored)
        chance_IC, likelihood = _truth(said, confusion_RCC, prior_C, known_IC)
        objective.append(likelihood + float((prior_RCC * np.log(confusion_RCC)).sum() + np.log(prior_C).sum()))
        converged = len(objective) > 1 and objective[-1] - objective[-2] < tolerance
    return confusion_RCC, prior_C, chance_IC, tuple(objective), converged


def _telling(said: EncodedJudgements, known_IC: np.ndarray) -> tuple[EncodedJudgements, np.ndarray]:
    """The judgements of items that tell of errors, with those items numbered anew; and which items they are."""
    often_I = np.bincount(said.item_N, minlength=len(said.items))
    inside = np.flatnonzero((often_I > 1) | ~known_IC.all(1))
    kept = np.isin(said.item_N, inside)
    items = tuple(said.items[number] for number in inside)
    return EncodedJudgements(
        items, said.raters, np.searchsorted(inside, said.item_N[kept]), said.rater_N[kept], said.choice_N[kept]
    ), inside


def _counted(row_N: np.ndarray, column_N: np.ndarray, rows: int) -> np.ndarray:
    return (
        np.bincount(row_N * len(CHOICES) + column_N, minlength=rows * len(CHOICES))
        .reshape(rows, len(CHOICES))
        .astype(float)
    )


def _known(said: EncodedJudgements, gold: Mapping[str, Choice]) -> np.ndarray:
    """True where an item may be so: everywhere, or at its known truth alone."""
    allowed = np.ones((len(said.items), len(CHOICES)), dtype=bool)
    for number, item in enumerate(said.items):
        if item in gold:
            allowed[number] = [choice == gold[item] for choice in CHOICES]
    return allowed


def _clamped(chance_IC: np.ndarray, known_IC: np.ndarray) -> np.ndarray:
    return np.where(known_IC.all(1, keepdims=True), chance_IC, known_IC.astype(float))


def _raters(
    said: EncodedJudgements, chance_IC: np.ndarray, prior_RCC: np.ndarray, mirrored: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest confusions and shares of truth, given what is true."""
    size = len(CHOICES)
    raters = len(said.raters)
    cell_N = said.rater_N * size + said.choice_N
    count_RCC = np.stack(
        [np.bincount(cell_N, chance_IC[said.item_N, k], raters * size).reshape(raters, size) for k in range(size)],
        axis=1,
    )
    total_C = chance_IC.sum(0)
    if mirrored:
        count_RCC = (count_RCC + count_RCC[:, MIRROR][:, :, MIRROR]) / 2
        total_C = (total_C + total_C[MIRROR]) / 2
    weighed = count_RCC + prior_RCC
    return weighed / weighed.sum(2, keepdims=True), (total_C + 1) / (total_C + 1).sum()


def _truth(
    said: EncodedJudgements, confusion_RCC: np.ndarray, prior_C: np.ndarray, known_IC: np.ndarray
) -> tuple[np.ndarray, float]:
    """The chance of each truth, given the raters' errors, and the log likelihood."""
    tell_RCC = np.log(confusion_RCC)
    columns = [
        np.bincount(said.item_N, tell_RCC[said.rater_N, k, said.choice_N], len(said.items)) for k in range(len(CHOICES))
    ]
    joint_IC = np.where(known_IC, np.log(prior_C) + np.stack(columns, axis=1), -np.inf)
    total_I = logsumexp(joint_IC, axis=1, keepdims=True)
    return np.exp(joint_IC - total_I), float(total_I.sum())
