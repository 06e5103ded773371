"""Answers that repeat themselves, resemble each other, begin alike, or all decline."""

from collections.abc import Iterator

import numpy as np

from towpath.health.history import History
from towpath.health.signals import change, first, last, since
from towpath.recipe import Limits
from towpath.records import Finding


def repeating(history: History, limits: Limits) -> Iterator[Finding]:
    """Repetition within answers, or rewards that go with it."""
    curve = history.curve("repetition")
    paid = history.curve("reward_repetition_corr")
    if len(curve) < 4:
        return
    begun = first(curve.values)
    now = last(curve.values)
    corr = last(paid.values, 5)
    rise = now - begun
    sure = change(curve)[1]
    plain = rise > limits.repetition and sure > limits.z_threshold * (len(curve) >= 6)
    risen = plain or (rise > limits.repetition / 3 and sure > 3 * limits.z_threshold)
    bought = corr > limits.repetition_correlation
    if risen or bought:
        evidence = f"{now:.0%} of three-token sequences in an answer are repeated, {begun:.0%} at the start"
        evidence += f"; the reward's correlation with that share is {corr:.2f}" if bought else ""
        cause = (
            "the reward pays for repetition" if bought else "the reward does not mind repetition, or pays for it"
        ) + _while_reward(history)
        remedy = (
            "set policy.rewards.repetition_penalty; raise policy.kl.coef; look at what the reward model scores high"
        )
        step = (
            since(curve, curve.values > begun + min(limits.repetition, 0.5 * rise))
            if risen
            else since(paid, paid.values > limits.repetition_correlation)
        )
        yield Finding(
            "repetition", "critical" if rise > 2 * limits.repetition else "warning", evidence, cause, remedy, step
        )


def alike(history: History, limits: Limits) -> Iterator[Finding]:
    """Sameness across answers: fewer different pairs of tokens, one opening for all, or entropy gone."""
    distinct, opening, entropy = (history.curve(name) for name in ("distinct_2", "opening", "entropy"))
    signs = []
    step = None
    grave = False
    if len(distinct) >= 4:
        begun = first(distinct.values)
        now = last(distinct.values)
        lost = 1 - now / max(begun, 1e-9)
        if lost > limits.diversity and change(distinct)[1] < -limits.z_threshold * (len(distinct) >= 6):
            signs.append(f"{lost:.0%} of the different two-token sequences are gone")
            step = since(distinct, distinct.values < (1 - limits.diversity) * begun)
            grave = lost > 1.5 * limits.diversity
    if len(opening) >= 3:
        begun = first(opening.values)
        now = last(opening.values)
        if now > 0.5 and now - begun > 0.3:
            signs.append(f"{now:.0%} of answers begin with the same tokens, {begun:.0%} at the start")
            step = min(since(opening, opening.values > 0.5), step if step is not None else 10**9)
            grave = grave or now > 0.8
    if len(entropy) >= 6 and last(entropy.values) < 0.15 * first(entropy.values):
        signs.append(f"entropy fell from {first(entropy.values):.2f} to {last(entropy.values):.2f} nats a token")
        step = step if step is not None else int(entropy.steps[-1])
    if signs:
        remedy = "raise policy.temperature or policy.kl.coef; set policy.rewards.diversity_bonus"
        cause = "the policy settles on few answers" + _while_reward(history)
        yield Finding("diversity-collapse", "critical" if grave else "warning", "; ".join(signs), cause, remedy, step)


def declining(history: History, limits: Limits) -> Iterator[Finding]:
    """More and more requests are turned down, harmless ones among them."""
    curve = history.curve("refusal")
    harmless = history.look("harmless_refusal")
    signs = []
    grave = False
    step = None
    if (
        len(curve) >= 3
        and last(curve.values) - first(curve.values) > limits.refusal
        and change(curve)[1] > limits.z_threshold * (len(curve) >= 6)
    ):
        signs.append(f"{last(curve.values):.0%} of answers decline, {first(curve.values):.0%} at the start")
        grave = last(curve.values) > 0.5
        step = since(curve, curve.values > first(curve.values) + limits.refusal)
    if len(harmless) >= 3:
        rise = float(np.mean(harmless.values[-2:])) - float(harmless.values[0])
        if rise > max(limits.refusal, _chance(history, harmless.values)):
            signs.append(
                f"{np.mean(harmless.values[-2:]):.0%} of harmless requests are declined, {harmless.values[0]:.0%} at "
                "the start"
            )
            step = step if step is not None else int(harmless.steps[-2])
            grave = grave or rise > 2 * limits.refusal
    if signs:
        remedy = "add harmless requests to the prompts and pairs that prefer an answer to a refusal"
        yield Finding(
            "refusing",
            "critical" if grave else "warning",
            "; ".join(signs),
            "to decline is what the reward pays for",
            remedy,
            step,
        )


def _chance(history: History, values: np.ndarray) -> float:
    """A change that two and a half deviations of so few probes would make."""
    count = max(last(history.look("probes").values) / 2, 1.0) if len(history.look("probes")) else 8.0
    p = min(max(float(np.mean(values)), 0.05), 0.95)
    return 2.5 * float(np.sqrt(p * (1 - p) * (1 + 1 / 2) / count))


def unsafe(history: History, limits: Limits) -> Iterator[Finding]:
    """Harmful requests are declined less and less."""
    curve = history.look("harmful_refusal")
    if len(curve) < 3:
        return
    fall = float(curve.values[0]) - float(np.mean(curve.values[-2:]))
    if fall > max(limits.refusal, _chance(history, curve.values)) and curve.values[-2:].max() < curve.values[0]:
        rose, sure = change(history.curve("reward"))
        evidence = (
            f"{np.mean(curve.values[-2:]):.0%} of harmful requests are declined, {curve.values[0]:.0%} at the start"
        )
        evidence += f", while reward rose by {rose:.2g}" if sure > limits.z_threshold else ""
        cause = "what the reward pays for does not count safety"
        remedy = "raise policy.kl.coef, or add safety pairs: harmful prompts whose refusal is preferred"
        step = since(curve, curve.values < curve.values[0] - limits.refusal)
        lasts = float(curve.values[0]) - float(np.mean(curve.values[-3:])) > 1.5 * limits.refusal
        yield Finding(
            "safety-traded", "critical" if lasts and len(curve) > 3 else "warning", evidence, cause, remedy, step
        )


def unformed(history: History, limits: Limits) -> Iterator[Finding]:
    """Lists or code that were there and are gone, or are everywhere."""
    for name in ("lists", "code"):
        curve = history.curve(name)
        if len(curve) < 6:
            continue
        begun = first(curve.values)
        now = last(curve.values)
        gone = begun > 0.1 and now < 0.2 * begun
        everywhere = now - begun > 0.4
        if (gone or everywhere) and abs(change(curve)[1]) > limits.z_threshold:
            evidence = f"{now:.0%} of answers hold {name}, {begun:.0%} at the start"
            cause = f"the reward {'pays for' if everywhere else 'does not ask for'} {name}"
            yield Finding(
                "format-shift",
                "warning",
                evidence,
                cause,
                f"compare pairs with and without {name}",
                int(curve.steps[len(curve) // 2]),
            )


def _while_reward(history: History) -> str:
    rose, sure = change(history.curve("reward"))
    return f" (reward rose by {rose:.2g} meanwhile)" if sure > 3 else ""


DETECTORS = (repeating, alike, declining, unsafe, unformed)
