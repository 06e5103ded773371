"""The tuned model against the base model on held-out prompts: the gate of supervised fine-tuning, and the mark for
the policy."""

from typing import Any

from towpath.evals.evaluator import find_evaluator
from towpath.records import Completion
from towpath.stages import generation
from towpath.stages.job import Job


def run(job: Job) -> dict[str, Any]:
    """Both models answer the held-out prompts, the tuned one the safety set too; the answers stay for the last
    evaluation."""
    prompts = generation.heldout(job)
    safety = list(job.corpus.safety)
    told: dict[str, list[Completion]] = {}
    for source, folder, asked in (("base", None, prompts), ("sft", job.inputs["sft"] / "weights", prompts + safety)):
        path = job.folder / f"answers-{source}.jsonl"
        told[source] = generation.read(path)
        if len(told[source]) != len(asked):
            told[source] = generation.evaluation(
                job, folder or job.base_model, asked, source, f"baseline: {source} answers"
            )
            generation.write(path, told[source])
    win = generation.win(job, prompts, told["sft"][: len(prompts)], told["base"])
    return {"judge": find_evaluator(job.corpus), "win": win}
