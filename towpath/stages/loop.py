"""The training loop of all algorithms: make a batch, split it into minibatches, compute gradients, step the optimizer.

It knows no algorithm and no model, nor where they run. The loss is divided by the weight of the whole minibatch, so
micro-batches do not change the gradient.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from towpath import interrupt
from towpath.algos.contract import Metrics, add, means
from towpath.data.batch import Batch
from towpath.data.draws import permutation
from towpath.errors import TrainingError
from towpath.health.monitor import Action, HealthMonitor, stage_facts
from towpath.progress import progress
from towpath.recipe.model import Schedule
from towpath.recipe.stage_configs import TrainingConfig
from towpath.records import Finding
from towpath.rollout.statistics import critic_metrics
from towpath.runtime.checkpoints import Checkpoints
from towpath.runtime.contract import Loss, Runtime, Snapshot
from towpath.runtime.process import release_memory
from towpath.runtime.worker_states import Usage, WorkerState
from towpath.stages.job import Job
from towpath.store.publish import fault_point, replace_file

Numbers = dict[str, float]
CHECKPOINT_SHARE = 0.05
"""Largest share of the time that may go into writing checkpoints."""


class Carried(Protocol):
    """What a step takes from the one before it, besides weights: it is part of the checkpoint between them."""

    def write_carried(self, step: int, folder: Path) -> None:
        """Add to the folder of a checkpoint what the step after it needs."""
        ...

    def read_carried(self, step: int, folder: Path) -> None:
        """Take it from there."""
        ...

    def discard_carried(self) -> None:
        """Forget it: the weights were replaced."""
        ...


@dataclass
class LoopConfig:
    """One training run: an algorithm, its batches, and when to validate, adapt and stop."""

    algo: Any
    """A module of `towpath.algos` or one like them."""
    config: Any
    """The algorithm's section of the recipe."""
    steps: int
    minibatch: int
    """Groups of rows (the completions of one prompt) in one optimizer step."""
    batch: Callable[[int, Numbers], tuple[Batch, Numbers]]
    """(step, knobs) -> the batch of that step and its metrics."""
    rate: Callable[[float], float]
    """Learning rate schedule: progress in [0,1] -> share of the peak learning rate."""
    epochs: int = 1
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    """Divides the logits; the knob `temperature` overrides it."""
    validate: Callable[[int, Numbers], Numbers] | None = None
    """(step, knobs) -> validation metrics."""
    validate_every: int = 1
    validate_first: bool = False
    """Also validate before the first step, as step -1."""
    score: Callable[[Numbers], float] = lambda metrics: -metrics["loss"]
    """validation metrics -> score of the checkpoint, higher is better; -inf is never chosen."""
    patience: int = 10**9
    """Validations without improvement before training stops."""
    adapt: Callable[[int, Numbers, Numbers], Numbers] = lambda step, metrics, knobs: knobs
    """(step, metrics, knobs) -> knobs of the next step."""
    on_batch_end: Callable[[Batch], None] = lambda batch: None
    """Called after the last optimizer step on a batch, for example to fit a closed-form critic."""
    stop_if: Callable[[Numbers], str] = lambda metrics: ""
    """metrics -> a reason to stop and keep the best weights, or an empty string."""
    knobs: Numbers = field(default_factory=dict)
    """Initial values of what may change during training, such as the KL coefficient."""
    carried: Carried | None = None
    """Such as rollouts that are sampled ahead."""


