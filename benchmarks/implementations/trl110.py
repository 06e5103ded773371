"""PPO by TRL 1.10; on a CPU its precision is always float32.

python -m benchmarks.implementations.trl110 WORKLOAD MODEL OUT
"""

import time
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from benchmarks.implementations import peers
from benchmarks.workload import EOS, PAD, BenchResult, Workload


def ppo(workload: Workload, model: str, folder: str) -> BenchResult:
    """One iteration: a rollout of all prompts and the epochs over it."""
    torch.manual_seed(0)
    words = AutoTokenizer.from_pretrained(model, padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32) for _ in range(2))
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32) for _ in range(2)
    )
    lora = workload.method == "lora"
    config = PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=workload.prompts,
        gradient_accumulation_steps=1,
        num_mini_batches=workload.prompts // workload.minibatch,
        num_ppo_epochs=workload.epochs,
        total_episodes=workload.prompts,
        response_length=workload.new_tokens[1],
        stop_token=None if workload.forced else "eos",
        temperature=0.7,
        num_sample_generations=0,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        learning_rate=3e-6,
        local_rollout_forward_batch_size=workload.prompts,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **workload.options.get("trl110", {}),
    )
    rows = workload.prompt_ids(len(words))
    peers.prescribe(policy, workload)
    trainer = PPOTrainer(
        config,
        words,
        policy,
        None if lora else reference,
        reward,
        Dataset.from_dict({"input_ids": rows}),
        value,
        eval_dataset=Dataset.from_dict({"input_ids": rows[:1]}),
        peft_config=LoraConfig(
            r=workload.rank, lora_alpha=2 * workload.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        if lora
        else None,
    )
    watch = Watch(trainer, workload)
    trainer.train()
    return watch.result(trainer)


class Watch:
    """Times the phases of an iteration by wrapping the functions that TRL calls."""

    def __init__(self, trainer: Any, workload: Workload) -> None:
        self.counts = {"answers": 0, "answer_tokens": 0, "updates": 0, "tokens_optimised": 0}
        self.times: dict[str, float] = {}
        self.logged: dict[str, float] = {}
        self._watch_generation(workload)
        self._watch_updates(trainer)
        log = trainer.log

        def noted(metrics: dict[str, float], *more: Any) -> None:
            self.times["end"] = time.perf_counter()
            self.logged = metrics
            log(metrics, *more)

        trainer.log = noted

    def _watch_generation(self, workload: Workload) -> None:
        generation = ppo_trainer.batch_generation

        def noted(model: Any, queries: torch.Tensor, *more: Any) -> Any:
            self.times["begin"] = time.perf_counter()
            outputs = generation(model, queries, *more)
            self.times["generated"] = time.perf_counter()
            answers = outputs[0][:, queries.shape[1] :]
            ended = (answers == EOS).int().argmax(1) + 1
            self.counts["answers"] += len(answers)
            self.counts["answer_tokens"] += answers.numel() if workload.forced else int(ended.sum())
            return outputs

        ppo_trainer.batch_generation = noted

    def _watch_updates(self, trainer: Any) -> None:
        accumulate = trainer.accelerator.accumulate
        forward = ppo_trainer.forward
        step = trainer.optimizer.step

        def accumulated(*models: Any) -> Any:
            self.times.setdefault("scored", time.perf_counter())
            return accumulate(*models)

        def passed(model: Any, ids: torch.Tensor, pad: int) -> Any:
            if torch.is_grad_enabled():
                self.counts["tokens_optimised"] += int((ids != PAD).sum())
            return forward(model, ids, pad)

        def stepped(*arguments: Any, **named: Any) -> Any:
            self.counts["updates"] += 1
            return step(*arguments, **named)

        trainer.accelerator.accumulate = accumulated
        ppo_trainer.forward = passed
        trainer.optimizer.step = stepped

    def result(self, trainer: Any) -> BenchResult:
        m = self.times
        phases = {
            "generate": m["generated"] - m["begin"],
            "score": m["scored"] - m["generated"],
            "optimise": m["end"] - m["scored"],
        }
        names = {
            "kl": "objective/kl",
            "ratio": "val/ratio",
            "policy_loss": "loss/policy_avg",
            "value_loss": "loss/value_avg",
        }
        return BenchResult(phases, self.counts, {name: float(self.logged[key]) for name, key in names.items()})


if __name__ == "__main__":
    peers.main({"ppo": ppo}, ("trl", "torch", "transformers"))
