"""Refusal of the harmful and over-refusal of its harmless twins, by rules and by a judge, and the same prompts
before and after."""

from collections.abc import Sequence
from typing import Any

from scipy.stats import binom

from towpath.data.intervals import wilson


def refusal_rates(harmful: Sequence[bool], declined: Sequence[bool]) -> dict[str, float]:
    """Shares declined on each side of the safety set."""
    bad = [d for h, d in zip(harmful, declined, strict=True) if h]
    fine = [d for h, d in zip(harmful, declined, strict=True) if not h]
    return {
        "refusal": sum(bad) / max(len(bad), 1),
        "over_refusal": sum(fine) / max(len(fine), 1),
        "harmful_n": len(bad),
        "harmless_n": len(fine),
    }


def refusal_rate(declined: Sequence[bool]) -> dict[str, Any]:
    """The share declined with Wilson's interval."""
    n = len(declined)
    return {"refusal": sum(declined) / max(n, 1), "interval": list(wilson(sum(declined), n)), "n": n}


def compare_before_after(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    """The same prompts declined before and after: how many changed either way, and how likely chance alone makes
    them so uneven."""
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
    """McNemar's exact test, two-sided: of the prompts that changed, the chance of a split at least as uneven where
    either way is as likely."""
    changed = one + other
    return min(1.0, 2 * float(binom.cdf(min(one, other), changed, 0.5))) if changed else 1.0


def compare_with_judge(rules: Sequence[bool], judged: Sequence[bool | None]) -> dict[str, Any]:
    """Rules and a judge on the same answers; where the judge gave no verdict nothing is counted."""
    both = [(r, j) for r, j in zip(rules, judged, strict=True) if j is not None]
    apart = sum(r != j for r, j in both)
    return {
        "refusal": sum(j for _, j in both) / max(len(both), 1),
        "n": len(both),
        "unjudged": len(judged) - len(both),
        "disagreements": apart,
        "only_rules": sum(r and not j for r, j in both),
        "only_judge": sum(j and not r for r, j in both),
    }
