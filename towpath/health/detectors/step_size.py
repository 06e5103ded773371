"""Updates that are too large: signs in rollouts and in losses that single updates overshoot."""

from collections.abc import Iterator

import numpy as np

from towpath.health import learning_rates
from towpath.health.detectors.kl import reward_gained
from towpath.health.detectors.supervised import Sign, loss_signs
from towpath.health.history import History
from towpath.health.kl_limit import answer_length, kl_limit
from towpath.health.signals import (
    change,
    drop_from_best,
    first_step_where,
    initial_level,
    last_level,
    max_sustained,
    rolling_median,
)
from towpath.recipe import Limits
from towpath.records import Finding

MAX_KL_RISE = 0.3
"""Nats a token by which the KL may rise over three logs; usual runs need a hundred steps for that."""
MAX_ENTROPY_RISE = 1.0
"""Nats a token by which entropy rises when answers become random words; learning from rewards lowers it."""
SUDDEN_LOGS = 5
"""Logs within which the finish rate falls from one half to zero when an update breaks the policy."""


def learning_rate_too_high(history: History, limits: Limits) -> Iterator[Finding]:
    """Signs of overshooting updates: clipping, jumps of KL and entropy, gradient spikes, a collapsing reward, a rising
    loss."""
    signs = [*_update_signs(history, limits), *_broken_policy_signs(history, limits), *loss_signs(history)]
    policy = bool(len(history.curve("reward")))
    if policy and signs and learning_rates.excess_factor(history) > learning_rates.SUSPECT_FACTOR:
        signs.append(
            (
                min(step for step, _, _ in signs),
                1 + (learning_rates.excess_factor(history) > learning_rates.ABSURD_FACTOR),
                learning_rates.describe_excess(history),
            )
        )
    weight = sum(weight for _, weight, _ in signs)
    if weight < 2:
        return
    start = min(step for step, _, _ in signs)
    coef = last_level(history.curve("kl_coef").values)
    ruled = (
        (f"a KL penalty that is too small: single updates jump, at a coefficient of {coef:.3g}",) if coef > 0 else ()
    )
    cause = "updates are too large for the noise of a batch" + learning_rates.rate_note(history)
    remedy = "continue from the last good checkpoint with a tenth of the learning rate"
    evidence = "; ".join(text for _, _, text in signs)
    # The reward rose all the same.
    recovered = not kl_limit(history, limits).stated and reward_gained(history, limits)
    severity = "critical" if weight >= 3 and not recovered else "warning"
    yield Finding("learning-rate-high", severity, evidence, cause, remedy, start, ruled)


def _update_signs(history: History, limits: Limits) -> Iterator[Sign]:
    """Signs in the metrics of updates: clipping, approximate KL, gradient norm, reward."""
    units = {"clip_fraction": "{:.0%} of tokens clipped", "approx_kl": "{:.2g} nats a token in one rollout's updates"}
    for name, words in units.items():
        curve = history.curve(name)
        limit = getattr(limits, name)
        worst = max_sustained(curve.values)
        if len(curve) >= 2 and (worst > limit or curve.values.max() > 10 * limit):
            worst = max(worst, float(curve.values.max()) / 10)
            step = int(curve.steps[int(np.argmax(curve.values > limit))])
            yield step, 2 if worst > 2 * limit else 1, words.format(float(curve.values.max()))
    yield from _kl_jump_signs(history, limits)
    norm = history.curve("grad_norm")
    usual = float(np.median(norm.values[: len(norm) // 2])) if len(norm) >= 8 else 0.0
    if usual > 0 and last_level(norm.values) > 8 * usual:
        times = last_level(norm.values) / usual
        yield (
            int(norm.steps[-3]),
            1,
            f"the gradient's norm is {last_level(norm.values):.3g}, {times:.0f} times its usual size",
        )
    reward = history.curve("reward")
    rose = change(history.curve("reward"))
    fallen, surprise = drop_from_best(reward)
    if surprise < -2 * limits.z_threshold and rose[0] < 0:
        yield int(reward.steps[-1]), 1, f"reward fell by {-fallen:.2g} from its best"


def _kl_jump_signs(history: History, limits: Limits) -> Iterator[Sign]:
    """A KL that jumps between logs; of the k3 estimator, which has outliers, medians are compared."""
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
    level = np.concatenate([np.zeros(1), smooth])  # the KL to the reference starts at 0
    steps = np.concatenate([[-1], per_token.steps[fine : len(smooth) + fine]])
    apart = 3 if fine else 1
    surge = level[apart:] - level[:-apart]
    span = steps[apart:] - steps[:-apart]
    excess = surge / (MAX_KL_RISE * np.maximum(span / 3, 1.0))
    if excess.max() > 1:
        where = int(np.argmax(excess > 1))
        words = (
            f"KL rose by {surge[int(excess.argmax())]:.2g} nats a token within {int(span[int(excess.argmax())])} steps"
        )
        grave = excess.max() > 3 and not reward_gained(history, limits)
        yield int(steps[where + 1]), 2 if grave else 1, words


def _broken_policy_signs(history: History, limits: Limits) -> Iterator[Sign]:
    """A broken policy: random tokens, no EOS, or the same worthless answer everywhere."""
    entropy = history.curve("entropy")
    ends = history.curve("finish_rate")
    smooth = rolling_median(entropy.values)
    if len(smooth) >= 3:
        start = float(entropy.values[0])
        most = float(smooth.max())
        if most - start > MAX_ENTROPY_RISE and most > 1.5 * start:
            grave = most - start > 2 * MAX_ENTROPY_RISE and most > 2 * start and not reward_gained(history, limits)
            step = int(entropy.steps[1 + int(np.argmax(smooth > start + MAX_ENTROPY_RISE))])
            yield (
                step,
                2 if grave else 1,
                f"entropy rose from {start:.2g} to {most:.2g} nats a token: answers are random",
            )
    if len(ends) > SUDDEN_LOGS and not reward_gained(history, limits):
        falls = [
            log
            for log in range(len(ends) - SUDDEN_LOGS)
            if ends.values[log] >= 0.5 and ends.values[log + SUDDEN_LOGS] <= 0.05
        ]
        if falls and last_level(ends.values) <= 0.05:
            yield int(ends.steps[falls[0] + 1]), 1, f"answers stopped ending within {SUDDEN_LOGS} steps"
    yield from _worthless_signs(history)


def _worthless_signs(history: History) -> Iterator[Sign]:
    """All answers get the same reward, no more than at the start, although rewards differed before."""
    reward = history.curve("reward")
    spread = history.curve("reward_std")
    if len(spread) < 6 or len(reward) < 6 or last_level(spread.values, 5) > 0 or not spread.values.any():
        return
    start = initial_level(reward.values)
    now = last_level(reward.values)
    least = float(reward.values.min())
    most = float(reward.values.max())
    if now <= start and now < least + (most - least) / 4:
        step = first_step_where(spread, spread.values == 0)
        yield (
            step,
            2,
            f"every answer gets a reward of {now:.3g}, no more than at the start ({start:.3g}), and they no longer "
            "differ",
        )


DETECTORS = (learning_rate_too_high,)
