"""Dawid-Skene consensus (1979): each rater's confusion matrix and the true choices, by EM with a prior.

Legend: I items, R raters, C choices (true or stated), N judgements. confusion_RCC[r, k, c] is the probability that
rater r states c where k is true.
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
PRIOR_CC = 8 * np.eye(len(CHOICES)) + 2 / (len(CHOICES) - 1) * (1 - np.eye(len(CHOICES)))
"""Prior of all raters, in judgements per true choice: right in eight of ten, as published agreement suggests."""


@dataclass(frozen=True, slots=True, eq=False)
class Consensus:
    """Probabilities of each item's choice and each rater's confusion matrix; `objective` is the log posterior after
    each round."""

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
    """Fit the model to judgements; ties and bad pairs are choices of their own.

    A first fit pools all raters into one; its result, with the weight of `smoothing` judgements per true choice, is
    the prior of each rater. Confusions are learnt only from items with two judgements or a known choice (`gold`),
    since a single judgement contradicts nothing. `mirrored`: the sides a and b are assigned at random, so the error
    from a to b equals the error from b to a. The fit has converged when a round gains less than `tolerance`.
    """
    if smoothing <= 0:
        raise DataError(f"smoothing {smoothing}", "above 0, or a rater seen once is never doubted", "use 10.0")
    encoded = encode_judgements(judgements)
    allowed_IC = _allowed_choices(encoded, gold or {})
    informative, inside = _informative(encoded, allowed_IC)
    chance_IC = _count(informative.item_N, informative.choice_N, len(informative.items))
    chance_IC = _apply_gold(chance_IC / np.maximum(chance_IC.sum(1, keepdims=True), 1), allowed_IC[inside])
    pooled = replace(informative, raters=("all",), rater_N=np.zeros_like(informative.rater_N))
    settings = (allowed_IC[inside], mirrored, rounds, tolerance)
    all_CC, _, chance_IC, _, _ = _expectation_maximisation(pooled, chance_IC, PRIOR_CC[None], *settings)
    prior_RCC = np.repeat(smoothing * all_CC, len(encoded.raters), axis=0)
    confusion_RCC, prior_C, _, objective, converged = _expectation_maximisation(
        informative, chance_IC, prior_RCC, *settings
    )
    chance_IC, _ = _expectation_step(encoded, confusion_RCC, prior_C, allowed_IC)
    return Consensus(encoded.items, encoded.raters, chance_IC, confusion_RCC, prior_C, objective, converged)


def rater_accuracy(result: Consensus) -> dict[str, float]:
    """Each rater's accuracy against the fitted consensus."""
    right_RC = np.diagonal(result.confusion_RCC, axis1=1, axis2=2)
    return {rater: float(right) for rater, right in zip(result.raters, right_RC @ result.prior_C, strict=True)}


def preference_by_item(result: Consensus) -> dict[str, float]:
    """P(a is better) of each item; ties and bad pairs count half."""
    return dict(zip(result.items, (result.chance_IC @ PREFERENCE_C).tolist(), strict=True))


def consensus_labels(judgements: Iterable[Judgement], gold: Mapping[str, Choice] | None = None) -> list[Label]:
    """The most probable choice of each comparison, with P(a is better)."""
    latest = latest_judgements(judgements)
    result = consensus([j for by_rater in latest.values() for j in by_rater.values()], gold)
    chances = preference_by_item(result)
    best = {item: CHOICES[k] for item, k in zip(result.items, result.chance_IC.argmax(1), strict=True)}
    return [
        Label(
            item, best[item], mean_strength(by_rater.values(), best[item]), len(by_rater), chances[item], "dawid_skene"
        )
        for item, by_rater in latest.items()
    ]


EMResult = tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, ...], bool]


