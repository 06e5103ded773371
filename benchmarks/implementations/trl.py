"""GRPO, SFT, DPO and the reward model by the current TRL; `@packing` packs the rows of SFT as TRL does.

python -m benchmarks.implementations.trl WORKLOAD MODEL OUT
"""

import os
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from benchmarks.implementations import peers
from benchmarks.workload import BenchResult, Workload, spelled


def shared(workload: Workload, folder: str, rate: float) -> dict[str, Any]:
    """Settings of every trainer, overridden by the workload's options."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": workload.minibatch,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
        "bf16": workload.precision == "bfloat16",
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "learning_rate": rate,
        "disable_tqdm": True,
        "logging_steps": 1,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_num_workers": 0,
    } | workload.options.get("trl", {})


def plain(model: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def last(trainer: Any) -> dict[str, float]:
    """Loss and gradient norm of the last step."""
    row = next(line for line in reversed(trainer.state.log_history) if "loss" in line)
    return {key: float(row[key]) for key in ("loss", "grad_norm") if key in row}


def grpo(workload: Workload, model: str, folder: str) -> BenchResult:
    """One iteration over all prompts."""
    words = AutoTokenizer.from_pretrained(model, padding_side="left")
    policy = plain(model)
    parts = workload.prompts * workload.group // workload.minibatch
    config = GRPOConfig(
        **shared(workload, folder, 3e-6),
        num_generations=workload.group,
        max_completion_length=workload.new_tokens[1],
        temperature=0.7,
        beta=0.05,
        steps_per_generation=parts,
        num_iterations=workload.epochs,
        max_steps=workload.epochs * parts,
    )
    peers.prescribe(policy, workload)
    rows = Dataset.from_dict({"prompt": [spelled(ids) for ids in workload.prompt_ids(len(words))]})
    trainer = GRPOTrainer(
        policy,
        lambda completions, **_: [float(len(set(c.split()))) for c in completions],
        config,
        rows,
        processing_class=words,
    )
    counting = peers.Counting(trainer.model)
    seconds = {}
    answers = {"answers": 0, "answer_tokens": 0}
    single = trainer._generate_single_turn

    def noted(*arguments: Any, **named: Any) -> Any:
        turn = single(*arguments, **named)
        answers["answers"] += len(turn[0])
        answers["answer_tokens"] += sum(len(ids) for ids in turn[0])
        return turn

    trainer._generate_single_turn = noted
    peers.timed(trainer, "_generate", seconds, "generate")
    peers.timed(trainer, "_generate_and_score_completions", seconds, "both")
    trainer.add_callback(counting)
    trainer.train()
    phases = {
        "generate": seconds["generate"],
        "score": seconds["both"] - seconds["generate"],
        "optimise": counting.seconds - seconds["both"],
    }
    return BenchResult(phases, {**counting.counts, **answers}, last(trainer))


def _trained(trainer: Any) -> BenchResult:
    counting = peers.Counting(trainer.model)
    trainer.add_callback(counting)
    trainer.train()
    return BenchResult({"optimise": counting.seconds}, dict(counting.counts), last(trainer))


def sft(workload: Workload, model: str, folder: str) -> BenchResult:
    """Fine-tuning on answers."""
    words = AutoTokenizer.from_pretrained(model)
    pairs = workload.rows(len(words))
    rows = [{"prompt": spelled(prompt) + " ", "completion": spelled(answer)} for prompt, (answer,) in pairs]
    more: dict[str, Any] = {"max_length": 1024}
    # rows are concatenated and cut into full lines: two lines per step, and the same number of steps
    if os.environ.get("BENCH_HOW") == "packing":
        steps = workload.prompts // workload.minibatch
        length = -(-sum(len(prompt) + len(answer) for prompt, (answer,) in pairs) // (2 * steps))
        more = {"max_length": length, "packing": True, "packing_strategy": "wrapped", "per_device_train_batch_size": 2}
    return _trained(
        SFTTrainer(
            plain(model),
            SFTConfig(**shared(workload, folder, 5e-5) | more),
            train_dataset=Dataset.from_list(rows),
            processing_class=words,
        )
    )


def _pairs(workload: Workload, words: Any) -> list[tuple[str, str, str]]:
    return [
        (spelled(prompt) + " ", spelled(chosen), spelled(rejected))
        for prompt, (chosen, rejected) in workload.rows(len(words), 2)
    ]


def dpo(workload: Workload, model: str, folder: str) -> BenchResult:
    """DPO including the reference pass."""
    words = AutoTokenizer.from_pretrained(model)
    rows = [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        for prompt, chosen, rejected in _pairs(workload, words)
    ]
    config = DPOConfig(**shared(workload, folder, 3e-6), max_length=1024)
    return _trained(
        DPOTrainer(plain(model), plain(model), config, train_dataset=Dataset.from_list(rows), processing_class=words)
    )


def reward(workload: Workload, model: str, folder: str) -> BenchResult:
    """The reward model."""
    words = AutoTokenizer.from_pretrained(model)
    rows = [
        {"chosen": prompt + chosen, "rejected": prompt + rejected}
        for prompt, chosen, rejected in _pairs(workload, words)
    ]
    judge = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    config = RewardConfig(**shared(workload, folder, 5e-5), max_length=1024)
    return _trained(RewardTrainer(judge, config, train_dataset=Dataset.from_list(rows), processing_class=words))


if __name__ == "__main__":
    peers.main({"grpo": grpo, "sft": sft, "dpo": dpo, "reward": reward}, ("trl", "torch", "transformers"))
