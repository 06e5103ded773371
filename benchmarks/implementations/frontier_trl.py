"""One point of the frontier by TRL: PPO in the environment of TRL 1.10, GRPO in that of the current one, with the
frontier's numbers.

python -m benchmarks.implementations.frontier_trl TOLD.json, whose keys are those of `Asked`; leaves a model in
`folder`
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
class Asked:
    """What is to be trained, and how."""

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


def gold(asked: Asked, answers: list[str]) -> list[float]:
    """The known reward: the sum of what the signs of an answer are worth, near unit scale."""
    return [sum(asked.worth[ord(sign) % len(asked.worth)] for sign in answer) / asked.tokens**0.5 for answer in answers]


def shared(asked: Asked) -> dict[str, Any]:
    return {
        "output_dir": asked.folder,
        "learning_rate": asked.rate,
        "lr_scheduler_type": "linear",
        "report_to": "none",
        "bf16": False,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": asked.seed,
        "temperature": 1.0,
        "gradient_accumulation_steps": 1,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "adam_epsilon": 1e-5,
        "logging_steps": 100,
    }


def grpo(asked: Asked, words: Any, policy: Any) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    parts = 2
    config = GRPOConfig(
        **shared(asked),
        num_generations=asked.group,
        max_completion_length=asked.tokens,
        beta=asked.strength,
        num_iterations=asked.epochs,
        per_device_train_batch_size=asked.rollout // parts,
        steps_per_generation=parts,
        max_steps=asked.steps * parts * asked.epochs,
    )
    rows = Dataset.from_dict({"prompt": [words.decode(ids) for ids in asked.prompts]})
    return GRPOTrainer(policy, lambda completions, **_: gold(asked, completions), config, rows, processing_class=words)


def ppo(asked: Asked, words: Any, policy: Any) -> Any:
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    reference = AutoModelForCausalLM.from_pretrained(asked.start, dtype=torch.float32)
    judge, value = (
        AutoModelForSequenceClassification.from_pretrained(asked.start, num_labels=1, dtype=torch.float32)
        for _ in range(2)
    )
    torch.nn.init.zeros_(value.score.weight)
    config = PPOConfig(
        **shared(asked),
        per_device_train_batch_size=asked.rollout,
        num_mini_batches=2,
        num_ppo_epochs=asked.epochs,
        total_episodes=asked.steps * asked.rollout,
        response_length=asked.tokens,
        stop_token="eos",
        num_sample_generations=0,
        local_rollout_forward_batch_size=asked.rollout,
        kl_coef=asked.strength,
    )
    read = ppo_trainer.get_reward

    def known(model: Any, ids: torch.Tensor, pad: int, context: int) -> Any:
        if model is not judge:
            return read(model, ids, pad, context)
        return None, torch.tensor(gold(asked, words.batch_decode(ids[:, context:], skip_special_tokens=True))), None

    ppo_trainer.get_reward = known
    return PPOTrainer(
        config,
        words,
        policy,
        reference,
        judge,
        Dataset.from_dict({"input_ids": asked.prompts}),
        value,
        eval_dataset=Dataset.from_dict({"input_ids": asked.prompts[:1]}),
    )


def main() -> None:
    """Train, and leave the model as transformers does."""
    asked = Asked(**json.loads(Path(sys.argv[1]).read_text()))
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    words = AutoTokenizer.from_pretrained(asked.start, padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(asked.start, dtype=torch.float32)
    trainer = {"ppo": ppo, "grpo": grpo}[asked.algo](asked, words, policy)
    trainer.train()
    policy.save_pretrained(asked.folder)
    words.save_pretrained(asked.folder)


if __name__ == "__main__":
    main()
