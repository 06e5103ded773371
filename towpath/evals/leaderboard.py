"""The record of two models' answers judged against each other: how often ours was preferred, how sure that is, and
raters' errors taken out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from towpath.data.draws import generator
from towpath.data.intervals import wilson
from towpath.evals import sequential
from towpath.evals.winrate import length_controlled
from towpath.records import Judgement

RULE = "ties and both bad count half; several verdicts on one prompt count as their mean; identical answers are a tie"
RESAMPLES = 400
LEAST_SKILL = 0.1
"""How far above a coin a rater must be, by twice the accuracy less one, for errors to be taken out."""

Side = Literal["a", "b"]


@dataclass(frozen=True, slots=True)
class ArenaPair:
    """Two answers to one prompt: where ours lies, by how many words it is longer, how many raters are wanted;
    `place` is its turn in the queue."""

    comparison: str
    place: int
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
    """How one side stands after n prompts. Of the intervals only `anytime` may be looked at again and again and then
    acted upon."""

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
    """What raters who never err would say, by how far these agree; None where they were not measured, or hardly
    agree."""
    accuracy: float | None
    threshold: float
    verdict: sequential.VerdictWord
    decided_at: int | None
    more: int | None
    rule: str = RULE


def outcome_value(judgement: Judgement, ours: Side) -> float:
    """1 where our answer was preferred, 0 where the other, else a half. A judge that turns with the order has said
    nothing: a tie."""
    orders = judgement.details.get("orders") if judgement.kind == "judge" else None
    if isinstance(orders, Mapping) and len(set(orders.values())) > 1:
        return 0.5
    return 0.5 if judgement.choice not in ("a", "b") else float(judgement.choice == ours)


def finished_outcomes(
    pairs: Iterable[ArenaPair], judgements: Iterable[Judgement], alone: bool = False
) -> list[tuple[ArenaPair, float]]:
    """Prompts with their outcome, in the order in which the last wanted verdict came in; with `alone` the first
    verdict is enough.

    Identical answers, which nobody is asked about, come in at their place in the queue. The order must not depend on
    what was said: the proof that one may look after every prompt needs it so.
    """
    by_name = {pair.comparison: pair for pair in pairs}
    said: dict[str, dict[str, float]] = {}
    ended: list[ArenaPair] = []
    for j in judgements:
        pair = by_name.get(j.comparison)
        if pair is None:
            continue
        own = said.setdefault(j.comparison, {})
        before = len(own)
        own[j.rater] = outcome_value(j, pair.ours)
        wanted = 1 if alone else max(1, pair.seats)
        if before < wanted <= len(own):
            ended.append(pair)
    same = sorted((pair for pair in by_name.values() if pair.same), key=lambda pair: pair.place)
    found = []
    for pair in ended:
        while same and same[0].place < pair.place:
            found.append((same.pop(0), 0.5))
        found.append((pair, float(np.mean(list(said[pair.comparison].values())))))
    return found + (
        [(pair, 0.5) for pair in same] if len(ended) == len(by_name) - _count_same(by_name.values()) else []
    )


def _count_same(pairs: Iterable[ArenaPair]) -> int:
    return sum(pair.same for pair in pairs)


def win_record(
    outcomes: Sequence[tuple[ArenaPair, float]],
    threshold: float,
    judgements: int = 0,
    agreement: tuple[float, int] | None = None,
    seed: int = 0,
) -> WinRecord:
    """The record of finished prompts; `agreement` is how often two raters chose alike, and on how many doubly judged
    pairs."""
    y_N = np.array([y for _, y in outcomes])
    gap_N = np.array([float(pair.gap) for pair, _ in outcomes])
    n = len(y_N)
    decision = sequential.decide(y_N, threshold)
    counts = {"wins": int((y_N > 0.5).sum()), "ties": int((y_N == 0.5).sum()), "losses": int((y_N < 0.5).sum())}
    rest = {"threshold": threshold, "verdict": decision.verdict, "decided_at": decision.at, "more": decision.more}
    accuracy = rater_accuracy(agreement[0]) if agreement and agreement[1] else None
    if not n:
        whole = (0.0, 1.0)
        return WinRecord(
            0,
            judgements,
            **counts,
            rate=0.5,
            wilson=whole,
            anytime=whole,
            bootstrap=whole,
            equal_length=None,
            true_rate=None,
            accuracy=accuracy,
            **rest,
        )
    index_BN = generator(seed, "bootstrap/arena").integers(0, n, (RESAMPLES, n))
    rate = float(y_N.mean())
    rate_B = y_N[index_BN].mean(1)
    equal_B = [length_controlled(y_N[index_N], gap_N[index_N]) for index_N in index_BN] if n >= 10 else []
    equal = RateEstimate(length_controlled(y_N, gap_N), _ends(equal_B)) if len(equal_B) else None
    near = wilson(float(y_N.sum()), n)
    return WinRecord(
        n,
        judgements,
        **counts,
        rate=rate,
        wilson=near,
        anytime=decision.interval,
        bootstrap=_ends(rate_B) if rate_B.std() else near,
        equal_length=equal,
        true_rate=without_rater_error(rate, rate_B, agreement, seed),
        accuracy=accuracy,
        **rest,
    )


def rater_accuracy(agreement: float) -> float:
    """How often a rater is right, where two equal ones agree this often."""
    return 0.5 * (1 + float(np.sqrt(max(0.0, 2 * agreement - 1))))


def without_rater_error(
    rate: float, rate_B: np.ndarray, agreement: tuple[float, int] | None, seed: int = 0
) -> RateEstimate | None:
    """The rate that raters without error would give: theirs lies nearer to a half by their error (16 % make 70 % of
    79 %).

    Rate and agreement are both uncertain, and both are drawn anew: the rate by prompts, the agreement from its
    posterior. None without agreement, or where it may be that of coins.
    """
    if agreement is None or not agreement[1]:
        return None
    share, n = agreement
    alike = generator(seed, "bootstrap/agreement/arena").beta(share * n + 0.5, (1 - share) * n + 0.5, len(rate_B))
    skill_B = np.sqrt(np.maximum(0.0, 2 * alike - 1))  # twice the accuracy less one
    skill = 2 * rater_accuracy(share) - 1
    if min(skill, float(np.quantile(skill_B, 0.025))) < LEAST_SKILL:
        return None
    true_B = np.clip(0.5 + (rate_B - 0.5) / np.maximum(skill_B, LEAST_SKILL), 0.0, 1.0)
    return RateEstimate(float(np.clip(0.5 + (rate - 0.5) / skill, 0.0, 1.0)), _ends(true_B))


def _ends(values_B: Sequence[float] | np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(np.asarray(values_B), [0.025, 0.975])
    return float(low), float(high)
