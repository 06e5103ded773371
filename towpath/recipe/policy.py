"""`[policy]`: policy optimization."""

from typing import Any

from towpath.recipe.algorithms import Dpo, Grpo, Ipo, Kto, Orpo, Ppo, Reinforce, Rloo
from towpath.recipe.model import Lora, Method, Schedule
from towpath.recipe.reader import Section, value
from towpath.recipe.rewards import Rewards

ALGORITHM_DEFAULTS: dict[str, dict[str, Any]] = {
    "grpo": {"group": 4, "epochs": 1},
    "rloo": {"group": 4, "epochs": 1},
    "reinforce": {"epochs": 1},
}
"""Keys of `policy` with another default for an algorithm, as measured by benchmarks/frontier.py."""


class Kl(Section):
    """Distance from the reference model."""

    coef: float = value(0.05, "initial coefficient of the per-token KL penalty", "0.01-0.1", ge=0)
    target: float = value(0.5, "KL per prompt that the controller aims at, in nats; 0 turns it off", "0.1-1.0", ge=0)
    step: float = value(
        0.1, "largest relative change of the coefficient in one step", "0.05-0.2", "Ziegler's controller", ge=0
    )
    alarm: float = value(2.0, "KL per prompt that raises a finding; later checkpoints are not chosen", "2", gt=0)
    stop: float = value(4.0, "KL per prompt that ends training", "4-10", gt=0)


class Policy(Section):
    """Policy optimization."""

    algo: str = value("ppo", "ppo, grpo, rloo, reinforce, dpo, ipo, kto, orpo, or an import path of your own algorithm")
    settings: dict[str, Any] = value({}, "settings of your own algorithm", why="see docs/extending.md")
    method: Method = value("lora", "LoRA with all roles on one model, or full weights with separate copies")
    steps: int = value(12, "rollout batches", ge=1)
    rollout: int = value(64, "completions in one rollout batch", "512-2048; fewer on a CPU", ge=1)
    group: int = value(
        1,
        "completions of each prompt in a rollout batch; 4 by default with grpo and rloo",
        "1 for PPO, 4-16 for grpo and rloo",
        "the group is the baseline",
        ge=1,
    )
    batch: int = value(32, "completions in one optimizer step", "32-128", ge=1)
    epochs: int = value(
        4,
        "passes over each rollout batch; 1 by default with grpo, rloo and reinforce",
        "4-16 for PPO, 1-2 for grpo, rloo and reinforce",
        "without a critic gradients are noisy, and more passes only add KL",
        ge=1,
    )
    learning_rate: float = value(
        2e-5,
        "peak learning rate",
        "1e-6-5e-6 full, 5e-6-1e-4 with LoRA",
        "10-40x below SFT: the policy generates its own data, and errors compound",
        gt=0,
    )
    schedule: Schedule = value("linear", "decay of the learning rate: linear or cosine to zero, or constant")
    max_grad_norm: float = value(1.0, "gradient clipping", "0.5-1", gt=0)
    temperature: float = value(1.0, "sampling temperature of rollouts; divides the logits everywhere", "0.7-1", gt=0)
    max_new_tokens: int = value(80, "longest answer in tokens", ge=1)
    staleness: int = value(
        0,
        "1 samples each rollout before the optimizer steps on the one before it: at the same time, where "
        "cluster.sample_workers sets workers apart",
        "0",
        "with 1, rollouts are one update older than the policy; engine.correction weighs their tokens",
        ge=0,
        le=1,
    )
    validate_every: int = value(4, "steps between two validations", ge=1)
    validation_prompts: int = value(48, "training prompts held out to choose the checkpoint", "32-256", ge=4)
    kl: Kl = value(Kl(), "distance from the tuned model")
    rewards: Rewards = value(Rewards(), "what completions are rewarded for")
    ppo: Ppo = value(Ppo(), "PPO only")
    grpo: Grpo = value(Grpo(), "GRPO only")
    rloo: Rloo = value(Rloo(), "RLOO only")
    reinforce: Reinforce = value(Reinforce(), "REINFORCE only")
    dpo: Dpo = value(Dpo(), "DPO only")
    ipo: Ipo = value(Ipo(), "IPO only")
    kto: Kto = value(Kto(), "KTO only")
    orpo: Orpo = value(Orpo(), "ORPO only")
    lora: Lora = value(Lora(), "LoRA of this stage")
