"""Supervised fine-tuning: demonstrations in, a tuned model out."""

from typing import Any

import numpy as np
import torch

from towpath.algos import sft as algo
from towpath.data.batch import Batch, make_row
from towpath.data.draws import hash_uniform
from towpath.errors import DataError
from towpath.runtime.local import PACKED, Local, Role
from towpath.stages.job import Job, save_model
from towpath.stages.loop import Course, minibatches, train, warmup_then_linear


def run(job: Job) -> dict[str, Any]:
    """Train, merge, save."""
    cfg = job.recipe.sft
    rows = {d.id: make_row(job.chat.prompt(d.prompt), job.chat.answer(d.response)) for d in job.corpus.demonstrations}
    _require_two(len(rows))
    kept = sorted(rows, key=lambda name: hash_uniform(job.recipe.seed, "sft/validation", name))
    cut = max(1, round(cfg.validation * len(kept)))
    named = sorted(kept[cut:])
    weight = {d.id: cfg.domains.get(d.domain, 1.0) for d in job.corpus.demonstrations}
    held = Batch([rows[name] for name in kept[:cut]])
    shown = Batch(
        [rows[name] for name in named], {"weight": torch.tensor([weight[name] for name in named], device=job.device)}
    )

    runtime = _runtime(job)
    steps = minibatches(len(shown), cfg.batch, cfg.epochs, job.recipe.seed, "sft/order")
    per_epoch = int(np.ceil(len(shown) / cfg.batch))

    def validate(_step: int, _knobs: dict[str, float]) -> dict[str, float]:
        out = runtime.score("policy", held, ("logp",))
        return {"loss": -float(out.logp_BT[out.mask_BT].mean())}

    course = Course(
        algo,
        cfg,
        len(steps),
        cfg.batch,
        lambda step, _knobs: (shown.take(steps[step]), {}),
        warmup_then_linear(cfg.warmup),
        max_grad_norm=cfg.max_grad_norm,
        validate=validate,
        validate_every=max(1, round(per_epoch * cfg.validate_every)),
        patience=cfg.patience,
    )
    standing = train(course, runtime, job, "sft: training")
    _save(job, runtime)
    result = {"validation_loss": -standing.best_merit, "steps": len(steps), "best_step": standing.best_step}
    if cfg.method == "lora":
        result |= {"adapted": runtime.adapters["base"].summary()}
    return result | {
        "epochs": standing.best_step / per_epoch,
        "demonstrations": len(shown),
        "validation_rows": len(held),
    }


def _require_two(demonstrations: int) -> None:
    """One to train on, and one to validate on."""
    if demonstrations < 2:
        fix = "add rows to data.demonstrations; `towpath.train` optimises a model that needs no supervised fine-tuning"
        raise DataError(
            f"{demonstrations} demonstrations",
            "sft trains on demonstrations and validates on some that it keeps apart",
            fix,
        )


def _runtime(job: Job) -> Local:
    cfg = job.recipe.sft
    lora = job.recipe.sft.method == "lora"
    runtime = Local(job.recipe.model.tokens_per_pass, PACKED if cfg.packing else 0, job.chat.pad, dtype=job.dtype)
    runtime.add_trunk("base", job.trunk(dtype=torch.float32 if not lora else None), lora)
    if lora:
        runtime.adapters["base"].add("sft", cfg.lora.rank, cfg.lora.alpha, job.recipe.seed, cfg.lora.last_n_layers)
    runtime.roles["policy"] = Role(adapter="sft" if lora else None, trains=("adapter",) if lora else ("trunk",))
    runtime.start({"policy": cfg.learning_rate}, weight_decay=cfg.weight_decay)
    return runtime


def _save(job: Job, runtime: Local) -> None:
    """The tuned model in float32, adapters merged into the very weights that were trained upon."""
    if job.recipe.sft.method == "full":
        with runtime.whole("base") as plain:
            save_model(job, plain, job.folder / "weights")
        return
    plain = job.model().to(torch.float32)
    runtime.adapters["base"].merge_into(plain, "sft")
    save_model(job, plain, job.folder / "weights")
