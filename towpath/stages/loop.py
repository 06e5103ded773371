"""THE loop: one for every algorithm. It asks for a batch, splits it, divides by the step's weight, and steps.

Nothing here knows an algorithm, a device or a model; a step is counted once, whatever the micro-batches.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from towpath import interrupt
from towpath.algos.contract import Metrics, add, means
from towpath.data.batch import Batch
from towpath.data.draws import permutation
from towpath.errors import TrainingError
from towpath.health.monitor import Action, HealthMonitor, stage_facts
from towpath.models.cpu import dispatch
from towpath.progress import progress
from towpath.records import Finding
from towpath.runtime.local import Local, give_back_memory, memory_in_use
from towpath.stages.job import Checkpoints, Job
from towpath.stages.rollout_statistics import of_critic
from towpath.store.publish import fault_point, replace_file

Numbers = dict[str, float]
SHARE = 0.05
"""The most of the time that writing checkpoints may take, unless every step is to leave one (0 seconds between
them)."""


@dataclass
class Course:
    """What one training run is: an algorithm, its batches, and when to look, turn and stop."""

    algo: Any
    config: Any
    steps: int
    minibatch: int
    batch: Callable[[int, Numbers], tuple[Batch, Numbers]]
    """(step, knobs) -> the batch of that step and what there is to say of it."""
    rate: Callable[[float], float]
    """progress in [0,1] -> share of the peak rate."""
    epochs: int = 1
    max_grad_norm: float = 1.0
    validate: Callable[[int, Numbers], Numbers] | None = None
    """(step, knobs) -> numbers on what is never trained on."""
    validate_every: int = 1
    look_first: bool = False
    """Validate before the first step too, as step -1: where all curves begin."""
    merit: Callable[[Numbers], float] = lambda numbers: -numbers["loss"]
    """Of validation numbers: higher is better; -inf is never chosen."""
    patience: int = 10**9
    turn: Callable[[int, Numbers, Numbers], Numbers] = lambda step, numbers, knobs: knobs
    """(step, numbers, knobs) -> knobs of the next step."""
    after: Callable[[Batch], None] = lambda batch: None
    """What else learns from the step's batch, once it has been stepped on."""
    halt: Callable[[Numbers], str] = lambda numbers: ""
    """A reason to stop at once and keep the best weights, or nothing."""
    knobs: Numbers = field(default_factory=dict)


@dataclass
class Standing:
    """Where a training run stands; all of it is in every checkpoint."""

    knobs: Numbers
    best_merit: float = -math.inf
    best_step: int = 0
    worse: int = 0
    stopped: str = ""
    story: list[dict[str, Any]] = field(default_factory=list)
    """Turns of knobs that remedies made, and whether they helped; told at the end."""


def train(course: Course, runtime: Local, job: Job, title: str) -> Standing:
    """Run the course to its end from wherever it stood, and leave the best weights in the runtime."""
    checkpoints = Checkpoints(job.folder)
    begin, standing, best = _resume(course, runtime, job, checkpoints)
    told = {"steps": course.steps, "arithmetic": str(job.dtype).removeprefix("torch.")}
    told["kernels"] = dispatch.told() if job.device.type == "cpu" else job.device.type
    replace_file(job.folder / "run_info.json", json.dumps(told))
    if best is None and course.validate:
        best = runtime.weights()  # step 0: what stays if no later weights are acceptable
    if begin == 0 and course.validate and course.look_first:
        job.log.write(-1, "validation", course.validate(-1, standing.knobs))
    facts = stage_facts(job.recipe, job.name, job.inputs)
    monitor = HealthMonitor(
        job.recipe.health, job.folder, job.log.recorder, facts, job.findings, course.steps, course.knobs
    )
    saver = _Saver(checkpoints, runtime, job, begin)
    with progress(title, course.steps, start=begin) as bar, interrupt.defer_signals():
        for step in range(begin, course.steps):
            if standing.stopped:
                break
            stopped = partial(saver.save, step, standing, best)
            numbers = _one_step(course, runtime, job, step, standing.knobs, stopped) | {
                "seconds_watch": monitor.last_seconds
            }
            job.log.write(step, "train", numbers)
            fault_point(f"step-{job.name}")
            standing.knobs = course.turn(step, numbers, standing.knobs)
            standing.stopped = course.halt(numbers)
            last = step + 1 == course.steps or bool(standing.stopped)
            if course.validate and (last or (step + 1) % course.validate_every == 0):
                best = _look(course, runtime, job, step, standing, best)
            _act(monitor.after_step(step, standing.knobs), runtime, standing, best)
            _require_finite(job, step, numbers["grad_norm"], monitor, runtime)
            bar.advance(1, "  ".join(f"{key} {numbers[key]:.3g}" for key in ("loss", "score", "kl") if key in numbers))
            if last or standing.stopped or saver.due() or interrupt.stop_requested():
                saver.save(step + 1, standing, best)
            interrupt.raise_if_stop_requested()
    if best is not None:
        runtime.restore(best)
    standing.story = monitor.history()
    give_back_memory()  # what passes took is not to stand beside what is written now
    return standing


