"""Draw tokens from logits by inverse CDF: one uniform number a row, no generator state.  B rows, V vocabulary."""

import torch
from torch import Tensor

BLOCK = 256


def scaled(logits_BV: Tensor, temperature_B: Tensor) -> Tensor:
    """Probabilities under the temperature, before any filter."""
    return logits_BV.float().div_(temperature_B[:, None]).softmax(-1)


def filtered(p_BV: Tensor, top_k_B: Tensor, top_p_B: Tensor, min_p_B: Tensor) -> Tensor:
    """Unnormalised probabilities with what top-k, min-p and top-p leave out set to zero, in that order."""
    if bool((top_k_B > 0).any()):
        most = min(int(top_k_B.max()), p_BV.shape[-1])
        ranked = p_BV.topk(most, dim=-1).values
        floor = ranked.gather(1, (top_k_B.clamp(1, most) - 1)[:, None])
        p_BV = torch.where((p_BV < floor) & (top_k_B > 0)[:, None], 0.0, p_BV)
    if bool((min_p_B > 0).any()):
        p_BV = torch.where(p_BV < min_p_B[:, None] * p_BV.amax(-1, keepdim=True), 0.0, p_BV)
    narrow = (top_p_B < 1).nonzero()[:, 0]
    if len(narrow):
        p_BV = p_BV.index_copy(0, narrow, _nucleus(p_BV[narrow], top_p_B[narrow]))
    return p_BV


def _nucleus(p_BV: Tensor, top_p_B: Tensor) -> Tensor:
    """The smallest set of likeliest tokens with mass top-p, below one; ranks only as many tokens as that needs."""
    goal_B = top_p_B * p_BV.sum(-1)
    count = 64
    vocabulary = p_BV.shape[-1]
    while True:
        count = min(count, vocabulary)
        ranked = p_BV.topk(count, dim=-1).values
        mass = ranked.cumsum(-1)
        if count == vocabulary or bool((mass[:, -1] >= goal_B).all()):
            break
        count *= 8
    last = (mass < goal_B[:, None]).sum(-1).clamp(max=count - 1)
    floor = ranked.gather(1, last[:, None])
    return torch.where(p_BV < floor, 0.0, p_BV)


def inverse_cdf(p_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The token at which the running mass passes uniform x total: first the block, then the place in it."""
    rows, vocabulary = p_BV.shape
    blocks = -(-vocabulary // BLOCK)
    if vocabulary % BLOCK:
        p_BV = torch.nn.functional.pad(p_BV, (0, blocks * BLOCK - vocabulary))
    p_BKE = p_BV.view(rows, blocks, BLOCK)
    running_BK = p_BKE.sum(-1).double().cumsum(-1)
    goal_B = uniform_B.double() * running_BK[:, -1]
    block_B = (running_BK <= goal_B[:, None]).sum(-1).clamp(max=blocks - 1)
    before_B = torch.where(block_B > 0, running_BK.gather(1, (block_B - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    inside_BE = p_BKE[torch.arange(rows, device=p_BV.device), block_B].double()
    place_B = (inside_BE.cumsum(-1) <= (goal_B - before_B)[:, None]).sum(-1)
    last_B = BLOCK - 1 - (inside_BE > 0).flip(-1).int().argmax(-1)
    return block_B * BLOCK + torch.minimum(place_B, last_B)
