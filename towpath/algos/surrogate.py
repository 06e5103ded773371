"""The clipped surrogate loss on answer tokens, shared by the algorithms on rollouts.  B rows, T answer tokens."""

import torch
from torch import Tensor

from towpath.algos import functional as F
from towpath.algos.contract import Metrics, Outputs
from towpath.data.batch import Batch


def log_ratios(batch: Batch) -> tuple[Tensor, Tensor]:
    """log pi_old - log pi_ref at every answer token [B,T], zero elsewhere, and the mask of answer tokens."""
    c = batch.columns
    mask_BT = torch.as_tensor(batch.mask_BT)
    return torch.where(mask_BT, c["old_logp"] - c["ref_logp"], 0.0), mask_BT


def loss(
    out: Outputs, batch: Batch, low: float, high: float, token_weight_B: Tensor | None = None, kl_coef: float = 0.0
) -> tuple[Tensor, Metrics]:
    """Sum over tokens of the clipped surrogate, weighted by row, plus kl_coef * k3 to the reference.

    The advantage is per token [B,T] or per answer [B]. With the column `on_policy` (a rollout used for one update) the
    old log-probabilities are those of this pass. With `correction` (another engine sampled) tokens have truncated
    importance weights pi_old / pi_engine.
    """
    mask = out.mask_BT
    c = batch.columns
    old_BT = out.logp_BT.detach() if "on_policy" in c else c["old_logp"]
    # from here on [N]: the answer tokens of all rows
    read = out.answer_tokens
    log_ratio = read(out.logp_BT - old_BT)
    advantage_column = c["advantage"]
    advantage = read(advantage_column if advantage_column.ndim == 2 else advantage_column[:, None].expand(mask.shape))
    surrogate, clipped = F.clipped_policy_loss(log_ratio, advantage, low, high)
    k3 = F.kl_estimates(read(out.logp_BT), read(c["ref_logp"]))[2] if kl_coef else torch.zeros_like(surrogate)
    cost = surrogate + kl_coef * k3
    if token_weight_B is not None:
        cost = cost * read(token_weight_B[:, None].expand(mask.shape))
    if "correction" in c:
        cost = cost * read(_corrected(old_BT, batch))
    tokens = float(batch.mask_BT.sum())
    ratio = log_ratio.detach().exp()
    # summed now, divided by the number of tokens when passes are joined
    sums = {
        "policy_loss": surrogate,
        "clip_fraction": clipped.float(),
        "ratio": ratio,
        "ratio_error": (ratio - 1).abs(),
        "approx_kl": F.kl_estimates(-log_ratio.detach(), torch.zeros_like(ratio))[2],
        "entropy": read(out.entropy_BT),
    }
    if kl_coef:
        sums["kl_loss"] = k3
    if "on_policy" in c:
        sums["sampler_error"] = read(old_BT - c["old_logp"]).abs()
    return cost.sum(), {name: (x.detach().sum(), tokens) for name, x in sums.items()}


def _corrected(old_BT: Tensor, batch: Batch) -> Tensor:
    """Importance weights [B,T] for an engine that rounds differently, truncated at `correction`."""
    c = batch.columns
    return torch.minimum((old_BT - c["sampler_logp"]).exp(), c["correction"][:, None]).detach()
