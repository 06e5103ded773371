"""The runtime that a recipe asks for, and reward models from elsewhere on its device."""

from pathlib import Path
from typing import TypeVar

import torch

from towpath.models.classifier import Classifier, split_label
from towpath.models.locate import find
from towpath.recipe import Cluster, Compile, Model
from towpath.runtime.contract import Runtime
from towpath.runtime.group import Group
from towpath.runtime.group_classifier import GroupClassifier
from towpath.runtime.launchers import open_workers
from towpath.runtime.local import Local
from towpath.runtime.memory_plan import of_classifier
from towpath.runtime.models import PACK_WIDTH
from towpath.runtime.process import device_named, dtype_named
from towpath.runtime.workers import close_shared_workers

R = TypeVar("R", bound=Local)


def launch(
    model: Model,
    pad: int,
    packing: bool = True,
    training: bool = True,
    cluster: Cluster | None = None,
    samples_apart: bool = False,
) -> Runtime:
    """One process on one device, or several workers. Layers are compiled, where the recipe says so, only for
    training. `samples_apart`: where the recipe says so, some of the workers only sample."""
    cluster = cluster or Cluster()
    if samples_apart and cluster.sample_workers:
        return _groups_apart(model, pad, packing, training, cluster)
    workers = open_workers(model, cluster)
    if workers is None:
        device = device_named(model.device)
        return local(Local, model, pad, packing, training, dtype_named(model.dtype, device), device)
    dtype = dtype_named(model.dtype, torch.device(workers.devices[0]))
    return Group(workers, model, pad, dtype, packing, training, cluster.shard)


def _groups_apart(model: Model, pad: int, packing: bool, training: bool, cluster: Cluster) -> Group:
    """Workers that train, with others that sample for them."""
    parts = [open_workers(model, cluster, "training"), open_workers(model, cluster, "sampling")]
    if any(workers is None or workers.busy for workers in parts):  # of a training that was broken off
        close_shared_workers()
        parts = [open_workers(model, cluster, "training"), open_workers(model, cluster, "sampling")]
    workers, samplers = parts
    assert workers and samplers
    dtype = dtype_named(model.dtype, torch.device(workers.devices[0]))
    beside = Group(samplers, model, pad, dtype, packing, training)
    return Group(workers, model, pad, dtype, packing, training, cluster.shard, beside)


def local(
    runtime: type[R], model: Model, pad: int, packing: bool, training: bool, dtype: torch.dtype, device: torch.device
) -> R:
    """The runtime of one process, as a recipe asks for it."""
    return runtime(
        model.tokens_per_pass,
        PACK_WIDTH if packing else 0,
        pad,
        dtype,
        device,
        model.attention,
        model.compile if training else Compile(),
        model.quantize == "4bit" and training,
        model.gradient_checkpointing and training,
        model.kernels,
    )


def launch_classifier(
    runtime: Runtime,
    model: Model,
    source: str,
    run: Path | None = None,
    template: str = "model",
    key: str = "policy.rewards",
) -> Classifier:
    """The reward model from elsewhere that MODEL or MODEL#LABEL names, where the runtime computes and in the recipe's
    precision."""
    name, label = split_label(source)
    folder = find(name, run, key)
    if isinstance(runtime, Group):
        device = torch.device(runtime.workers.devices[0])
        tokens = of_classifier(model.tokens_per_pass, device)
        return GroupClassifier(runtime, folder, label, template, dtype_named(model.dtype, device), device, tokens)
    device = device_named(model.device)
    dtype = dtype_named(model.dtype, device)
    tokens = of_classifier(model.tokens_per_pass, device)
    return Classifier(folder, label, template, dtype, device, tokens)
