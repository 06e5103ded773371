"""Scores and rewards of rollouts, from the sources that a recipe names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from towpath.data.batch import Batch
from towpath.data.corpus import Corpus
from towpath.models.classifier import Classifier
from towpath.progress import progress
from towpath.recipe import Rewards
from towpath.records import Finding, Rollout, Score
from towpath.rewards import shaping, sources
from towpath.rollout.reward_models import AnswerText, RewardScorer

Numbers = dict[str, float]
Scorer = Callable[[Sequence[Rollout]], Sequence[float | None]]


class RewardSources:
    """Reward models, rules, functions and endpoints of one recipe."""

    def __init__(
        self,
        rewards: Rewards,
        corpus: Corpus,
        models: RewardScorer | None,
        classifiers: Mapping[str, Classifier] | None = None,
    ) -> None:
        self.rewards = rewards
        self.corpus = corpus
        self.models = models
        self.classifiers = classifiers or {}
        """Reward models from elsewhere, by source."""
        names = [source.source for source in rewards.sources if source.source != "model"]
        self._scorers = {name: self._scorer(name) for name in names}
        self._watched = {name: self._scorer(name) for name in rewards.watch}

    def _scorer(self, source: str) -> Scorer:
        """The function of rollouts that a source names."""
        if source in self.classifiers:
            model = self.classifiers[source]

            def score(rollouts: Sequence[Rollout]) -> Sequence[float | None]:
                scores = model.score([r.prompt.messages for r in rollouts], [r.text for r in rollouts], source)
                return sources.validate_scores(source, scores, len(rollouts))

            return score
        call = sources.load_source(source, self.corpus.column_names, self.rewards.command)

        def score_texts(rollouts: Sequence[Rollout]) -> Sequence[float | None]:
            prompts = [r.prompt for r in rollouts]
            answers = [r.text for r in rollouts]
            return call(self.corpus.as_rows_have_them(prompts), answers, self.corpus.columns_of(prompts))

        return score_texts

    def truncation_findings(self) -> list[Finding]:
        """A finding on each reward model from elsewhere that did not read all of the answers' conversations."""
        findings = []
        for source, model in self.classifiers.items():
            if model.truncated:
                evidence = f"{source}: {model.truncated:,} of {model.scored:,} rows are longer than its context of "
                evidence += f"{model.format.limit} tokens; their oldest tokens were left out"
                remedy = "use a reward model with a longer context, or lower data.max_prompt_tokens or max_new_tokens"
                findings.append(Finding("reward-truncated", "warning", evidence, "it scored a part of them", remedy))
        return findings

    def __bool__(self) -> bool:
        """Whether anything scores rollouts."""
        return bool(self._scorers) or self.models is not None

    def score(
        self, rollouts: Sequence[Rollout], batch: Batch, rewards: Rewards, features: bool = False
    ) -> tuple[list[Score], Any]:
        """A score for each rollout, with these reward settings; and a handle to the reward model's features of the
        batch, where they are wanted and it was asked."""
        spread_B: list[float] = []
        handle = None
        scores = []
        for source in rewards.sources:
            if source.source == "model":
                assert self.models is not None
                wants = ("features",) if features and self.models.shares_tokens else ()
                answers = [AnswerText(r.prompt, r.text, r.finish == "stop") for r in rollouts]
                out = self.models.score(batch, answers, rewards, wants)
                handle = out.features
                scores.append(out.score_B.numpy())
                spread_B = out.spread_B.tolist()
            else:
                scores.append(_scores_of(source.source, self._scorers[source.source], rollouts))
        score_B = shaping.combine_sources(np.stack(scores), rewards)
        reward_B = shape_rewards(rollouts, score_B, rewards)
        watched = {name: _scores_of(name, scorer, rollouts) for name, scorer in self._watched.items()}
        names = [source.source for source in rewards.sources] if len(scores) > 1 else []
        return [
            Score(
                float(score_B[i]),
                float(reward_B[i]),
                {name: _score(column[i]) for name, column in zip(names, scores, strict=False)},
                {name: _score(column[i]) for name, column in watched.items()},
                spread_B[i] if spread_B else None,
            )
            for i in range(len(rollouts))
        ], handle


def _scores_of(name: str, scorer: Scorer, rollouts: Sequence[Rollout]) -> np.ndarray:
    """The scores of one source, whose time is shown: minus infinity where it does not apply, as `combine_sources` takes
    them."""
    with progress(f"scoring by {name}"):
        scores = scorer(rollouts)
    return np.array([-np.inf if score is None else score for score in scores], dtype=float)


def _score(value: float) -> float:
    """A score; NaN where a source does not apply."""
    return float("nan") if np.isneginf(value) else float(value)


def shape_rewards(rollouts: Sequence[Rollout], score_B: np.ndarray, rewards: Rewards) -> np.ndarray:
    """Rewards [B] of scores: clipped, with penalties for length, repetition and a missing end."""
    ended_B = np.array([r.finish == "stop" for r in rollouts])
    answers = [r.token_ids for r in rollouts]
    return shaping.shape_rewards(score_B, answers, ended_B, [r.prompt.domain for r in rollouts], rewards)


def score_columns(scores: Sequence[Score]) -> dict[str, Tensor]:
    """Scores as columns of a batch."""
    columns = {"score": [s.score for s in scores], "reward": [s.reward for s in scores]}
    columns |= {f"score/{name}": [s.sources[name] for s in scores] for name in scores[0].sources}
    columns |= {f"watched/{name}": [s.watched[name] for s in scores] for name in scores[0].watched}
    if scores[0].spread is not None:
        columns["spread"] = [s.spread or 0.0 for s in scores]
    return {name: torch.tensor(column, dtype=torch.float32) for name, column in columns.items()}


def rewards_at(rewards: Rewards, knobs: Numbers) -> Rewards:
    """Reward settings with the knobs that remedies move: domain weights, diversity bonus, repetition penalty."""
    domains = {name.removeprefix("domain_weight/"): x for name, x in knobs.items() if name.startswith("domain_weight/")}
    changes = {name: knobs[name] for name in ("diversity_bonus", "repetition_penalty") if name in knobs}
    if not domains and not changes:
        return rewards
    return rewards.model_copy(update={"domains": dict(rewards.domains) | domains, **changes})
