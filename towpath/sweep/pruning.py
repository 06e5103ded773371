"""When a trial ends early: a critical finding, or a value below the median of other trials at equal KL."""

from collections.abc import Sequence

import numpy as np

from towpath.records import Finding
from towpath.sweep.objective import TrialCurve, value_at

RUNGS = (0.25, 0.5)
"""Shares of the steps after which a trial is compared."""
MIN_PEERS = 4
LEAST_KL = 0.1
"""Share of the target KL below which win rates say nothing."""
OF_THE_MACHINE = {"throughput-falling", "memory-growing"}
"""Findings that do not depend on the settings, and differ from run to run."""


def of_settings(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings that settings may have caused: not those of the machine, nor those that hold before the first
    update, such as an overfit reward model or answers that never end, which every trial has alike."""
    return tuple(f for f in findings if f.code not in OF_THE_MACHINE and (f.first_step is None or f.first_step > 0))


def critical_finding(findings: Sequence[Finding]) -> str:
    """The first critical finding with its evidence, empty if there is none."""
    critical = [f for f in of_settings(findings) if f.severity == "critical"]
    return f"{critical[0].code}: {critical[0].evidence}" if critical else ""


def is_rung(step: int, validated: Sequence[int], steps: int) -> bool:
    """Whether this validation is the first after a rung's share of the steps."""
    for share in RUNGS:
        at = share * steps
        if step + 1 >= at and not any(earlier + 1 >= at for earlier in validated if earlier < step):
            return step + 1 < steps
    return False


def below_median(curve: TrialCurve, peers: Sequence[TrialCurve], target: float) -> str:
    """The reason to end a trial whose win rate is more than a standard error below the median of its peers at its own
    KL, or an empty string."""
    level = min(float(curve.kl_V.max()), target) if len(curve) else 0.0
    if level < LEAST_KL * target:
        return ""
    others = [value_at(peer.kl_V, peer.win_V, level) for peer in peers if len(peer)]
    values = [value for value, reached in others if reached]
    if len(values) < MIN_PEERS:
        return ""
    own = value_at(curve.kl_V, curve.win_V, level)[0]
    median = float(np.median(values))
    error = (0.25 / curve.win_VP.shape[1]) ** 0.5
    if own >= median - error:
        return ""
    return f"win rate {own:.1%} at KL {level:.2f}; the median of {len(values)} trials is {median:.1%} there"
