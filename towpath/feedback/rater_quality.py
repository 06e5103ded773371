"""How each rater rates: pace, agreement with the others, gold, side, and whether they agree with themselves."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.stats import binomtest, fisher_exact

from towpath.feedback.aggregation import latest_judgements
from towpath.feedback.agreement import Estimate, proportion
from towpath.records import Choice, Finding, Judgement

PEOPLE = ("person", "simulated")
OUTLIER = 3.5  # in deviations by the median: Iglewicz and Hoaglin 1993
HURRIED = 2.0  # half of a rater's judgements are quicker than all but one in forty of the others'
# words a second; adults read 3 to 7 and skim at 10 to 12 (Rayner et al. 2016), so that nobody reads at this pace
READABLE = 20.0
FEWEST = 10  # timed judgements below which a pace of reading is not told
LEVEL = 0.05  # chance of one false alarm among all raters (Holm 1979)
SWAPPED: dict[Choice, Choice] = {"a": "b", "b": "a", "tie": "tie", "both_bad": "both_bad"}
Texts = Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class RaterQuality:
    """One rater in figures; shares of nothing have n 0."""

    rater: str
    kind: str
    n: int
    seconds: float | None
    """Median time of a judgement."""
    pace: float | None
    """How far their median pace lies from the other people's judgements, in robust deviations; below zero is faster."""
    fast: int
    slow: int
    """Judgements of theirs that lie far outside everyone's pace."""
    agreement: Estimate
    """With the choice that most of the other people made."""
    gold: Estimate
    left: Estimate
    """How often the answer shown on the left won."""
    left_p: float
    """Chance of a lean this strong in a rater who has none."""
    identical: Estimate
    """Pairs of one and the same text, where they saw no difference."""
    repeats: Estimate
    """Pairs they met again, in either order, and judged the same."""
    words: float | None = None
    """Median words of both answers in a second of judging; None where too few judgements have a time."""


def measure_quality(
    judgements: Iterable[Judgement], gold: Mapping[str, Choice] | None = None, texts: Texts | None = None
) -> list[RaterQuality]:
    """Every rater's figures, those with most judgements first; `gold` is known truth and `texts` the answers (a, b),
    both by comparison."""
    said = list(judgements)
    last = latest_judgements(said)
    by_rater: dict[str, list[Judgement]] = defaultdict(list)
    for of_one in last.values():
        for judgement in of_one.values():
            by_rater[judgement.rater].append(judgement)
    again: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in said:
        again[judgement.rater].append(judgement)
    paces = _paces(by_rater)
    found = []
    for rater, own in by_rater.items():
        times = [j.milliseconds for j in own if j.milliseconds]
        fast, slow, pace = paces[rater]
        left, left_p = side_bias(own)
        found.append(
            RaterQuality(
                rater,
                own[0].kind,
                len(own),
                float(np.median(times)) / 1000 if times else None,
                pace,
                fast,
                slow,
                _with_others(own, last),
                _on_gold(own, gold or {}),
                left,
                left_p,
                _on_identical(own, texts or {}),
                _on_repeats(again[rater], texts or {}),
                _words_a_second(own, texts or {}),
            )
        )
    return sorted(found, key=lambda one: (-one.n, one.rater))


def side_bias(judgements: Iterable[Judgement]) -> tuple[Estimate, float]:
    """How often the left answer won among those that were decided, and the two-sided binomial chance of that without
    a lean."""
    left = [(j.choice == "a") == (j.shown == "ab") for j in judgements if j.choice in ("a", "b")]
    chance = float(binomtest(sum(left), len(left)).pvalue) if left else 1.0
    return proportion(sum(left), len(left)), chance


def rater_findings(found: Sequence[RaterQuality]) -> list[Finding]:
    """What an owner should look at: leans and lags that chance does not explain among so many raters, rushing, and
    pairs of one text told apart."""
    told = [_lean(one) for one in _held({one: one.left_p for one in found if one.left.n})]
    told += [_lag(one, "gold", one.gold, "gold pairs") for one in _held(_lags(found, "gold"))]
    told += [
        _lag(one, "agreement", one.agreement, "pairs judged by others too") for one in _held(_lags(found, "agreement"))
    ]
    for one in found:
        if one.pace is not None and one.pace < -HURRIED:
            evidence = (
                f"{one.rater}: {one.seconds:.1f} s a pair, {-one.pace:.1f} robust deviations faster than the other "
                "raters"
            )
            told.append(
                Finding(
                    "rater-hurried",
                    "warning",
                    evidence,
                    "answers are not read",
                    "speak with them; rate these pairs again",
                )
            )
        elif one.kind in PEOPLE and one.words is not None and one.words > READABLE:
            evidence = (
                f"{one.rater}: {one.seconds:.1f} s a pair, {one.words:.0f} words a second in the middle of {one.n} "
                "judgements"
            )
            told.append(
                Finding(
                    "rater-hurried",
                    "warning",
                    evidence,
                    "answers are not read",
                    "speak with them; rate these pairs again",
                )
            )
        if one.identical.n and one.identical.high < 0.5:
            e = one.identical
            share = f"{1 - e.value:.0%} [{1 - e.high:.0%}, {1 - e.low:.0%}]"
            evidence = f"{one.rater}: saw a difference in {share} of {e.n} pairs of one and the same text"
            told.append(
                Finding(
                    "rater-inconsistent",
                    "warning",
                    evidence,
                    "answers are not read, or ties are thought forbidden",
                    "show them the guidelines",
                )
            )
    return told


