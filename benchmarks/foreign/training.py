"""Record the logs in an environment with TRL: 1.16 for all but PPO, 1.10 for PPO. Existing logs are not recorded again.

OMP_NUM_THREADS=1 PYTHONPATH=. .bench/trl/bin/python -m benchmarks.foreign.training --out .bench/foreign
OMP_NUM_THREADS=1 PYTHONPATH=. .bench/trl110/bin/python -m benchmarks.foreign.training --out .bench/foreign --trainer
ppo
"""

import argparse
import json
import os
import random
import time
import traceback
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}

import datasets
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from benchmarks.foreign import world
from benchmarks.foreign.runs import RUNS, VARIANTS, Run, slug

Options = dict[str, Any]


def shared(options: Options, out: Path) -> Options:
    """Arguments of every trainer."""
    arguments: Options = {
        "output_dir": str(out),
        "report_to": [],
        "logging_steps": options.get("logging", 1),
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "learning_rate": options["rate"],
        "max_steps": options["steps"],
        "seed": options["seed"],
        "per_device_train_batch_size": options.get("batch", 16),
        "per_device_eval_batch_size": 32,
        "gradient_checkpointing": False,
        "lr_scheduler_type": options.get("schedule", "linear"),
        "max_grad_norm": options.get("clip", 1.0),
        "optim": options.get("optim", "adamw_torch"),
    }
    every = options.get("eval")
    if every:
        arguments |= {"eval_strategy": "epoch"} if every == "epoch" else {"eval_strategy": "steps", "eval_steps": every}
    return arguments


class Bench:
    """Models, data and trainers of one environment."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.words = world.tokenizer(out / "models" / "tokenizer")

    def policy(self, options: Options, base: str = "taught") -> Any:
        kind = options.get("base", base)
        if kind == "random":  # from a folder, since GRPO loads its reference by path
            folder = self.out / "models" / f"random-{options['size']}-{options['seed']}"
            world.fresh(self.words, options["size"], options["seed"]).save_pretrained(folder)
            return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        folder = world.taught(self.words, options["size"], kind, self.out / "models")
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def scorer(self, options: Options) -> Any:
        folder = world.taught(self.words, options["size"], "taught", self.out / "models")
        torch.manual_seed(options["seed"])
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)

    def sft(self, options: Options, arguments: Options) -> Any:
        from trl import SFTConfig, SFTTrainer

        data = options.get("data", "answers")
        rows = options.get("rows", 1500)
        train = Dataset.from_list(world.demonstrations(rows, options["seed"], data))
        held = Dataset.from_list(world.demonstrations(64, 1000 + options["seed"], data))
        model = self.policy(options, "random")
        more = {"eval_dataset": held} if options.get("eval") else {}
        return SFTTrainer(model, SFTConfig(**arguments), train_dataset=train, processing_class=self.words, **more)

    def trainer(self, options: Options, arguments: Options) -> Any:
        def encoded(rows: int, seed: int) -> Dataset:
            texts = [row["prompt"] + row["completion"] + "<eos>" for row in world.demonstrations(rows, seed)]
            tokens = self.words(texts, padding="max_length", truncation=True, max_length=48)
            labels = [
                [t if m else -100 for t, m in zip(*pair, strict=True)]
                for pair in zip(tokens["input_ids"], tokens["attention_mask"], strict=True)
            ]
            return Dataset.from_dict(
                {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"], "labels": labels}
            )

        train = encoded(options["rows"], options["seed"])
        held = encoded(64, 1000 + options["seed"])
        return Trainer(
            self.policy(options, "random"), TrainingArguments(**arguments), train_dataset=train, eval_dataset=held
        )

    def _pairs(self, options: Options) -> Options:
        train = Dataset.from_list(world.pairs(options.get("rows", 1000), options["seed"], options.get("swap", 0.0)))
        held = Dataset.from_list(world.pairs(128, 1000 + options["seed"]))
        return {"train_dataset": train, "processing_class": self.words} | (
            {"eval_dataset": held} if options.get("eval") else {}
        )

    def dpo(self, options: Options, arguments: Options) -> Any:
        from trl import DPOConfig, DPOTrainer

        config = DPOConfig(**arguments, beta=options.get("beta", 0.1))
        return DPOTrainer(self.policy(options), self.policy(options), config, **self._pairs(options))

    def reward(self, options: Options, arguments: Options) -> Any:
        from trl import RewardConfig, RewardTrainer

        return RewardTrainer(self.scorer(options), RewardConfig(**arguments), **self._pairs(options))

    def grpo(self, options: Options, arguments: Options) -> Any:
        from trl import GRPOConfig, GRPOTrainer

        draws = random.Random(options["seed"])
        rows = Dataset.from_list([{"prompt": world.request(draws)[0]} for _ in range(600)])
        limit = options.get("limit", 32)
        arguments["per_device_train_batch_size"] = options.get("batch", 32)
        config = GRPOConfig(**arguments, num_generations=8, max_completion_length=limit, beta=options.get("beta", 0.0))
        return GRPOTrainer(
            self.policy(options),
            rewards(options.get("reward", "polite"), limit, draws),
            config,
            rows,
            processing_class=self.words,
        )

    def ppo(self, options: Options, arguments: Options) -> Any:
        from trl.experimental.ppo import PPOConfig, PPOTrainer

        del arguments["max_steps"]
        config = PPOConfig(
            **arguments | {"per_device_train_batch_size": 32},
            num_mini_batches=2,
            num_ppo_epochs=2,
            total_episodes=32 * options["steps"],
            response_length=24,
            stop_token="eos",
            num_sample_generations=0,
            local_rollout_forward_batch_size=32,
            kl_coef=options.get("beta", 0.05),
            missing_eos_penalty=1.0,
        )
        self.words.padding_side = "left"
        draws = random.Random(options["seed"])
        rows = Dataset.from_dict({"input_ids": [self.words(world.request(draws)[0])["input_ids"] for _ in range(600)]})
        judge = self.judge(options)
        value = self.scorer(options)
        return PPOTrainer(
            config,
            self.words,
            self.policy(options),
            self.policy(options),
            judge,
            rows,
            value,
            eval_dataset=rows.select(range(2)),
        )

    def judge(self, options: Options) -> Any:
        """A reward model for PPO: trained on pairs, or with a random head as noise."""
        model = self.scorer(options)
        if options.get("reward") == "noise":
            return model
        folder = self.out / "models" / f"judge-{options['size']}"
        if not (folder / "config.json").is_file():
            optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
            rows = world.pairs(2000, 77)
            draws = random.Random(5)
            for _ in range(200):
                some = draws.sample(rows, 16)
                scores = [
                    self._scores(model, [row["prompt"] + row[side] + "<eos>" for row in some])
                    for side in ("chosen", "rejected")
                ]
                loss = (
                    -torch.nn.functional.logsigmoid(scores[0] - scores[1]).mean()
                    + 0.01 * (scores[0] + scores[1]).square().mean()
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            print(f"{folder.name}: loss {loss.item():.2f}", flush=True)
            model.save_pretrained(folder)
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)

    def _scores(self, model: Any, texts: list[str]) -> torch.Tensor:
        batch = self.words(texts, padding=True, return_tensors="pt", padding_side="right")
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]


def rewards(kind: str, limit: int, draws: random.Random) -> Any:
    """A reward function of GRPO."""

    def polite(text: str) -> float:
        return float("Thank you" in text or "Please" in text) + 0.5 * float("likes" in text)

    score = {
        "polite": lambda text, tokens: polite(text),
        "polite, ended": lambda text, tokens: polite(text) * (tokens < limit),
        "polite+length": lambda text, tokens: polite(text) + 2.0 * tokens / limit,
        "length": lambda text, tokens: tokens / limit,
        "constant": lambda text, tokens: 1.0,
        "easy": lambda text, tokens: float("Thank you" in text) * (tokens < limit),
        "letter": lambda text, tokens: text.lower().count("e") / max(len(text), 1),
        "noise": lambda text, tokens: draws.gauss(0.0, 1.0),
    }[kind]

    def scored(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [score(text, len(tokens)) for text, tokens in zip(completions, completion_ids, strict=True)]

    return scored


def rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Numbers to five significant digits."""
    return [
        {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in row.items()}
        for row in rows
    ]


