"""The tuned model against the base model on held-out prompts: the gate of supervised fine-tuning, and the mark for the policy."""

from typing import Any

from towpath.records import Completion
from towpath.stages import answers
from towpath.stages.job import Job


def run(job: Job) -> dict[str, Any]:
    """Both models answer the held-out prompts and the safety set; the answers stay for the last evaluation."""
    prompts = [*answers.heldout(job), *job.corpus.safety]
    told: dict[str, list[Completion]] = {}
    for source, folder in (("base", None), ("sft", job.inputs["sft"] / "weights")):
        path = job.folder / f"answers-{source}.jsonl"
        told[source] = answers.read(path)
        if len(told[source]) != len(prompts):
            told[source] = answers.evaluation(job, job.model(folder), prompts, source, f"baseline: {source} answers")
            answers.write(path, told[source])
    count = len(prompts) - len(job.corpus.safety)
    return {"win": answers.win(job, prompts[:count], told["sft"][:count], told["base"][:count])}
