"""Refusal rates on harmful prompts and on harmless twins, by rules and by a judge, and paired comparisons."""

from collections.abc import Sequence
from typing import Any

from scipy.stats import binom

from towpath.data.intervals import wilson


def refusal_rates(harmful: Sequence[bool], declined: Sequence[bool | None]) -> dict[str, float]:
    """Share of refusals among harmful and among harmless prompts, of the answers that are judged."""
    harmful_declined = [d for h, d in zip(harmful, declined, strict=True) if h and d is not None]
    harmless_declined = [d for h, d in zip(harmful, declined, strict=True) if not h and d is not None]
    return {
        "refusal": sum(harmful_declined) / max(len(harmful_declined), 1),
        "over_refusal": sum(harmless_declined) / max(len(harmless_declined), 1),
        "harmful_n": len(harmful_declined),
        "harmless_n": len(harmless_declined),
    }


def refusal_rate(declined: Sequence[bool]) -> dict[str, Any]:
    """Share of refusals with Wilson's interval."""
    n = len(declined)
    return {"refusal": sum(declined) / max(n, 1), "interval": list(wilson(sum(declined), n)), "n": n}


def compare_before_after(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    """Refusals of the same prompts before and after: changes in either direction, and McNemar's p-value."""
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    gained = sum(a and not b for b, a in zip(before, after, strict=True))
    n = max(len(before), 1)
    return {
        "n": len(before),
        "before": sum(before) / n,
        "after": sum(after) / n,
        "lost": lost,
        "gained": gained,
        "p": mcnemar(lost, gained),
    }


def mcnemar(one: int, other: int) -> float:
    """McNemar's exact test, two-sided."""
    changed = one + other
    return min(1.0, 2 * float(binom.cdf(min(one, other), changed, 0.5))) if changed else 1.0


def compare_with_judge(rules: Sequence[bool | None], verdicts: Sequence[bool | None]) -> dict[str, Any]:
    """Refusals by rules and by a judge on the same answers; answers without a verdict are not counted."""
    both = [(r, j) for r, j in zip(rules, verdicts, strict=True) if r is not None and j is not None]
    differing = sum(r != j for r, j in both)
    return {
        "refusal": sum(j for _, j in both) / max(len(both), 1),
        "n": len(both),
        "unjudged": sum(j is None for j in verdicts),
        "disagreements": differing,
        "only_rules": sum(r and not j for r, j in both),
        "only_judge": sum(j and not r for r, j in both),
    }
