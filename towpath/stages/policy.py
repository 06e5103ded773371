"""Policy optimization: rollouts scored by the reward model, held near the tuned model, the best checkpoint kept."""

import copy
import importlib
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from towpath.algos import functional
from towpath.errors import RecipeError
from towpath.models.heads import ScalarHead
from towpath.records import Finding
from towpath.runtime.local import Local, Role
from towpath.stages.experience import Experience
from towpath.stages.job import Job, save_model
from towpath.stages.reward import load_reward
from towpath.stages.train import Course, Numbers, train
from towpath.stages.weights import save_adapter


def algorithm(name: str) -> Any:
    """The module a recipe names: a file of towpath.algos or an import path."""
    try:
        return importlib.import_module(name if "." in name else f"towpath.algos.{name}")
    except ImportError:
        raise RecipeError(f"policy.algo = {name!r}: no such algorithm", "a file of towpath.algos, or an import path", "use 'ppo'") from None


def run(job: Job) -> dict[str, Any]:
    """Optimise, choose, save."""
    cfg, algo = job.recipe.policy, algorithm(job.recipe.policy.algo)
    runtime = _runtime(job, algo)
    experience = Experience(job, runtime, algo)

    def turn(step: int, numbers: Numbers, knobs: Numbers) -> Numbers:
        _alarm(job, step, numbers["kl"])
        coef = (
            functional.controlled(knobs["kl_coef"], numbers["kl"], cfg.kl.target, cfg.kl.step)
            if step + 1 > cfg.ppo.critic_warmup
            else knobs["kl_coef"]
        )
        return {"kl_coef": coef, "policy_weight": float(step + 1 >= cfg.ppo.critic_warmup)}

    course = Course(
        algo, cfg, cfg.steps, cfg.batch, experience.batch, lambda done: 1.0 - done, cfg.epochs, cfg.max_grad_norm,
        validate=experience.validate, validate_every=cfg.validate_every,
        merit=lambda numbers: numbers["reward"] if numbers["kl"] <= cfg.kl.alarm else -math.inf,
        turn=turn, halt=lambda numbers: f"KL {numbers['kl']:.2f} above policy.kl.stop = {cfg.kl.stop}" if numbers["kl"] > cfg.kl.stop else "",
        knobs={"kl_coef": cfg.kl.coef, "policy_weight": float(cfg.ppo.critic_warmup == 0)},
    )  # fmt: skip
    standing = train(course, runtime, job, f"{job.name}: {cfg.algo}")
    _warn_without_a_step(job, standing.best_step)
    final = experience.validate(standing.best_step - 1, against_reference=True)
    _save(job, runtime)
    return {
        "best_step": standing.best_step, "steps": cfg.steps, "stopped": standing.stopped,
        "kl_per_prompt": final["kl"], "kl_k3_per_prompt": final["kl_k3"], "kl_interval": [final["kl_low"], final["kl_high"]],
        "reward_gain": final["reward"] - final["reference_reward"], "kl_coef": standing.knobs["kl_coef"],
        "rose": {"rate": final["rose"], "n": cfg.validation_prompts, "interval": [final["rose_low"], final["rose_high"]]},
    }  # fmt: skip


