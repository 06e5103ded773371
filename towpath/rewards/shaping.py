"""Combine the scores of several sources into one reward, then apply penalties, bonus and domain weights.

K sources, B answers.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from towpath.data.ngrams import grams, repetition
from towpath.recipe import Rewards


def combine_sources(scores_KB: np.ndarray, cfg: Rewards) -> np.ndarray:
    """One score per answer from the scores of all sources, by `rewards.combine`.

    A score of None, here minus infinity, does not count: the source does not apply to the answer. NaN stays NaN.
    """
    weight_K = np.array([source.weight for source in cfg.sources])
    applies_KB = ~np.isneginf(scores_KB)
    if not applies_KB.all():
        parts = [_combine_applying(scores_KB[:, b], applies_KB[:, b], cfg) for b in range(scores_KB.shape[1])]
        return np.array(parts)
    weighted_KB = scores_KB * weight_K[:, None]
    if cfg.combine == "sum":
        return weighted_KB.sum(0)
    if cfg.combine == "min":
        return weighted_KB.min(0)
    share_K = np.abs(weight_K) / np.abs(weight_K).sum()
    mean_B = weighted_KB.sum(0) / np.abs(weight_K).sum()
    if cfg.combine == "mean":
        return mean_B
    signed_KB = scores_KB * np.sign(weight_K)[:, None]
    return mean_B - cfg.std_penalty * np.sqrt(share_K @ (signed_KB - mean_B) ** 2)


def _combine_applying(score_K: np.ndarray, applies_K: np.ndarray, cfg: Rewards) -> float:
    """The score of one answer from the sources that apply to it; NaN if none with a weight does."""
    sources = [source for source, applies in zip(cfg.sources, applies_K, strict=True) if applies]
    if not any(source.weight for source in sources):
        return float("nan")
    return float(combine_sources(score_K[applies_K][:, None], cfg.model_copy(update={"sources": sources}))[0])


def combine_ensemble(scores_KB: np.ndarray, cfg: Rewards) -> np.ndarray:
    """One score per answer from an ensemble of reward models: mean, minimum, or mean minus `std_penalty` standard
    deviations (arXiv 2310.02743 subtracts the variance)."""
    if cfg.ensemble == "min":
        return scores_KB.min(0)
    mean_B = scores_KB.mean(0)
    return mean_B if cfg.ensemble == "mean" else mean_B - cfg.std_penalty * scores_KB.std(0)


def shape_rewards(
    score_B: np.ndarray, answers: Sequence[Sequence[int]], ended_B: np.ndarray, domains: Sequence[str], cfg: Rewards
) -> np.ndarray:
    """The reward of whole answers: clipped score, minus penalties, plus bonus, times the weight of the domain.

    A missing EOS is applied first: with `missing_eos = "replace"` the score of such an answer is minus the penalty.
    """
    reward_B = np.clip(score_B, -cfg.clip, cfg.clip) if cfg.clip else score_B.astype(float)
    unfinished_B = reward_B - cfg.eos_penalty
    if cfg.missing_eos == "replace":
        unfinished_B = np.full_like(reward_B, -cfg.eos_penalty)
    reward_B = np.where(ended_B, reward_B, unfinished_B)
    if cfg.length_limit:
        excess_B = np.maximum(0, np.array([len(answer) for answer in answers]) - cfg.length_limit)
        reward_B = reward_B - cfg.length_penalty * excess_B
    if cfg.repetition_penalty:
        reward_B = reward_B - cfg.repetition_penalty * np.array([repetition(answer) for answer in answers])
    if cfg.diversity_bonus:
        reward_B = reward_B + cfg.diversity_bonus * unique_ngram_share(answers)
    return reward_B * np.array([cfg.domains.get(domain, 1.0) for domain in domains])


def unique_ngram_share(answers: Sequence[Sequence[int]], n: int = 2) -> np.ndarray:
    """For each answer the share of its distinct n-grams that no other answer has."""
    ngrams = [set(grams(tokens, n)) for tokens in answers]
    count = Counter(gram for own in ngrams for gram in own)
    return np.array([sum(count[gram] == 1 for gram in own) / len(own) if own else 0.0 for own in ngrams])
