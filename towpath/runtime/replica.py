"""The runtime of one worker: `Local`, with gradients and the sums of closed-form heads added over all workers.

B rows, N tokens, F features.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from towpath.models.heads import RidgeHead
from towpath.runtime.contract import Handle, Snapshot
from towpath.runtime.local import Local

LARGE = 1 << 16
"""Numbers of a gradient from which it is added up by itself: copying it would cost as much."""


class Replica(Local):
    """`Local` on some of the rows. Whatever trains is the same on all workers after each step."""

    @property
    def world(self) -> int:
        """The number of workers."""
        return dist.get_world_size() if dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        """The number of this worker, from 0."""
        return dist.get_rank() if dist.is_initialized() else 0

    def digest(self) -> str:
        """A hash of all that trains, which must be the same on all workers."""
        return digest(self.live())

    # State: the first worker writes and reads it, and all get it

    def snapshot(self) -> Snapshot:
        """A copy of the weights; the first worker's stands for all."""
        return super().snapshot() if self.rank == 0 else {}

    def restore(self, snapshot: Snapshot) -> None:
        """Load the first worker's snapshot everywhere."""
        if self.rank == 0:
            super().restore(snapshot)
        self._broadcast(list(self.live().values()))

    def write_state(self, folder: Path, best: Snapshot | None) -> None:
        if self.rank == 0:
            super().write_state(folder, best)

    def read_state(self, folder: Path) -> Snapshot | None:
        """The first worker reads: the others may have no such folder."""
        best = None
        trained = self.trained()
        has_state = torch.zeros(len(trained), device=self.device)
        if self.rank == 0:
            best = super().read_state(folder)
        assert self.optimizer is not None
        if self.rank == 0:
            has_state = torch.tensor([float(p in self.optimizer.state) for p in trained.values()], device=self.device)
        self._broadcast([has_state, *self.live().values()])
        for weight, present in zip(trained.values(), has_state.tolist(), strict=True):
            if present:
                self._broadcast(list(self.optimizer.state_of(weight).values()))
        return best if self.rank == 0 else {}

    @torch.no_grad()
    def _broadcast(self, tensors: Sequence[Tensor]) -> None:
        """The first worker's values everywhere."""
        if self.world == 1:
            return
        for tensor in tensors:
            value = tensor.to(self.device).contiguous()
            # as bytes: gloo sends no 16-bit integers, which low bits of weights are
            dist.broadcast(value.reshape(-1).view(torch.uint8), 0)
            self.usage.collective_bytes += value.nbytes
            tensor.copy_(value)

    def step(self, rate: float, max_grad_norm: float) -> float:
        """Add the gradients of all workers, then the step of `Local`, the same everywhere."""
        assert self.optimizer is not None
        if self.world > 1:
            self._reduce_gradients()
        return super().step(rate, max_grad_norm)

    def replicated(self) -> list[nn.Parameter]:
        """The weights that train and are whole on each worker."""
        assert self.optimizer is not None
        return self.optimizer.weights

    @torch.no_grad()
    def _reduce_gradients(self) -> None:
        """The sum of all gradients: large ones as they are, the others in one flat buffer, which also says who has
        which. A weight without a gradient anywhere must not move."""
        assert self.optimizer is not None
        gradients = self.optimizer.gradients()
        weights = self.replicated()
        small = [weight for weight in weights if weight.numel() < LARGE]
        sizes = [weight.numel() for weight in small]
        dtype = torch.float64 if any(weight.dtype == torch.float64 for weight in weights) else torch.float32
        flat = torch.zeros(sum(sizes) + len(weights), dtype=dtype, device=self.device)
        *parts, present = flat.split([*sizes, len(weights)])
        for weight, part in zip(small, parts, strict=True):
            if weight in gradients:
                part.copy_(gradients[weight].reshape(-1))
        present.copy_(torch.tensor([float(weight in gradients) for weight in weights]))
        dist.all_reduce(flat)
        self.usage.collective_bytes += flat.nbytes
        has_gradient = dict(zip(weights, present.tolist(), strict=True))
        for weight, part in zip(small, parts, strict=True):
            if has_gradient[weight]:
                self.optimizer.set_gradient(weight, part.view(weight.shape))
        for weight in weights:
            if weight.numel() >= LARGE and has_gradient[weight]:
                gradient = gradients.get(weight)
                whole = torch.zeros(weight.shape, dtype=dtype, device=self.device) if gradient is None else gradient
                whole = whole.to(dtype).contiguous()
                dist.all_reduce(whole)
                self.usage.collective_bytes += whole.nbytes
                self.optimizer.set_gradient(weight, whole)

    def fit(self, role: str, features: Handle | Tensor | None, target: Tensor | None, decay: float = 1.0) -> None:
        """Add the sums of this worker's rows to those of the others; the first worker solves, and all get its head."""
        ridge = self._ridge(role)
        if self.world == 1:
            assert features is not None and target is not None
            super().fit(role, features, target, decay)
            return
        rows_NF, target_N = self._rows_to_fit(ridge, features, target)
        candidates = self._candidates(ridge)
        # the past is in the sums of every worker, and must be in the total once
        ridge.add(rows_NF, target_N, decay if self.rank == 0 else 0.0, candidates)
        for sums in ridge.sums:
            dist.all_reduce(sums)
            self.usage.collective_bytes += sums.nbytes
        if self.rank == 0:
            ridge.solve(choose=candidates is not None)
        for parameter in (ridge.head.weight, ridge.head.bias):
            dist.broadcast(parameter.data, 0)

    def _candidates(self, ridge: RidgeHead) -> Tensor | None:
        """The head that each ridge gives; each worker solves for some of them."""
        own = ridge.candidates(ridge.RIDGES[self.rank :: self.world])
        if own is None:
            return None
        candidates_ER = own.new_zeros(len(ridge.moments_E), len(ridge.RIDGES))
        candidates_ER[:, self.rank :: self.world] = own
        dist.all_reduce(candidates_ER)
        return candidates_ER

    def _rows_to_fit(
        self, ridge: RidgeHead, features: Handle | Tensor | None, target: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if features is None or target is None:  # none of the rows is here
            width = len(ridge.head.weight)
            return torch.zeros(0, width, device=self.device), torch.zeros(0, device=self.device)
        return self.fit_rows(ridge, features, target)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of named tensors."""
    content = hashlib.sha256()
    for key, tensor in tensors.items():
        content.update(key.encode())
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()
