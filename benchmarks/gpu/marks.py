"""Speed and memory of one GPU in training, and a whole iteration of PPO. Each returns figures; `targets.py` says which
of them are held against a target."""

from typing import Any

import numpy as np
import torch

from benchmarks.gpu.measure import peak_bytes, seconds, train_flops
from benchmarks.gpu.models import RandomLocal, Setting, compiled, rollout_columns, rows, tokens_of
from towpath.algos import grpo, ppo, sft
from towpath.data.batch import Batch, Row
from towpath.recipe import Decoding, Lora, Policy, Sft
from towpath.rollout.engine import SampleRequest
from towpath.rollout.local import LocalEngine
from towpath.runtime.contract import Loss, RoleSpec

KNOBS = {"kl_coef": 0.05, "policy_weight": 1.0}
RATE = 1e-5
PROJECTED = 131_900
"""Prompts of the run whose time is projected."""
Figures = dict[str, Any]


def _loss(algo: Any, config: Any) -> Loss:
    return Loss(algo.__name__, config.model_dump(), KNOBS)


def training(
    setting: Setting, name: str, lora: bool, algo: Any, config: Any, steps: int = 3, **settings: Any
) -> Figures:
    """Tokens per second of whole updates: packing, copies, passes, losses, optimizer; the first one is not timed."""
    runtime = RandomLocal(setting, **settings)
    runtime.open({"policy": RoleSpec(name, Lora() if lora else None, learning_rate=RATE)})
    vocabulary = setting.config(name).vocab_size
    some = rows(setting.size(32, 4), setting.size(256, 8), setting.size(1792, 24), vocabulary)
    batch = _columns(Batch(some), algo)
    loss = _loss(algo, config)

    def update() -> None:
        runtime.forward_backward(algo.TRAINS, batch, loss, algo.weigh(batch, config))
        runtime.step(1.0, 1.0)

    first = seconds(setting.device, update)
    times = [seconds(setting.device, update) for _ in range(steps)]
    fastest = min(times)
    return {
        "tokens_per_second": tokens_of(some) / fastest,
        "flops": _flops(setting, name, some, not lora) / fastest,
        "seconds": times,
        "first_seconds": first,
        "rows": len(some),
        "row_tokens": len(some[0].ids),
        "tokens_per_pass": runtime.tokens_per_pass,
        "attention": runtime.trunks[runtime.roles["policy"].trunk].config._attn_implementation,
        "peak_bytes": peak_bytes(setting.device),
    }


def _columns(batch: Batch, algo: Any) -> Batch:
    if algo is sft:
        return batch
    longest = max(row.answer_length for row in batch.rows)
    return rollout_columns(batch, torch.full((len(batch), longest), -5.0))


def _flops(setting: Setting, name: str, some: list[Row], full: bool) -> float:
    lengths = [len(row.ids) for row in some]
    return train_flops(setting.config(name), lengths, sum(row.answer_length for row in some), full)


def sft_06b(setting: Setting) -> Figures:
    """Supervised fine-tuning of all weights of the Qwen3-0.6B shape."""
    return training(setting, "qwen3-0.6b", False, sft, Sft())


def policy_06b(setting: Setting) -> Figures:
    """Policy-gradient training of LoRA on the Qwen3-0.6B shape."""
    return training(setting, "qwen3-0.6b", True, grpo, Policy(algo="grpo"))


def policy_4b(setting: Setting) -> Figures:
    """Policy-gradient training of LoRA on the Qwen3-4B shape."""
    return training(setting, "qwen3-4b", True, grpo, Policy(algo="grpo"), steps=2)


