"""One point of benchmarks.frontier with TRL: PPO in the environment of TRL 1.10, GRPO in that of the current one.

python -m benchmarks.implementations.frontier_trl SETTINGS.json   (keys as in `TrainSettings`; writes the model to
`folder`)
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer


@dataclass(frozen=True)
class TrainSettings:
    """Algorithm, start model and hyper-parameters."""

    algo: str
    start: str
    folder: str
    strength: float
    rate: float
    seed: int
    steps: int
    epochs: int
    rollout: int
    group: int
    tokens: int
    prompts: list[list[int]]
    worth: list[float]


def gold(settings: TrainSettings, answers: list[str]) -> list[float]:
    """The gold reward: the sum of the values of an answer's characters, scaled to about unit variance."""
    return [
        sum(settings.worth[ord(sign) % len(settings.worth)] for sign in answer) / settings.tokens**0.5
        for answer in answers
    ]


def shared(settings: TrainSettings) -> dict[str, Any]:
    return {
        "output_dir": settings.folder,
        "learning_rate": settings.rate,
        "lr_scheduler_type": "linear",
        "report_to": "none",
        "bf16": False,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": settings.seed,
        "temperature": 1.0,
        "gradient_accumulation_steps": 1,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "adam_epsilon": 1e-5,
        "logging_steps": 100,
    }


def grpo(settings: TrainSettings, words: Any, policy: Any) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    parts = 2
    config = GRPOConfig(
        **shared(settings),
        num_generations=settings.group,
        max_completion_length=settings.tokens,
        beta=settings.strength,
        num_iterations=settings.epochs,
        per_device_train_batch_size=settings.rollout // parts,
        steps_per_generation=parts,
        max_steps=settings.steps * parts * settings.epochs,
    )
    rows = Dataset.from_dict({"prompt": [words.decode(ids) for ids in settings.prompts]})
    return GRPOTrainer(
        policy, lambda completions, **_: gold(settings, completions), config, rows, processing_class=words
    )


def ppo(settings: TrainSettings, words: Any, policy: Any) -> Any:
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    reference = AutoModelForCausalLM.from_pretrained(settings.start, dtype=torch.float32)
    judge, value = (
        AutoModelForSequenceClassification.from_pretrained(settings.start, num_labels=1, dtype=torch.float32)
        for _ in range(2)
    )
    torch.nn.init.zeros_(value.score.weight)
    config = PPOConfig(
        **shared(settings),
        per_device_train_batch_size=settings.rollout,
        num_mini_batches=2,
        num_ppo_epochs=settings.epochs,
        total_episodes=settings.steps * settings.rollout,
        response_length=settings.tokens,
        stop_token="eos",
        num_sample_generations=0,
        local_rollout_forward_batch_size=settings.rollout,
        kl_coef=settings.strength,
    )
    read = ppo_trainer.get_reward

    def known(model: Any, ids: torch.Tensor, pad: int, context: int) -> Any:
        if model is not judge:
            return read(model, ids, pad, context)
        return None, torch.tensor(gold(settings, words.batch_decode(ids[:, context:], skip_special_tokens=True))), None

    ppo_trainer.get_reward = known
    return PPOTrainer(
        config,
        words,
        policy,
        reference,
        judge,
        Dataset.from_dict({"input_ids": settings.prompts}),
        value,
        eval_dataset=Dataset.from_dict({"input_ids": settings.prompts[:1]}),
    )


def main() -> None:
    """Train and save the model."""
    settings = TrainSettings(**json.loads(Path(sys.argv[1]).read_text()))
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    words = AutoTokenizer.from_pretrained(settings.start, padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(settings.start, dtype=torch.float32)
    trainer = {"ppo": ppo, "grpo": grpo}[settings.algo](settings, words, policy)
    trainer.train()
    policy.save_pretrained(settings.folder)
    words.save_pretrained(settings.folder)


if __name__ == "__main__":
    main()
