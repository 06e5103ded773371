"""What `[cluster]` comes to on this machine, and the memory that each worker needs; nothing is loaded."""

from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from towpath.models import files, memory
from towpath.models.pass_memory import LOGITS_BYTES, ModelShape, head_rows, token_bytes, tokens_that_fit
from towpath.recipe import Recipe
from towpath.run.sizes import (
    BYTES,
    GPU_BYTES,
    TOKENS_PER_PASS,
    Size,
    StageParameters,
    gigabytes,
    gpu_memory_needed,
    model_size,
    stage_parameters,
)


@dataclass(frozen=True)
class Placement:
    """The workers of a run."""

    launcher: str
    nodes: str
    devices: tuple[str, ...]
    """Of each worker of this host; one where the run's own process does the work."""
    shard: Literal["replicate", "fsdp"]
    device_share: int
    """Workers on the same GPU, or on the same machine without one."""
    sample_workers: int
    """Workers that only sample in the policy stage."""
    device_bytes: int | None
    """Memory of a GPU, or what this machine has available; None where that is not known."""

    @property
    def parts(self) -> int:
        """Workers that divide a model among them."""
        return max(1, len(self.devices) - self.sample_workers) if self.shard == "fsdp" else 1


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one worker in a stage."""

    weights: int
    gradients: int
    optimizer: int
    activations: int | None
    """Of a pass; None where the configuration of the model does not say its shape."""
    tokens_per_pass: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + (self.activations or 0)


@dataclass(frozen=True)
class WorkerPlan:
    """Workers, and what each needs in the stages that train."""

    placement: Placement
    stages: dict[str, StageMemory]


def place_workers(recipe: Recipe, size: Size, reward: Size | None = None, classifiers: int = 0) -> Placement:
    """Resolve what `[cluster]` leaves to `auto`, as far as this host shows it."""
    from towpath.runtime.launchers import worker_devices
    from towpath.runtime.present_task import launcher_of
    from towpath.runtime.process import describe_gpu, device_named

    cluster = recipe.cluster
    devices = tuple(worker_devices(recipe.model, cluster)) or (str(device_named(recipe.model.device)),)
    on_gpu = devices[0].startswith("cuda")
    capacity = memory.memory_available()
    if on_gpu:
        capacity = _gpu_capacity() if describe_gpu() else None
    shard: Literal["replicate", "fsdp"] = "fsdp" if cluster.shard == "fsdp" and len(devices) > 1 else "replicate"
    if cluster.shard == "auto" and on_gpu and capacity and len(devices) > 1:
        from towpath.runtime.sharding import SHARE_OF_GPU

        if gpu_memory_needed(recipe, size, reward, classifiers) > SHARE_OF_GPU * capacity:
            shard = "fsdp"
    share = max(devices.count(device) for device in devices)
    apart = cluster.sample_workers
    return Placement(launcher_of(cluster), str(cluster.nodes), devices, shard, share, apart, capacity)


def _gpu_capacity() -> int:
    from towpath.runtime.process import gpu_capacity

    return gpu_capacity()


def plan_of_run(recipe: Recipe, run: Path) -> WorkerPlan:
    """The plan of a run with the models that its recipe names."""
    from towpath.models import base
    from towpath.run.model_checks import classifier_sizes

    folder = Path(base.find(recipe.model.source, run))
    return plan_workers(recipe, folder, model_size(folder), *classifier_sizes(recipe, run))


def plan_workers(recipe: Recipe, folder: Path, size: Size, reward: Size | None, classifiers: int) -> WorkerPlan:
    """The plan for a model in a folder."""
    placement = place_workers(recipe, size, reward, classifiers)
    shape = model_shape(folder)
    stages = {
        name: _stage_memory(recipe, placement, shape, stage)
        for name, stage in stage_parameters(recipe, size, reward, classifiers).items()
        if stage.trained
    }
    return WorkerPlan(placement, stages)


def _stage_memory(
    recipe: Recipe, placement: Placement, shape: ModelShape | None, stage: StageParameters
) -> StageMemory:
    on_gpu = placement.devices[0].startswith("cuda")
    # a weight that trains has low bits on a GPU, and on a CPU a copy of the best checkpoint
    frozen, weight, gradient, moments = (GPU_BYTES[0], 4, 6, 8) if on_gpu else (BYTES, 2 * BYTES, BYTES, 2 * BYTES)
    trained = StageParameters(0, stage.trained, stage.full)
    weights = stage.bytes(frozen, weight, placement.parts)
    gradients = trained.bytes(0, gradient, placement.parts)
    optimizer = trained.bytes(0, moments, placement.parts)
    tokens: int = TOKENS_PER_PASS if recipe.model.tokens_per_pass == "auto" else recipe.model.tokens_per_pass
    if shape is None:
        return StageMemory(weights, gradients, optimizer, None, tokens)
    checkpointing = recipe.model.gradient_checkpointing
    if recipe.model.tokens_per_pass == "auto" and on_gpu and placement.device_bytes:
        room = placement.device_bytes // placement.device_share - weights - gradients - optimizer
        tokens = tokens_that_fit(room, shape, True, stage.full, checkpointing)
    rows = min(tokens, head_rows(not on_gpu, shape.vocabulary))
    activations = tokens * token_bytes(shape, True, stage.full, checkpointing) + rows * shape.vocabulary * LOGITS_BYTES
    return StageMemory(weights, gradients, optimizer, activations, tokens)


def model_shape(folder: Path) -> ModelShape | None:
    """The shape in a model's configuration; None where it has other names for it."""
    if not (folder / "config.json").is_file():
        return None
    config = files.read_json(folder / "config.json")
    text = SimpleNamespace(**(config | (config.get("text_config") or {})))
    try:
        return ModelShape.of_config(SimpleNamespace(get_text_config=lambda: text))
    except AttributeError:
        return None