def variants(setting: Setting) -> Figures:
    """LoRA on the Qwen3-0.6B shape with other attention, compiled layers and fused kernels; what fails says why."""
    kinds: dict[str, dict[str, Any]] = {"auto": {}, "grouped": {"attention": "grouped"}}
    kinds |= {"liger": {"kernels": "liger"}, "compiled": {"compile": compiled()}} if setting.is_gpu else {}
    figures: Figures = {}
    for name, settings in kinds.items():
        try:
            figures[name] = training(setting, "qwen3-0.6b", True, grpo, Policy(algo="grpo"), 2, **settings)
        except Exception as error:  # one variant must not hide the others
            figures[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
        if setting.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return figures


def ppo_roles(policy: str, reward: str) -> dict[str, RoleSpec]:
    """Policy, reference, reward model and a critic on the reward model's states."""
    return {
        "policy": RoleSpec(policy, Lora(), learning_rate=RATE),
        "reference": RoleSpec(policy),
        "reward": RoleSpec(reward, Lora(), head="scalar", random_head=True),
        "critic": RoleSpec(reads="reward", head="closed_form"),
    }


def ppo_iteration(setting: Setting) -> Figures:
    """PPO of a 1.3B policy with a 350M reward model, 256 + 256 tokens: sampled in process, scored, one epoch."""
    runtime = RandomLocal(setting)
    runtime.open(ppo_roles("llama-1.3b", "reward-350m"))
    answers = setting.size(256, 4)
    prompts = rows(answers, setting.size(256, 6), 0, setting.config("llama-1.3b").vocab_size)
    _iteration(setting, runtime, [Row(row.ids, len(row.ids)) for row in prompts[: setting.size(8, 2)]])
    figures = _iteration(setting, runtime, [Row(row.ids, len(row.ids)) for row in prompts])
    total = sum(figures.values())
    return {
        "seconds": figures,
        "answers": answers,
        "engine": "local",
        "projected_hours": total / answers * PROJECTED / 3600,
        "projected_hours_without_sampling": (total - figures["sample"]) / answers * PROJECTED / 3600,
        "peak_bytes": peak_bytes(setting.device),
    }


def _iteration(setting: Setting, runtime: RandomLocal, prompts: list[Row]) -> dict[str, float]:
    """Seconds of the phases of one iteration of PPO."""
    config = Policy()
    engine = LocalEngine(None, -1, runtime.pad, len(prompts))
    new = setting.size(256, 5)
    draw = np.random.default_rng(0)
    requests = [SampleRequest(row.ids.tolist(), Decoding(temperature=1.0), draw.random(new)) for row in prompts]
    times = {"publish": seconds(setting.device, lambda: runtime.publish("policy", engine))}
    answers: list[Any] = []
    times["sample"] = seconds(setting.device, lambda: answers.extend(engine.generate(requests)))
    some = [
        Row(np.concatenate([row.ids, answer.token_ids]), len(row.ids))
        for row, answer in zip(prompts, answers, strict=True)
    ]
    batches: list[Batch] = []
    times["score"] = seconds(setting.device, lambda: batches.append(_scored(runtime, Batch(some), config)))
    loss = _loss(ppo, config)

    def train() -> None:
        size = setting.size(64, 2)
        for begin in range(0, len(some), size):
            mini = batches[0].take(range(begin, min(begin + size, len(some))))
            runtime.forward_backward(ppo.TRAINS, mini, loss, ppo.weigh(mini, config))
            runtime.step(1.0, 1.0)

    times["train"] = seconds(setting.device, train)
    return times


def _scored(runtime: RandomLocal, batch: Batch, config: Policy) -> Batch:
    """Log-probabilities, rewards, values, advantages; the critic fitted to what came of it."""
    old = runtime.score("policy", batch, ("logp",)).logp_BT
    reference = runtime.score("reference", batch, ("logp",)).logp_BT
    reward = runtime.score("reward", batch, ("score", "features"))
    batch = batch.with_handle("features", reward.features)
    value = runtime.score("critic", batch, ("value",)).value_BT
    columns = {"old_logp": old, "ref_logp": reference, "reward": reward.score_B, "value": value}
    batch = ppo.prepare(batch.with_columns(**columns), config, KNOBS)
    runtime.fit("critic", batch.handles["features"], batch.columns["outcome"])
    return batch


def memory_of_sft(setting: Setting) -> Figures:
    """Peak memory of fine-tuning LoRA on the Qwen3-0.6B shape."""
    runtime = RandomLocal(setting, tokens_per_pass=setting.size(16_384, 64))
    runtime.open({"policy": RoleSpec("qwen3-0.6b", Lora(), learning_rate=RATE)})
    batch = Batch(rows(setting.size(32, 4), setting.size(256, 8), setting.size(768, 24), _vocabulary(setting)))
    for _ in range(2):
        runtime.forward_backward(sft.TRAINS, batch, _loss(sft, Sft()), sft.weigh(batch, Sft()))
        runtime.step(1.0, 1.0)
    return {"peak_bytes": peak_bytes(setting.device)}


def memory_of_ppo(setting: Setting) -> Figures:
    """Peak memory of PPO with LoRA, four roles on the Qwen3-0.6B shape, the same passes; with the copy that an engine
    samples from, but not the engine's cache."""
    runtime = RandomLocal(setting, tokens_per_pass=setting.size(16_384, 64))
    runtime.open(ppo_roles("qwen3-0.6b", "qwen3-0.6b"))
    runtime.publish("policy", LocalEngine(None, -1, runtime.pad))
    config = Policy()
    batch = Batch(rows(setting.size(32, 4), setting.size(256, 8), setting.size(768, 24), _vocabulary(setting)))
    batch = _scored(runtime, batch, config)
    for _ in range(2):
        runtime.forward_backward(ppo.TRAINS, batch, _loss(ppo, config), ppo.weigh(batch, config))
        runtime.step(1.0, 1.0)
    return {"peak_bytes": peak_bytes(setting.device)}


def _vocabulary(setting: Setting) -> int:
    return setting.config("qwen3-0.6b").vocab_size


MARKS = (sft_06b, policy_06b, policy_4b, memory_of_sft, memory_of_ppo, ppo_iteration, variants)
