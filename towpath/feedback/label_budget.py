"""What labels cost, what has been spent, when to stop, and how to share the money among judge and people."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import product
from math import ceil, inf

import numpy as np

from towpath.errors import DataError
from towpath.feedback.rater_quality import PEOPLE
from towpath.records import Judgement

SECONDS = 60.0  # a pair; published are 36 to 480
PRIOR = 10  # judgements that the assumed seconds count for
SHARES = np.arange(0, 21) / 20
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Prices:
    """What one judgement costs: a person's in seconds and dollars an hour, a judge's in dollars."""

    seconds: float = SECONDS
    wage: float = 20.0
    judge: float = 0.014

    @property
    def person(self) -> float:
        """Dollars of one judgement by a person."""
        return self.seconds / 3600 * self.wage


@dataclass(frozen=True, slots=True)
class SpendingLimit:
    """What is never passed; infinite where there is no end."""

    dollars: float = inf
    hours: float = inf


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """How many pairs; `people` is the share that people see, `overlap` the share of those seen twice, `judged` the
    share a judge sees."""

    pairs: int
    people: float = 1.0
    overlap: float = 0.0
    judged: float = 0.0
    raters: int = 1
    hours_a_day: float = 4.0


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """What is wanted in people's judgements, hours, dollars and working days, and whether it stays below the
    ceiling."""

    judgements: int
    hours: float
    dollars: float
    judge_dollars: float
    days: int
    within: bool
    pairs_within: int
    """How many pairs the ceiling allows, all else alike."""

    def told(self) -> str:
        """One sentence for the reader."""
        text = (
            f"{self.judgements:,} judgements by people: {self.hours:,.0f} hours, {self.days:,} days, "
            f"${self.dollars:,.0f}"
        )
        return text if self.within else f"{text}: over the ceiling, which allows {self.pairs_within:,} pairs"


@dataclass(frozen=True, slots=True)
class LabelCost:
    """What the judgements so far have cost."""

    judgements: int = 0
    hours: float = 0.0
    dollars: float = 0.0
    judge_dollars: float = 0.0


@dataclass(frozen=True, slots=True)
class BurnDownDay:
    """One day of the burn-down: what it took, and what was left of the hours planned at its end."""

    day: date
    judgements: int
    hours: float
    left: float


@dataclass(frozen=True, slots=True)
class BudgetSplit:
    """A way to share the money, with the share of wrong labels it is expected to leave."""

    judged: bool
    people: float
    overlap: float
    dollars: float
    hours: float
    error: float


@dataclass(frozen=True, slots=True)
class RaterAccuracy:
    """How often a person is right, and the judge: one number, or its calibrated chance on each pair of a sample."""

    person: float
    judge: float | Sequence[float]


def seconds_per_pair(judgements: Iterable[Judgement], assumed: float = SECONDS) -> float:
    """What a judgement takes a person on average; `assumed` counts as ten judgements, until there are enough.

    Times beyond three robust deviations on the log scale are cut back to there: a lunch is no judgement.
    """
    taken = np.array([j.milliseconds / 1000 for j in judgements if j.kind in PEOPLE and j.milliseconds])
    kept = np.clip(taken, *_usual(taken))
    return float((kept.sum() + PRIOR * assumed) / (len(kept) + PRIOR))


def plan_labels(wanted: LabelRequest, prices: Prices | None = None, ceiling: SpendingLimit | None = None) -> LabelPlan:
    """Hours, dollars and days for what is wanted."""
    price = prices or Prices()
    top = ceiling or SpendingLimit()
    if wanted.pairs < 0 or wanted.raters < 1 or wanted.hours_a_day <= 0:
        value = f"{wanted.pairs} pairs, {wanted.raters} raters, {wanted.hours_a_day} hours a day"
        raise DataError(value, "no fewer than 0 pairs, one rater, and more than 0 hours", "mend [budget]")
    each = wanted.people * (1 + wanted.overlap)
    hours_each = each * price.seconds / 3600
    judge_each = wanted.judged * price.judge
    dollars_each = hours_each * price.wage + judge_each
    hours = wanted.pairs * hours_each
    dollars = wanted.pairs * dollars_each
    allowed = min(top.hours / hours_each if hours_each else inf, top.dollars / dollars_each if dollars_each else inf)
    return LabelPlan(
        round(wanted.pairs * each),
        hours,
        dollars,
        wanted.pairs * judge_each,
        ceil(hours / (wanted.raters * wanted.hours_a_day)),
        wanted.pairs <= allowed,
        wanted.pairs if wanted.pairs <= allowed else int(allowed),
    )


def label_cost(judgements: Iterable[Judgement], prices: Prices | None = None) -> LabelCost:
    """People's time as it was taken (as it is on average where it was not, and never the lunch), and what the
    judges' calls cost."""
    price = prices or Prices()
    said = list(judgements)
    people = [j for j in said if j.kind in PEOPLE]
    hours = sum(_hours(people, price))
    judge_dollars = sum(j.cost for j in said if j.kind not in PEOPLE)
    return LabelCost(len(people), hours, hours * price.wage + judge_dollars, judge_dollars)


