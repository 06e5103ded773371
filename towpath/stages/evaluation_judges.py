"""The evaluation judges of a stage, by the entries of `evaluate.judges`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from towpath.arena.matches import ArenaSpec
from towpath.data.batch import Batch
from towpath.evals.judges import AnswerPair, EvaluationJudge
from towpath.feedback import judge_runner
from towpath.judges import function
from towpath.judges.ai import AiJudge, account_name
from towpath.judges.model import Answer, ModelJudge
from towpath.judges.people import PeopleJudge
from towpath.judges.rubric import RubricJudge
from towpath.recipe import Rewards
from towpath.recipe.stage_configs import BaselineConfig
from towpath.records import Completion, Prompt
from towpath.rewards.call_adapter import Prompts
from towpath.runtime.launch import launch_classifier
from towpath.runtime.process import release_memory
from towpath.stages.job import Job
from towpath.stages.labelled_pairs import completion_row
from towpath.stages.reward_scorer import answer_of, judge_model_job, open_reward_model
from towpath.store import manifest


@dataclass(frozen=True)
class Contest:
    """Two models' answers to the same prompts, and the gate that their win rate decides."""

    gate: str
    one: str
    """The model that should win."""
    other: str
    prompts: Sequence[Prompt]
    ours: Sequence[Completion]
    others: Sequence[Completion]

    @property
    def pairs(self) -> list[AnswerPair]:
        """The answers, prompt by prompt."""
        return [AnswerPair(*row) for row in zip(self.prompts, self.ours, self.others, strict=True)]


def open_judge(job: Job[BaselineConfig], spec: str, contest: Contest) -> EvaluationJudge:
    """The judge that an entry of `evaluate.judges` names."""
    cfg = job.config.evaluate
    if spec == "rubric":
        return RubricJudge(cfg.tie_margin)
    if spec == "judge":
        settings = judge_runner.judge_settings(cfg.judge, job.run)
        return AiJudge(settings, job.store, account_name(settings, job.config.judge.ceiling))
    if spec == "people":
        threshold = getattr(job.config.gates, contest.gate).threshold
        spec_of_arena = ArenaSpec(contest.one, contest.other, 0, threshold, cfg.overlap)
        return PeopleJudge(job.store, job.run, spec_of_arena, f"{job.name}/{job.folder.name}", job.config.seed)
    if spec == "model":
        return _held_out_model(job)
    if spec.startswith("model:"):
        return _model_from_elsewhere(job, spec.removeprefix("model:"))

    def columns_of(pairs: Sequence[AnswerPair]) -> dict[str, list[Any]]:
        return job.corpus.columns_of([pair.prompt for pair in pairs])

    def prompts_of(pairs: Sequence[AnswerPair]) -> Prompts:
        return job.corpus.as_rows_have_them([pair.prompt for pair in pairs])

    names = sorted(job.corpus.column_names)
    return function.load_judge(spec, job.run, cfg.tie_margin, names, columns_of, prompts_of)


def _held_out_model(job: Job[BaselineConfig]) -> ModelJudge:
    """The reward model that the stage `judge_model` trained on reserved labels."""
    folder = job.inputs["judge_model"]
    record = manifest.read(folder)["result"]
    margin = job.config.evaluate.tie_margin
    if "accuracy" not in record:
        return ModelJudge("held-out reward model", margin, None, record["unfit"])
    low, high = record["interval"]
    name = f"held-out reward model, right on {record['accuracy']:.0%} [{low:.0%}, {high:.0%}] of {record['n']} labels"
    own = judge_model_job(job)

    def score(answers: Sequence[Answer]) -> list[float]:
        runtime = own.launch(training=False)
        models = open_reward_model(own, runtime, folder)
        batch = Batch([completion_row(own, prompt, c) for prompt, c in answers])
        scores = models.score(batch, [answer_of(prompt, c) for prompt, c in answers], Rewards()).score_B.tolist()
        release_memory()
        return scores

    return ModelJudge(name, margin, score, record["unfit"])


def _model_from_elsewhere(job: Job[BaselineConfig], source: str) -> ModelJudge:
    """A sequence-classification model."""

    def score(answers: Sequence[Answer]) -> list[float]:
        runtime = job.launch(training=False)
        classifier = launch_classifier(runtime, job.config.model, source, job.run, key="evaluate.judges")
        conversations = [prompt.messages for prompt, _ in answers]
        scores = classifier.score(conversations, [completion.text for _, completion in answers], source)
        release_memory()
        return scores

    return ModelJudge(f"held-out reward model {source}", job.config.evaluate.tie_margin, score)
