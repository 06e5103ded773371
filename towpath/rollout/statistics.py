"""Metrics of a rollout batch: distance from the reference, length, diversity, ends, scores by source and by domain.

B rows, T answer tokens, N answer tokens of all rows.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from towpath.data.batch import Batch
from towpath.data.ngrams import distinct, repetition
from towpath.feedback import rubric
from towpath.records import Rollout

Numbers = dict[str, float]
OPENING = 4
"""Tokens that make the opening of an answer."""
LIST_ITEM = re.compile(r"^\s*([-*]|\d+[.)])\s", re.MULTILINE)


def rollout_metrics(batch: Batch, rollouts: Sequence[Rollout]) -> Numbers:
    """All metrics of a rollout batch."""
    metrics = _distance(batch) | _text(rollouts) | {"finish_rate": float(batch.columns["ended"].float().mean())}
    prompts = {r.prompt.id: r.prompt.text for r in rollouts}
    distinct_texts = {" ".join(text.split()).lower() for text in prompts.values()}
    metrics["prompts_distinct"] = len(distinct_texts) / len(prompts)
    if "reward" in batch.columns:
        metrics |= _scores(batch, rollouts)
    return metrics


def _distance(batch: Batch) -> Numbers:
    """KL from the reference, and the difference between the engine's and the trainer's log-probabilities."""
    c = batch.columns
    log_ratio_BT = c["old_logp"] - c["ref_logp"]
    mask_BT = torch.from_numpy(batch.mask_BT)
    kl_B = sum_tokens(batch, log_ratio_BT)
    metrics = {
        # k1: unbiased, may be negative in a small batch; k3: never negative, with outliers
        "kl": float(kl_B.mean()),
        "kl_k3": float(sum_tokens(batch, torch.expm1(-log_ratio_BT) + log_ratio_BT).mean()),
        "kl_per_token": float(log_ratio_BT[mask_BT].mean()),
        "kl_std": float(kl_B.std(correction=min(1, len(batch) - 1))),
    }
    if "on_policy" not in c:
        # where only some rows were computed again, the others hold the engine's own
        compared_BT = mask_BT & c["checked"][:, None] if "checked" in c else mask_BT
        metrics["stale_error" if "stale" in c else "sampler_error"] = float(
            (c["old_logp"] - c["sampler_logp"])[compared_BT].abs().mean()
        )
    return metrics


def _text(rollouts: Sequence[Rollout]) -> Numbers:
    ids = [r.token_ids for r in rollouts]
    texts = [r.text for r in rollouts]
    openings = Counter(tokens[:OPENING] for tokens in ids)
    return {
        "length": sum(map(len, ids)) / len(ids),
        **{f"distinct_{n}": distinct(ids, n) for n in (1, 2, 3)},
        "repetition": sum(map(repetition, ids)) / len(ids),
        "opening": openings.most_common(1)[0][1] / len(ids),
        "refusal": sum(map(rubric.is_refusal, texts)) / len(texts),
        "lists": sum(bool(LIST_ITEM.search(text)) for text in texts) / len(texts),
        "code": sum("```" in text for text in texts) / len(texts),
    }


def _scores(batch: Batch, rollouts: Sequence[Rollout]) -> Numbers:
    """Means of scores and rewards, their correlation with length and repetition, and means by domain."""
    c = batch.columns
    names = [name for name in c if name in ("score", "reward") or name.startswith(("score/", "watched/"))]
    # a source may not apply to some answers
    metrics = {name: float(c[name].nanmean()) for name in names if not c[name].isnan().all()}
    metrics["reward_std"] = float(c["reward"].std(unbiased=False))
    if "spread" in c:
        metrics["score_spread"] = float(c["spread"].mean())
    for name, column, measure in (("length", "score", len), ("repetition", "reward", repetition)):
        paid_B = c[column].numpy().astype(float)
        measured_B = np.array([measure(r.token_ids) for r in rollouts], dtype=float)
        if measured_B.std() > 0 and paid_B.std() > 0:
            # slope of the regression of reward on length: what one more token is worth
            correlation = float(np.corrcoef(paid_B, measured_B)[0, 1])
            metrics[f"reward_{name}_corr"] = correlation
            metrics[f"{name}_worth"] = correlation * float(paid_B.std() / measured_B.std())
    for domain in sorted({r.prompt.domain for r in rollouts}):
        index = [i for i, r in enumerate(rollouts) if r.prompt.domain == domain]
        metrics[f"reward/{domain}"] = float(c["reward"][index].mean())
        metrics[f"domain/{domain}"] = float(c["score"][index].mean())
    return metrics


def critic_metrics(batch: Batch) -> Numbers:
    """Explained variance of a critic's values, for batches that hold values and outcomes."""
    c = batch.columns
    if "value" not in c or "outcome" not in c:
        return {}
    mask_BT = torch.from_numpy(batch.mask_BT)
    outcome_N = c["outcome"][mask_BT]
    error_N = outcome_N - c["value"][mask_BT]
    return {"explained_variance": 1 - float(error_N.var() / outcome_N.var().clamp(min=1e-8))}


def sum_tokens(batch: Batch, x_BT: Tensor) -> Tensor:
    """Sums over the answer tokens of every row [B]."""
    return torch.where(torch.from_numpy(batch.mask_BT), x_BT, 0.0).sum(1)
