"""Batches of demonstrations with a weight for each token, and the perplexity of those that are held out.

B rows, T tokens from the first answer that is trained on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from towpath.data.batch import Batch
from towpath.data.chat import Chat
from towpath.data.demonstration_rows import demonstration_row
from towpath.hashing import hash_uniform
from towpath.recipe import Sft
from towpath.records import Demonstration
from towpath.runtime.contract import Runtime


def split_demonstrations(
    demonstrations: Sequence[Demonstration], seed: int, validation: float
) -> tuple[list[Demonstration], list[Demonstration]]:
    """Demonstrations to train on and held-out ones, at least one."""
    by_id = {d.id: d for d in demonstrations}
    order = sorted(by_id, key=lambda name: hash_uniform(seed, "sft/validation", name))
    cut = max(1, round(validation * len(order)))
    return [by_id[name] for name in sorted(order[cut:])], [by_id[name] for name in order[:cut]]


@dataclass(frozen=True)
class DemonstrationBatch:
    """Rows with the column `weight` [B,T], and the demonstrations whose earlier answers are not trained on."""

    batch: Batch
    last_only: tuple[str, ...]


def demonstration_batch(
    chat: Chat, demonstrations: Sequence[Demonstration], cfg: Sft, domains: Mapping[str, float] | None = None
) -> DemonstrationBatch:
    """Demonstrations as rows: `weight` is that of the domain on tokens that are trained on, 0 elsewhere."""
    rows = [demonstration_row(chat, d, cfg) for d in demonstrations]
    longest = max((len(one.trained) for one in rows), default=0)
    weight_BT = np.zeros((len(rows), longest), dtype=np.float32)
    for b, (one, d) in enumerate(zip(rows, demonstrations, strict=True)):
        weight_BT[b, : len(one.trained)] = one.trained * (domains or {}).get(d.domain, 1.0)
    last_only = tuple(d.id for one, d in zip(rows, demonstrations, strict=True) if one.problem)
    return DemonstrationBatch(Batch([one.row for one in rows], {"weight": torch.from_numpy(weight_BT)}), last_only)


def perplexity(runtime: Runtime, role: str, batch: Batch) -> float:
    """Perplexity per token that is trained on, at temperature 1."""
    return math.exp(mean_loss(runtime, role, batch))


def mean_loss(runtime: Runtime, role: str, batch: Batch) -> float:
    """Mean of -log p over the tokens that are trained on."""
    out = runtime.score(role, batch, ("logp",))
    trained_BT = out.mask_BT & (batch.columns["weight"] > 0)
    return -float(out.logp_BT[trained_BT].double().mean())
