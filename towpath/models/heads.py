"""A scalar head over hidden states: rewards at the last token, values at every token."""

import math
from collections.abc import Sequence
from functools import lru_cache

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
        return hidden.to(self.weight.dtype) @ self.weight + self.bias


@torch.no_grad()
def copy_score_head(model: nn.Module, head: ScalarHead) -> None:
    """Begin with the score head of a sequence-classification model, where the model has one."""
    score = getattr(model, "score", None)
    if isinstance(score, nn.Linear):
        head.weight.copy_(score.weight[0])
        if score.bias is not None:
            head.bias.copy_(score.bias[0])


WIDE = 1024
ROWS = 4096
"""Random features of a state; rows that are summed at a time."""


def running_mean(states_BTD: Tensor) -> Tensor:
    """Mean of the states up to each token [B,T,D]; it predicts an answer's score better than the last state does."""
    count_T = torch.arange(1, states_BTD.shape[1] + 1, device=states_BTD.device)
    return states_BTD.cumsum(1) / count_T[None, :, None]


@lru_cache
def random_projection(width: int, device: torch.device) -> Tensor:
    return torch.randn(width, WIDE, generator=torch.Generator().manual_seed(width)).to(device)


def random_feature_mean(states_BTD: Tensor) -> Tensor:
    """The running mean, and running sums of fixed random ReLU features of the states [B,T,D+W]: a reward that adds up
    token by token is linear in such sums, and rarely in the states."""
    width = states_BTD.shape[-1]
    projection_DW = random_projection(width, states_BTD.device)
    unit_BTD = torch.nn.functional.rms_norm(states_BTD, (width,)) / math.sqrt(width)
    return torch.cat([running_mean(states_BTD), (unit_BTD @ projection_DW.to(unit_BTD)).relu().cumsum(1)], -1)


class RidgeHead:
    """A head fitted in closed form: ridge regression on all rows seen, older ones weighted less. The ridge is the
    one that predicted later rows best. Only sums (X'X, X'y, errors) are stored.

    N rows, D features, E = D + 1 with the bias, R ridges.
    """

    RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    """Relative to the variance of each feature."""

    def __init__(self, head: ScalarHead) -> None:
        width = len(head.weight) + 1
        kind = {"dtype": torch.float64, "device": head.weight.device}
        self.head = head
        self.products_EE, self.moments_E, self.errors_R = (
            torch.zeros(*size, **kind) for size in ((width, width), (width,), (len(self.RIDGES),))
        )

    @property
    def sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """All that is stored, which adds up over rows: X'X, X'y, errors of the ridges."""
        return self.products_EE, self.moments_E, self.errors_R

    def learn(self, features_ND: Tensor, target_N: Tensor, keep: float = 1.0) -> None:
        """Score the ridges on new rows before fitting them, decay the sums by `keep`, add the rows, and solve."""
        candidates_ER = self.candidates()
        self.add(features_ND, target_N, keep, candidates_ER)
        self.solve(candidates_ER is not None)

    @torch.no_grad()
    def candidates(self, ridges: Sequence[float] = RIDGES) -> Tensor | None:
        """The head that each ridge gives for the rows before [E,R]; None before there are rows."""
        return self._solved(ridges) if self.products_EE[-1, -1] > 0 else None

    @torch.no_grad()
    def add(self, features_ND: Tensor, target_N: Tensor, keep: float, candidates_ER: Tensor | None) -> None:
        """Decay the sums by `keep`, add rows, and their errors under the candidates."""
        for sums in self.sums:
            sums.mul_(keep)
        for part_ND, part_N in zip(features_ND.split(ROWS), target_N.double().split(ROWS), strict=True):
            part_NE = torch.cat([part_ND.double(), part_N.new_ones(len(part_N), 1)], 1)
            self.products_EE.addmm_(part_NE.T, part_NE)
            self.moments_E.addmv_(part_NE.T, part_N)
            if candidates_ER is not None:
                self.errors_R += (part_N[:, None] - part_NE @ candidates_ER).square().sum(0)

    @torch.no_grad()
    def solve(self, choose: bool) -> None:
        """Set the head to that of the best ridge, or of ridge 1 where no errors are known."""
        best = self.RIDGES[int(self.errors_R.argmin())] if choose else 1.0
        solved_E = self._solved((best,))[:, 0]
        self.head.weight.copy_(solved_E[:-1])
        self.head.bias.copy_(solved_E[-1])

    def _solved(self, ridges: Sequence[float]) -> Tensor:
        """Weights and bias for each ridge [E,R]; the bias is not penalised, constant features get weight 0."""
        count = self.products_EE[-1, -1]
        mean_D = self.products_EE[-1, :-1] / self.products_EE[-1, -1]
        # covariance from sums, scaled to a unit diagonal so that one ridge suits all features
        spread_DD = self.products_EE[:-1, :-1] - count * torch.outer(mean_D, mean_D)
        power_D = spread_DD.diagonal()
        scale_D = torch.where(power_D > 1e-9 * power_D.max(), power_D.clamp(min=1e-30).rsqrt(), 0.0)
        unit_DD = spread_DD * torch.outer(scale_D, scale_D)
        covariance_D = scale_D * (self.moments_E[:-1] - mean_D * self.moments_E[-1])
        identity_DD = torch.eye(len(unit_DD), dtype=unit_DD.dtype, device=unit_DD.device)
        weight_DR = torch.stack(
            [
                scale_D
                * torch.cholesky_solve(covariance_D[:, None], torch.linalg.cholesky(unit_DD + ridge * identity_DD))[
                    :, 0
                ]
                for ridge in ridges
            ],
            1,
        )
        return torch.cat([weight_DR, (self.moments_E[-1] / count - mean_D @ weight_DR)[None]])

    def state(self) -> dict[str, Tensor]:
        """All tensors by name, to be copied or copied into."""
        head = {name: parameter.detach() for name, parameter in self.head.named_parameters()}
        return head | {"products": self.products_EE, "moments": self.moments_E, "missed": self.errors_R}
