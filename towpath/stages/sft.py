"""Supervised fine-tuning: demonstrations in, a tuned model out."""

from typing import Any

import numpy as np
import torch

from towpath.algos import sft as algo
from towpath.data.batch import Batch, make_row
from towpath.data.draws import hash_uniform
from towpath.errors import DataError
from towpath.runtime.contract import OptimizerConfig, RoleSpec, Runtime
from towpath.stages.job import Job, publish_model
from towpath.stages.loop import LoopConfig, minibatches, train, warmup_then_linear


def run(job: Job) -> dict[str, Any]:
    """Train, merge, save."""
    cfg = job.recipe.sft
    rows = {d.id: make_row(job.chat.prompt(d.prompt), job.chat.answer(d.response)) for d in job.corpus.demonstrations}
    _require_two(len(rows))
    order = sorted(rows, key=lambda name: hash_uniform(job.recipe.seed, "sft/validation", name))
    cut = max(1, round(cfg.validation * len(order)))
    names = sorted(order[cut:])
    weight = {d.id: cfg.domains.get(d.domain, 1.0) for d in job.corpus.demonstrations}
    held_out = Batch([rows[name] for name in order[:cut]])
    training = Batch([rows[name] for name in names], {"weight": torch.tensor([weight[name] for name in names])})

    runtime = open_runtime(job)
    steps = minibatches(len(training), cfg.batch, cfg.epochs, job.recipe.seed, "sft/order")
    per_epoch = int(np.ceil(len(training) / cfg.batch))

    def validate(_step: int, _knobs: dict[str, float]) -> dict[str, float]:
        out = runtime.score("policy", held_out, ("logp",))
        return {"loss": -float(out.logp_BT[out.mask_BT].mean())}

    loop = LoopConfig(
        algo,
        cfg,
        len(steps),
        cfg.batch,
        lambda step, _knobs: (training.take(steps[step]), {}),
        warmup_then_linear(cfg.warmup),
        max_grad_norm=cfg.max_grad_norm,
        validate=validate,
        validate_every=max(1, round(per_epoch * cfg.validate_every)),
        patience=cfg.patience,
    )
    state = train(loop, runtime, job, "sft: training")
    publish_model(job, runtime, "policy", job.folder / "weights")
    result: dict[str, Any] = {"validation_loss": -state.best_score, "steps": len(steps), "best_step": state.best_step}
    if cfg.method == "lora":
        result["adapted"] = runtime.describe("policy")
    return result | {
        "epochs": state.best_step / per_epoch,
        "demonstrations": len(training),
        "validation_rows": len(held_out),
    }


def open_runtime(job: Job) -> Runtime:
    """A runtime whose policy is the base model, to be trained."""
    cfg = job.recipe.sft
    lora = cfg.lora if cfg.method == "lora" else None
    runtime = job.launch(cfg.packing)
    role = RoleSpec(job.base_model, lora, job.recipe.seed, learning_rate=cfg.learning_rate)
    runtime.open({"policy": role}, OptimizerConfig(weight_decay=cfg.weight_decay))
    return runtime


def _require_two(demonstrations: int) -> None:
    """One to train on, and one to validate on."""
    if demonstrations < 2:
        fix = "add rows to data.demonstrations; `towpath.train` optimises a model that needs no supervised fine-tuning"
        raise DataError(
            f"{demonstrations} demonstrations",
            "sft trains on demonstrations and validates on some that it holds out",
            fix,
        )
