"""Rules of thumb: the settings of the next trial from the findings and the KL of the last one, as a pure function.

Start from conservative values; too far from the reference: a stronger penalty, and smaller steps where they are too
large; little KL and a flat reward: a weaker penalty, then larger steps; repetitive answers: a higher temperature, a
bonus for diversity or a penalty of repetition. At the target KL the values around the best trial are tried in turn.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from towpath.sweep.space import SearchRange, Settings, Space, usual_ends

RATE = "policy.learning_rate"
STRENGTHS = ("policy.kl.coef", "policy.dpo.beta", "policy.kto.beta", "policy.ipo.tau", "policy.orpo.weight")
"""Keys whose larger values keep the policy nearer to the reference."""
CONSERVATIVE = {
    "policy.kl.coef": 0.05,
    "policy.dpo.beta": 0.1,
    "policy.kto.beta": 0.1,
    "policy.ipo.tau": 0.1,
    "policy.ppo.clip": 0.2,
    "policy.grpo.clip_low": 0.2,
    "policy.grpo.clip_high": 0.2,
    "policy.rloo.clip": 0.2,
    "policy.reinforce.clip": 0.2,
}
FULL_RATE = 5e-6
FAR_CODES = {"kl-rising", "no-kl-penalty", "kl-negative", "reward-hacking", "reward-out-of-distribution"}
LARGE_STEP_CODES = {"learning-rate-high", "not-finite"}
REPETITIVE_CODES = {"repetition", "diversity-collapse"}
FAR = 1.5
VERY_FAR = 4.0
NEAR = 0.6
"""Shares of the target KL: beyond FAR the penalty is too weak, below NEAR it is too strong or steps are too small."""


@dataclass(frozen=True)
class RuleTrial:
    """What the rules read of a trial that has ended."""

    settings: Settings
    value: float
    kl: float
    """KL of its last validation."""
    codes: Collection[str] = ()
    """Codes of its findings."""


def conservative_settings(space: Space, own: Settings, usual_rate: str, method: str) -> Settings:
    """The first values: beta 0.05, clip 0.2, a rate of 5e-6 for full weights, and for LoRA as much more as the recipe's
    range for it begins higher; the recipe's own for other keys; all within the space."""
    settings = {}
    for key, search_range in space.items():
        item = CONSERVATIVE.get(key, own[key])
        if key == RATE:
            full = usual_ends(usual_rate, "", "full")
            lora = usual_ends(usual_rate, "", "lora")
            scale = lora[0] / full[0] if method == "lora" and full and lora else 1.0
            item = FULL_RATE * scale
        settings[key] = search_range.clip(item)
    return settings


def next_settings(
    space: Space, trials: Sequence[RuleTrial], first: Settings, target: float, running: Sequence[Settings] = ()
) -> Settings:
    """The settings of the next trial; `trials[0]` has the recipe's own, the one after it the conservative ones. Other
    processes train those of `running`."""
    tried = [*(trial.settings for trial in trials), *running]
    if len(trials) < 2 and first not in tried:
        return dict(first)
    if not trials:
        return _around_best(space, [RuleTrial(first, 0.5, target)], tried)
    proposal = _follow(space, trials, target)
    return _around_best(space, trials, tried) if proposal in tried else proposal


def _follow(space: Space, trials: Sequence[RuleTrial], target: float) -> Settings:
    """The change that the last trial asks for; its own settings if it asks for none."""
    last = trials[-1]
    codes = set(last.codes)
    changed = dict(last.settings)
    far = last.kl > FAR * target or bool(codes & FAR_CODES)
    if far or codes & LARGE_STEP_CODES:
        very_far = last.kl > VERY_FAR * target
        if far:
            _scale_strength(space, changed, 4.0 if very_far else 2.0)
        if very_far or codes & LARGE_STEP_CODES:
            _scale(space, changed, RATE, 1 / 3)
    elif codes & REPETITIVE_CODES:
        _against_repetition(space, changed)
    elif last.kl < NEAR * target:
        before = dict(changed)
        _scale_strength(space, changed, 0.5)
        if changed == before or _weakened(trials):
            _scale(space, changed, RATE, 3.0)
    return changed


def _around_best(space: Space, trials: Sequence[RuleTrial], tried: Sequence[Settings]) -> Settings:
    """A neighbour of the best trial that has not been tried: each key up and down, by smaller steps in each round."""
    best = max(trials, key=lambda trial: trial.value).settings
    order = [RATE, *STRENGTHS, *space]
    keys = [key for key in dict.fromkeys(order) if key in space]
    for factor in (2.0, 1.5, 1.25, 3.0, 1.1):
        for key in keys:
            for power in (factor, 1 / factor):
                changed = dict(best)
                _scale(space, changed, key, power)
                if changed not in tried:
                    return changed
    return dict(best)


def _weakened(trials: Sequence[RuleTrial]) -> bool:
    """Whether the trial before the last had a stronger penalty, and the last one still moved little."""
    if len(trials) < 3:
        return False
    before, last = trials[-2].settings, trials[-1].settings
    return any(key in last and last[key] < before[key] for key in STRENGTHS)


def _against_repetition(space: Space, settings: Settings) -> None:
    for key, least in (
        ("policy.rewards.diversity_bonus", 0.1),
        ("policy.rewards.repetition_penalty", 0.2),
        ("policy.temperature", 0.0),
    ):
        if key in space:
            settings[key] = space[key].clip(max(settings[key] * 1.2, settings[key] + least))
            return
    _scale_strength(space, settings, 2.0)


def _scale_strength(space: Space, settings: Settings, factor: float) -> None:
    for key in STRENGTHS:
        if key in space:
            _scale(space, settings, key, factor)


def _scale(space: Mapping[str, SearchRange], settings: Settings, key: str, factor: float) -> None:
    """Multiply a value within its range; a choice moves to its neighbour."""
    search_range = space.get(key)
    if search_range is None:
        return
    item = settings[key]
    if search_range.choices:
        index = search_range.choices.index(item) + (1 if factor > 1 else -1)
        settings[key] = search_range.choices[min(max(index, 0), len(search_range.choices) - 1)]
        return
    moved = search_range.clip(item * factor)
    if moved == item and search_range.step:
        moved = search_range.clip(item + (search_range.step if factor > 1 else -search_range.step))
    settings[key] = moved
