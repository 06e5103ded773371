"""Steps too large: signs of single updates that overshoot, in rollouts and in losses."""

from collections.abc import Iterator

import numpy as np

from towpath.health import rates
from towpath.health.detectors.distance import reward_gained
from towpath.health.detectors.supervised import Sign, overshoot_signs
from towpath.health.history import History
from towpath.health.kl_limit import answer_length, kl_limit
from towpath.health.signals import change, last, lately, rolling_median, since, start, sustained
from towpath.recipe import Limits
from towpath.records import Finding

SURGE = 0.3
"""Nats a token by which the KL may rise over three logs; usual runs need a hundred steps for it."""
LANGUAGE_LOST = 1.0
"""Nats a token by which entropy must rise for answers to be random words: learning from rewards lowers it."""
AT_ONCE = 5
"""Logs in which a share of ended answers falls from one half to nothing where an update broke the policy."""


def too_large(history: History, limits: Limits) -> Iterator[Finding]:
    """Updates that overshoot: clipping, surges of KL and entropy, spikes of the gradient, a reward that collapses, a
    loss that rises."""
    signs = [*_overshooting(history, limits), *_broken_policy(history, limits), *overshoot_signs(history)]
    policy = bool(len(history.curve("reward")))
    if policy and signs and rates.excess(history) > rates.FAR_ABOVE:
        signs.append(
            (min(step for step, _, _ in signs), 1 + (rates.excess(history) > rates.ABSURD), rates.words(history))
        )
    weight = sum(weight for _, weight, _ in signs)
    if weight < 2:
        return
    begun = min(step for step, _, _ in signs)
    coef = last(history.curve("kl_coef").values)
    ruled = (
        (f"a penalty that is too small: the jump is that of single updates, at a coefficient of {coef:.3g}",)
        if coef > 0
        else ()
    )
    cause = "updates are larger than what a batch can tell" + rates.in_brackets(history)
    remedy = "a tenth of the learning rate, from the last good checkpoint on"
    evidence = "; ".join(text for _, _, text in signs)
    # overshot, and learned all the same
    recovered = not kl_limit(history, limits).stated and reward_gained(history, limits)
    severity = "critical" if weight >= 3 and not recovered else "warning"
    yield Finding("learning-rate-high", severity, evidence, cause, remedy, begun, ruled)


def _overshooting(history: History, limits: Limits) -> Iterator[Sign]:
    """Signs of too large updates in what trainers measure of each update."""
    units = {"clip_fraction": "{:.0%} of tokens clipped", "approx_kl": "{:.2g} nats a token in one rollout's updates"}
    for name, words in units.items():
        curve = history.curve(name)
        limit = getattr(limits, name)
        worst = sustained(curve.values)
        if len(curve) >= 2 and (worst > limit or curve.values.max() > 10 * limit):
            worst = max(worst, float(curve.values.max()) / 10)
            step = int(curve.steps[int(np.argmax(curve.values > limit))])
            yield step, 2 if worst > 2 * limit else 1, words.format(float(curve.values.max()))
    yield from _kl_jump(history, limits)
    norm = history.curve("grad_norm")
    usual = float(np.median(norm.values[: len(norm) // 2])) if len(norm) >= 8 else 0.0
    if usual > 0 and last(norm.values) > 8 * usual:
        times = last(norm.values) / usual
        yield (
            int(norm.steps[-3]),
            1,
            f"the gradient's norm is {last(norm.values):.3g}, {times:.0f} times its usual size",
        )
    reward = history.curve("reward")
    rose = change(history.curve("reward"))
    fallen, surprise = lately(reward)
    if surprise < -2 * limits.z_threshold and rose[0] < 0:
        yield int(reward.steps[-1]), 1, f"reward fell by {-fallen:.2g} from its best"


def _kl_jump(history: History, limits: Limits) -> Iterator[Sign]:
    """A KL that jumps from one log to the next; of the k3 estimator, whose single values are outliers, medians are
    compared."""
    kl = history.curve("kl")
    limit = kl_limit(history, limits)
    if limit.stated or not answer_length(history) > 0:
        jumps = np.diff(kl.values)
        if len(jumps) and jumps.max() > 3 * max(1.0, limit.warn / limits.kl_high):
            yield int(kl.steps[1 + int(jumps.argmax())]), 1, f"KL rose by {jumps.max():.1f} nats in one step"
        return
    per_token = history.curve("kl_per_token")
    fine = len(per_token) >= 24
    smooth = rolling_median(per_token.values) if fine else per_token.values
    if len(smooth) < 4:
        return
    level = np.concatenate([np.zeros(1), smooth])  # the KL to the reference begins at 0
    steps = np.concatenate([[-1], per_token.steps[fine : len(smooth) + fine]])
    apart = 3 if fine else 1
    surge = level[apart:] - level[:-apart]
    span = steps[apart:] - steps[:-apart]
    excess = surge / (SURGE * np.maximum(span / 3, 1.0))
    if excess.max() > 1:
        where = int(np.argmax(excess > 1))
        words = (
            f"KL rose by {surge[int(excess.argmax())]:.2g} nats a token within {int(span[int(excess.argmax())])} steps"
        )
        grave = excess.max() > 3 and not reward_gained(history, limits)
        yield int(steps[where + 1]), 2 if grave else 1, words


def _broken_policy(history: History, limits: Limits) -> Iterator[Sign]:
    """A policy that no longer speaks: random words, no ends, and the same worthless answer everywhere."""
    entropy = history.curve("entropy")
    ends = history.curve("finish_rate")
    smooth = rolling_median(entropy.values)
    if len(smooth) >= 3:
        begun = float(entropy.values[0])
        most = float(smooth.max())
        if most - begun > LANGUAGE_LOST and most > 1.5 * begun:
            grave = most - begun > 2 * LANGUAGE_LOST and most > 2 * begun and not reward_gained(history, limits)
            step = int(entropy.steps[1 + int(np.argmax(smooth > begun + LANGUAGE_LOST))])
            yield (
                step,
                2 if grave else 1,
                f"entropy rose from {begun:.2g} to {most:.2g} nats a token: answers are random",
            )
    if len(ends) > AT_ONCE and not reward_gained(history, limits):
        falls = [
            place
            for place in range(len(ends) - AT_ONCE)
            if ends.values[place] >= 0.5 and ends.values[place + AT_ONCE] <= 0.05
        ]
        if falls and last(ends.values) <= 0.05:
            yield int(ends.steps[falls[0] + 1]), 1, f"answers stopped ending within {AT_ONCE} steps"
    yield from _worthless(history)


def _worthless(history: History) -> Iterator[Sign]:
    """Every answer gets the same reward, no more than at the beginning, where rewards differed before."""
    reward = history.curve("reward")
    spread = history.curve("reward_std")
    if len(spread) < 6 or len(reward) < 6 or last(spread.values, 5) > 0 or not spread.values.any():
        return
    begun = start(reward.values)
    now = last(reward.values)
    least = float(reward.values.min())
    most = float(reward.values.max())
    if now <= begun and now < least + (most - least) / 4:
        step = since(spread, spread.values == 0)
        yield (
            step,
            2,
            f"every answer gets a reward of {now:.3g}, no more than at the start ({begun:.3g}), and they no longer "
            "differ",
        )


DETECTORS = (too_large,)
