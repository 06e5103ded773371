"""Baseline stage: the win rate of the SFT model over the base model on held-out prompts."""

from dataclasses import replace
from typing import Any

from towpath.recipe.stage_configs import BaselineConfig
from towpath.records import Completion, Prompt
from towpath.stages import generation
from towpath.stages.answers import sampled_answers
from towpath.stages.evaluation_judges import Contest
from towpath.stages.job import Job
from towpath.stages.win_rates import WinRates, judge_answers, write_answers

NOTHING_TO_COMPARE = (
    "sft.method = 'none' without sft.compare_with: the model is taken as it is, and compared with no other"
)


def run(job: Job[BaselineConfig]) -> dict[str, Any]:
    """Sample answers of both models to the held-out prompts, and of SFT to the safety set; the evaluate stage reads
    them."""
    prompts = generation.heldout_prompts(job)
    base = _base_answers(job, prompts)
    weights = job.inputs["sft"] / "weights"
    tuned_prompts = [*prompts, *job.corpus.safety]
    title = "baseline: sft answers"
    tuned = sampled_answers(job, "answers-sft.jsonl", weights, tuned_prompts, "sft", title)[: len(prompts)]
    mean_tokens = sum(len(completion.token_ids) for completion in tuned) / len(tuned)
    if base is None:
        write_answers(job.folder, prompts, {"sft": tuned}, {}, WinRates())
        return {"judge": None, "win": None, "judges": [], "off": NOTHING_TO_COMPARE, "mean_tokens": mean_tokens}
    wins = judge_answers(job, Contest("sft", "sft", "base", prompts, tuned, base))
    write_answers(job.folder, prompts, {"base": base, "sft": tuned}, {}, wins)
    return wins.result | {"mean_tokens": mean_tokens}


def _base_answers(job: Job[BaselineConfig], prompts: list[Prompt]) -> list[Completion] | None:
    """Answers of the base model, or of `sft.compare_with`; None if the tuned model is compared with no other."""
    base_job = job
    sft = job.config.sft
    if sft.method == "none":
        if not sft.compare_with:
            return None
        # a model of its own, with its own tokenizer and template
        model = job.config.model.model_copy(update={"source": sft.compare_with})
        base_job = replace(job, config=replace(job.config, model=model))
    title = "baseline: base answers"
    answers = sampled_answers(base_job, "answers-base.jsonl", base_job.base_model, prompts, "base", title)
    if base_job is job:
        return answers
    # lengths are compared in tokens of the tuned model
    return [replace(c, token_ids=tuple(job.chat.answer(c.text)), logprobs=()) for c in answers]
