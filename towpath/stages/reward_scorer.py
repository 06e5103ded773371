"""The reward model of a finished reward stage, ready to score."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from towpath.data.batch import Row
from towpath.recipe.stage_configs import PairsConfig
from towpath.records import Completion, Prompt
from towpath.rollout.reward_models import (
    AnswerText,
    PretrainedReward,
    RewardModels,
    RewardScorer,
    own_row,
    reward_roles,
)
from towpath.runtime.contract import RoleSpec, Runtime
from towpath.runtime.launch import launch_classifier
from towpath.stages.job import Job
from towpath.stages.labelled_pairs import completion_row
from towpath.store import manifest

C = TypeVar("C", bound=PairsConfig)


def judge_model_job(job: Job[C]) -> Job[C]:
    """The job with the reward settings of the held-out judge: one model, trained from the reward model's base."""
    reward = job.config.reward.model_copy(update={"ensemble_size": 1, "pretrained": "", "train": False})
    return replace(job, config=replace(job.config, reward=reward))


def roles_of(job: Job[PairsConfig], stage: Path) -> dict[str, RoleSpec]:
    """The roles of the reward model that a stage trained; none for a pretrained one that is used as it is."""
    reward = job.config.reward
    pad = job.reward_chat.pad if reward.is_trained else job.chat.pad
    return reward_roles(reward, job.inputs["sft"] / "weights", stage, job.run, pad)


def open_reward_model(job: Job[PairsConfig], runtime: Runtime, stage: Path) -> RewardScorer:
    """Open the reward model of a stage in a runtime."""
    roles = roles_of(job, stage)
    if roles:
        runtime.open(roles)
    return scorer_of(job, runtime, stage, tuple(roles))


def scorer_of(job: Job[PairsConfig], runtime: Runtime, stage: Path, roles: tuple[str, ...]) -> RewardScorer:
    """The reward model of a stage, whose roles are open."""
    reward = job.config.reward
    if reward.is_trained:
        return RewardModels(runtime, roles, job.reward_chat if reward.source else None)
    result = manifest.read(stage)["result"]
    classifier = launch_classifier(
        runtime, job.config.model, reward.pretrained, job.run, reward.template, "reward.pretrained"
    )
    return PretrainedReward(classifier, result["mean"], result["std"])


def answer_of(prompt: Prompt, completion: Completion) -> AnswerText:
    """A completion as a reward model with a tokenizer of its own reads it."""
    return AnswerText(prompt, completion.text, completion.finish == "stop")


def reward_row(job: Job[PairsConfig], prompt: Prompt, completion: Completion) -> Row:
    """The row of a completion in the reward model's tokens: the sampled ones where it reads the policy's."""
    if not job.config.reward.source:
        return completion_row(job, prompt, completion)
    return own_row(job.reward_chat, answer_of(prompt, completion))
