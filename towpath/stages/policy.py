"""Policy stage: optimise the SFT model by an algorithm of `towpath.algos`, and keep the best checkpoint.

N tokens at which the reward stage stored critic features.
"""

import importlib
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from towpath import algos
from towpath.algos import functional
from towpath.recipe.stage_configs import PolicyConfig
from towpath.records import Finding
from towpath.rewards import shaping
from towpath.rewards import sources as reward_sources
from towpath.rollout.experience import Experience, ExperienceConfig
from towpath.rollout.generate import load_engine
from towpath.rollout.sample_log import SampleLog, select_probes
from towpath.rollout.scoring import RewardSources
from towpath.rollout.stored_outputs import StartCache
from towpath.runtime.contract import OptimizerConfig, RoleSpec, Runtime
from towpath.runtime.launch import launch_classifier
from towpath.stages import reward_scorer
from towpath.stages.comparisons import Comparisons
from towpath.stages.job import Job, publish_model
from towpath.stages.loop import LoopConfig, Numbers, schedule, train
from towpath.stages.requeue import requeue_hacked_samples
from towpath.store.publish import publish

VALUE_FEATURES = "value_features.safetensors"


def run(job: Job[PolicyConfig]) -> dict[str, Any]:
    """Train, restore the best checkpoint, save it."""
    cfg = job.config.policy
    algo = importlib.import_module(algos.module_name(cfg.algo))
    algos.require_settings(algo, cfg.settings)
    runtime, roles = open_runtime(job, algo)
    experience = _experience(job, runtime, roles)
    pairs = Comparisons(job, runtime, algo) if algos.data_of(cfg.algo) == "comparisons" else None
    loop = _on_pairs(job, algo, pairs, experience) if pairs else _on_rollouts(job, algo, experience)
    state = train(loop, runtime, job, f"{job.name}: {cfg.algo}")
    _warn_without_best_step(job, state.best_step)
    queued = requeue_hacked_samples(job, state.stopped)
    final = experience.validate(state.best_step - 1, state.knobs, against_reference=True)
    _save(job, runtime)
    job.findings += experience.sources.truncation_findings()
    result = {
        "best_step": state.best_step,
        "steps": loop.steps,
        "interventions": state.history,
        "stopped": state.stopped,
        "exploited_queued": queued,
        "kl_per_prompt": final["kl"],
        "kl_k3_per_prompt": final["kl_k3"],
        "kl_interval": [final["kl_low"], final["kl_high"]],
    }
    if "rose" in final:
        interval = [final["rose_low"], final["rose_high"]]
        result["rose"] = {"rate": final["rose"], "n": round(final["rose_n"]), "interval": interval}
        result["reward_gain"] = final["reward"] - final["reference_reward"]
    if pairs is None:
        return result | {"kl_coef": state.knobs["kl_coef"]}
    metrics = pairs.validate()
    interval = [metrics["pairs_low"], metrics["pairs_high"]]
    accuracy = {"rate": metrics["pairs_accuracy"], "n": pairs.held_out_pairs, "interval": interval}
    return {"rose": accuracy} | result | {"pairs": accuracy}


def _on_rollouts(job: Job[PolicyConfig], algo: ModuleType, experience: Experience) -> LoopConfig:
    """Training on the policy's own completions; the best checkpoint has the highest validation reward at a KL below
    `policy.kl.alarm`."""
    cfg = job.config.policy
    warmup = cfg.ppo.critic_warmup if "critic" in algo.TRAINS else 0

    def adapt(step: int, metrics: Numbers, knobs: Numbers) -> Numbers:
        coef = knobs["kl_coef"]
        if step + 1 > warmup:
            coef = functional.adaptive_kl_coef(coef, metrics["kl"], cfg.kl.target, cfg.kl.step)
        return knobs | {"kl_coef": coef, "policy_weight": float(step + 1 >= warmup)}

    def score(metrics: Numbers) -> float:
        return metrics.get("reward_turned", metrics["reward"]) if metrics["kl"] <= cfg.kl.alarm else -math.inf

    def stop_if(metrics: Numbers) -> str:
        return f"KL {metrics['kl']:.2f} above policy.kl.stop = {cfg.kl.stop}" if metrics["kl"] > cfg.kl.stop else ""

    return LoopConfig(
        algo,
        cfg,
        cfg.steps,
        cfg.batch,
        experience.batch,
        schedule(cfg.schedule),
        cfg.epochs,
        cfg.max_grad_norm,
        cfg.temperature,
        validate=experience.validate,
        validate_every=cfg.validate_every,
        validate_first=True,
        score=score,
        adapt=adapt,
        stop_if=stop_if,
        on_batch_end=experience.fit_critic,
        knobs={"kl_coef": cfg.kl.coef, "policy_weight": float(warmup == 0)},
        carried=experience if cfg.staleness else None,
    )


def _on_pairs(job: Job[PolicyConfig], algo: ModuleType, pairs: Comparisons, experience: Experience) -> LoopConfig:
    """Training on labelled pairs; the best checkpoint has the highest validation reward, or without a reward model the
    lowest validation loss, at a KL below `policy.kl.alarm`."""
    cfg = job.config.policy

    def validate(step: int, knobs: Numbers) -> Numbers:
        return experience.validate(step, knobs) | pairs.validate()

    def score(metrics: Numbers) -> float:
        return metrics.get("reward", -metrics["pairs_loss"]) if metrics["kl"] <= cfg.kl.alarm else -math.inf

    return LoopConfig(
        algo,
        cfg,
        len(pairs.steps),
        len(pairs.training),
        pairs.batch,
        schedule(cfg.schedule, 0.1),
        1,
        cfg.max_grad_norm,
        cfg.temperature,
        validate=validate,
        validate_every=cfg.validate_every,
        validate_first=True,
        score=score,
    )


