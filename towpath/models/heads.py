"""A scalar head over hidden states: rewards at the last token, values at every token."""

import math

import torch
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """Hidden state to one number, in float32: N(0, 1/sqrt(d+1)) for rewards (Stiennon et al. 2020), zero for values."""

    def __init__(self, width: int, seed: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(()))
        if seed is not None:
            draw = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                self.weight.normal_(0.0, 1 / math.sqrt(width + 1), generator=draw)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.float() @ self.weight + self.bias