def _runtime(job: Job, algo: Any) -> Local:
    """All roles: on one trunk with LoRA, as separate copies with full weights."""
    cfg = job.recipe.policy
    lora, width = cfg.method == "lora", 0
    runtime = Local(job.recipe.model.tokens_per_pass, width, job.chat.pad, cfg.temperature, autocast=not lora and job.dtype == torch.bfloat16)
    start = _start(job)
    if lora:
        runtime.add_trunk("base", job.model(job.inputs["sft"] / "weights"), lora=True)
        runtime.adapters["base"].add("policy", cfg.lora.rank, cfg.lora.alpha, job.recipe.seed, cfg.lora.top)
        if start:
            runtime.adapters["base"].load("policy", load_file(start / "adapter" / "adapter_model.safetensors"))
        runtime.roles |= {"policy": Role(adapter="policy", trains=("adapter",)), "reference": Role()}
    else:
        runtime.add_trunk("policy", job.model((start or job.inputs["sft"]) / "weights", torch.float32), lora=False)
        runtime.add_trunk("reference", job.model(job.inputs["sft"] / "weights"), lora=False)
        runtime.roles |= {"policy": Role("policy", trains=("trunk",)), "reference": Role("reference")}
    stage = next(name for name in reversed(job.inputs) if name.startswith("reward"))
    load_reward(job, runtime, job.inputs[stage] / "weights")
    runtime.roles["critic"] = _critic(job, runtime, _foreseeing(job, algo, job.inputs[stage] / "weights" / "foresight.safetensors"))
    runtime.start({"policy": cfg.learning_rate, "critic": cfg.ppo.critic_learning_rate}, eps=1e-5)
    return runtime


def _start(job: Job) -> Any:
    """Where a later round begins: the policy of the round before."""
    earlier = [path for name, path in job.inputs.items() if name.startswith("policy")]
    return earlier[-1] if earlier else None


def _foreseeing(job: Job, algo: Any, path: Path) -> ScalarHead:
    """A head that foresees rewards as well as a linear reading of the tuned model's judged answers can."""
    told = {name: tensor.to(job.device) for name, tensor in load_file(path).items()}
    reward_N = algo.final_scores(told["score"], told["ended"], job.recipe.policy)
    return ScalarHead.fitted(told["features"].float(), reward_N, told["row"])


def _critic(job: Job, runtime: Local, head: ScalarHead) -> Role:
    """The critic starts as the reward model's trunk with the head fitted to foresee its scores."""
    reward = runtime.roles["reward"]
    if job.recipe.policy.ppo.critic == "head":
        return Role(reward.trunk, reward.adapter, head, ("head",))
    if reward.adapter is None:
        runtime.add_trunk("critic", copy.deepcopy(runtime.trunks[reward.trunk]).float(), lora=False)
        return Role("critic", None, head, ("trunk", "head"))
    adapters, lora = runtime.adapters[reward.trunk], job.recipe.reward.lora
    adapters.add("critic", lora.rank, lora.alpha, 0, lora.top)
    adapters.load("critic", {key: p.detach() for key, p in adapters.parameters("reward").items()})
    return Role(reward.trunk, "critic", head, ("adapter", "head"))


def _alarm(job: Job, step: int, kl: float) -> None:
    limit = job.recipe.policy.kl.alarm
    if kl > limit and not any(f.code == "kl-alarm" for f in job.findings):
        remedy = "raise policy.kl.coef or lower policy.learning_rate"
        evidence = f"step {step}: {kl:.2f} nats per prompt, alarm at {limit}"
        job.findings.append(Finding("kl-alarm", "warning", evidence, "the policy moves faster than the penalty holds it", remedy))


def _warn_without_a_step(job: Job, best_step: int) -> None:
    if not best_step:
        evidence = f"no validated step within policy.kl.alarm = {job.recipe.policy.kl.alarm} nats per prompt; where it began is kept"
        remedy = "raise policy.kl.coef, lower policy.learning_rate or policy.lora.alpha, or lower policy.validate_every to look earlier"
        job.findings.append(Finding("no-acceptable-step", "error", evidence, "the policy left the tuned model faster than it was looked at", remedy))


def _save(job: Job, runtime: Local) -> None:
    cfg = job.recipe.policy
    if cfg.method == "lora":
        save_adapter(job, runtime.adapters["base"], "policy", cfg.lora, job.folder / "adapter")
        plain = job.model(job.inputs["sft"] / "weights").to(torch.float32)
        runtime.adapters["base"].merge_into(plain, "policy")
        save_model(job, plain, job.folder / "weights")
    else:
        save_model(job, runtime.trunks["policy"], job.folder / "weights")
