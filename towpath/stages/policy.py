"""Policy optimization: rollouts scored by the reward model, held near the tuned model, the best checkpoint kept."""

import copy
import importlib
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from towpath import algos
from towpath.algos import functional
from towpath.models.heads import WIDE, Fit, ScalarHead
from towpath.records import Finding
from towpath.rewards import shaping
from towpath.runtime.local import Local, Role
from towpath.stages.comparisons import Comparisons
from towpath.stages.experience import Experience
from towpath.stages.job import Job, save_model
from towpath.stages.loop import Course, Numbers, train, warmup_then_linear
from towpath.stages.requeue import put_back
from towpath.stages.reward import load_reward
from towpath.stages.weights import save_adapter


def run(job: Job) -> dict[str, Any]:
    """Optimise, choose, save."""
    cfg = job.recipe.policy
    on_pairs = algos.data_of(cfg.algo) == "comparisons"
    algo = importlib.import_module(algos.place(cfg.algo))
    runtime = _runtime(job, algo)
    experience = Experience(job, runtime)
    pairs = Comparisons(job, runtime, algo) if on_pairs else None
    standing = train(
        _on_pairs(job, algo, pairs, experience) if pairs else _on_rollouts(job, algo, experience),
        runtime,
        job,
        f"{job.name}: {cfg.algo}",
    )
    _warn_without_a_step(job, standing.best_step)
    queued = put_back(job, standing.stopped)
    final = experience.validate(standing.best_step - 1, standing.knobs, against_reference=True)
    _save(job, runtime)
    result = {
        "best_step": standing.best_step,
        "steps": cfg.steps if pairs is None else len(pairs.steps),
        "interventions": standing.story,
        "stopped": standing.stopped,
        "exploited_queued": queued,
        "kl_per_prompt": final["kl"],
        "kl_k3_per_prompt": final["kl_k3"],
        "kl_interval": [final["kl_low"], final["kl_high"]],
    }
    if "rose" in final:
        rose = {"rate": final["rose"], "n": cfg.validation_prompts, "interval": [final["rose_low"], final["rose_high"]]}
        result |= {"rose": rose, "reward_gain": final["reward"] - final["reference_reward"]}
    if pairs is None:
        return result | {"kl_coef": standing.knobs["kl_coef"]}
    held = pairs.validate()
    accuracy = {"rate": held["pairs_accuracy"], "n": pairs.judged, "interval": [held["pairs_low"], held["pairs_high"]]}
    return {"rose": accuracy} | result | {"pairs": accuracy}


def _on_rollouts(job: Job, algo: Any, experience: Experience) -> Course:
    """Answers drawn by the policy itself; the checkpoint with the highest held-out reward at acceptable KL is kept."""
    cfg = job.recipe.policy
    warmup = cfg.ppo.critic_warmup if "critic" in algo.TRAINS else 0

    def turn(step: int, numbers: Numbers, knobs: Numbers) -> Numbers:
        coef = (
            functional.controlled(knobs["kl_coef"], numbers["kl"], cfg.kl.target, cfg.kl.step)
            if step + 1 > warmup
            else knobs["kl_coef"]
        )
        return knobs | {"kl_coef": coef, "policy_weight": float(step + 1 >= warmup)}

    return Course(
        algo,
        cfg,
        cfg.steps,
        cfg.batch,
        experience.batch,
        lambda done: 1.0 - done,
        cfg.epochs,
        cfg.max_grad_norm,
        validate=experience.validate,
        validate_every=cfg.validate_every,
        look_first=True,
        merit=lambda numbers: (
            numbers.get("reward_turned", numbers["reward"]) if numbers["kl"] <= cfg.kl.alarm else -math.inf
        ),
        turn=turn,
        halt=lambda numbers: (
            f"KL {numbers['kl']:.2f} above policy.kl.stop = {cfg.kl.stop}" if numbers["kl"] > cfg.kl.stop else ""
        ),
        after=experience.learned,
        knobs={"kl_coef": cfg.kl.coef, "policy_weight": float(warmup == 0)},
    )


def _on_pairs(job: Job, algo: Any, pairs: Comparisons, experience: Experience) -> Course:
    """Pairs judged before; the checkpoint with the highest held-out reward, or else the lowest held-out loss, at
    acceptable KL is kept."""
    cfg = job.recipe.policy

    def validate(step: int, knobs: Numbers) -> Numbers:
        return experience.validate(step, knobs) | pairs.validate()

    def merit(numbers: Numbers) -> float:
        return numbers.get("reward", -numbers["pairs_loss"]) if numbers["kl"] <= cfg.kl.alarm else -math.inf

    return Course(
        algo,
        cfg,
        len(pairs.steps),
        len(pairs.shown),
        pairs.batch,
        warmup_then_linear(0.1),
        1,
        cfg.max_grad_norm,
        validate=validate,
        validate_every=cfg.validate_every,
        look_first=True,
        merit=merit,
    )


