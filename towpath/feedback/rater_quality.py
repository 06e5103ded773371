"""Quality of each rater: pace, agreement with others, gold accuracy, position bias, and self-agreement."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from towpath.feedback.aggregation import latest_judgements
from towpath.feedback.agreement import Estimate, proportion
from towpath.records import Choice, Finding, Judgement

PEOPLE = ("person", "simulated")
OUTLIER = 3.5  # robust standard deviations: Iglewicz and Hoaglin 1993
FAST_PACE = 2.0  # half of the rater's judgements are faster than all but one in forty of the others'
# words a second; adults read 3 to 7 and skim 10 to 12 (Rayner et al. 2016)
MAX_READING_SPEED = 20.0
MIN_TIMED = 10  # timed judgements needed for a reading speed
LEVEL = 0.05  # probability of any false alarm among all raters (Holm 1979)
SWAPPED: dict[Choice, Choice] = {"a": "b", "b": "a", "tie": "tie", "both_bad": "both_bad"}
Texts = Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class RaterQuality:
    """Statistics of one rater; a share without observations has n = 0."""

    rater: str
    kind: str
    n: int
    seconds: float | None
    """Median time of a judgement."""
    pace: float | None
    """Median pace relative to the other people's judgements, in robust standard deviations; negative is faster."""
    fast: int
    slow: int
    """Judgements far outside the pace of the others."""
    agreement: Estimate
    """Agreement with the majority of the other people."""
    gold: Estimate
    left: Estimate
    """How often the answer shown on the left won."""
    left_p: float
    """p-value of the position bias."""
    identical: Estimate
    """Pairs of identical texts that were judged a tie."""
    repeats: Estimate
    """Pairs judged again, in either order, with the same choice."""
    words: float | None = None
    """Median words of both answers per second of judging; None with too few timed judgements."""


def measure_quality(
    judgements: Iterable[Judgement], gold: Mapping[str, Choice] | None = None, texts: Texts | None = None
) -> list[RaterQuality]:
    """Quality of every rater, those with most judgements first; `gold` and `texts` (a, b) are by comparison."""
    all_judgements = list(judgements)
    latest = latest_judgements(all_judgements)
    by_rater: dict[str, list[Judgement]] = defaultdict(list)
    for by_one in latest.values():
        for judgement in by_one.values():
            by_rater[judgement.rater].append(judgement)
    history: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in all_judgements:
        history[judgement.rater].append(judgement)
    paces = _measure_paces(by_rater)
    qualities = []
    for rater, own in by_rater.items():
        times = [j.milliseconds for j in own if j.milliseconds]
        fast, slow, pace = paces[rater]
        left, left_p = side_bias(own)
        qualities.append(
            RaterQuality(
                rater,
                own[0].kind,
                len(own),
                float(np.median(times)) / 1000 if times else None,
                pace,
                fast,
                slow,
                _agreement_with_others(own, latest),
                _gold_accuracy(own, gold or {}),
                left,
                left_p,
                _ties_on_identical(own, texts or {}),
                _self_agreement(history[rater], texts or {}),
                _words_per_second(own, texts or {}),
            )
        )
    return sorted(qualities, key=lambda one: (-one.n, one.rater))


def side_bias(judgements: Iterable[Judgement]) -> tuple[Estimate, float]:
    """How often the left answer won among decided judgements, and the two-sided binomial p-value."""
    from scipy.stats import binomtest  # slow to import, and a plan does not need it

    left = [(j.choice == "a") == (j.shown == "ab") for j in judgements if j.choice in ("a", "b")]
    chance = float(binomtest(sum(left), len(left)).pvalue) if left else 1.0
    return proportion(sum(left), len(left)), chance


def rater_findings(qualities: Sequence[RaterQuality]) -> list[Finding]:
    """Findings for the owner: bias and lag beyond chance among this many raters, haste, and inconsistency."""
    biased = _significant({one: one.left_p for one in qualities if one.left.n})
    findings = [_side_finding(one) for one in biased]
    for statistic, pairs in (("gold", "gold pairs"), ("agreement", "pairs judged by others too")):
        lagging = _significant(_lag_chances(qualities, statistic))
        findings += [_lag_finding(one, statistic, getattr(one, statistic), pairs) for one in lagging]
    for one in qualities:
        if one.pace is not None and one.pace < -FAST_PACE:
            findings.append(_haste_finding(one, f"{-one.pace:.1f} robust deviations faster than the other raters"))
        elif one.kind in PEOPLE and one.words is not None and one.words > MAX_READING_SPEED:
            findings.append(_haste_finding(one, f"a median of {one.words:.0f} words a second over {one.n} judgements"))
        if one.identical.n and one.identical.high < 0.5:
            findings.append(_inconsistency_finding(one))
    return findings


def _measure_paces(by_rater: Mapping[str, Sequence[Judgement]]) -> dict[str, tuple[int, int, float | None]]:
    """Per rater, judgements far faster and far slower than the other people, and the median pace relative to them."""
    paces: dict[str, tuple[int, int, float | None]] = {}
    logs = {
        rater: np.log([j.milliseconds for j in own if j.milliseconds]) if own[0].kind in PEOPLE else np.zeros(0)
        for rater, own in by_rater.items()
    }
    for rater, own in logs.items():
        others = np.concatenate([times for other, times in logs.items() if other != rater] or [own])
        deviations = _deviations(own, others if len(others) else own)
        lag = float(np.median(deviations)) if len(own) and len(others) else float("nan")
        paces[rater] = (
            int((deviations < -OUTLIER).sum()),
            int((deviations > OUTLIER).sum()),
            lag if np.isfinite(lag) else None,
        )
    return paces


