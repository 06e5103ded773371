"""Cost of labels: plan, spending, when to stop, and the best split of a budget between judge and people."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import product
from math import ceil, inf

import numpy as np

from towpath.errors import DataError
from towpath.feedback.rater_quality import PEOPLE
from towpath.records import Judgement

ASSUMED_SECONDS = 60.0  # per pair; published values are 36 to 480
PRIOR_COUNT = 10  # judgements that the assumed seconds stand for
SHARES = np.arange(0, 21) / 20
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Prices:
    """Cost per judgement: a person's seconds and hourly wage, and the judge's dollars."""

    seconds: float = ASSUMED_SECONDS
    wage: float = 20.0
    judge: float = 0.014

    @property
    def person(self) -> float:
        """Dollars of one judgement by a person."""
        return self.seconds / 3600 * self.wage


@dataclass(frozen=True, slots=True)
class SpendingLimit:
    """Upper limits in dollars and hours; infinite without a limit."""

    dollars: float = inf
    hours: float = inf


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """Number of pairs, the share seen by people, by a second person (`overlap`) and by a judge, and the workforce."""

    pairs: int
    people: float = 1.0
    overlap: float = 0.0
    judge_share: float = 0.0
    raters: int = 1
    hours_a_day: float = 4.0


@dataclass(frozen=True, slots=True)
class PlannedLabels:
    """Judgements, hours, dollars and working days of a request, and whether it is within the limit."""

    judgements: int
    hours: float
    dollars: float
    judge_dollars: float
    days: int
    within: bool
    pairs_within: int
    """Pairs that the limit allows."""

    def describe(self) -> str:
        """The plan in one sentence."""
        text = (
            f"{self.judgements:,} judgements by people: {self.hours:,.0f} hours, {self.days:,} days, "
            f"${self.dollars:,.0f}"
        )
        return text if self.within else f"{text}: above the limit, which allows {self.pairs_within:,} pairs"


@dataclass(frozen=True, slots=True)
class LabelCost:
    """Cost of the judgements in the ledger."""

    judgements: int = 0
    hours: float = 0.0
    dollars: float = 0.0
    judge_dollars: float = 0.0


@dataclass(frozen=True, slots=True)
class BurnDownDay:
    """One day: judgements, hours, and planned hours left at its end."""

    day: date
    judgements: int
    hours: float
    left: float


@dataclass(frozen=True, slots=True)
class BudgetSplit:
    """One way to split a budget, with the expected share of wrong labels."""

    use_judge: bool
    people: float
    overlap: float
    dollars: float
    hours: float
    error: float


@dataclass(frozen=True, slots=True)
class RaterAccuracy:
    """Accuracy of a person, and of the judge: one number, or calibrated probabilities of a sample of pairs."""

    person: float
    judge: float | Sequence[float]


def seconds_per_pair(judgements: Iterable[Judgement], assumed: float = ASSUMED_SECONDS) -> float:
    """Mean seconds of a person's judgement; `assumed` counts as ten judgements.

    Times above three robust standard deviations (log scale) are clipped, since they include breaks.
    """
    seconds = np.array([j.milliseconds / 1000 for j in judgements if j.kind in PEOPLE and j.milliseconds])
    clipped = np.clip(seconds, *_outlier_bounds(seconds))
    return float((clipped.sum() + PRIOR_COUNT * assumed) / (len(clipped) + PRIOR_COUNT))


def plan_labels(
    request: LabelRequest, prices: Prices | None = None, spending_limit: SpendingLimit | None = None
) -> PlannedLabels:
    """Hours, dollars and days of a request."""
    price = prices or Prices()
    limit = spending_limit or SpendingLimit()
    if request.pairs < 0 or request.raters < 1 or request.hours_a_day <= 0:
        value = f"{request.pairs} pairs, {request.raters} raters, {request.hours_a_day} hours a day"
        raise DataError(value, "at least 0 pairs, at least one rater, and more than 0 hours", "fix [budget]")
    human_per_pair = request.people * (1 + request.overlap)
    hours_per_pair = human_per_pair * price.seconds / 3600
    judge_dollars_per_pair = request.judge_share * price.judge
    dollars_per_pair = hours_per_pair * price.wage + judge_dollars_per_pair
    hours = request.pairs * hours_per_pair
    dollars = request.pairs * dollars_per_pair
    pairs_by_hours = limit.hours / hours_per_pair if hours_per_pair else inf
    pairs_by_dollars = limit.dollars / dollars_per_pair if dollars_per_pair else inf
    allowed_pairs = min(pairs_by_hours, pairs_by_dollars)
    return PlannedLabels(
        round(request.pairs * human_per_pair),
        hours,
        dollars,
        request.pairs * judge_dollars_per_pair,
        ceil(hours / (request.raters * request.hours_a_day)),
        request.pairs <= allowed_pairs,
        request.pairs if request.pairs <= allowed_pairs else int(allowed_pairs),
    )


def label_cost(judgements: Iterable[Judgement], prices: Prices | None = None) -> LabelCost:
    """People's time, clipped like `seconds_per_pair` and imputed where it is missing, and the judges' cost."""
    price = prices or Prices()
    every_judgement = list(judgements)
    people = [j for j in every_judgement if j.kind in PEOPLE]
    hours = sum(_hours(people, price))
    judge_dollars = sum(j.cost for j in every_judgement if j.kind not in PEOPLE)
    return LabelCost(len(people), hours, hours * price.wage + judge_dollars, judge_dollars)


def stop_reason(cost: LabelCost, limit: SpendingLimit, prices: Prices | None = None) -> str | None:
    """Why no further judgement may be requested from people, or None."""
    price = prices or Prices()
    if cost.hours + price.seconds / 3600 > limit.hours + ROUNDING:
        return f"{cost.hours:,.1f} of {limit.hours:,.1f} hours are spent: another judgement would exceed the limit"
    if cost.dollars + price.person > limit.dollars + ROUNDING:
        return f"${cost.dollars:,.2f} of ${limit.dollars:,.2f} are spent: another judgement would exceed the limit"
    return None


def burn_down(judgements: Iterable[Judgement], plan: PlannedLabels, prices: Prices | None = None) -> list[BurnDownDay]:
    """Judgements and hours per day, and planned hours left; judgements without a date are left out."""
    price = prices or Prices()
    people = [j for j in judgements if j.kind in PEOPLE and j.at]
    by_day: dict[date, list[float]] = {}
    for judgement, hours in zip(people, _hours(people, price), strict=True):
        by_day.setdefault(datetime.fromisoformat(judgement.at).date(), []).append(hours)
    left = plan.hours
    days = []
    for day in sorted(by_day):
        left -= sum(by_day[day])
        days.append(BurnDownDay(day, len(by_day[day]), sum(by_day[day]), left))
    return days


def _hours(people: Sequence[Judgement], price: Prices) -> list[float]:
    """Hours of each judgement: clipped, and the mean where no time is known."""
    seconds = np.array([j.milliseconds / 1000 if j.milliseconds else np.nan for j in people])
    _, longest = _outlier_bounds(seconds[np.isfinite(seconds)])
    return (np.where(np.isfinite(seconds), np.minimum(seconds, longest), price.seconds) / 3600).tolist()


def _outlier_bounds(seconds: np.ndarray) -> tuple[float, float]:
    """Three robust standard deviations around the median, on the log scale; no bounds if more than half are equal."""
    if not len(seconds):
        return 0.0, inf
    logs = np.log(seconds)
    middle = np.median(logs)
    spread = 3 * 1.4826 * float(np.median(np.abs(logs - middle)))
    if not spread:
        return 0.0, inf
    return float(np.exp(middle - spread)), float(np.exp(middle + spread))


def best_split(
    pairs: int,
    dollars: float,
    accuracy: RaterAccuracy,
    prices: Prices | None = None,
    least_overlap: float = 0.1,
    audit: float = 0.12,
) -> BudgetSplit:
    """The split with the fewest expected wrong labels for the money, the cheapest of equals.

    Shares are tried in steps of 5 %. People see `audit` of the pairs at random and then those the judge doubts most;
    an overlapping pair is seen by two people, and by a third where they differ. A pair without a judgement is wrong
    half the time. A label is the more probable answer given all judgements of the pair.
    """
    if not 0.5 <= accuracy.person < 1:
        value = f"a person is right {accuracy.person}"
        raise DataError(value, "at least 0.5 and below 1", "use the agreement ceiling")
    price = prices or Prices()
    judge_accuracy = np.sort(np.atleast_1d(np.asarray(accuracy.judge, dtype=float)))
    splits = [
        evaluate_split(pairs, (use_judge, float(people), float(overlap)), accuracy.person, judge_accuracy, price, audit)
        for use_judge, people, overlap in product((False, True), SHARES, SHARES)
        if (not use_judge or people >= audit) and (not people or overlap >= least_overlap)
    ]
    return min(
        (split for split in splits if split.dollars <= dollars + ROUNDING),
        key=lambda split: (round(split.error, 9), split.dollars),
    )


def evaluate_split(
    pairs: int,
    shares: tuple[bool, float, float],
    person: float,
    judge_accuracy: np.ndarray,
    price: Prices,
    audit: float,
) -> BudgetSplit:
    """Cost and expected error of one split: whether to use the judge, and the shares of people and of overlap."""
    use_judge, people, overlap = shares
    extra_judgements = overlap * (1 + 2 * person * (1 - person))  # a second judgement, and a third where the two differ
    hours = pairs * people * (1 + extra_judgements) * price.seconds / 3600
    dollars = hours * price.wage + pairs * use_judge * price.judge
    chances = judge_accuracy if use_judge else np.array([0.5])
    human_chance = _human_chance(chances, people, audit if use_judge else 0.0)
    judge_error = np.minimum(chances, 1 - chances)
    single_error = _label_error(chances, person, False)
    overlap_error = _label_error(chances, person, True)
    human_error = (1 - overlap) * single_error + overlap * overlap_error
    error = ((1 - human_chance) * judge_error + human_chance * human_error).mean()
    return BudgetSplit(use_judge, people, overlap, float(dollars), float(hours), float(error))


def _human_chance(chances: np.ndarray, people: float, audit: float) -> np.ndarray:
    """Probability, by pair (most doubtful first), that a person sees it."""
    routed_share = max(0.0, people - audit) / (1 - audit) if audit < 1 else 0.0
    quantiles = np.arange(len(chances) + 1) / len(chances)
    routed = np.clip((routed_share - quantiles[:-1]) * len(chances), 0, 1)
    return routed + (1 - routed) * min(audit, people)


def _label_error(chances: np.ndarray, person: float, overlap: bool) -> np.ndarray:
    """Error of the more probable answer from the judge and one person, or from the judge and two or three people."""
    right = person
    wrong = 1 - person
    split = 2 * person * (1 - person)
    likelihoods = [(right, wrong), (wrong, right)]  # of a judgement, if a is better and if b is better
    if overlap:  # both agree, or they differ and a third decides
        likelihoods = [
            (right**2, wrong**2),
            (wrong**2, right**2),
            (split * right, split * wrong),
            (split * wrong, split * right),
        ]
    error = np.zeros(len(chances))
    for if_a, if_b in likelihoods:
        error += 0.5 * np.minimum(if_a * chances, if_b * (1 - chances)) + 0.5 * np.minimum(
            if_a * (1 - chances), if_b * chances
        )
    return error
