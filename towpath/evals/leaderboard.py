"""Win rate of one model against another from pairwise judgements, with intervals and rater error removed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from towpath.data.draws import generator
from towpath.data.intervals import accuracy_ceiling, wilson
from towpath.evals import sequential
from towpath.evals.winrate import length_controlled
from towpath.records import Judgement

RULE = "ties and both bad count half; several judgements of one prompt count as their mean; identical answers are a tie"
RESAMPLES = 400
MIN_SKILL = 0.1
"""Smallest skill (twice the accuracy minus one) of raters for which their error can be removed."""

Side = Literal["a", "b"]


@dataclass(frozen=True, slots=True)
class ArenaPair:
    """Two answers to one prompt: the side of ours, its length difference in words, wanted raters (`seats`), queue
    position."""

    comparison: str
    position: int
    ours: Side
    gap: int = 0
    seats: int = 1
    same: bool = False


@dataclass(frozen=True, slots=True)
class RateEstimate:
    """A rate with its 95 % interval."""

    rate: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class WinRecord:
    """Results after n prompts. Only the `anytime` interval stays valid when it is checked repeatedly."""

    n: int
    judgements: int
    wins: int
    ties: int
    losses: int
    rate: float
    wilson: tuple[float, float]
    anytime: tuple[float, float]
    bootstrap: tuple[float, float]
    equal_length: RateEstimate | None
    true_rate: RateEstimate | None
    """The rate of raters without error, estimated from their agreement; None if unknown or too low."""
    accuracy: float | None
    threshold: float
    verdict: sequential.VerdictWord
    decided_at: int | None
    more: int | None
    rule: str = RULE


def outcome_value(judgement: Judgement, ours: Side) -> float:
    """1 if ours was preferred, 0 if the other, else 0.5. A judge that flips with the order counts as a tie."""
    orders = judgement.details.get("orders") if judgement.kind == "judge" else None
    if isinstance(orders, Mapping) and len(set(orders.values())) > 1:
        return 0.5
    return 0.5 if judgement.choice not in ("a", "b") else float(judgement.choice == ours)


def finished_outcomes(
    pairs: Iterable[ArenaPair], judgements: Iterable[Judgement], single_rater: bool = False
) -> list[tuple[ArenaPair, float]]:
    """Prompts with their outcome, in the order in which their last wanted judgement arrived.

    With `single_rater` the first judgement completes a prompt. Pairs of identical answers, which are not judged,
    come in at their queue position. The order must not depend on the judgements, or the sequential test would not be
    valid.
    """
    by_name = {pair.comparison: pair for pair in pairs}
    values: dict[str, dict[str, float]] = {}
    complete: list[ArenaPair] = []
    for j in judgements:
        pair = by_name.get(j.comparison)
        if pair is None:
            continue
        own = values.setdefault(j.comparison, {})
        before = len(own)
        own[j.rater] = outcome_value(j, pair.ours)
        wanted = 1 if single_rater else max(1, pair.seats)
        if before < wanted <= len(own):
            complete.append(pair)
    same = sorted((pair for pair in by_name.values() if pair.same), key=lambda pair: pair.position)
    outcomes = []
    for pair in complete:
        while same and same[0].position < pair.position:
            outcomes.append((same.pop(0), 0.5))
        outcomes.append((pair, float(np.mean(list(values[pair.comparison].values())))))
    judged_pairs = sum(not pair.same for pair in by_name.values())
    if len(complete) == judged_pairs:
        outcomes += [(pair, 0.5) for pair in same]
    return outcomes


def win_record(
    outcomes: Sequence[tuple[ArenaPair, float]],
    threshold: float,
    judgements: int = 0,
    agreement: tuple[float, int] | None = None,
    seed: int = 0,
) -> WinRecord:
    """The record of finished prompts; `agreement` is the share of equal choices of two raters and the number of such
    pairs."""
    y_N = np.array([y for _, y in outcomes])
    gap_N = np.array([float(pair.gap) for pair, _ in outcomes])
    n = len(y_N)
    decision = sequential.decide(y_N, threshold)
    counts = {"wins": int((y_N > 0.5).sum()), "ties": int((y_N == 0.5).sum()), "losses": int((y_N < 0.5).sum())}
    decided = {"verdict": decision.verdict, "decided_at": decision.at, "more": decision.more, "threshold": threshold}
    accuracy = accuracy_ceiling(agreement[0]) if agreement and agreement[1] else None
    if not n:
        unknown = (0.0, 1.0)
        return WinRecord(
            0,
            judgements,
            **counts,
            rate=0.5,
            wilson=unknown,
            anytime=unknown,
            bootstrap=unknown,
            equal_length=None,
            true_rate=None,
            accuracy=accuracy,
            **decided,
        )
    index_BN = generator(seed, "bootstrap/arena").integers(0, n, (RESAMPLES, n))
    rate = float(y_N.mean())
    rate_B = y_N[index_BN].mean(1)
    equal_B = [length_controlled(y_N[index_N], gap_N[index_N]) for index_N in index_BN] if n >= 10 else []
    equal = RateEstimate(length_controlled(y_N, gap_N), _percentile_interval(equal_B)) if len(equal_B) else None
    wilson_interval = wilson(float(y_N.sum()), n)
    return WinRecord(
        n,
        judgements,
        **counts,
        rate=rate,
        wilson=wilson_interval,
        anytime=decision.interval,
        bootstrap=_percentile_interval(rate_B) if rate_B.std() else wilson_interval,
        equal_length=equal,
        true_rate=without_rater_error(rate, rate_B, agreement, seed),
        accuracy=accuracy,
        **decided,
    )


def without_rater_error(
    rate: float, rate_B: np.ndarray, agreement: tuple[float, int] | None, seed: int = 0
) -> RateEstimate | None:
    """The rate without rater error, which pulls the observed rate towards 0.5 (16 % error turn 79 % into 70 %).

    Both rate and agreement are resampled: the rate by prompts, the agreement from its posterior. None without
    agreement, or if it may be that of random choices.
    """
    if agreement is None or not agreement[1]:
        return None
    share, n = agreement
    alike = generator(seed, "bootstrap/agreement/arena").beta(share * n + 0.5, (1 - share) * n + 0.5, len(rate_B))
    skill_B = np.sqrt(np.maximum(0.0, 2 * alike - 1))  # twice the accuracy minus one
    skill = 2 * accuracy_ceiling(share) - 1
    if min(skill, float(np.quantile(skill_B, 0.025))) < MIN_SKILL:
        return None
    true_B = np.clip(0.5 + (rate_B - 0.5) / np.maximum(skill_B, MIN_SKILL), 0.0, 1.0)
    return RateEstimate(float(np.clip(0.5 + (rate - 0.5) / skill, 0.0, 1.0)), _percentile_interval(true_B))


def _percentile_interval(values_B: Sequence[float] | np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(np.asarray(values_B), [0.025, 0.975])
    return float(low), float(high)