def _deviations(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Distance from the median in robust standard deviations; NaN if more than half are equal."""
    if not len(values):
        return values
    middle = np.median(among)
    spread = 1.4826 * np.median(np.abs(among - middle))
    return (values - middle) / spread if spread else np.full(len(values), np.nan)


def _agreement_with_others(own: Sequence[Judgement], latest: Mapping[str, Mapping[str, Judgement]]) -> Estimate:
    """Agreement with the most frequent choice of the other people, where there is one."""
    hits = n = 0
    for judgement in own:
        others = Counter(
            j.choice
            for rater, j in latest[judgement.comparison].items()
            if rater != judgement.rater and j.kind in PEOPLE
        )
        ranked = others.most_common()
        if ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1]):
            hits = hits + (judgement.choice == ranked[0][0])
            n = n + 1
    return proportion(hits, n)


def _gold_accuracy(own: Sequence[Judgement], gold: Mapping[str, Choice]) -> Estimate:
    hits = [j.choice == gold[j.comparison] for j in own if j.comparison in gold]
    return proportion(sum(hits), len(hits))


def _ties_on_identical(own: Sequence[Judgement], texts: Texts) -> Estimate:
    same = [
        j.choice in ("tie", "both_bad")
        for j in own
        if j.comparison in texts and texts[j.comparison][0] == texts[j.comparison][1]
    ]
    return proportion(sum(same), len(same))


def _words_per_second(own: Sequence[Judgement], texts: Texts) -> float | None:
    timed = [j for j in own if j.milliseconds and j.comparison in texts]
    if len(timed) < MIN_TIMED:
        return None
    return float(
        np.median(
            [1000 * sum(len(text.split()) for text in texts[j.comparison]) / (j.milliseconds or 1) for j in timed]
        )
    )


def _self_agreement(judgements: Sequence[Judgement], texts: Texts) -> Estimate:
    """Agreement between successive judgements of the same two texts."""
    choices_by_texts: dict[tuple[str, ...], list[Choice]] = defaultdict(list)
    for judgement in judgements:
        a, b = texts.get(judgement.comparison, (judgement.comparison, ""))
        if a != b:
            swap = judgement.comparison in texts and a > b
            choices_by_texts[(b, a) if swap else (a, b)].append(SWAPPED[judgement.choice] if swap else judgement.choice)
    same = [before == after for choices in choices_by_texts.values() for before, after in pairwise(choices)]
    return proportion(sum(same), len(same))


def _lag_chances(qualities: Sequence[RaterQuality], figure: str) -> dict[RaterQuality, float]:
    """p-value that a rater as good as the others together does this badly (Fisher's exact test, one-sided)."""
    from scipy.stats import fisher_exact  # slow to import, and a plan does not need it

    figures: list[tuple[RaterQuality, Estimate]] = [
        (one, getattr(one, figure)) for one in qualities if one.kind in PEOPLE and getattr(one, figure).n
    ]
    total_hits = sum(round(e.value * e.n) for _, e in figures)
    total = sum(e.n for _, e in figures)
    chances = {}
    for one, e in figures:
        right = round(e.value * e.n)
        if total > e.n:
            table = [[right, e.n - right], [total_hits - right, total - e.n - total_hits + right]]
            chances[one] = float(fisher_exact(table, alternative="less").pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    return chances


def _significant(chances: Mapping[RaterQuality, float]) -> list[RaterQuality]:
    """Raters whose p-value is significant after Holm's step-down correction."""
    ranked = sorted(chances.items(), key=lambda pair: pair[1])
    significant = []
    for rank, (one, chance) in enumerate(ranked):
        if chance > LEVEL / (len(ranked) - rank):
            break
        significant.append(one)
    return significant


def _side_finding(one: RaterQuality) -> Finding:
    way = "left" if one.left.value > 0.5 else "right"
    share, low, high = (
        (one.left.value, one.left.low, one.left.high)
        if way == "left"
        else (1 - one.left.value, 1 - one.left.high, 1 - one.left.low)
    )
    interval = f"{share:.0%} [{low:.0%}, {high:.0%}]"
    evidence = f"{one.rater}: chose the {way} answer in {interval} of {one.left.n}; p {one.left_p:.1g}"
    cause = "position bias: one key is preferred, or the answer read first"
    remedy = "tell the rater; sides are shuffled, so this adds noise but no bias"
    return Finding("rater-side", "warning", evidence, cause, remedy)


def _haste_finding(one: RaterQuality, evidence: str) -> Finding:
    evidence = f"{one.rater}: {one.seconds:.1f} s per pair, {evidence}"
    remedy = "talk to the rater; have these pairs rated again"
    return Finding("rater-hurried", "warning", evidence, "answers are not read", remedy)


def _inconsistency_finding(one: RaterQuality) -> Finding:
    e = one.identical
    share = f"{1 - e.value:.0%} [{1 - e.high:.0%}, {1 - e.low:.0%}]"
    evidence = f"{one.rater}: preferred one answer in {share} of {e.n} pairs of identical texts"
    cause = "answers are not read, or ties are considered not allowed"
    return Finding("rater-inconsistent", "warning", evidence, cause, "point the rater to the guidelines")


def _lag_finding(one: RaterQuality, statistic: str, e: Estimate, pairs: str) -> Finding:
    share = f"{e.value:.0%} [{e.low:.0%}, {e.high:.0%}]"
    evidence = f"{one.rater}: right on {share} of {e.n} {pairs}, below the other raters"
    remedy = "discuss some of these pairs together"
    return Finding(f"rater-{statistic}", "warning", evidence, "guidelines read differently, or haste", remedy)