def _paces(by_rater: Mapping[str, Sequence[Judgement]]) -> dict[str, tuple[int, int, float | None]]:
    """By rater: judgements far too fast and too slow by the other people's pace, and how far their median lies from
    theirs; alone, by their own."""
    found: dict[str, tuple[int, int, float | None]] = {}
    logs = {
        rater: np.log([j.milliseconds for j in own if j.milliseconds]) if own[0].kind in PEOPLE else np.zeros(0)
        for rater, own in by_rater.items()
    }
    for rater, own in logs.items():
        others = np.concatenate([times for other, times in logs.items() if other != rater] or [own])
        off = _deviations(own, others if len(others) else own)
        lag = float(np.median(off)) if len(own) and len(others) else float("nan")
        found[rater] = (int((off < -OUTLIER).sum()), int((off > OUTLIER).sum()), lag if np.isfinite(lag) else None)
    return found


def _deviations(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Distance from the median in units of the median distance, scaled to the normal; NaN where more than half are
    alike."""
    if not len(values):
        return values
    middle = np.median(among)
    spread = 1.4826 * np.median(np.abs(among - middle))
    return (values - middle) / spread if spread else np.full(len(values), np.nan)


def _with_others(own: Sequence[Judgement], last: Mapping[str, Mapping[str, Judgement]]) -> Estimate:
    """Agreement with the other people's most frequent choice, where they have one."""
    hits = n = 0
    for judgement in own:
        others = Counter(
            j.choice for rater, j in last[judgement.comparison].items() if rater != judgement.rater and j.kind in PEOPLE
        )
        ranked = others.most_common()
        if ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1]):
            hits = hits + (judgement.choice == ranked[0][0])
            n = n + 1
    return proportion(hits, n)


def _on_gold(own: Sequence[Judgement], gold: Mapping[str, Choice]) -> Estimate:
    hits = [j.choice == gold[j.comparison] for j in own if j.comparison in gold]
    return proportion(sum(hits), len(hits))


def _on_identical(own: Sequence[Judgement], texts: Texts) -> Estimate:
    same = [
        j.choice in ("tie", "both_bad")
        for j in own
        if j.comparison in texts and texts[j.comparison][0] == texts[j.comparison][1]
    ]
    return proportion(sum(same), len(same))


def _words_a_second(own: Sequence[Judgement], texts: Texts) -> float | None:
    timed = [j for j in own if j.milliseconds and j.comparison in texts]
    if len(timed) < FEWEST:
        return None
    return float(
        np.median(
            [1000 * sum(len(text.split()) for text in texts[j.comparison]) / (j.milliseconds or 1) for j in timed]
        )
    )


def _on_repeats(said: Sequence[Judgement], texts: Texts) -> Estimate:
    """The same two texts met again, as another comparison or in a later round; each meeting is held against the one
    before."""
    met: dict[tuple[str, ...], list[Choice]] = defaultdict(list)
    for judgement in said:
        a, b = texts.get(judgement.comparison, (judgement.comparison, ""))
        if a != b:
            swap = judgement.comparison in texts and a > b
            met[(b, a) if swap else (a, b)].append(SWAPPED[judgement.choice] if swap else judgement.choice)
    same = [before == after for choices in met.values() for before, after in pairwise(choices)]
    return proportion(sum(same), len(same))


def _lags(found: Sequence[RaterQuality], figure: str) -> dict[RaterQuality, float]:
    """The chance that a rater who is like the others together would do this badly (Fisher's exact test, one-sided)."""
    figures: list[tuple[RaterQuality, Estimate]] = [
        (one, getattr(one, figure)) for one in found if one.kind in PEOPLE and getattr(one, figure).n
    ]
    hits = sum(round(e.value * e.n) for _, e in figures)
    n = sum(e.n for _, e in figures)
    chances = {}
    for one, e in figures:
        right = round(e.value * e.n)
        if n > e.n:
            table = [[right, e.n - right], [hits - right, n - e.n - hits + right]]
            chances[one] = float(fisher_exact(table, alternative="less").pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    return chances


def _held(chances: Mapping[RaterQuality, float]) -> list[RaterQuality]:
    """Those whose chance is too small for this many raters: Holm's step-down."""
    ranked = sorted(chances.items(), key=lambda pair: pair[1])
    held = []
    for place, (one, chance) in enumerate(ranked):
        if chance > LEVEL / (len(ranked) - place):
            break
        held.append(one)
    return held


def _lean(one: RaterQuality) -> Finding:
    way = "left" if one.left.value > 0.5 else "right"
    share, low, high = (
        (one.left.value, one.left.low, one.left.high)
        if way == "left"
        else (1 - one.left.value, 1 - one.left.high, 1 - one.left.low)
    )
    evidence = (
        f"{one.rater}: the {way} answer won {share:.0%} [{low:.0%}, {high:.0%}] of {one.left.n}; p {one.left_p:.1g}"
    )
    return Finding(
        "rater-side",
        "warning",
        evidence,
        "a habit of one key, or of the answer read first",
        "show them; order is shuffled, so it adds noise only",
    )


def _lag(one: RaterQuality, figure: str, e: Estimate, among: str) -> Finding:
    evidence = (
        f"{one.rater}: right on {e.value:.0%} [{e.low:.0%}, {e.high:.0%}] of {e.n} {among}, below the other raters"
    )
    return Finding(
        f"rater-{figure}",
        "warning",
        evidence,
        "guidelines read otherwise, or haste",
        "go through some of these pairs together",
    )
