"""SFT stage: train the base model on demonstrations; the checkpoint with the lowest validation loss is kept."""

from typing import Any

import numpy as np

from towpath.algos import sft as algo
from towpath.data.demonstration_rows import turn_findings
from towpath.errors import DataError
from towpath.recipe.stage_configs import SftConfig
from towpath.runtime.contract import OptimizerConfig, RoleSpec, Runtime
from towpath.stages.demonstrations import demonstration_batch, mean_loss, split_demonstrations
from towpath.stages.job import Job, publish_model
from towpath.stages.loop import LoopConfig, minibatches, schedule, train


def run(job: Job[SftConfig]) -> dict[str, Any]:
    """Train, merge LoRA weights, save the model."""
    cfg = job.config.sft
    seed = job.config.seed
    if cfg.method == "none":
        return _publish_untrained(job)
    _require_two(len({d.id for d in job.corpus.demonstrations}))
    demonstrations, validation = split_demonstrations(job.corpus.demonstrations, seed, cfg.validation)
    rows = demonstration_batch(job.chat, demonstrations, cfg, cfg.domains)
    job.findings += turn_findings(rows.last_only, len(demonstrations))
    training = rows.batch
    held_out = demonstration_batch(job.chat, validation, cfg).batch

    runtime = open_runtime(job)
    steps = minibatches(len(training), cfg.batch, cfg.epochs, seed, "sft/order")
    per_epoch = int(np.ceil(len(training) / cfg.batch))

    def validate(_step: int, _knobs: dict[str, float]) -> dict[str, float]:
        return {"loss": mean_loss(runtime, "policy", held_out)}

    loop = LoopConfig(
        algo,
        cfg,
        len(steps),
        cfg.batch,
        lambda step, _knobs: (training.take(steps[step]), {}),
        schedule(cfg.schedule, cfg.warmup),
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


def _publish_untrained(job: Job[SftConfig]) -> dict[str, Any]:
    """The base model, which is tuned already, as the result of this stage."""
    runtime = job.launch(training=False)
    runtime.open({"policy": RoleSpec(job.base_model)})
    publish_model(job, runtime, "policy", job.folder / "weights")
    return {"method": "none", "steps": 0, "best_step": 0, "epochs": 0.0}


def open_runtime(job: Job[SftConfig]) -> Runtime:
    """A runtime with the role `policy`: the base model, trainable."""
    cfg = job.config.sft
    lora = cfg.lora if cfg.method == "lora" else None
    runtime = job.launch(cfg.packing)
    role = RoleSpec(job.base_model, lora, job.config.seed, learning_rate=cfg.learning_rate)
    runtime.open({"policy": role}, OptimizerConfig(weight_decay=cfg.weight_decay))
    return runtime


def _require_two(demonstrations: int) -> None:
    """Require one demonstration to train on and one for validation."""
    if demonstrations < 2:
        fix = "add rows to data.demonstrations, or set sft.method = 'none' if model.source is tuned already"
        raise DataError(
            f"{demonstrations} demonstrations", "sft trains on demonstrations and holds some out for validation", fix
        )
