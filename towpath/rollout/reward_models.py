"""Reward models of a run: those that the reward stage trained, as roles of a runtime (`reward`, and `reward-2`,
`reward-3`, ... of an ensemble), or a pretrained one as it is. Their scores are normalised.

B answers, K members of the ensemble.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from towpath.algos.contract import Outputs
from towpath.data.batch import Batch, Row, make_row
from towpath.data.chat import Chat
from towpath.models.classifier import Classifier
from towpath.models.locate import find
from towpath.recipe import Reward, Rewards
from towpath.records import Prompt
from towpath.rewards import shaping
from towpath.runtime.contract import RoleSpec, Runtime

WEIGHTS = "reward.safetensors"
"""Adapter and head of a reward model, in the folder that the reward stage writes."""


class AnswerText(NamedTuple):
    """An answer as text, for a reward model with a tokenizer of its own."""

    prompt: Prompt
    text: str
    ended: bool = True


class RewardScorer(Protocol):
    """What scores answers: the reward model of a run."""

    @property
    def shares_tokens(self) -> bool:
        """Whether it reads the policy's own tokens."""
        ...

    def score(
        self, batch: Batch, answers: Sequence[AnswerText], rewards: Rewards, wants: tuple[str, ...] = ()
    ) -> Outputs:
        """Scores [B] of answers, given as the policy's tokens and as texts; `wants` is what else is wanted."""
        ...


def member_folder(stage: Path, number: int) -> Path:
    """Folder of one member's weights, counted from 1."""
    return stage / ("weights" if number == 1 else f"weights-{number}")


def member_role(number: int) -> str:
    """Role of one member, counted from 1."""
    return "reward" if number == 1 else f"reward-{number}"


def initial_model(section: Reward, tuned_model: Path, run: Path) -> str:
    """Folder of the model that a reward model begins with."""
    if not section.source:
        return str(tuned_model)
    return find(section.source, run, "reward.base" if section.base else "reward.pretrained")


def reward_roles(section: Reward, tuned_model: Path, stage: Path, run: Path, pad: int) -> dict[str, RoleSpec]:
    """The reward models that a reward stage trained, frozen; none for a pretrained one that is used as it is."""
    if not section.is_trained:
        return {}
    lora = section.lora if section.method == "lora" else None
    roles = {}
    for number in range(1, section.ensemble_size + 1):
        folder = member_folder(stage, number)
        model = initial_model(section, tuned_model, run) if lora else str(folder)
        roles[member_role(number)] = RoleSpec(model, lora, head="scalar", init=folder / WEIGHTS, pad=pad)
    return roles


def own_row(chat: Chat, answer: AnswerText) -> Row:
    """The row of an answer in another tokenizer's tokens; one that was cut off has no end there either."""
    tokens = chat.answer(answer.text)
    return make_row(chat.prompt(answer.prompt.messages), tokens if answer.ended else tokens[:-1])


@dataclass
class RewardModels:
    """The trained reward models of a runtime as one judge."""

    runtime: Runtime
    roles: tuple[str, ...]
    chat: Chat | None = None
    """Of the reward model's own tokenizer, where it is not the policy's."""

    @property
    def shares_tokens(self) -> bool:
        return self.chat is None

    def score(
        self, batch: Batch, answers: Sequence[AnswerText], rewards: Rewards, wants: tuple[str, ...] = ()
    ) -> Outputs:
        """Scores [B], aggregated over the ensemble; `wants` is what else is wanted of the first member."""
        if self.chat is not None:
            batch = Batch([own_row(self.chat, answer) for answer in answers])
        out = self.runtime.score(self.roles[0], batch, ("score", *wants))
        others = [self.runtime.score(role, batch, ("score",)).score_B for role in self.roles[1:]]
        if others:
            scores_KB = np.stack([scores.numpy() for scores in (out.score_B, *others)])
            out.spread_B = torch.from_numpy(scores_KB.std(0)).to(out.score_B)
            out.score_B = torch.from_numpy(shaping.combine_ensemble(scores_KB, rewards)).to(out.score_B)
        return out


@dataclass
class PretrainedReward:
    """A pretrained reward model as it is; its scores are normalised on answers of the tuned model."""

    classifier: Classifier
    mean: float
    std: float

    @property
    def shares_tokens(self) -> bool:
        return False

    def score(
        self, batch: Batch, answers: Sequence[AnswerText], rewards: Rewards, wants: tuple[str, ...] = ()
    ) -> Outputs:
        """Scores [B]; it has nothing else to give."""
        conversations = [answer.prompt.messages for answer in answers]
        scores = self.classifier.score(conversations, [answer.text for answer in answers])
        score_B = (torch.tensor(scores, dtype=torch.float32) - self.mean) / self.std
        return Outputs(torch.from_numpy(batch.mask_BT), score_B=score_B)
