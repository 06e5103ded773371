"""A model's weights as a stream of named tensors, adapters merged one weight at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from towpath.models.adapters import Adapters
from towpath.models.quantized import whole
from towpath.runtime.contract import WeightSource


def weight_source(
    model: Any,
    dtype: torch.dtype,
    last_logprobs: Callable[[Sequence[Sequence[int]]], list[float]],
    adapters: Adapters | None = None,
    adapter: str | None = None,
) -> WeightSource:
    """The weights of a model with one adapter, in the type that an engine computes with."""
    names = dict(named_weights(model))
    size = sum(weight.numel() for weight in names.values()) * dtype.itemsize
    config = getattr(model, "config", None)
    name = str(dtype).removeprefix("torch.")

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for key, weight in named_weights(model):
            yield key, _merged(key, weight, adapters, adapter).to(dtype)

    return WeightSource(config, type(model).__name__, name, size, tensors, last_logprobs)


def plain_source(model: Any) -> WeightSource:
    """The weights of a plain model."""

    @torch.no_grad()
    def last_logprobs(rows: Sequence[Sequence[int]]) -> list[float]:
        values = []
        for ids in rows:
            logits_V = model(torch.tensor([ids[:-1]], device=model.device)).logits[0, -1]
            values.append(float(logits_V.float().log_softmax(-1)[ids[-1]]))
        return values

    return weight_source(model, model.dtype, last_logprobs)


def named_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Weights by the names of a checkpoint: without adapters, the wrapped layers under their own paths. A head that is
    tied to the embedding comes too."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    wrapped = hasattr(model, "lora_switch")
    for name in model.state_dict(keep_vars=True):
        is_adapter = wrapped and (".a." in name or ".b." in name)
        if name in tensors and not is_adapter:  # four-bit weights have states of their own besides
            path, _, last = name.rpartition(".")
            yield f"{path.removesuffix('.base')}.{last}".removeprefix("."), tensors[name]


@torch.no_grad()
def _merged(name: str, weight: Tensor, adapters: Adapters | None, adapter: str | None) -> Tensor:
    if adapters is None:
        return whole(weight.detach())
    layer = adapters.layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
    if layer is not None:
        return layer.merged(adapter)
    expert = adapters.experts.get(name)
    return whole(weight.detach()) if expert is None else expert.merged(adapter)
