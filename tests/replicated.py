"""A second implementation of the runtime contract, for tests: replicated weights on several gloo processes, each with
its share of the rows."""

import numpy as np
import torch
import torch.distributed as dist

from towpath.algos.contract import Metrics, add
from towpath.recipe import Model
from towpath.runtime import passes
from towpath.runtime.local import PACK_WIDTH, Local


class Exact(Local):
    """`Local` in float64, so that the order of summation makes no visible difference between two runtimes."""

    def open(self, roles, optimizer=None):
        super().open(roles, optimizer)
        for parameter in self.trained().values():
            parameter.data = parameter.data.double()


class Replicated(Exact):
    """Every process runs the same stage; scores are gathered, gradients and metrics are summed."""

    def score(self, role, batch, wants, temperature=1.0):
        if "features" in wants or self.roles[role].closed_form_head is not None:
            return super().score(role, batch, wants, temperature)  # state inside the runtime is replicated
        order = np.arange(len(batch))
        starts = order[dist.get_rank() :: dist.get_world_size()]
        rows = batch if batch.sizes == () else _ungrouped(batch)
        own = super().score(role, rows.take(starts), wants, temperature) if len(starts) else None
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, (starts, own))
        outputs = [(index, out) for index, out in parts if out is not None]
        return passes.join(outputs, torch.from_numpy(batch.mask_BT))

    def forward_backward(self, needs, batch, loss, weight, temperature=1.0, count=lambda rows: None):
        groups = np.arange(batch.groups)[dist.get_rank() :: dist.get_world_size()]
        own: Metrics = {}
        if len(groups):
            own = super().forward_backward(needs, batch.take(groups), loss, weight, temperature)
        for parameter in self.trained().values():
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(grad)
            parameter.grad = grad
        count(len(batch))
        everywhere = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, own)
        metrics: Metrics = {}
        for part in everywhere:
            add(metrics, part)
        return metrics

    def agree(self, value):
        numbers = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(numbers, 0)
        return float(numbers)


def _ungrouped(batch):
    from dataclasses import replace

    return replace(batch, sizes=())


def launch(runtime: type[Local], model: Model, pad: int, packing: bool = True, training: bool = True) -> Local:
    """A runtime for one policy stage."""
    return runtime(model.tokens_per_pass, PACK_WIDTH if packing else 0, pad, torch.float64)
