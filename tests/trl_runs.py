"""Tiny runs of TRL's trainers in the environments that `make bench` makes, for tests of the doctor on their logs.

python tests/trl_runs.py TASK MODEL OUT PACKAGES   (PACKAGES: a site-packages folder with tensorboard, which those
environments lack)
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(sys.argv[4])
os.environ |= {
    "TENSORBOARD_LOGGING_DIR": f"{sys.argv[3]}/tensorboard",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.workload import spelled
from towpath.view.callback import DoctorCallback

MODEL = sys.argv[2]
OUT = sys.argv[3]
LENGTH = 12
SHARED: dict[str, Any] = {
    "output_dir": OUT,
    "report_to": ["tensorboard"],
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
}
LOOKS: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 4}


def words(side: str = "right") -> Any:
    return AutoTokenizer.from_pretrained(MODEL, padding_side=side)


def policy() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


def scorer() -> Any:
    return AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=1, dtype=torch.float32)


def prompt(row: int) -> list[int]:
    return [10 + (7 * row + k) % 400 for k in range(6)]


def texts(count: int, *names: str) -> Any:
    return Dataset.from_dict(
        {name: [spelled(prompt(row + 3 * index)) + " " for row in range(count)] for index, name in enumerate(names)}
    )


def data(*names: str) -> dict[str, Any]:
    rows = texts(16, *names)
    return {"train_dataset": rows, "eval_dataset": rows.select(range(8)), "processing_class": words()}


def grpo() -> Any:
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        **SHARED,
        max_steps=4,
        num_generations=4,
        max_completion_length=LENGTH,
        beta=0.05,
        num_iterations=2,
        epsilon_high=0.28,
    )

    def variety(completions: list[str], **_: Any) -> list[float]:
        return [float(len(set(text.split()))) for text in completions]

    return GRPOTrainer(policy(), variety, config, texts(16, "prompt"), processing_class=words("left"))


def dpo() -> Any:
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        policy(), policy(), DPOConfig(**SHARED, **LOOKS, beta=0.2), **data("prompt", "chosen", "rejected")
    )


def sft() -> Any:
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(policy(), SFTConfig(**SHARED, **LOOKS), **data("text"))


def reward() -> Any:
    from trl import RewardConfig, RewardTrainer

    return RewardTrainer(scorer(), RewardConfig(**SHARED, **LOOKS), **data("chosen", "rejected"))


def ppo() -> Any:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    config = PPOConfig(
        **SHARED,
        num_mini_batches=2,
        num_ppo_epochs=2,
        total_episodes=32,
        response_length=LENGTH,
        stop_token="eos",
        num_sample_generations=0,
        local_rollout_forward_batch_size=8,
        kl_coef=0.07,
    )
    rows = Dataset.from_dict({"input_ids": [prompt(row) for row in range(16)]})
    return PPOTrainer(
        config, words("left"), policy(), policy(), scorer(), rows, scorer(), eval_dataset=rows.select(range(2))
    )


def main() -> None:
    """Train; write the trainer's state, event files and the results of the callback."""
    torch.set_num_threads(1)
    trainer = {"grpo": grpo, "dpo": dpo, "sft": sft, "reward": reward, "ppo": ppo}[sys.argv[1]]()
    lines: list[str] = []
    doctor = DoctorCallback(say=lines.append, share=1.0)
    trainer.add_callback(doctor)
    trainer.train()
    trainer.save_state()
    summary = {
        "lines": lines,
        "diagnoses": doctor.diagnoses,
        "seconds": doctor.seconds,
        "missing_signals": doctor.missing_signals,
        "facts": dict(doctor.log.history.facts) if doctor.log else {},
    }
    (Path(OUT) / "report.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    main()
