"""How well a reward model agrees with labelled pairs: accuracy, calibration, correlation with length."""

from typing import Any

import numpy as np

from towpath.evals import reward_accuracy as evals
from towpath.judges.rubric import rubric_score
from towpath.recipe.stage_configs import RewardConfig
from towpath.records import Completion
from towpath.stages.job import Job
from towpath.stages.labelled_pairs import Pair


def answers_by_prompt(pairs: list[Pair]) -> dict[str, dict[str, Completion]]:
    """The answers of each prompt, in the order of the rows."""
    groups: dict[str, dict[str, Completion]] = {}
    for p in pairs:
        groups.setdefault(p.prompt.id, {}).update({p.chosen.id: p.chosen, p.rejected.id: p.rejected})
    return groups


def gaps(held_out: list[Pair], scores_B: np.ndarray) -> np.ndarray:
    """Score of the chosen minus score of the rejected answer of every pair; scores are in the order of the rows."""
    answers = [(name, c) for name, group in answers_by_prompt(held_out).items() for c in group]
    score_of = dict(zip(answers, scores_B, strict=True))
    return np.array([score_of[p.prompt.id, p.chosen.id] - score_of[p.prompt.id, p.rejected.id] for p in held_out])


def measure(job: Job[RewardConfig], held_out: list[Pair], scores_B: np.ndarray, std: float) -> dict[str, Any]:
    """Accuracy on held-out pairs, by strength and domain, calibration, and correlation with length."""
    gap = gaps(held_out, scores_B)
    error, curve = evals.calibration_error(gap * std)
    correct = (gap > 0).astype(float)
    rubric_gap = [rubric_score(p.prompt, p.chosen) - rubric_score(p.prompt, p.rejected) for p in held_out]
    agrees = float(np.mean(np.sign(rubric_gap) == np.sign(gap)))
    rows = [(name, len(job.tokens(c))) for name, group in answers_by_prompt(held_out).items() for c in group.values()]
    return {
        **evals.pair_accuracy(gap, [p.prompt.id for p in held_out], job.config.seed),
        "clean_accuracy": agrees if job.config.preferences.raters == "simulated" else None,
        "by_strength": evals.accuracy_by_group([str(round(p.label.strength)) for p in held_out], correct),
        "by_domain": evals.accuracy_by_group([p.prompt.domain for p in held_out], correct),
        "calibration_error": error,
        "calibration": curve,
        "length_correlation": evals.within_prompt_correlation(
            [name for name, _ in rows], scores_B, np.array([length for _, length in rows])
        ),
    }


def lengths(job: Job[RewardConfig], pairs: list[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the chosen and of the rejected answer of every pair."""
    return np.array([len(job.tokens(p.chosen)) for p in pairs], float), np.array(
        [len(job.tokens(p.rejected)) for p in pairs], float
    )