def worker_lines(plan: WorkerPlan) -> list[str]:
    """The plan for a terminal."""
    placement = plan.placement
    count = len(placement.devices)
    kinds = ", ".join(dict.fromkeys(placement.devices))
    hosts = "" if placement.nodes == "1" else f" on each of {placement.nodes} hosts that is like this one"
    who = f"{count} workers on {kinds}" if count > 1 else f"1 process on {kinds}"
    how = f", launcher {placement.launcher}, shard {placement.shard}" if count > 1 else ""
    apart = f"; in the policy stage {placement.sample_workers} of all only sample" if placement.sample_workers else ""
    lines = [f"workers: {who}{hosts}{how}{apart}"]
    for name, stage in plan.stages.items():
        parts = [
            f"weights {gigabytes(stage.weights)}",
            f"gradients {gigabytes(stage.gradients)}",
            f"optimizer {gigabytes(stage.optimizer)}",
        ]
        activations = "not known" if stage.activations is None else gigabytes(stage.activations)
        parts.append(f"a pass of {stage.tokens_per_pass:,} tokens {activations}")
        lines.append(f"  memory per worker, {name}: {gigabytes(stage.total)}: {', '.join(parts)}")
    if placement.device_bytes:
        on_gpu = placement.devices[0].startswith("cuda")
        which = "memory of a GPU" if on_gpu else "memory available on this machine"
        shared = f" for {placement.device_share} workers" if placement.device_share > 1 else ""
        lines.append(f"  {which}{shared}: {gigabytes(placement.device_bytes)}")
    return lines


def as_json(plan: WorkerPlan) -> dict[str, Any]:
    """The plan for scripts."""
    stages = {name: asdict(stage) | {"total": stage.total} for name, stage in plan.stages.items()}
    return {**asdict(plan.placement), "workers": len(plan.placement.devices), "memory_per_worker": stages}