def stop_reason(so_far: LabelCost, ceiling: SpendingLimit, prices: Prices | None = None) -> str | None:
    """Why no further judgement may be asked of a person, or None: the next one would pass the ceiling."""
    price = prices or Prices()
    if so_far.hours + price.seconds / 3600 > ceiling.hours + ROUNDING:
        return f"{so_far.hours:,.1f} of {ceiling.hours:,.1f} hours are spent: another judgement would pass the ceiling"
    if so_far.dollars + price.person > ceiling.dollars + ROUNDING:
        return f"${so_far.dollars:,.2f} of ${ceiling.dollars:,.2f} are spent: another judgement would pass the ceiling"
    return None


def burn_down(judgements: Iterable[Judgement], planned: LabelPlan, prices: Prices | None = None) -> list[BurnDownDay]:
    """Day by day, what people's judgements took and what was left of the plan; judgements without a date are left
    out."""
    price = prices or Prices()
    people = [j for j in judgements if j.kind in PEOPLE and j.at]
    by_day: dict[date, list[float]] = {}
    for judgement, hours in zip(people, _hours(people, price), strict=True):
        by_day.setdefault(datetime.fromisoformat(judgement.at).date(), []).append(hours)
    left = planned.hours
    days = []
    for day in sorted(by_day):
        left -= sum(by_day[day])
        days.append(BurnDownDay(day, len(by_day[day]), sum(by_day[day]), left))
    return days


def _hours(people: Sequence[Judgement], price: Prices) -> list[float]:
    """Each judgement's time, cut back where somebody went to lunch, and the usual time where none was taken."""
    taken = np.array([j.milliseconds / 1000 if j.milliseconds else np.nan for j in people])
    _, longest = _usual(taken[np.isfinite(taken)])
    return (np.where(np.isfinite(taken), np.minimum(taken, longest), price.seconds) / 3600).tolist()


def _usual(seconds: np.ndarray) -> tuple[float, float]:
    """Three robust deviations either way from the median, on the log scale; no bounds where more than half are
    alike."""
    if not len(seconds):
        return 0.0, inf
    logs = np.log(seconds)
    reach = 3 * 1.4826 * float(np.median(np.abs(logs - np.median(logs))))
    return (float(np.exp(np.median(logs) - reach)), float(np.exp(np.median(logs) + reach))) if reach else (0.0, inf)


def best_split(
    pairs: int,
    dollars: float,
    trust: RaterAccuracy,
    prices: Prices | None = None,
    least_overlap: float = 0.1,
    audit: float = 0.12,
) -> BudgetSplit:
    """The shares of judge, people and overlap that leave the fewest wrong labels for the money, the cheapest of
    equals.

    Tried are all twentieths. People see `audit` of the pairs by lot and beyond it those the judge doubts most; an
    overlapping pair is seen by two people, and by a third where they differ. What nobody labels is wrong half the
    time. A label is the better guess from all that was said.
    """
    if not 0.5 <= trust.person < 1:
        raise DataError(
            f"a person is right {trust.person}", "from 0.5 up to, not including, 1", "take the agreement ceiling"
        )
    price = prices or Prices()
    sure = np.sort(np.atleast_1d(np.asarray(trust.judge, dtype=float)))
    tried = [
        _tried(pairs, judged, float(people), float(overlap), (trust.person, sure, price, audit))
        for judged, people, overlap in product((False, True), SHARES, SHARES)
        if (not judged or people >= audit) and (not people or overlap >= least_overlap)
    ]
    return min(
        (split for split in tried if split.dollars <= dollars + ROUNDING),
        key=lambda split: (round(split.error, 9), split.dollars),
    )


def _tried(
    pairs: int, judged: bool, people: float, overlap: float, given: tuple[float, np.ndarray, Prices, float]
) -> BudgetSplit:
    person, sure, price, audit = given
    doubled = overlap * (1 + 2 * person * (1 - person))  # a second judgement, and a third where the two differ
    hours = pairs * people * (1 + doubled) * price.seconds / 3600
    dollars = hours * price.wage + pairs * judged * price.judge
    chances = sure if judged else np.array([0.5])
    seen = _seen(chances, people, audit if judged else 0.0)
    alone = np.minimum(chances, 1 - chances)
    with_one = _error(chances, person, False)
    with_more = _error(chances, person, True)
    error = ((1 - seen) * alone + seen * ((1 - overlap) * with_one + overlap * with_more)).mean()
    return BudgetSplit(judged, people, overlap, float(dollars), float(hours), float(error))


def _seen(chances: np.ndarray, people: float, audit: float) -> np.ndarray:
    """By pair (most doubtful first), the chance that a person sees it."""
    doubtful = max(0.0, people - audit) / (1 - audit) if audit < 1 else 0.0
    places = np.arange(len(chances) + 1) / len(chances)
    sent = np.clip((doubtful - places[:-1]) * len(chances), 0, 1)
    return sent + (1 - sent) * min(audit, people)


def _error(chances: np.ndarray, person: float, overlap: bool) -> np.ndarray:
    """How often the better guess is wrong from the judge and one person, or from the judge and two or three: over
    all that may be said."""
    right = person
    wrong = 1 - person
    split = 2 * person * (1 - person)
    said = [(right, wrong), (wrong, right)]  # how likely where a is true, and where b is
    if overlap:  # both agree; or they differ, and the third decides
        said = [
            (right**2, wrong**2),
            (wrong**2, right**2),
            (split * right, split * wrong),
            (split * wrong, split * right),
        ]
    error = np.zeros(len(chances))
    for if_a, if_b in said:
        error += 0.5 * np.minimum(if_a * chances, if_b * (1 - chances)) + 0.5 * np.minimum(
            if_a * (1 - chances), if_b * chances
        )
    return error