def make(bench: Bench, run: Run, variant: int) -> None:
    """Train one run unless its log exists."""
    out = bench.out / "logs" / f"{slug(run, variant)}.json"
    if out.is_file():
        return
    began = time.monotonic()
    options = run.settings(variant)
    random.seed(options["seed"])
    torch.manual_seed(options["seed"])
    bench.words.padding_side = "left" if run.trainer in ("grpo", "ppo") else "right"
    trainer = getattr(bench, run.trainer)(options, shared(options, bench.out / "outputs"))
    ended = ""
    trainer.args.disable_tqdm = True
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
    except Exception as error:  # a planted fault may stop a training; its log up to there is recorded
        ended = "".join(traceback.format_exception_only(error)).strip()
    state = {"run": run.name, "variant": variant, "seconds": round(time.monotonic() - began, 1), "ended": ended}
    state |= {"max_steps": trainer.state.max_steps, "log_history": rounded(trainer.state.log_history)}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(state))
    print(f"{out.stem}: {state['seconds']} s, {len(state['log_history'])} rows {ended[:200]}", flush=True)


def main() -> None:
    """Record all logs of one environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(".bench/foreign"))
    parser.add_argument(
        "--trainer", default="", help="one of sft, dpo, reward, grpo, trainer, ppo; without it all but ppo"
    )
    parser.add_argument("--only", default="", help="runs whose name holds this")
    parser.add_argument("--variants", type=int, nargs="*", default=list(VARIANTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    bench = Bench(options.out)
    for variant in options.variants:
        for run in RUNS:
            wanted = run.trainer == options.trainer if options.trainer else run.trainer != "ppo"
            if wanted and options.only in run.name:
                make(bench, run, variant)


if __name__ == "__main__":
    main()
