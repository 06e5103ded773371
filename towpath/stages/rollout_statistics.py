"""What there is to say of a rollout, in numbers: distance, length, sameness, ends, scores by part and by domain.  B
rows, T answer tokens."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from towpath.data.batch import Batch
from towpath.data.ngrams import distinct, repetition
from towpath.feedback import rubric
from towpath.records import Prompt
from towpath.rollout.engine import Drawn

Numbers = dict[str, float]
OPENING = 4
"""Tokens that make the opening of an answer."""
LIST = re.compile(r"^\s*([-*]|\d+[.)])\s", re.MULTILINE)


def of_rollout(batch: Batch, prompts: Sequence[Prompt], drawn: Sequence[Drawn], texts: Sequence[str]) -> Numbers:
    """All of it."""
    ids = [d.token_ids for d in drawn]
    told = _distance(batch) | _text(ids, texts) | {"finish_rate": float(batch.columns["ended"].float().mean())}
    named = {p.id for p in prompts}
    told["prompts_distinct"] = len({" ".join(p.prompt.split()).lower() for p in prompts}) / len(named)
    if "reward" in batch.columns:
        told |= _scores(batch, prompts, ids)
    return told


def _distance(batch: Batch) -> Numbers:
    """From the reference, and of the sampler's arithmetic from the trainer's."""
    c = batch.columns
    gap_BT = c["old_logp"] - c["ref_logp"]
    mask_BT = torch.from_numpy(batch.mask_BT).to(gap_BT.device)
    found = {
        "kl": float(summed(batch, gap_BT).mean()),
        "kl_k3": float(summed(batch, torch.expm1(-gap_BT) + gap_BT).mean()),
        "kl_per_token": float(gap_BT[mask_BT].mean()),
        "kl_std": float(summed(batch, gap_BT).std(correction=min(1, len(batch) - 1))),
    }
    if "on_policy" not in c:
        asked_BT = mask_BT & c["asked"][:, None] if "asked" in c else mask_BT  # elsewhere they are the sampler's own
        found["sampler_error"] = float((c["old_logp"] - c["sampler_logp"])[asked_BT].abs().mean())
    return found


def _text(ids: Sequence[Sequence[int]], texts: Sequence[str]) -> Numbers:
    openings = Counter(tuple(tokens[:OPENING]) for tokens in ids)
    return {
        "length": sum(map(len, ids)) / len(ids),
        **{f"distinct_{n}": distinct(ids, n) for n in (1, 2, 3)},
        "repetition": sum(map(repetition, ids)) / len(ids),
        "opening": openings.most_common(1)[0][1] / len(ids),
        "refusal": sum(map(rubric.is_refusal, texts)) / len(texts),
        "lists": sum(bool(LIST.search(text)) for text in texts) / len(texts),
        "code": sum("```" in text for text in texts) / len(texts),
    }


def _scores(batch: Batch, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]]) -> Numbers:
    """Means of what was scored; how that goes with length and repetition; a mean for each domain, of the reward and
    of the score before factors."""
    c = batch.columns
    parts = [name for name in c if name in ("score", "reward") or name.startswith(("score/", "watched/"))]
    found = {name: float(c[name].mean()) for name in parts} | {"reward_std": float(c["reward"].std(unbiased=False))}
    if "spread" in c:
        found["score_spread"] = float(c["spread"].mean())
    for name, paid, measure in (("length", "score", len), ("repetition", "reward", repetition)):
        paid_B = c[paid].cpu().numpy().astype(float)
        told_B = np.array([*map(measure, ids)], dtype=float)
        if told_B.std() > 0 and paid_B.std() > 0:
            corr = float(np.corrcoef(paid_B, told_B)[0, 1])
            found |= {f"reward_{name}_corr": corr, f"{name}_worth": corr * float(paid_B.std() / told_B.std())}
    for domain in sorted({p.domain for p in prompts}):
        index = [i for i, p in enumerate(prompts) if p.domain == domain]
        found[f"reward/{domain}"], found[f"domain/{domain}"] = (
            float(c["reward"][index].mean()),
            float(c["score"][index].mean()),
        )
    return found


def of_critic(batch: Batch) -> Numbers:
    """How much of what came to every token the critic had foreseen; of batches that hold both."""
    c = batch.columns
    if "value" not in c or "outcome" not in c:
        return {}
    mask_BT = torch.from_numpy(batch.mask_BT).to(c["value"].device)
    came_N = c["outcome"][mask_BT]
    return {"explained_variance": 1 - float((came_N - c["value"][mask_BT]).var() / came_N.var().clamp(min=1e-8))}


def summed(batch: Batch, x_BT: Tensor) -> Tensor:
    """Sums over the answer tokens of every row."""
    return torch.where(torch.from_numpy(batch.mask_BT).to(x_BT.device), x_BT, 0.0).sum(1)
