"""The runtime of one worker: `Local`, with gradients and the sums of closed-form heads added over all workers.

B rows, N tokens, F features.
"""

import hashlib

import torch
import torch.distributed as dist
from torch import Tensor

from towpath.models.heads import RidgeHead
from towpath.runtime.contract import Handle
from towpath.runtime.local import Local


class Replica(Local):
    """`Local` on some of the rows. Whatever trains is the same on all workers after each step."""

    @property
    def rank(self) -> int:
        """The number of this worker, from 0."""
        return dist.get_rank() if dist.is_initialized() else 0

    def digest(self) -> str:
        """A hash of all that trains, which must be the same on all workers."""
        content = hashlib.sha256()
        for key, tensor in self.snapshot().items():
            content.update(key.encode())
            content.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return content.hexdigest()

    def step(self, rate: float, max_grad_norm: float) -> float:
        """Add the gradients of all workers, then the step of `Local`, the same everywhere."""
        assert self.optimizer is not None
        if _world() > 1:
            self._reduce_gradients()
        return super().step(rate, max_grad_norm)

    @torch.no_grad()
    def _reduce_gradients(self) -> None:
        """One flat sum of all gradients, and of who has one: a weight without a gradient anywhere must not move."""
        assert self.optimizer is not None
        weights = self.optimizer.weights
        gradients = self.optimizer.gradients()
        dtype = torch.float64 if any(weight.dtype == torch.float64 for weight in weights) else torch.float32
        sizes = [weight.numel() for weight in weights]
        flat = torch.zeros(sum(sizes) + len(weights), dtype=dtype, device=self.device)
        parts = flat.split([*sizes, len(weights)])
        for number, weight in enumerate(weights):
            if weight in gradients:
                parts[number].copy_(gradients[weight].reshape(-1))
                parts[-1][number] = 1.0
        dist.all_reduce(flat)
        present = parts[-1].tolist()
        for weight, part, workers in zip(weights, parts, present, strict=False):
            if workers:
                self.optimizer.set_gradient(weight, part.view(weight.shape))

    def fit(self, role: str, features: Handle | Tensor | None, target: Tensor | None, decay: float = 1.0) -> None:
        """Add the sums of this worker's rows to those of the others; the first worker solves, and all get its head."""
        ridge = self._ridge(role)
        if _world() == 1:
            assert features is not None and target is not None
            super().fit(role, features, target, decay)
            return
        rows_NF, target_N = self._rows_to_fit(ridge, features, target)
        candidates = ridge.candidates()
        # the past is in the sums of every worker, and must be in the total once
        ridge.add(rows_NF, target_N, decay if dist.get_rank() == 0 else 0.0, candidates)
        for sums in ridge.sums:
            dist.all_reduce(sums)
        if dist.get_rank() == 0:
            ridge.solve(choose=candidates is not None)
        for parameter in (ridge.head.weight, ridge.head.bias):
            dist.broadcast(parameter.data, 0)

    def _rows_to_fit(
        self, ridge: RidgeHead, features: Handle | Tensor | None, target: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if features is None or target is None:  # none of the rows is here
            width = len(ridge.head.weight)
            return torch.zeros(0, width, device=self.device), torch.zeros(0, device=self.device)
        return self.fit_rows(ridge, features, target)


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
