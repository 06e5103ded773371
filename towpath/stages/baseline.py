"""Baseline stage: the win rate of the SFT model over the base model on held-out prompts."""

from functools import partial
from typing import Any

from towpath.recipe.stage_configs import BaselineConfig
from towpath.stages import generation
from towpath.stages.evaluation_judges import Contest
from towpath.stages.job import Job
from towpath.stages.win_rates import judge_answers, write_answers


def run(job: Job[BaselineConfig]) -> dict[str, Any]:
    """Sample answers of both models to the held-out prompts, and of SFT to the safety set; the evaluate stage reads
    them."""
    prompts = generation.heldout_prompts(job)
    answers = {}
    for source, model, model_prompts in (
        ("base", job.base_model, prompts),
        ("sft", job.inputs["sft"] / "weights", [*prompts, *job.corpus.safety]),
    ):
        title = f"baseline: {source} answers"
        answers[source] = generation.load_or_sample(
            job.folder / f"answers-{source}.jsonl",
            len(model_prompts),
            partial(generation.sample_answers, job, model, model_prompts, source, title),
        )
    contest = Contest("sft", "sft", "base", prompts, answers["sft"][: len(prompts)], answers["base"])
    wins = judge_answers(job, contest)
    write_answers(job.folder, prompts, {"base": contest.others, "sft": contest.ours}, {}, wins)
    return wins.result