def _runtime(job: Job, algo: Any) -> Local:
    """The roles an algorithm needs: on one trunk with LoRA, as separate copies with full weights."""
    cfg = job.recipe.policy
    lora = cfg.method == "lora"
    runtime = Local(job.recipe.model.tokens_per_pass, pad=job.chat.pad, temperature=cfg.temperature, dtype=job.dtype)
    start = _start(job)
    if lora:
        runtime.add_trunk("base", job.trunk(job.inputs["sft"] / "weights"), lora=True)
        runtime.adapters["base"].add("policy", cfg.lora.rank, cfg.lora.alpha, job.recipe.seed, cfg.lora.last_n_layers)
        if start:
            runtime.adapters["base"].load("policy", load_file(start / "adapter" / "adapter_model.safetensors"))
        runtime.roles |= {"policy": Role(adapter="policy", trains=("adapter",)), "reference": Role()}
    else:
        runtime.add_trunk("policy", job.trunk((start or job.inputs["sft"]) / "weights", torch.float32), lora=False)
        runtime.add_trunk("reference", job.trunk(job.inputs["sft"] / "weights"), lora=False)
        runtime.roles |= {"policy": Role("policy", trains=("trunk",)), "reference": Role("reference")}
    reward = next((path for name, path in reversed(job.inputs.items()) if name.startswith("reward")), None)
    if reward:
        load_reward(job, runtime, reward / "weights")
    if "critic" in algo.TRAINS:
        runtime.roles["critic"] = _critic(job, runtime, reward / "weights" if reward else None)
    runtime.start({"policy": cfg.learning_rate, "critic": cfg.ppo.critic_learning_rate}, eps=1e-5)
    return runtime


def _start(job: Job) -> Any:
    """Where a later round begins: the policy of the round before."""
    earlier = [path for name, path in job.inputs.items() if name.startswith("policy")]
    return earlier[-1] if earlier else None


def _foreseeing(job: Job, head: ScalarHead, folder: Path) -> Fit:
    """The head foresees rewards as well as a linear reading of the tuned model's judged answers can."""
    told = load_file(folder / "foresight.safetensors")
    cfg = job.recipe.policy.rewards
    fit = Fit(head)
    score_N = told["score"].numpy()
    ended_N = told["ended"].numpy()
    weight = next((source.weight for source in cfg.sources if source.source == "model"), 1.0)
    reward_N = torch.from_numpy(
        shaping.shape_rewards(weight * score_N, [()] * len(score_N), ended_N, [""] * len(score_N), cfg)
    ).to(job.device)
    features_ND = told["features"][:, : len(head.weight)].to(job.device)
    held_N = told["row"].to(job.device) % 4 == 0
    for part in (~held_N, held_N) if features_ND.shape[1] == len(head.weight) else ():  # an earlier version left fewer
        fit.learn(features_ND[part], reward_N[part])
    return fit


def _critic(job: Job, runtime: Local, reward: Path | None) -> Role:
    """The critic reads the reward model's trunk, its head fitted to foresee rewards; without one, the reference's,
    with a head of zeros."""
    basis = runtime.roles["reward" if reward else "reference"]
    solved = job.recipe.policy.ppo.critic == "head"
    width = runtime.trunks[basis.trunk].config.hidden_size
    head = ScalarHead(width + WIDE * solved).to(job.device).requires_grad_(not solved)
    fit = _foreseeing(job, head, reward) if reward else Fit(head)
    if solved:
        return Role(basis.trunk, basis.adapter, head, (), fit)
    if basis.trunk not in runtime.adapters:
        runtime.add_trunk("critic", copy.deepcopy(runtime.trunks[basis.trunk]), lora=False)
        return Role("critic", None, head, ("trunk", "head"))
    adapters = runtime.adapters[basis.trunk]
    lora = job.recipe.reward.lora
    adapters.add("critic", lora.rank, lora.alpha, 0, lora.last_n_layers)
    if basis.adapter:
        adapters.load("critic", {key: p.detach() for key, p in adapters.parameters(basis.adapter).items()})
    return Role(basis.trunk, "critic", head, ("adapter", "head"))


def _warn_without_a_step(job: Job, best_step: int) -> None:
    if not best_step:
        evidence = (
            f"no validated step within policy.kl.alarm = {job.recipe.policy.kl.alarm} nats per prompt; where it "
            "began is kept"
        )
        remedy = (
            "raise policy.kl.coef, lower policy.learning_rate or policy.lora.alpha, or lower policy.validate_every "
            "to look earlier"
        )
        job.findings.append(
            Finding(
                "no-acceptable-step",
                "error",
                evidence,
                "the policy left the tuned model faster than it was looked at",
                remedy,
            )
        )


def _save(job: Job, runtime: Local) -> None:
    cfg = job.recipe.policy
    if cfg.method == "lora":
        save_adapter(job, runtime.adapters["base"], "policy", cfg.lora, job.folder / "adapter")
        plain = job.model(job.inputs["sft"] / "weights").to(torch.float32)
        runtime.adapters["base"].merge_into(plain, "policy")
        save_model(job, plain, job.folder / "weights")
    else:
        with runtime.whole("policy") as trunk:
            save_model(job, trunk, job.folder / "weights")
