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

    @classmethod
    def fitted(cls, features_ND: Tensor, target_N: Tensor, row_N: Tensor) -> "ScalarHead":
        """The best linear reading of these features, ridge chosen on every fourth row."""
        x, y = features_ND.double(), target_N.double()
        center_D, middle = x.mean(0), y.mean()
        x, y, held = x - center_D, y - middle, row_N % 4 == 0
        size = float(x.pow(2).mean()) * len(x)
        shown_DD, shown_D = x[~held].T @ x[~held], x[~held].T @ y[~held]
        identity_DD = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)

        def explained(ridge: float) -> float:
            weight_D = torch.linalg.solve(shown_DD + ridge * size * identity_DD, shown_D)
            return 1 - float((y[held] - x[held] @ weight_D).var() / y[held].var().clamp(min=1e-12))

        best = max((explained(ridge), ridge) for ridge in (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0))
        head = cls(x.shape[1]).to(x.device)
        with torch.no_grad():
            head.weight.copy_(torch.linalg.solve(x.T @ x + best[1] * size * identity_DD, x.T @ y))
            head.bias.copy_(middle - center_D @ head.weight.double())
        return head

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.float() @ self.weight + self.bias
