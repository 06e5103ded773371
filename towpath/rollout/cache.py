"""Keys and values of answers that are being drawn: columns are added a few at a time, rows that end leave without a
copy of the rest.

B rows, H heads, S columns, W width of a head.

"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicLayer

STRIDE = 16
"""Columns are added so many at a time."""


def room(columns: int, double: bool) -> int:
    """How many columns are added to so many. Torch's products of batches copy what is not contiguous, so what is not
    yet filled is computed upon and barred by the mask: few. Compiled kernels do not look at it: as many as there
    are."""
    return -columns % STRIDE or (columns if double else STRIDE)


class CacheLayer(DynamicLayer):
    """One layer's keys and values [B,H,S,W], the first `filled` of the columns in use."""

    def __init__(self, read: DynamicLayer, index_B: Tensor, double: bool) -> None:
        super().__init__()
        assert read.keys is not None and read.values is not None
        self.dtype = read.keys.dtype
        self.device = read.keys.device
        self.is_initialized = True
        self.filled = read.keys.shape[2]
        self.double = double
        self.keys, self.values = (self._wider(states)[index_B] for states in (read.keys, read.values))

    def _wider(self, states: Tensor) -> Tensor:
        return pad(states, (0, 0, 0, room(states.shape[2], self.double)))

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        keys, values, column = self.column()
        keys[:, :, column], values[:, :, column] = key_states[:, :, 0], value_states[:, :, 0]
        return keys, values

    def column(self) -> tuple[Tensor, Tensor, int]:
        """Keys and values with room for a column more, and which that is."""
        assert self.keys is not None and self.values is not None
        if self.filled == self.keys.shape[2]:
            self.keys, self.values = self._wider(self.keys), self._wider(self.values)
        self.filled += 1
        return self.keys, self.values, self.filled - 1

    def keep(self, order_B: Tensor) -> None:
        """Row i is from now on what row order[i] was; as `leaving` gives it, few rows move."""
        assert self.keys is not None and self.values is not None
        moved = (order_B != torch.arange(len(order_B), device=order_B.device)).nonzero()[:, 0]
        for states in (self.keys, self.values):
            states[moved] = states[order_B[moved]]
        self.keys = self.keys[: len(order_B)]
        self.values = self.values[: len(order_B)]


def merge_caches(caches: Sequence[Cache]) -> Cache:
    """One cache of all rows, each row's columns at the end; the caches are emptied, a layer at a time."""
    if len(caches) == 1:
        return caches[0]
    longest = max(cache.get_seq_length() for cache in caches)
    whole: list[Any] = []
    for i in range(len(caches[0].layers)):
        parts: list[Any] = [cache.layers[i] for cache in caches]
        layer = DynamicLayer()
        layer.update(*(_right_aligned([getattr(part, name) for part in parts], longest) for name in ("keys", "values")))
        for part in parts:
            part.keys = part.values = None
        whole.append(layer)
    return Cache(layers=whole)


def _right_aligned(states: Sequence[Tensor], columns: int) -> Tensor:
    """States [B,H,S,W] of parts of different S, one below the other."""
    return torch.cat([pad(part, (0, 0, columns - part.shape[2], 0)) for part in states])


class Room:
    """The cache and the additive mask [B,1,1,S] of rows that each draw one token a step."""

    def __init__(self, read: Cache, mask_BS: Tensor, index_B: Tensor, double: bool) -> None:
        layers: list[Any] = read.layers
        for i, layer in enumerate(layers):
            layers[i] = CacheLayer(
                layer, index_B, double
            )  # one at a time: the old layer is free before the next is made
        self.cache = Cache(layers=layers)
        self.filled = mask_BS.shape[1]
        self.double = double
        dtype = layers[0].dtype
        blank_BS = torch.zeros(len(index_B), self.filled, dtype=dtype, device=mask_BS.device)
        self.mask = blank_BS.masked_fill_(mask_BS[index_B] == 0, torch.finfo(dtype).min)[:, None, None]
        self._widen()

    def _widen(self) -> None:
        self.mask = pad(self.mask, (0, room(self.mask.shape[-1], self.double)), value=torch.finfo(self.mask.dtype).min)

    def next(self) -> Tensor:
        """The mask of the step that fills one more column."""
        if self.filled == self.mask.shape[-1]:
            self._widen()
        self.mask[..., self.filled] = 0.0
        self.filled += 1
        return self.mask

    def keep(self, order_B: Tensor) -> None:
        """Rows that go on, in their new order."""
        self.mask = self.mask[order_B]
        for layer in self.cache.layers:
            layer.keep(order_B)  # pyright: ignore[reportAttributeAccessIssue]


def leaving(going_B: Tensor) -> Tensor:
    """The order that fills the places of ended rows with rows from the end, and leaves all others where they are."""
    count = int(going_B.sum())
    order = torch.arange(count, device=going_B.device)
    order[~going_B[:count]] = going_B[count:].nonzero()[:, 0] + count
    return order
