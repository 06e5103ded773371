"""Regressions of one domain while the others improve."""

from collections.abc import Iterator

import numpy as np

from towpath.health.history import History
from towpath.health.signals import change, last_level
from towpath.recipe import Limits
from towpath.records import Finding

MATERIAL = 0.2
"""The smallest fall that counts, in standard deviations of the reward between answers: a constant curve has no noise
to compare with."""


def per_domain_regressions(history: History, limits: Limits) -> Iterator[Finding]:
    """The domain whose score falls most while others rise, or that is not rewarded."""
    scores = history.family("domain/") or history.family("reward/")
    rewards = history.family("reward/")
    if len(scores) < 2:
        return
    spread = np.nan_to_num(last_level(history.curve("reward_std").values))
    worst: tuple[float, Finding] | None = None
    for domain, curve in scores.items():
        reward = rewards.get(domain)
        unpaid = reward is not None and len(reward) >= 3 and not np.any(reward.values) and bool(np.any(curve.values))
        fell, surprise = change(curve)
        others = [change(other)[1] for name, other in scores.items() if name != domain]
        falling = surprise < -limits.z_threshold and max(others) > limits.z_threshold and -fell > MATERIAL * spread
        if not unpaid and not falling:
            continue
        words = (
            f"fell by {-fell:.2g} (z-score {-surprise:.1f}) while others rose"
            if falling
            else "gets a reward of 0 for every answer"
        )
        cause = "its weight is 0" if unpaid else "what raises the other domains lowers this one"
        remedy = (
            f"set policy.rewards.domains.{domain} to 1"
            if unpaid
            else f"raise policy.rewards.domains.{domain}, or add prompts and labels of this domain"
        )
        grave = "critical" if falling and surprise < -2 * limits.z_threshold else "warning"
        finding = Finding("domain-forgotten", grave, f"'{domain}' {words}", cause, remedy, int(curve.steps[0]))
        if worst is None or (falling, -surprise) > (worst[1].severity == "critical", worst[0]):
            worst = -surprise, finding
    if worst:
        yield worst[1]


DETECTORS = (per_domain_regressions,)
