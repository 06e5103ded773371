"""Accuracy of a reward model on held-out comparisons by people's judgements alone, whatever made its labels."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from towpath.evals.reward_accuracy import pair_accuracy
from towpath.feedback.aggregation import majority_labels
from towpath.recipe.stage_configs import RewardConfig
from towpath.records import Completion, Prompt
from towpath.stages.job import Job
from towpath.stages.labelled_pairs import Pair, is_held_out, is_reserved, pairs_of, read_labels

Score = Callable[[Sequence[tuple[Prompt, Completion]]], np.ndarray]


def people_pairs(job: Job[RewardConfig]) -> list[Pair]:
    """Comparisons of this run on which people have a preference, of prompts that no reward model is trained on."""
    stage = next((name for name in reversed(job.inputs) if name.startswith("label")), None)
    if stage is None:
        return []
    own = {label.comparison for label in read_labels(job.inputs[stage])}
    judgements = [j for j in job.store.judgements() if j.kind == "person" and j.comparison in own]
    untrained = not job.config.reward.is_trained
    return [
        pair
        for pair in pairs_of(job, majority_labels(judgements))
        if untrained or is_held_out(job.config, pair.prompt) or is_reserved(job.config, pair.prompt)
    ]


def people_accuracy(job: Job[RewardConfig], score: Score) -> dict[str, Any]:
    """The part of the stage's result that the gate `reward_people` reads; empty where labels are simulated."""
    pairs = people_pairs(job)
    if not pairs:
        return {} if job.config.preferences.raters == "simulated" else {"people": {"n": 0}}
    scores = score([(pair.prompt, c) for pair in pairs for c in (pair.chosen, pair.rejected)])
    gap = scores[0::2] - scores[1::2]
    return {"people": pair_accuracy(gap, [pair.prompt.id for pair in pairs], job.config.seed)}