def _one_step(
    course: Course, runtime: Local, job: Job, step: int, knobs: Numbers, stopped: Callable[[], None]
) -> Numbers:
    """Get a batch and learn from it; `stopped` is called where the run is stopped while the batch is made, and no
    weight has moved yet."""
    try:
        with interrupt.allow_signals():
            drawn, said = course.batch(step, knobs)
    except (interrupt.Stopped, KeyboardInterrupt):
        stopped()
        raise
    batch = course.algo.prepare(drawn, course.config, knobs)
    said = said | of_critic(batch)
    metrics: Metrics = {}
    begun = time.monotonic()
    norms = []
    rate = 0.0
    updates = course.epochs * math.ceil(batch.groups / course.minibatch)
    with progress("update", course.epochs * len(batch), "rows") as work:
        for epoch in range(course.epochs):
            order = permutation(batch.groups, job.recipe.seed, f"{job.name}/minibatch", step, epoch)
            for number, start in enumerate(range(0, len(order), course.minibatch)):
                mini = batch.take(order[start : start + course.minibatch])
                weight = course.algo.weigh(mini, course.config)

                def loss_of(out: Any, part: Batch) -> tuple[Tensor, Metrics]:
                    return course.algo.loss(out, part, course.config, knobs)

                more = runtime.forward_backward(course.algo.TRAINS, mini, loss_of, weight, work.advance)
                if epoch == 0 and number == 0:
                    said |= {f"first_{key}": value for key, value in means(more).items() if key == "ratio_error"}
                add(metrics, more)
                rate = course.rate((step + (epoch * len(order) + start) / (course.epochs * len(order))) / course.steps)
                norms.append(runtime.step(rate * knobs.get("learning_rate_scale", 1.0), course.max_grad_norm))
    assert len(norms) == updates
    course.after(batch)
    spent = time.monotonic() - begun
    return {
        **means(metrics),
        "grad_norm": sum(norms) / len(norms),
        "learning_rate": rate * course.config.learning_rate * knobs.get("learning_rate_scale", 1.0),
        **knobs,
        "seconds_optimise": spent,
        "memory_bytes": memory_in_use(runtime.device),
        **said,
    }


def _act(action: Action, runtime: Local, standing: Standing, best: dict[str, Tensor] | None) -> None:
    """What a remedy asks of the loop: knobs as they are to stand, the best weights back, an end."""
    standing.knobs = action.knobs
    if action.reset_best:
        standing.best_merit = -math.inf
    if action.restore_best and best is not None:
        runtime.restore(best)
        runtime.forget()
        standing.stopped = ""  # what ended training lies behind
    standing.stopped = standing.stopped or action.stop


def _require_finite(job: Job, step: int, norm: float, monitor: HealthMonitor, runtime: Local) -> None:
    """A gradient that is none ends training, unless a remedy has just gone back to better weights."""
    if math.isfinite(norm) or monitor.restored_at == step:
        return
    where = f" in {runtime.unfinite[0]} and {len(runtime.unfinite) - 1} more" if runtime.unfinite else ""
    fix = (
        f"lower {job.name.split('@')[0]}.learning_rate, or use model.dtype = 'float32'; run again to go on from the "
        "last checkpoint"
    )
    raise TrainingError(f"{job.name}, step {step}: the gradient is {norm}{where}", "a loss must be finite", fix)


