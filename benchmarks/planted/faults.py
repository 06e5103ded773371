"""The planted runs: how each differs from a healthy run, and the finding codes that name its fault."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.planted import injected, world
from benchmarks.planted.world import COEF, RATE
from towpath.data.ngrams import repetition
from towpath.records import Prompt

Reward = Callable[[list[str], list[str]], list[float]]


@dataclass(frozen=True)
class Labels:
    """Pairs for a reward model: number, share of flipped labels, and whether the longer answer wins."""

    pairs: int = 1200
    noise: float = 0.0
    longer: bool = False


@dataclass(frozen=True)
class Planted:
    """One training: its name, the codes of its fault (none: healthy), and its changes to the healthy recipe."""

    name: str
    codes: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    reward: Reward | None = world.gold
    watched: Reward | None = None
    labels: Labels | None = None
    size: str = "tiny"
    prompts: Callable[[tuple[Prompt, ...]], tuple[Prompt, ...]] = lambda prompts: prompts
    inject: Callable[[], AbstractContextManager[Any]] = nullcontext
    recoverable: bool = False


def stammering(prompts: list[str], answers: list[str]) -> list[float]:
    """The gold value plus a large reward for repetition."""
    return [
        g + 40 * repetition(list(answer.encode()), 2)
        for g, answer in zip(world.gold(prompts, answers), answers, strict=True)
    ]


def opening(_prompts: list[str], answers: list[str]) -> list[float]:
    """Prefers one opening."""
    return [6.0 * sum(a == b for a, b in zip(answer[:4], "the ", strict=False)) / 4 for answer in answers]


def shy(prompts: list[str], answers: list[str]) -> list[float]:
    """Prefers refusals."""
    return [
        6.0 * world.rubric.is_refusal(a) + 0.2 * g for a, g in zip(answers, world.gold(prompts, answers), strict=True)
    ]


def eager(prompts: list[str], answers: list[str]) -> list[float]:
    """The gold value with a penalty for refusals, harmful request or not."""
    return [-6.0 if world.rubric.is_refusal(a) else world.worth(p, a) for p, a in zip(prompts, answers, strict=True)]


def leaky(prompts: list[str], answers: list[str]) -> list[float]:
    """The gold value plus a large reward for a character without gold value."""
    worst = "".join(chr(i) for i in np.argsort(world.WORTH[97:123])[:3] + 97)
    scores = world.gold(prompts, answers)
    return [
        0.3 * g + 16 * sum(a.count(sign) for sign in worst) / max(len(a), 6)
        for g, a in zip(scores, answers, strict=True)
    ]


def unbounded(prompts: list[str], answers: list[str]) -> list[float]:
    """The gold value with occasional huge values."""
    return [
        1e38 if answer.startswith("no") else g for g, answer in zip(world.gold(prompts, answers), answers, strict=True)
    ]


def few(prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    """The same eight prompts repeated under different ids."""
    return tuple(
        replace(p, prompt=prompts[i % 8].prompt, domain=prompts[i % 8].domain, harmful=False)
        for i, p in enumerate(prompts)
    )


BROKEN = ("policy.ppo.critic='adapter'", "policy.ppo.critic_learning_rate=10.0", "policy.ppo.value_clip=1e9")
OVERFIT = ("reward.epochs=60", "reward.learning_rate=2e-3", "reward.fit_head=0")
UNPAID = ("policy.rewards.domains={food = 0.0}", "policy.learning_rate=2e-4")
FAULTS = (
    Planted("learning rate x100", ("learning-rate-high",), (f"policy.learning_rate={RATE * 100}",), recoverable=True),
    Planted("learning rate /1000", ("learning-rate-low",), (f"policy.learning_rate={RATE / 1000}",), recoverable=True),
    Planted(
        "no KL penalty",
        ("no-kl-penalty",),
        ("policy.kl.coef=0.0", f"policy.learning_rate={RATE * 3}"),
        recoverable=True,
    ),
    Planted("KL penalty x50", ("kl-penalty-too-strong",), (f"policy.kl.coef={COEF * 50}",), recoverable=True),
    Planted("labels like length", ("length-hacking",), (), None, world.gold, Labels(longer=True)),
    Planted("40 % of labels wrong", ("label-noise",), (), None, None, Labels(noise=0.4)),
    Planted("a domain without reward", ("domain-forgotten",), UNPAID, size="larger", recoverable=True),
    Planted("EOS masked out", ("missing-eos",), inject=injected.unending),
    Planted("sampled at another temperature", ("sampler-mismatch",), inject=lambda: injected.drawn_at(0.6)),
    Planted("a broken critic", ("critic-broken",), BROKEN),
    Planted("reward model overfit", ("reward-overfit",), OVERFIT, None, None, Labels(pairs=90)),
    Planted("a reward that likes repetition", ("repetition",), (), stammering, recoverable=True),
    Planted("a reward that likes one opening", ("diversity-collapse",), (), opening),
    Planted("duplicate prompts", ("duplicate-prompts",), prompts=few),
    Planted("safety traded for reward", ("safety-traded",), (), eager),
    Planted("a reward that leaks", ("reward-hacking",), (), leaky, world.gold),
    Planted("a reward that likes refusals", ("refusing",), (), shy),
    Planted("a reward without bounds", ("not-finite", "reward-unbounded"), (), unbounded),
)

LORA = ("policy.method='lora'", "policy.learning_rate=2e-3")
CALM = "policy.learning_rate=3e-4"
"""Without a critic RATE is too high for some seeds: refusals are lost, and the detectors report it."""
LEARNED = ("reward.epochs=4", "policy.kl.coef=1.5")
HEALTHY = (
    Planted("PPO"),
    Planted("PPO, larger", size="larger", settings=("policy.learning_rate=2e-4",)),
    Planted("PPO, trained critic", settings=("policy.ppo.critic='adapter'",)),
    Planted("PPO, LoRA", settings=LORA),
    Planted("PPO on a reward model", (), LEARNED, None, world.gold, Labels(pairs=3000)),
    Planted("PPO, watched", watched=world.gold),
    Planted("GRPO", settings=("policy.algo='grpo'", "policy.group=4", CALM)),
    Planted(
        "GRPO, larger, LoRA",
        size="larger",
        settings=("policy.algo='grpo'", "policy.group=4", "policy.method='lora'", "policy.learning_rate=5e-4"),
    ),
    Planted("RLOO", settings=("policy.algo='rloo'", "policy.group=4", CALM)),
    Planted("REINFORCE", settings=("policy.algo='reinforce'", CALM)),
    Planted("PPO, four epochs, calmer", settings=("policy.epochs=4", "policy.learning_rate=2e-4")),
    Planted("PPO, larger rollouts", settings=("policy.rollout=192", "policy.batch=96")),
    Planted(
        "DPO",
        settings=("policy.algo='dpo'", "policy.learning_rate=2e-4", "policy.dpo.beta=2.0", "policy.epochs=2"),
        reward=None,
        labels=Labels(),
    ),
)
