"""What `[cluster]` comes to on this machine; nothing is loaded."""

from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from towpath.models import files, memory
from towpath.models.pass_memory import ModelShape
from towpath.planning.memory import DeviceLimits, must_divide
from towpath.planning.sizes import Size
from towpath.recipe import Recipe


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


def place_workers(recipe: Recipe, size: Size, reward: Size | None = None, classifiers: int = 0) -> Placement:
    """Resolve what `[cluster]` leaves to `auto`, as far as this host shows it."""
    from towpath.runtime.host_devices import visible_gpus, worker_devices
    from towpath.runtime.present_task import launcher_of

    cluster = recipe.cluster
    own = recipe.model.device
    if own == "auto":
        own = "cuda" if visible_gpus() else "cpu"
    devices = tuple(worker_devices(recipe.model, cluster)) or (own,)
    on_gpu = devices[0].startswith("cuda")
    capacity = memory.memory_available()
    if on_gpu:
        capacity = _gpu_capacity() if visible_gpus() else None
    shard: Literal["replicate", "fsdp"] = "fsdp" if cluster.shard == "fsdp" and len(devices) > 1 else "replicate"
    may_divide = cluster.shard == "auto" and on_gpu and len(devices) > 1
    if may_divide and must_divide(recipe, DeviceLimits(True, capacity), size, reward, classifiers):
        shard = "fsdp"
    share = max(devices.count(device) for device in devices)
    apart = cluster.sample_workers
    return Placement(launcher_of(cluster), str(cluster.nodes), devices, shard, share, apart, capacity)


def _gpu_capacity() -> int:
    from towpath.runtime.process import gpu_capacity

    return gpu_capacity()


def limits_of(placement: Placement) -> DeviceLimits:
    """The device that each worker has."""
    on_gpu = placement.devices[0].startswith("cuda")
    return DeviceLimits(on_gpu, placement.device_bytes, placement.device_share, placement.parts)


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


def workers_line(placement: Placement) -> str:
    """The workers for a terminal."""
    count = len(placement.devices)
    kinds = ", ".join(dict.fromkeys(placement.devices))
    hosts = "" if placement.nodes == "1" else f" on each of {placement.nodes} hosts that is like this one"
    who = f"{count} workers on {kinds}" if count > 1 else f"1 process on {kinds}"
    how = f", launcher {placement.launcher}, shard {placement.shard}" if count > 1 else ""
    apart = f"; in the policy stage {placement.sample_workers} of all only sample" if placement.sample_workers else ""
    return f"workers: {who}{hosts}{how}{apart}"


def as_json(placement: Placement) -> dict[str, Any]:
    """The workers for scripts."""
    return {**asdict(placement), "workers": len(placement.devices)}
