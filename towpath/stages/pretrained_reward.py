"""Reward stage with a pretrained reward model that is used as it is: nothing is trained. Its scores are normalised on
answers of the tuned model, and its accuracy is measured on labels, where there are any."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from towpath.errors import DataError
from towpath.evals import reward_accuracy as evals
from towpath.recipe.stage_configs import RewardConfig
from towpath.records import Completion, Prompt
from towpath.runtime.launch import launch_classifier
from towpath.stages import generation
from towpath.stages.job import Job
from towpath.stages.labelled_pairs import decided_pairs
from towpath.stages.people_accuracy import people_accuracy
from towpath.stages.reward_measure import answers_by_prompt, lengths, measure

MAX_ANSWERS = 384
"""Answers of the tuned model whose scores are normalised."""


def run(job: Job[RewardConfig]) -> dict[str, Any]:
    """Score answers of the tuned model and of labelled pairs."""
    reward = job.config.reward
    classifier = launch_classifier(
        job.launch(training=False), job.config.model, reward.pretrained, job.run, reward.template, "reward.pretrained"
    )

    def score(answers: Sequence[tuple[Prompt, Completion]]) -> np.ndarray:
        conversations = [prompt.messages for prompt, _ in answers]
        scores = classifier.score(conversations, [completion.text for _, completion in answers], "reward")
        return np.array(scores, dtype=np.float64)

    labelled = any(stage.startswith("label") for stage in job.inputs)
    pairs = decided_pairs(job) if labelled else []
    prompts = {pair.prompt.id: pair.prompt for pair in pairs}
    answers = [(prompts[name], c) for name, group in answers_by_prompt(pairs).items() for c in group.values()]
    tuned = [answer for answer in answers if answer[1].source == "sft"] or _baseline_answers(job)
    scores = score(tuned[:MAX_ANSWERS])
    mean = float(scores.mean())
    std = float(scores.std()) or 1.0
    result: dict[str, Any] = {"pretrained": reward.pretrained, "mean": mean, "std": std, "pairs": 0}
    if pairs:
        # all pairs are held out: none was trained on
        result |= measure(job, pairs, (score(answers) - mean) / std, std)
        result["length_only_accuracy"] = evals.length_only_accuracy(*lengths(job, pairs), *lengths(job, pairs))
    result |= people_accuracy(job, score) if labelled else {}
    return result | {"truncated": classifier.truncated, "scored": classifier.scored}


def _baseline_answers(job: Job[RewardConfig]) -> list[tuple[Prompt, Completion]]:
    """The tuned model's answers to held-out prompts."""
    prompts = {prompt.id: prompt for prompt in job.corpus.heldout}
    completions = generation.read_completions(job.inputs["baseline"] / "answers-sft.jsonl")
    answers = [(prompts[c.prompt_id], c) for c in completions if c.prompt_id in prompts]
    if not answers:
        fix = "add held-out prompts"
        raise DataError("no answers of the tuned model", "they normalise a pretrained reward model's scores", fix)
    return answers
