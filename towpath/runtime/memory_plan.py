"""Tokens of a pass on this device, where a recipe leaves it to the memory."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from towpath.models.pass_memory import ModelShape, tokens_that_fit

ON_A_CPU = 1024
"""Tokens of a pass on a CPU: its caches, not its memory, decide."""
CLASSIFIER_ON_A_GPU = 16_384
"""Of reward models from elsewhere, which keep nothing for a backward pass."""
OPTIMIZER_BYTES = 14
"""Of a trained number: its gradient in 16 bits, the sum of gradients and two moments."""


def tokens_per_pass(
    trunks: Mapping[str, Any],
    trained: Iterable[nn.Parameter],
    copies: int,
    checkpointing: bool,
    device: torch.device,
    share: int = 1,
) -> int:
    """As many as fit what is free on a GPU, once optimizer and `copies` bytes of plain models are there, too; `share`
    workers use the GPU."""
    if device.type != "cuda":
        return ON_A_CPU
    weights = list(trained)
    pending = OPTIMIZER_BYTES * sum(weight.numel() for weight in weights) + copies
    names = {id(weight) for weight in weights}
    room = room_on(device, share) - pending
    fitting = [
        tokens_that_fit(
            room,
            ModelShape.of_config(trunk.config),
            bool(weights),
            id(getattr(trunk.get_output_embeddings(), "weight", None)) in names,
            checkpointing,
        )
        for trunk in trunks.values()
    ]
    return min(fitting, default=ON_A_CPU)


def free_bytes(device: torch.device) -> int:
    """What a GPU has free, with what the allocator holds in reserve."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def room_on(device: torch.device, share: int) -> int:
    """What a worker may still take of a GPU that several use: they load at the same time, so that what is free now is
    not free for one of them."""
    free = free_bytes(device)
    if share == 1:
        return free
    capacity = torch.cuda.mem_get_info(device)[1]
    return min(free, capacity // share - torch.cuda.memory_allocated(device))


def of_classifier(tokens: int | str, device: torch.device) -> int:
    """Tokens of a pass of a reward model from elsewhere."""
    if isinstance(tokens, int):
        return tokens
    return CLASSIFIER_ON_A_GPU if device.type == "cuda" else ON_A_CPU