def _expectation_maximisation(
    encoded: EncodedJudgements,
    chance_IC: np.ndarray,
    prior_RCC: np.ndarray,
    allowed_IC: np.ndarray,
    mirrored: bool,
    rounds: int,
    tolerance: float,
) -> EMResult:
    """Alternate both steps until convergence; returns confusions, prior, item probabilities, objective and
    convergence."""
    objective: list[float] = []
    converged = False
    confusion_RCC = prior_RCC / prior_RCC.sum(2, keepdims=True)
    prior_C = np.full(len(CHOICES), 1 / len(CHOICES))
    while not converged and len(objective) < rounds:
        confusion_RCC, prior_C = _maximisation_step(encoded, chance_IC, prior_RCC, mirrored)
        chance_IC, likelihood = _expectation_step(encoded, confusion_RCC, prior_C, allowed_IC)
        objective.append(likelihood + float((prior_RCC * np.log(confusion_RCC)).sum() + np.log(prior_C).sum()))
        converged = len(objective) > 1 and objective[-1] - objective[-2] < tolerance
    return confusion_RCC, prior_C, chance_IC, tuple(objective), converged


def _informative(encoded: EncodedJudgements, allowed_IC: np.ndarray) -> tuple[EncodedJudgements, np.ndarray]:
    """The judgements of items that inform about errors, renumbered, and the indices of these items."""
    count_I = np.bincount(encoded.item_N, minlength=len(encoded.items))
    inside = np.flatnonzero((count_I > 1) | ~allowed_IC.all(1))
    selected = np.isin(encoded.item_N, inside)
    items = tuple(encoded.items[number] for number in inside)
    return EncodedJudgements(
        items,
        encoded.raters,
        np.searchsorted(inside, encoded.item_N[selected]),
        encoded.rater_N[selected],
        encoded.choice_N[selected],
    ), inside


def _count(row_N: np.ndarray, column_N: np.ndarray, rows: int) -> np.ndarray:
    return (
        np.bincount(row_N * len(CHOICES) + column_N, minlength=rows * len(CHOICES))
        .reshape(rows, len(CHOICES))
        .astype(float)
    )


def _allowed_choices(encoded: EncodedJudgements, gold: Mapping[str, Choice]) -> np.ndarray:
    """True where an item may have a choice: all of them, or only its gold choice."""
    allowed = np.ones((len(encoded.items), len(CHOICES)), dtype=bool)
    for number, item in enumerate(encoded.items):
        if item in gold:
            allowed[number] = [choice == gold[item] for choice in CHOICES]
    return allowed


def _apply_gold(chance_IC: np.ndarray, allowed_IC: np.ndarray) -> np.ndarray:
    return np.where(allowed_IC.all(1, keepdims=True), chance_IC, allowed_IC.astype(float))


def _maximisation_step(
    encoded: EncodedJudgements, chance_IC: np.ndarray, prior_RCC: np.ndarray, mirrored: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The most probable confusions and shares of choices, given the item probabilities."""
    size = len(CHOICES)
    raters = len(encoded.raters)
    cell_N = encoded.rater_N * size + encoded.choice_N
    count_RCC = np.stack(
        [np.bincount(cell_N, chance_IC[encoded.item_N, k], raters * size).reshape(raters, size) for k in range(size)],
        axis=1,
    )
    total_C = chance_IC.sum(0)
    if mirrored:
        count_RCC = (count_RCC + count_RCC[:, MIRROR][:, :, MIRROR]) / 2
        total_C = (total_C + total_C[MIRROR]) / 2
    posterior_RCC = count_RCC + prior_RCC
    return posterior_RCC / posterior_RCC.sum(2, keepdims=True), (total_C + 1) / (total_C + 1).sum()


def _expectation_step(
    encoded: EncodedJudgements, confusion_RCC: np.ndarray, prior_C: np.ndarray, allowed_IC: np.ndarray
) -> tuple[np.ndarray, float]:
    """Item probabilities given the confusions, and the log likelihood."""
    log_RCC = np.log(confusion_RCC)
    columns = [
        np.bincount(encoded.item_N, log_RCC[encoded.rater_N, k, encoded.choice_N], len(encoded.items))
        for k in range(len(CHOICES))
    ]
    joint_IC = np.where(allowed_IC, np.log(prior_C) + np.stack(columns, axis=1), -np.inf)
    total_I = logsumexp(joint_IC, axis=1, keepdims=True)
    return np.exp(joint_IC - total_I), float(total_I.sum())