@dataclass
class TrainState:
    """State of a training run besides weights and optimizer; part of every checkpoint."""

    knobs: Numbers
    best_score: float = -math.inf
    best_step: int = 0
    bad_validations: int = 0
    stopped: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Interventions of the health monitor and whether they helped; set at the end."""


def train(config: LoopConfig, runtime: Runtime, job: Job[TrainingConfig], title: str) -> TrainState:
    """Train from the newest checkpoint to the end, then restore the best weights."""
    checkpoints = Checkpoints(job.folder)
    begin, state, best = _resume(config, runtime, job, checkpoints)
    replace_file(job.folder / "run_info.json", json.dumps({"steps": config.steps, **runtime.environment()}))
    if best is None and config.validate:
        best = runtime.snapshot()  # step 0, kept if no later weights are acceptable
    if begin == 0 and config.validate and config.validate_first:
        metrics = config.validate(-1, state.knobs)
        job.log.write(-1, "validation", metrics)
        state.stopped = _notify(job, "on_validation", -1, metrics)
    facts = stage_facts(job.config, job.name, job.inputs)
    monitor = HealthMonitor(
        job.config.health, job.folder, job.log.recorder, facts, job.findings, config.steps, config.knobs
    )
    saver = _Saver(checkpoints, runtime, job, begin, config.carried)
    with progress(title, config.steps, start=begin) as bar, interrupt.defer_signals():
        for step in range(begin, config.steps):
            if state.stopped:
                break
            save_now = partial(saver.save, step, state, best)
            metrics = _step(config, runtime, job, step, state.knobs, save_now) | {"seconds_watch": monitor.last_seconds}
            job.log.write(step, "train", metrics)
            fault_point(f"step-{job.name}")
            state.knobs = config.adapt(step, metrics, state.knobs)
            state.stopped = _notify(job, "on_step", step, metrics) or config.stop_if(metrics)
            last = step + 1 == config.steps or bool(state.stopped)
            if config.validate and (last or (step + 1) % config.validate_every == 0):
                best = _validate(config, runtime, job, step, state, best)
            _apply(monitor.after_step(step, state.knobs), runtime, state, best, config.carried)
            _require_finite(job, step, metrics["grad_norm"], monitor, runtime)
            bar.advance(1, "  ".join(f"{key} {metrics[key]:.3g}" for key in ("loss", "score", "kl") if key in metrics))
            if last or state.stopped or saver.due() or interrupt.stop_requested():
                saver.save(step + 1, state, best)
            interrupt.raise_if_stop_requested()
    if best is not None:
        runtime.restore(best)
    state.history = monitor.history()
    release_memory()
    return state


def _step(
    config: LoopConfig,
    runtime: Runtime,
    job: Job[TrainingConfig],
    step: int,
    knobs: Numbers,
    save_now: Callable[[], None],
) -> Numbers:
    """Make one batch and take all optimizer steps on it; returns its metrics.

    If the run is stopped while the batch is made, `save_now` writes a checkpoint: no weight has changed yet.
    """
    before = [state.usage.copy() for state in runtime.worker_states()]
    try:
        with interrupt.allow_signals():
            batch, batch_metrics = config.batch(step, knobs)
    except (interrupt.Stopped, KeyboardInterrupt):
        save_now()
        raise
    # credit assignment: the algorithm adds its columns, such as advantage [B,T]
    batch = config.algo.prepare(batch, config.config, knobs)
    batch_metrics = batch_metrics | critic_metrics(batch)
    started = time.monotonic()
    # a name and plain data, not a closure: it can travel to a runtime in another process
    loss = Loss(config.algo.__name__, config.config.model_dump(), knobs)
    temperature = knobs.get("temperature", config.temperature)
    metrics: Metrics = {}
    norms = []
    rate = 0.0
    with progress("update", config.epochs * len(batch), "rows") as work:
        for number, (done, mini) in enumerate(_minibatches(config, job, step, batch)):
            # tokens or answers of the whole minibatch, whatever passes the runtime splits it into
            weight = config.algo.weigh(mini, config.config)
            more = runtime.forward_backward(config.algo.TRAINS, mini, loss, weight, temperature, work.advance)
            if number == 0:  # no weight has moved: the ratio to the old policy is 1 but for rounding
                batch_metrics |= {f"first_{key}": x for key, x in means(more).items() if key == "ratio_error"}
            add(metrics, more)
            rate = config.rate((step + done) / config.steps)
            norms.append(runtime.step(rate * knobs.get("learning_rate_scale", 1.0), config.max_grad_norm))
    config.on_batch_end(batch)
    return {
        **means(metrics),
        "grad_norm": sum(norms) / len(norms),
        "learning_rate": rate * config.config.learning_rate * knobs.get("learning_rate_scale", 1.0),
        **knobs,
        "seconds_optimise": time.monotonic() - started,
        "memory_bytes": runtime.memory_in_use(),
        **_moved(before, runtime.worker_states()),
        **batch_metrics,
    }


def _moved(before: Sequence[Usage], states: Sequence[WorkerState]) -> Numbers:
    """What the step moved between workers and to engines, of the worker with most; only what is not zero."""
    used = [state.usage.since(usage) for state, usage in zip(states, before, strict=True)]
    numbers = {
        "seconds_sync": max(one.sync_seconds for one in used),
        "sync_bytes": float(max(one.sync_bytes for one in used)),
        "collective_bytes": float(max(one.collective_bytes for one in used)),
    }
    return {name: value for name, value in numbers.items() if value}


def _minibatches(
    config: LoopConfig, job: Job[TrainingConfig], step: int, batch: Batch
) -> Iterator[tuple[float, Batch]]:
    """Minibatches of all epochs, each epoch in a new order, with the share of the step that is done before."""
    for epoch in range(config.epochs):
        order = permutation(batch.groups, job.config.seed, f"{job.name}/minibatch", step, epoch)
        for start in range(0, len(order), config.minibatch):
            done = (epoch * len(order) + start) / (config.epochs * len(order))
            yield done, batch.take(order[start : start + config.minibatch])


def _notify(job: Job[TrainingConfig], event: str, step: int, metrics: Numbers) -> str:
    """Call the callbacks that have a method of this name; the reason to stop, if one returns True."""
    stopped = ""
    for callback in job.callbacks:
        method = getattr(callback, event, None)
        if method is not None and method(step, dict(metrics)) is True:
            stopped = f"stopped by {type(callback).__name__}.{event}"
    return stopped


def _apply(
    action: Action, runtime: Runtime, state: TrainState, best: Snapshot | None, carried: Carried | None = None
) -> None:
    """Apply an action of the health monitor: new knobs, best weights, stop."""
    state.knobs = action.knobs
    if action.reset_best:
        state.best_score = -math.inf
    if action.restore_best and best is not None:
        runtime.restore(best)
        runtime.reset_optimizer()
        if carried:
            carried.discard_carried()
        state.stopped = ""  # the restored weights are those from before the reason to stop
    state.stopped = state.stopped or action.stop


def _require_finite(job: Job[TrainingConfig], step: int, norm: float, monitor: HealthMonitor, runtime: Runtime) -> None:
    """Raise if the gradient is not finite, unless a remedy has just restored the best weights."""
    if math.isfinite(norm) or monitor.restored_at == step:
        return
    names = runtime.nonfinite()
    where = f" in {names[0]} and {len(names) - 1} more" if names else ""
    fix = (
        f"lower {job.name.split('@')[0]}.learning_rate, or use model.dtype = 'float32'; run again to resume from the "
        "last checkpoint"
    )
    raise TrainingError(f"{job.name}, step {step}: the gradient is {norm}{where}", "a loss must be finite", fix)


def _validate(
    config: LoopConfig, runtime: Runtime, job: Job[TrainingConfig], step: int, state: TrainState, best: Snapshot | None
) -> Snapshot | None:
    """Validate; returns a snapshot of the best weights, a new one if the score has improved."""
    assert config.validate is not None
    metrics = config.validate(step, state.knobs)
    job.log.write(step, "validation", metrics)
    state.stopped = _notify(job, "on_validation", step, metrics) or state.stopped
    score = config.score(metrics)
    if score > state.best_score:
        state.best_score = score
        state.best_step = step + 1
        state.bad_validations = 0
        return runtime.snapshot()
    state.bad_validations += 1
    if state.bad_validations >= config.patience:
        state.stopped = f"no gain in {state.bad_validations} validations"
    return best


def _resume(
    config: LoopConfig, runtime: Runtime, job: Job[TrainingConfig], checkpoints: Checkpoints
) -> tuple[int, TrainState, Snapshot | None]:
    """First step, state and best weights from the newest checkpoint that verifies."""
    newest = checkpoints.newest_folder()
    if checkpoints.passed_over:
        begins = f"step {newest[0]}" if newest else "the beginning"
        cause = "a disk fault, a full disk, or files changed by hand; a kill leaves no half-written checkpoint"
        remedy = f"training resumes from {begins}; check the disk"
        job.findings.append(Finding("checkpoint-damaged", "warning", "; ".join(checkpoints.passed_over), cause, remedy))
    if newest is None:
        job.log.rewind(-1)
        return 0, TrainState(dict(config.knobs)), None
    step, folder, notes = newest
    best = runtime.read_state(folder)
    if config.carried:
        config.carried.read_carried(step, folder)
    job.log.rewind(step)
    if notes["best_score"] is None:
        notes["best_score"] = -math.inf
    return step, TrainState(**notes), best


class _Saver:
    """Writes checkpoints at intervals, by the clock of the first process, and when a run is stopped."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        runtime: Runtime,
        job: Job[TrainingConfig],
        step: int,
        carried: Carried | None = None,
    ) -> None:
        self.checkpoints = checkpoints
        self.runtime = runtime
        self.job = job
        self.carried = carried
        self.step = step
        """The step of the newest checkpoint, 0 for none."""
        self._at = time.monotonic()
        self._interval = job.checkpoint_seconds

    def due(self) -> bool:
        """Whether the interval has passed; the same on every process."""
        return bool(self.runtime.agree(float(time.monotonic() - self._at >= self._interval)))

    def save(self, step: int, state: TrainState, best: Snapshot | None) -> None:
        """Write the state after `step` steps, unless it is already written."""
        if step != self.step:
            started = time.monotonic()
            notes = dict(state.__dict__)
            if not math.isfinite(state.best_score):
                notes["best_score"] = None

            def write(folder: Path) -> None:
                self.runtime.write_state(folder, best)
                if self.carried:
                    self.carried.write_carried(step, folder)

            self.checkpoints.publish(step, write, notes)
            self.step = step
            self._at = time.monotonic()
            self._interval = _checkpoint_interval(self.job.checkpoint_seconds, self._at - started)
        if self.step:
            interrupt.set_stop_message(f"A checkpoint of {self.job.name} after step {self.step} is written.")


