"""A domain is lost while the mean rises."""

from collections.abc import Iterator

import numpy as np

from towpath.health.history import History
from towpath.health.signals import change, last
from towpath.recipe import Limits
from towpath.records import Finding

MATERIAL = 0.2
"""A fall, in deviations of the reward between answers, below which nothing is lost: a curve that always stood still
has no noise of its own."""


def forgotten(history: History, limits: Limits) -> Iterator[Finding]:
    """Scores of one domain fall while those of the others rise; or it is not rewarded at all."""
    scores = history.family("domain/") or history.family("reward/")
    rewards = history.family("reward/")
    if len(scores) < 2:
        return
    spread = np.nan_to_num(last(history.curve("reward_std").values))
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
            f"fell by {-fell:.2g} ({-surprise:.1f} deviations) while others rose"
            if falling
            else "earns no reward, whatever the answer"
        )
        cause = "its reward counts for nothing" if unpaid else "what the others gain by costs this one"
        remedy = (
            f"set policy.rewards.domains.{domain} to 1"
            if unpaid
            else f"raise policy.rewards.domains.{domain}, or add prompts and labels of it"
        )
        grave = "critical" if falling and surprise < -2 * limits.z_threshold else "warning"
        finding = Finding("domain-forgotten", grave, f"'{domain}' {words}", cause, remedy, int(curve.steps[0]))
        if worst is None or (falling, -surprise) > (worst[1].severity == "critical", worst[0]):
            worst = -surprise, finding
    if worst:
        yield worst[1]


DETECTORS = (forgotten,)
