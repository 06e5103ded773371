"""The tuned model against the base model on held-out prompts: the gate of supervised fine-tuning, and the mark for
the policy."""

from typing import Any

from towpath.evals.evaluator import find_evaluator
from towpath.recipe.stage_configs import BaselineConfig
from towpath.records import Completion
from towpath.stages import generation
from towpath.stages.job import Job


def run(job: Job[BaselineConfig]) -> dict[str, Any]:
    """Both models answer the held-out prompts, the tuned one the safety set too; the answers stay for the last
    evaluation."""
    prompts = generation.heldout(job)
    safety = list(job.corpus.safety)
    answers: dict[str, list[Completion]] = {}
    for source, folder, wanted in (("base", None, prompts), ("sft", job.inputs["sft"] / "weights", prompts + safety)):
        path = job.folder / f"answers-{source}.jsonl"
        answers[source] = generation.read(path)
        if len(answers[source]) != len(wanted):
            answers[source] = generation.evaluation(
                job, folder or job.base_model, wanted, source, f"baseline: {source} answers"
            )
            generation.write(path, answers[source])
    win = generation.win(job, prompts, answers["sft"][: len(prompts)], answers["base"])
    return {"judge": find_evaluator(job.corpus), "win": win}
