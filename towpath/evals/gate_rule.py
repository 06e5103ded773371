"""How a gate is decided: by a value and its interval, and by the record of an evaluation judge."""

from collections.abc import Mapping
from typing import Any, Literal

from towpath.evals.no_judge import NO_JUDGE

GateOutcome = Literal["PASS", "FAIL", "UNDECIDED", "OFF"]
Rule = Literal["point", "lower_bound"]


def threshold_outcome(value: float, interval: tuple[float, float], threshold: float, rule: Rule) -> GateOutcome:
    """The value against the threshold, or by `lower_bound` its whole interval."""
    low, high = interval
    if rule == "point":
        return "PASS" if value > threshold else "FAIL"
    if low > threshold:
        return "PASS"
    return "FAIL" if high < threshold else "UNDECIDED"


def win_outcome(
    record: Mapping[str, Any] | None, threshold: float, rule: Rule, max_unjudged: float
) -> tuple[GateOutcome, str]:
    """Outcome and note of a judge's record; UNDECIDED without a judge, with an unfit one, or if too many pairs are
    unjudged."""
    reason = undecided_reason(record, max_unjudged)
    if record is None or reason:
        return "UNDECIDED", reason
    win = record["win"]
    low, high = win["interval"]
    if win.get("anytime") and (low > threshold or high < threshold):
        return ("PASS" if low > threshold else "FAIL"), f"decided by the arena after {win['n']} prompts"
    outcome = threshold_outcome(win["rate"], (low, high), threshold, rule)
    return outcome, interval_note(outcome, win["rate"], (low, high), threshold, win["n"])


def undecided_reason(record: Mapping[str, Any] | None, max_unjudged: float) -> str:
    """Why a judge's record decides nothing; empty if it does."""
    if record is None:
        return NO_JUDGE
    if record["missing"] > max_unjudged or record["win"] is None:
        return _missing_note(record, max_unjudged)
    return record["unfit"]


def interval_note(outcome: GateOutcome, value: float, interval: tuple[float, float], threshold: float, n: int) -> str:
    """How many judged prompts would decide a gate whose interval contains the threshold."""
    low, high = interval
    if low <= threshold <= high and value != threshold:
        needed = int(n * ((high - low) / 2 / abs(value - threshold)) ** 2) + 1
        return f"the interval contains the threshold: about {needed} judged prompts would decide it"
    return "the value must exceed the threshold" if value == threshold and outcome == "FAIL" else ""


def judge_of(result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The record of the judge that decides a stage's gate; None if it has no judge."""
    judges = result.get("judges")
    if judges:
        return judges[0]
    win = result.get("win")
    return None if win is None else {"name": "", "win": win, "unfit": "", "missing": 0.0, "unjudged": {}}


def _missing_note(record: Mapping[str, Any], max_unjudged: float) -> str:
    reasons = ", ".join(f"{reason} {n}" for reason, n in record["unjudged"].items())
    return (
        f"{sum(record['unjudged'].values())} of {record['pairs']} pairs are unjudged ({reasons}); at most "
        f"{max_unjudged:.0%} may be (evaluate.max_unjudged)"
    )
