"""`[policy.ppo]`, `[policy.grpo]`, ...: settings of one algorithm each."""

from typing import Literal

from towpath.recipe.reader import Section, value


class Ppo(Section):
    """PPO with a critic."""

    clip: float = value(0.2, "clip range of the probability ratio", "0.1-0.3", gt=0)
    value_clip: float = value(0.2, "clip range of a value's change, for a trained critic", "0.2-0.5", gt=0)
    value_weight: float = value(0.1, "weight of the value loss, for a trained critic", "0.1-1", ge=0)
    gamma: float = value(1.0, "discount", "1", gt=0, le=1)
    lam: float = value(0.95, "lambda of generalised advantage estimation", "0.9-1", ge=0, le=1)
    whiten_rewards: bool = value(False, "scale rewards to unit variance, keeping their mean")
    whiten_advantages: bool = value(True, "normalise advantages to mean 0 and variance 1")
    critic: Literal["head", "adapter"] = value(
        "head",
        "head: a closed-form linear head on the reward model's frozen features; adapter: a trained copy of the reward "
        "model",
        why="both start from the reward model; the head needs no learning rate and no extra pass",
    )
    critic_decay: float = value(
        0.95,
        "weight of a rollout in the fit of the closed-form head, relative to the next one",
        "0.8-1",
        "old rollouts come from an older policy",
        ge=0,
        le=1,
    )
    critic_learning_rate: float = value(1e-3, "learning rate of a trained critic (`adapter`)", gt=0)
    critic_warmup: int = value(1, "steps in which only the critic learns", "0-10", ge=0)


class Grpo(Section):
    """GRPO, with the options of Dr. GRPO and DAPO."""

    clip_low: float = value(0.2, "the ratio is clipped at 1 minus this", "0.1-0.3", gt=0, lt=1)
    clip_high: float = value(
        0.2, "the ratio is clipped at 1 plus this", "0.2-0.3", "DAPO uses 0.28: room for unlikely tokens to rise", gt=0
    )
    scale: Literal["group", "batch", "none"] = value(
        "batch",
        "divide advantages by the standard deviation of their group, of the rollout, or not at all",
        why="none is Dr. GRPO: hard and easy prompts weigh the same",
    )
    average: Literal["answer", "token", "constant"] = value(
        "token",
        "mean over answers, over all tokens (DAPO), or sum over the longest length (Dr. GRPO)",
        why="averaging by answer penalises each token of long answers less",
    )
    kl: Literal["reward", "loss"] = value(
        "reward",
        "KL penalty in the reward, or k3 per token as a loss (as published)",
        why="as a loss it ignores the KL of the tokens that follow",
    )


class Rloo(Section):
    """RLOO."""

    clip: float = value(
        0.2, "clip range of the probability ratio", "0.1-0.3", "acts from the second minibatch on", gt=0
    )


class Reinforce(Section):
    """REINFORCE with a batch baseline."""

    clip: float = value(
        0.2, "clip range of the probability ratio", "0.1-0.3", "acts from the second minibatch on", gt=0
    )
    whiten: bool = value(True, "normalise advantages to unit variance")


class Dpo(Section):
    """DPO."""

    beta: float = value(0.1, "strength of the implicit KL penalty", "0.01-0.5", gt=0)
    label_smoothing: float = value(0.0, "probability that a label is wrong", "0-0.1", "label noise", ge=0, lt=0.5)


class Ipo(Section):
    """IPO."""

    tau: float = value(0.1, "regularisation: the target of the margin is 1 / (2 tau)", "0.05-1", gt=0)
    per_token: bool = value(
        True, "log-ratios as means over tokens, not sums", why="with sums the target depends on length"
    )


class Kto(Section):
    """KTO."""

    beta: float = value(0.1, "strength of the implicit KL penalty", "0.01-0.5", gt=0)
    desirable: float = value(1.0, "loss weight of desirable answers", "1-1.33", gt=0)
    undesirable: float = value(1.0, "loss weight of undesirable answers", "1-1.33", gt=0)


class Orpo(Section):
    """ORPO."""

    weight: float = value(
        0.1, "weight of the odds-ratio term beside the likelihood of the chosen answer", "0.1-1", gt=0
    )