def _checkpoint_interval(wanted: float, writing: float) -> float:
    """Seconds between two checkpoints: longer if writing the last one took long."""
    return max(wanted, writing / CHECKPOINT_SHARE) if wanted else 0.0


def schedule(kind: Schedule, warmup: float = 0.0) -> Callable[[float], float]:
    """Learning rate schedule: linear warm-up, then linear or cosine decay to zero, or none."""

    def rate(done: float) -> float:
        rising = (done + 1e-3) / warmup if warmup else 1.0
        left = (1 - done) / (1 - warmup)
        if kind == "constant":
            left = 1.0
        elif kind == "cosine":
            left = 0.5 * (1 - math.cos(math.pi * min(left, 1.0)))
        return min(rising, left)

    return rate


def minibatches(count: int, size: int, epochs: float, seed: int, stream: str) -> list[Any]:
    """Row indices of every step: each epoch has a new order and every row once; a fractional last epoch is shorter."""
    steps: list[Any] = []
    for epoch in range(math.ceil(epochs)):
        order = permutation(count, seed, stream, epoch)
        part = order[: max(1, round(count * min(1.0, epochs - epoch)))]
        steps += [part[start : start + size] for start in range(0, len(part), size)]
    return steps


def columns(**arrays: Any) -> dict[str, Tensor]:
    """Columns of a batch."""
    return {name: torch.as_tensor(array) for name, array in arrays.items()}