def _look(
    course: Course, runtime: Local, job: Job, step: int, standing: Standing, best: dict[str, Tensor] | None
) -> dict[str, Tensor] | None:
    """Validate; remember the weights when they are the best so far."""
    assert course.validate is not None
    numbers = course.validate(step, standing.knobs)
    job.log.write(step, "validation", numbers)
    merit = course.merit(numbers)
    if merit > standing.best_merit:
        standing.best_merit = merit
        standing.best_step = step + 1
        standing.worse = 0
        return runtime.weights()
    standing.worse += 1
    if standing.worse >= course.patience:
        standing.stopped = f"no gain in {standing.worse} validations"
    return best


def _resume(
    course: Course, runtime: Local, job: Job, checkpoints: Checkpoints
) -> tuple[int, Standing, dict[str, Tensor] | None]:
    found = checkpoints.newest()
    if checkpoints.passed_over:
        begins = f"step {found[0]}" if found else "the beginning"
        cause = "a disk fault, a full disk, or files changed by hand; a kill leaves no half-written checkpoint"
        remedy = f"training goes on from {begins}; check the disk"
        job.findings.append(Finding("checkpoint-damaged", "warning", "; ".join(checkpoints.passed_over), cause, remedy))
    if found is None:
        job.log.rewind(-1)
        return 0, Standing(dict(course.knobs)), None
    step, tensors, notes = found
    runtime.restore(tensors)
    job.log.rewind(step)
    best = {key.removeprefix("best:"): value for key, value in tensors.items() if key.startswith("best:")}
    if notes["best_merit"] is None:
        notes["best_merit"] = -math.inf
    return step, Standing(**notes), best or None


def _apart(asked: float, writing: float) -> float:
    """Seconds between two checkpoints, from how long the last one took to write."""
    return max(asked, writing / SHARE) if asked else 0.0


class _Saver:
    """Writes checkpoints: every so often, and where a run is asked to stop."""

    def __init__(self, checkpoints: Checkpoints, runtime: Local, job: Job, step: int) -> None:
        self.checkpoints = checkpoints
        self.runtime = runtime
        self.job = job
        self.step = step
        """What the newest checkpoint holds, 0 for none."""
        self.apart = job.checkpoint_seconds
        self.at = time.monotonic()

    def due(self) -> bool:
        """Whether enough time has gone by."""
        return time.monotonic() - self.at >= self.apart

    def save(self, step: int, standing: Standing, best: dict[str, Tensor] | None) -> None:
        """Write what stands after so many steps, unless it is written; nothing where no step was made."""
        if step != self.step:
            begun = time.monotonic()
            tensors = self.runtime.state() | {f"best:{key}": value for key, value in (best or {}).items()}
            notes = dict(standing.__dict__)
            if not math.isfinite(standing.best_merit):
                notes["best_merit"] = None
            self.checkpoints.save(step, tensors, notes)
            self.step = step
            self.at = time.monotonic()
            self.apart = _apart(self.job.checkpoint_seconds, self.at - begun)
        if self.step:
            interrupt.set_stop_message(f"A checkpoint of {self.job.name} after step {self.step} is written.")


def warmup_then_linear(warmup: float) -> Callable[[float], float]:
    """Up over the warm-up share, then down to zero."""
    return lambda done: min((done + 1e-3) / warmup if warmup else 1.0, (1 - done) / (1 - warmup))


def minibatches(count: int, size: int, epochs: float, seed: int, stream: str) -> list[Any]:
    """Index arrays of every step: each epoch a new order, every row once an epoch, the last epoch cut where epochs
    end."""
    steps: list[Any] = []
    for epoch in range(math.ceil(epochs)):
        order = permutation(count, seed, stream, epoch)
        part = order[: max(1, round(count * min(1.0, epochs - epoch)))]
        steps += [part[start : start + size] for start in range(0, len(part), size)]
    return steps


def to(device: torch.device, **columns: Any) -> dict[str, Tensor]:
    """Columns as tensors on a device."""
    return {name: torch.as_tensor(column).to(device) for name, column in columns.items()}
