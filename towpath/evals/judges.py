"""Evaluation judges: what a judge of win rates is given and what it returns, and how often two judges agree."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from towpath.data.intervals import wilson
from towpath.evals.winrate import win_rate_record
from towpath.reasoning import final_answer
from towpath.records import Completion, Prompt

MAX_LISTED = 20
"""Prompts that a comparison of two judges lists."""
VALUES = (1.0, 0.5, 0.0)


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """The answers of two models to one prompt; `ours` is of the model that should win."""

    prompt: Prompt
    ours: Completion
    other: Completion

    @property
    def texts(self) -> tuple[str, str]:
        """Our answer and the other as a judge reads them, without reasoning."""
        return final_answer(self.ours.text), final_answer(self.other.text)

    @property
    def same(self) -> bool:
        """Whether both answers read the same, which is a tie without a judge."""
        ours, other = self.texts
        return ours.strip() == other.strip()


@dataclass(frozen=True, slots=True)
class PairOutcome:
    """1 if our answer wins, 0 if the other does, 0.5 for a tie, None with a reason if the pair is unjudged."""

    value: float | None
    reason: str = ""
    scores: tuple[float, float] | None = None
    """Of our answer and of the other, by a judge that scores answers."""


TIE = PairOutcome(0.5)


@dataclass(frozen=True, slots=True)
class JudgeOutcomes:
    """Results of one judge: an outcome for each pair, calls and cost."""

    name: str
    """The judge as reports name it: `AI judge MODEL at HOST`."""
    outcomes: tuple[PairOutcome, ...]
    calls: int = 0
    dollars: float = 0.0
    interval: tuple[float, float] | None = None
    """An anytime-valid interval of the win rate, by a judge that stops when it is decided: pairs without an outcome are
    not missing then."""
    unfit: str = ""
    """Why this judge cannot decide a gate; empty if it can."""

    @property
    def unjudged(self) -> dict[str, int]:
        """The number of unjudged pairs by reason."""
        return dict(Counter(outcome.reason for outcome in self.outcomes if outcome.value is None))


class EvaluationJudge(Protocol):
    """Compares two models' answers. A failure leaves a pair unjudged and never becomes a number."""

    def compare(self, pairs: Sequence[AnswerPair], title: str) -> JudgeOutcomes:
        """Judge the pairs; `title` names the work where progress is shown."""
        ...


def outcome_of_scores(ours: float | None, other: float | None, margin: float) -> PairOutcome:
    """The outcome of two scores; a difference below the margin is a tie, a missing score leaves the pair unjudged."""
    if ours is None or other is None:
        return PairOutcome(None, "no score")
    gap = ours - other
    value = 0.5 if gap == 0 or abs(gap) < margin else float(gap > 0)
    return PairOutcome(value, scores=(ours, other))


def outcome_of_orders(first: float | None, second: float | None) -> PairOutcome:
    """The outcome of a comparison in both orders: a preference counts if both agree, else it is a tie."""
    if first is None or second is None:
        return PairOutcome(None, "no choice")
    return PairOutcome(first if first == second else 0.5)


def judge_record(
    spec: str, report: JudgeOutcomes, length_gaps: Sequence[int], resamples: int, seed: int
) -> dict[str, Any]:
    """A judge's report as a stage stores it; `win` is None if no pair was judged."""
    indices = [i for i, outcome in enumerate(report.outcomes) if outcome.value is not None]
    unjudged = report.unjudged
    win = None
    if indices:
        values = [report.outcomes[i].value or 0.0 for i in indices]
        win = win_rate_record(values, [length_gaps[i] for i in indices], resamples, seed) | {"judge": report.name}
        if report.interval is not None:
            win |= {"interval": list(report.interval), "anytime": True}
    missing = sum(unjudged.values()) if report.interval is None else 0
    return {
        "spec": spec,
        "name": report.name,
        "win": win,
        "pairs": len(report.outcomes),
        "unjudged": unjudged,
        "missing": missing / max(len(report.outcomes), 1),
        "calls": report.calls,
        "dollars": report.dollars,
        "unfit": report.unfit,
    }


def compare_judges(
    first: Sequence[PairOutcome], other: Sequence[PairOutcome], prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """Agreement of two judges on the pairs that both judged, Cohen's kappa over win, tie and loss, and the prompts on
    which they name opposite winners."""
    both = [
        (a.value, b.value, p.id)
        for a, b, p in zip(first, other, prompts, strict=True)
        if a.value is not None and b.value is not None
    ]
    n = len(both)
    agreed = sum(a == b for a, b, _ in both)
    decided = [(a, b) for a, b, _ in both if 0.5 not in (a, b)]
    opposite = [name for a, b, name in both if abs(a - b) == 1]
    return {
        "n": n,
        "rate": agreed / n if n else None,
        "interval": list(wilson(agreed, n)) if n else None,
        "kappa": cohen_kappa([(a, b) for a, b, _ in both]),
        "decided_n": len(decided),
        "decided_rate": sum(a == b for a, b in decided) / len(decided) if decided else None,
        "opposite": len(opposite),
        "prompts": opposite[:MAX_LISTED],
    }


def cohen_kappa(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Cohen's kappa of two judges over win, tie and loss; None where chance alone would agree always."""
    n = len(pairs)
    if not n:
        return None
    one = Counter(a for a, _ in pairs)
    other = Counter(b for _, b in pairs)
    observed = sum(a == b for a, b in pairs) / n
    chance = sum(one[value] * other[value] for value in VALUES) / n**2
    return None if chance > 1 - 1e-12 else (observed - chance) / (1 - chance)