def open_runtime(job: Job[PolicyConfig], algo: ModuleType) -> tuple[Runtime, dict[str, RoleSpec]]:
    """A runtime with the roles an algorithm needs."""
    roles = _roles(job, algo)
    runtime = job.launch(samples_apart=True)
    runtime.open(roles, OptimizerConfig(eps=1e-5))
    if "critic" in roles:
        _init_critic(job, runtime)
    return runtime, roles


def _roles(job: Job[PolicyConfig], algo: ModuleType) -> dict[str, RoleSpec]:
    """The roles an algorithm needs: with LoRA all on one model, with full weights on separate copies."""
    cfg = job.config.policy
    tuned = job.inputs["sft"] / "weights"
    start = _previous_policy(job)
    policy = RoleSpec(str(tuned), cfg.lora, job.config.seed, learning_rate=cfg.learning_rate)
    if cfg.method == "full":
        policy = replace(policy, model=str((start or job.inputs["sft"]) / "weights"), lora=None)
    elif start:
        policy = replace(policy, init=start / "adapter" / "adapter_model.safetensors")
    roles = {"policy": policy, "reference": RoleSpec(str(tuned))}
    stage = _reward_stage(job)
    if stage:
        roles |= reward_scorer.roles_of(job, stage)
    if "critic" in algo.TRAINS:
        # a reward model with another tokenizer cannot value the policy's tokens: then the critic reads the tuned model
        basis = "reward" if stage and not job.config.reward.source else "reference"
        if cfg.ppo.critic == "head":
            roles["critic"] = RoleSpec(reads=basis, head="closed_form")
        else:
            rate = cfg.ppo.critic_learning_rate
            roles["critic"] = RoleSpec(copies=basis, lora=job.config.reward.lora, head="scalar", learning_rate=rate)
    return roles


def _reward_stage(job: Job[PolicyConfig]) -> Path | None:
    return next((path for name, path in reversed(job.inputs.items()) if name.startswith("reward")), None)


def _previous_policy(job: Job[PolicyConfig]) -> Path | None:
    """The policy stage of the previous round, from which a later round starts."""
    return next((path for name, path in reversed(job.inputs.items()) if name.startswith("policy")), None)


def _init_critic(job: Job[PolicyConfig], runtime: Runtime) -> None:
    """Fit the critic's head to the rewards of the answers that the reward stage stored."""
    stage = _reward_stage(job)
    if stage is None or job.config.reward.source:
        return
    tensors = load_file(stage / "weights" / VALUE_FEATURES)
    rewards = job.config.policy.rewards
    score_N = tensors["score"].numpy()
    weight = next((source.weight for source in rewards.sources if source.source == "model"), 1.0)
    no_tokens = [()] * len(score_N)
    reward_N = shaping.shape_rewards(
        weight * score_N, no_tokens, tensors["ended"].numpy(), [""] * len(score_N), rewards
    )
    held_out_N = tensors["row"] % 4 == 0
    for part_N in (~held_out_N, held_out_N):
        runtime.fit("critic", tensors["features"][part_N], torch.as_tensor(reward_N)[part_N])


def _experience(job: Job[PolicyConfig], runtime: Runtime, roles: dict[str, RoleSpec]) -> Experience:
    config = job.config
    cfg = config.policy
    critic: Literal["none", "closed_form", "trained"] = "none"
    if "critic" in roles:
        critic = "closed_form" if roles["critic"].head == "closed_form" else "trained"
    is_local = config.engine.type == "local"
    experience_config = ExperienceConfig(
        cfg,
        config.seed,
        job.name,
        job.folder,
        0.0 if is_local and not cfg.staleness else config.engine.correction,
        is_local and not cfg.staleness and runtime.environment()["arithmetic"] == "float32",
        critic,
        _previous_policy(job) is None,
    )
    reward_models = tuple(name for name in roles if name.startswith("reward"))
    stage = _reward_stage(job)
    models = reward_scorer.scorer_of(job, runtime, stage, reward_models) if stage else None
    classifiers = {
        name: launch_classifier(runtime, config.model, name.removeprefix("model:"), job.run)
        for name in reward_sources.classifiers(cfg.rewards)
    }
    sources = RewardSources(cfg.rewards, job.corpus, models, classifiers)
    engine = load_engine(
        runtime, config.engine, job.chat, job.folder, config.data.max_prompt_tokens + cfg.max_new_tokens
    )
    probes = select_probes(job.corpus.safety, config.health.probes, config.seed)
    log = SampleLog(job.folder / "samples.jsonl", probes, job.on_answers)
    cache = StartCache(job.start_cache, f"{cfg.method} {cfg.lora}") if job.start_cache else None
    return Experience(experience_config, runtime, engine, job.chat, job.corpus, sources, log, cache)


def _warn_without_best_step(job: Job[PolicyConfig], best_step: int) -> None:
    if best_step:
        return
    alarm = job.config.policy.kl.alarm
    job.findings.append(
        Finding(
            "no-acceptable-step",
            "error",
            f"no validated step within policy.kl.alarm = {alarm} nats per prompt; the initial weights are kept",
            "the KL rose faster than validation could choose a checkpoint",
            "raise policy.kl.coef, lower policy.learning_rate or policy.lora.alpha, or lower policy.validate_every",
        )
    )


def _save(job: Job[PolicyConfig], runtime: Runtime) -> None:
    adapter = job.folder / "adapter"
    if job.config.policy.method == "lora" and not adapter.exists():
        publish(adapter, lambda folder: runtime.export_adapter("policy", folder))
    publish_model(job, runtime, "policy", job.folder / "weights")
