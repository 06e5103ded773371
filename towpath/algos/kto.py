"""KTO: answers called good or bad, one by one, against a reference point (arXiv 2402.01306).  B rows, T answer
tokens.

`desirable_B` says which; `point_B` holds the reference point, the mean log-ratio of answers to other prompts than
their own.
"""

from torch import Tensor

from towpath.algos import functional as F
from towpath.algos import pairwise
from towpath.algos.contract import Metrics, Outputs
from towpath.data.batch import Batch
from towpath.recipe import Policy

CONFIG = Policy
DATA = "comparisons"
PAIRED = False
TRAINS = {"policy": ("logp",)}


def prepare(batch: Batch, cfg: Policy, knobs: dict[str, float]) -> Batch:
    """Nothing to prepare."""
    return batch


def weigh(batch: Batch, cfg: Policy) -> float:
    """The number of answers."""
    return float(len(batch))


def loss(out: Outputs, batch: Batch, cfg: Policy, knobs: dict[str, float]) -> tuple[Tensor, Metrics]:
    """Sum over answers of the KTO loss."""
    c = batch.columns
    kto = cfg.kto
    log_ratio_B = pairwise.sums(out.logp_BT - c["ref_logp"], out.mask_BT)
    cost_B = F.kto_loss(log_ratio_B, c["desirable"], c["point"], kto.beta, kto.desirable, kto.undesirable)
    log_ratio_detached_B = log_ratio_B.detach()
    rows = float(len(batch))
    right = (log_ratio_detached_B > c["point"]) == c["desirable"]
    sums = {"loss": cost_B.detach(), "accuracy": right.float(), "log_ratio": log_ratio_detached_B, "point": c["point"]}
    return cost_B.sum(), {name: (x.sum(), rows) for name, x in sums.items()}
