"""Scores of several sources, made one reward; then what is said of an answer's end, length, sameness and domain.

K sources, B answers.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from towpath.data.ngrams import grams, repetition
from towpath.recipe import Rewards


def combined(scores_KB: np.ndarray, cfg: Rewards) -> np.ndarray:
    """One score an answer."""
    weight_K = np.array([source.weight for source in cfg.sources])
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


def agreed(scores_KB: np.ndarray, cfg: Rewards) -> np.ndarray:
    """One score an answer from the models of an ensemble: their mean, the least, or the mean less `std_penalty`
    deviations (arXiv 2310.02743 takes off the variance)."""
    if cfg.ensemble == "min":
        return scores_KB.min(0)
    mean_B = scores_KB.mean(0)
    return mean_B if cfg.ensemble == "mean" else mean_B - cfg.std_penalty * scores_KB.std(0)


def final(
    score_B: np.ndarray, answers: Sequence[Sequence[int]], ended_B: np.ndarray, domains: Sequence[str], cfg: Rewards
) -> np.ndarray:
    """The reward of whole answers: the score, clipped, less penalties, with bonus, times its domain's factor.

    A missing end comes first: with `replace` the score of such an answer is minus the penalty, whatever the score was.
    """
    reward_B = np.clip(score_B, -cfg.clip, cfg.clip) if cfg.clip else score_B.astype(float)
    unfinished_B = (
        np.full_like(reward_B, -cfg.eos_penalty) if cfg.missing_eos == "replace" else reward_B - cfg.eos_penalty
    )
    reward_B = np.where(ended_B, reward_B, unfinished_B)
    if cfg.length_limit:
        reward_B = reward_B - cfg.length_penalty * np.maximum(0, np.array([len(a) for a in answers]) - cfg.length_limit)
    if cfg.repetition_penalty:
        reward_B = reward_B - cfg.repetition_penalty * np.array([repetition(a) for a in answers])
    if cfg.diversity_bonus:
        reward_B = reward_B + cfg.diversity_bonus * own_share(answers)
    return reward_B * np.array([cfg.domains.get(domain, 1.0) for domain in domains])


def own_share(answers: Sequence[Sequence[int]], n: int = 2) -> np.ndarray:
    """For each answer the share of its different n-grams that no other answer has."""
    sets = [set(grams(tokens, n)) for tokens in answers]
    seen = Counter(gram for said in sets for gram in said)
    return np.array([sum(seen[gram] == 1 for gram in said) / len(said) if said else 0.0 for said in sets])
