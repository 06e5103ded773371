"""Rollouts as batches: prompts in a fixed order, completions, the outputs of every role on them, and metrics.

B rollouts, T answer tokens.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from towpath.data.batch import Batch, make_row
from towpath.data.chat import Chat
from towpath.data.corpus import Corpus
from towpath.data.draws import permutation, uniforms
from towpath.data.intervals import wilson
from towpath.errors import RecipeError, RewardError
from towpath.hashing import hash_uniform
from towpath.recipe import Decoding, Policy
from towpath.records import Prompt, Rollout
from towpath.rollout.engine import Engine, SampleOutput, SampleRequest
from towpath.rollout.generate import generate
from towpath.rollout.sample_ahead import SampledAhead
from towpath.rollout.sample_log import SampleLog
from towpath.rollout.scoring import RewardSources, rewards_at, score_columns, shape_rewards
from towpath.rollout.statistics import rollout_metrics, sum_tokens
from towpath.rollout.stored_outputs import StartCache, pack_outputs, unpack_outputs
from towpath.runtime.checkpoints import Checkpoints
from towpath.runtime.contract import Runtime
from towpath.store.publish import fault_point

Numbers = dict[str, float]
CARRIED = "rollout_ahead.safetensors"
"""In a checkpoint: the rollouts of its next step, where earlier weights sampled them."""
VALIDATION_METRICS = (
    "reward",
    "score",
    "kl",
    "kl_k3",
    "length",
    "finish_rate",
    "distinct_2",
    "repetition",
    "opening",
    "refusal",
    "reward_length_corr",
    "reward_repetition_corr",
    "score_spread",
)
"""Rollout metrics that a validation keeps."""
PROBE_TOKENS = 24
"""Tokens in which an answer declines, if it does."""
CHECK_EVERY = 8
"""Of so many rollouts one is checked: whether the engine's log-probabilities are the trainer's."""
TOLERANCE = 5e-5
"""Nats a token by which the two may differ and count as the same."""
Draw = tuple[Prompt, str]
"""A prompt and the name of the draw, which decides the random numbers."""


@dataclass(frozen=True)
class ExperienceConfig:
    """How rollouts are sampled and scored in one policy stage."""

    policy: Policy
    seed: int
    name: str
    """The stage's, which names its random streams."""
    folder: Path
    correction: float = 0.0
    """Limit of importance weights where the engine rounds otherwise than the trainer; 0 for none."""
    exact_engine: bool = False
    """Whether the engine should give the trainer's own log-probabilities."""
    critic: Literal["none", "closed_form", "trained"] = "none"
    starts_at_reference: bool = True
    """Whether the policy begins as the reference model."""


class Experience:
    """Batches of rollouts for the loop, and their validation on prompts that are never trained on."""

    def __init__(
        self,
        config: ExperienceConfig,
        runtime: Runtime,
        engine: Engine,
        chat: Chat,
        corpus: Corpus,
        sources: RewardSources,
        log: SampleLog,
        start_cache: StartCache | None = None,
    ) -> None:
        self.config = config
        self.policy = config.policy
        self.runtime = runtime
        self.engine = engine
        self.chat = chat
        self.sources = sources
        self.log = log
        self.start_cache = start_cache if config.starts_at_reference and not config.policy.staleness else None
        order = sorted(corpus.train, key=lambda p: hash_uniform(config.seed, "policy/validation", p.id))
        self.validation_prompts = order[: self.policy.validation_prompts]
        self.prompts = order[self.policy.validation_prompts :]
        self._pending = Checkpoints(config.folder / "pending_rollouts")
        self._features: Any = None
        """Handle to what a closed-form critic reads of the last rollout."""
        self._reference_reward_B: np.ndarray | None = None
        self._last_validation: tuple[int, Batch, Numbers] | None = None
        self._ahead: SampledAhead | None = None
        """The rollout of the next step, with `policy.staleness`."""
        self._sampled: tuple[int, list[SampleOutput]] | None = None
        """The step of the present rollout, and its completions, with `policy.staleness`."""

    # Training batches

    def batch(self, step: int, knobs: Numbers) -> tuple[Batch, Numbers]:
        """One rollout batch, sampled and scored with these knobs, and its metrics."""
        started = time.monotonic()
        temperature = knobs.get("temperature", self.policy.temperature)
        draws = self.draws(step)
        rollouts, seconds = self._sample(step, draws, temperature)
        sampled = time.monotonic()
        single_update = self.policy.epochs == 1 and self.policy.batch >= len(draws)
        batch = self.compute_logprobs(rollouts, temperature, single_update and not self.policy.staleness)
        # completions of one prompt are neighbours: rows 0..group-1 are group 0
        batch = batch.with_columns(group=torch.arange(len(draws)) // self.policy.group)
        if self.policy.staleness:
            batch = batch.with_columns(stale=torch.ones(len(batch), dtype=torch.bool))
        batch = self.compute_rewards(rollouts, batch, knobs)
        unscored = self._unscored_share(batch)
        batch, rollouts = _without_unscored(batch, rollouts)
        if self.config.critic != "none":
            batch = self.compute_values(batch)
        tokens = sum(len(r.token_ids) for r in rollouts)
        return batch, rollout_metrics(batch, rollouts) | {
            "seconds_generate": sampled - started,
            "seconds_score": time.monotonic() - sampled,
            "tokens_per_second": tokens / max(seconds, 1e-9),
            **({"unscored": unscored} if unscored else {}),
        }

    def draws(self, step: int) -> list[Draw]:
        """The draws of a step: every prompt once an epoch, `group` completions of each; a function of the step."""
        count = len(self.prompts)
        size = self.policy.rollout // self.policy.group
        draws = []
        for position in range(step * size, (step + 1) * size):
            # a function of the step, so that a resumed run draws the same
            epoch, index = divmod(position, count)
            order = permutation(count, self.config.seed, f"{self.config.name}/prompts", epoch)
            names = [f"{epoch}" if copy == 0 else f"{epoch}.{copy}" for copy in range(self.policy.group)]
            draws += [(self.prompts[order[index]], name) for name in names]
        return draws

    def _sample(self, step: int, draws: Sequence[Draw], temperature: float) -> tuple[list[Rollout], float]:
        """The rollouts of a step, and the seconds that sampling them took; with `policy.staleness` those of the next
        step begin to be sampled by the same weights."""
        started = time.monotonic()
        saved = self._pending.newest("rollout")
        ahead = self._ahead if self._ahead and self._ahead.step == step else None
        if saved and saved[0] == step:  # by a run that was interrupted
            outputs = unpack_outputs(saved[1], self.chat.stops)
        else:
            requests = self._requests(draws, self._stream(step), temperature)
            outputs = ahead.outputs() if ahead else self._policy_outputs(step == 0, requests, "rollout")
            self._pending.save(step, pack_outputs(outputs), {}, prefix="rollout", keep=1)
            fault_point("rollout")
        seconds = (ahead.seconds if ahead else 0.0) or time.monotonic() - started
        if self.policy.staleness:
            self._sampled = step, outputs
            self._sample_ahead(step + 1, temperature)
        return self._rollouts(draws, outputs), seconds

    def _stream(self, step: int) -> str:
        return f"{self.config.name}/{step}"

    def _generate(self, role: str, draws: Sequence[Draw], stream: str, temperature: float) -> list[SampleOutput]:
        self._publish(role)
        return generate(self.engine, self._requests(draws, stream, temperature), "rollout")

    def _policy_outputs(self, is_untrained: bool, requests: Sequence[SampleRequest], title: str) -> list[SampleOutput]:
        """The policy's completions; those before its first update may be in the cache of a sweep."""

        def sample() -> list[SampleOutput]:
            self._publish("policy")
            return generate(self.engine, requests, title)

        if is_untrained and self.start_cache:
            return self.start_cache.outputs(requests, self.chat.stops, sample)
        return sample()

    def _publish(self, role: str) -> None:
        """Give the engine the role's weights, once it samples nothing by those that it has."""
        if self._ahead is not None:
            self._ahead.outputs()
        self.runtime.publish(role, self.engine)

    # Rollouts ahead of their step

    def _sample_ahead(self, step: int, temperature: float) -> None:
        """Begin to sample the rollouts of a step by the present weights."""
        self._ahead = None
        if step < self.policy.steps:
            self._publish("policy")
            requests = self._requests(self.draws(step), self._stream(step), temperature)
            self._ahead = SampledAhead(step)
            self._ahead.begin(self.engine, requests)

    def write_carried(self, step: int, folder: Path) -> None:
        """Add to the checkpoint before a step the rollouts of that step which earlier weights sampled."""
        outputs = None
        if self._sampled is not None and self._sampled[0] == step:
            outputs = self._sampled[1]
        elif self._ahead is not None and self._ahead.step == step:
            outputs = self._ahead.outputs()
        if outputs is not None:
            save_file(pack_outputs(outputs), folder / CARRIED)

    def read_carried(self, step: int, folder: Path) -> None:
        """Take from a checkpoint what `write_carried` added."""
        path = folder / CARRIED
        if path.is_file() and self.policy.staleness:
            self._ahead = SampledAhead(step, unpack_outputs(load_file(path), self.chat.stops))

    def discard_carried(self) -> None:
        """Forget rollouts of weights that a remedy has replaced."""
        if self._ahead is not None:
            self._ahead.outputs()
            self._ahead = None

    def _requests(
        self, draws: Sequence[Draw], stream: str, temperature: float, most: int | None = None
    ) -> list[SampleRequest]:
        decoding = Decoding(temperature=temperature)
        longest = min(most or self.policy.max_new_tokens, self.policy.max_new_tokens)
        seed = self.config.seed
        return [
            SampleRequest(self.chat.prompt(p.messages), decoding, uniforms(longest, seed, stream, name, p.id))
            for p, name in draws
        ]

    def _rollouts(self, draws: Sequence[Draw], outputs: Sequence[SampleOutput]) -> list[Rollout]:
        return [
            Rollout(p, tuple(o.token_ids), tuple(o.logprobs), o.finish, self.chat.text(o.token_ids))
            for (p, _), o in zip(draws, outputs, strict=True)
        ]

    # What roles give for a batch

    def compute_logprobs(self, rollouts: Sequence[Rollout], temperature: float, single_update: bool = False) -> Batch:
        """Rows with log-probabilities [B,T] of reference, engine and policy. Where one update follows, the policy's
        are computed there."""
        runtime = self.runtime
        batch = runtime.cache_frozen_prefix(self._rows(rollouts), "reference")
        # all columns [B,T], zero beyond an answer's end
        columns = {"ref_logp": runtime.score("reference", batch, ("logp",), temperature).logp_BT}
        columns["sampler_logp"] = torch.zeros_like(columns["ref_logp"])
        for i, r in enumerate(rollouts):
            columns["sampler_logp"][i, : len(r.logprobs)] = torch.tensor(r.logprobs)
        if single_update:
            # the update's own forward pass gives the old policy's log-probabilities: ratio 1, one pass less
            columns["old_logp"] = columns["sampler_logp"]
            columns["on_policy"] = torch.ones(len(batch), dtype=torch.bool)
        else:
            columns |= self._old_logprobs(batch, columns["sampler_logp"], temperature)
        if self.config.correction:
            columns["correction"] = columns["ref_logp"].new_full((len(batch),), self.config.correction)
        return batch.with_columns(ended=torch.tensor([r.finish == "stop" for r in rollouts]), **columns)

    def _rows(self, rollouts: Sequence[Rollout]) -> Batch:
        return Batch([make_row(self.chat.prompt(r.prompt.messages), r.token_ids) for r in rollouts])

    def _old_logprobs(self, batch: Batch, sampler_BT: Tensor, temperature: float) -> dict[str, Tensor]:
        """The policy's log-probabilities before it moves. An exact engine has given them: some rows are checked, and
        all are computed where that shows otherwise."""
        if self.config.exact_engine:
            # every eighth row is computed again; within TOLERANCE the engine's own stand for the others
            checked_B = torch.arange(len(batch)) % CHECK_EVERY == 0
            some = batch.take(checked_B.nonzero()[:, 0].tolist())
            logp_BT = self.runtime.score("policy", some, ("logp",), temperature).logp_BT
            old_BT = sampler_BT.clone()
            old_BT[checked_B, : logp_BT.shape[1]] = logp_BT
            tokens = sum(row.answer_length for row in some.rows)
            if float(sum_tokens(batch, (old_BT - sampler_BT).abs()).sum()) <= TOLERANCE * tokens:
                return {"old_logp": old_BT, "checked": checked_B}
        return {"old_logp": self.runtime.score("policy", batch, ("logp",), temperature).logp_BT}

    def compute_rewards(self, rollouts: Sequence[Rollout], batch: Batch, knobs: Numbers) -> Batch:
        """The batch with scores and rewards, where there are reward sources."""
        if not self.sources:
            return batch
        closed_form = self.config.critic == "closed_form"
        scores, features = self.sources.score(rollouts, batch, rewards_at(self.policy.rewards, knobs), closed_form)
        if features is not None:
            batch = batch.with_handle("features", features)
        return batch.with_columns(**score_columns(scores))

    def _unscored_share(self, batch: Batch) -> float:
        """The share of answers without a reward; RewardError if it is above `policy.rewards.max_unscored`."""
        if "reward" not in batch.columns:
            return 0.0
        share = float(batch.columns["reward"].isnan().float().mean())
        limit = self.policy.rewards.max_unscored
        if share > limit:
            value = f"{share:.0%} of {len(batch)} answers have no score"
            rule = f"policy.rewards.max_unscored = {limit:g}; answers without a score are not trained on"
            raise RewardError(value, rule, "correct the reward source, or raise policy.rewards.max_unscored")
        return share

    def compute_values(self, batch: Batch) -> Batch:
        """The batch with the critic's values [B,T]."""
        wants = ("value",)
        if self.config.critic == "closed_form" and "features" not in batch.handles:
            wants = ("value", "features")
        out = self.runtime.score("critic", batch, wants)
        self._features = batch.handles.get("features") if out.features is None else out.features
        return batch.with_columns(value=out.value_BT)

    def fit_critic(self, batch: Batch) -> None:
        """Fit a closed-form critic to what came of the last rollout."""
        if self._features is None:
            return
        if "outcome" not in batch.columns:
            raise RecipeError(
                f"policy.algo = {self.policy.algo!r}: its `prepare` leaves no `outcome`",
                "a critic's head is fitted to one",
                "add the column `outcome` [B,T]: the sum of rewards from each token on",
            )
        self.runtime.fit("critic", self._features, batch.columns["outcome"], self.policy.ppo.critic_decay)
        self._features = None

    # Validation

    def validate(self, step: int, knobs: Numbers, against_reference: bool = False) -> Numbers:
        """Metrics on prompts that are never trained on, with the same random numbers each time.

        `reward` has the recipe's reward settings, `reward_turned` those that remedies have moved.
        """
        if self._last_validation is None or self._last_validation[0] != step:
            batch, metrics = self._validate(step, knobs)
            # without handles: the runtime lets go of the states and features of these rows
            self._last_validation = step, replace(batch, handles={}), metrics
        _, batch, metrics = self._last_validation
        return metrics | self._compare_with_reference(batch) if against_reference else metrics

    def _validate(self, step: int, knobs: Numbers) -> tuple[Batch, Numbers]:
        """Completions of validation prompts and the beginnings of answers to safety probes, at the recipe's own
        temperature."""
        temperature = self.policy.temperature
        draws = [(p, "0") for p in self.validation_prompts]
        probes = [(p, "0") for p in self.log.probes]
        requests = self._requests(draws, "validation", temperature)
        requests += self._requests(probes, "probes", temperature, PROBE_TOKENS)
        # one call: validation prompts and probes share batches
        outputs = self._policy_outputs(step == -1, requests, "validation answers")
        rollouts = self._rollouts(draws, outputs[: len(draws)])
        batch = self.compute_rewards(rollouts, self.compute_logprobs(rollouts, temperature), {})
        unscored = self._unscored_share(batch)
        metrics = rollout_metrics(*_without_unscored(batch, rollouts))
        chosen: Numbers = {"unscored": unscored} if unscored else {}
        chosen |= {name: metrics[name] for name in VALIDATION_METRICS if name in metrics}
        chosen |= {name: x for name, x in metrics.items() if name.startswith(("reward/", "score/", "watched/"))}
        if self.sources:
            chosen |= self._shaped_by(knobs, rollouts, batch)
            if step == -1 and self.config.starts_at_reference:
                self._reference_reward_B = batch.columns["reward"].numpy()
        self.log.write_answers(step, rollouts, batch)
        if probes:
            chosen |= self.log.write_probes(step, self._rollouts(probes, outputs[len(draws) :]))
        return batch, chosen

    def _shaped_by(self, knobs: Numbers, rollouts: Sequence[Rollout], batch: Batch) -> Numbers:
        """The mean reward with the settings that remedies have moved, where they have."""
        rewards = rewards_at(self.policy.rewards, knobs)
        if rewards is self.policy.rewards:
            return {}
        shaped_B = shape_rewards(rollouts, batch.columns["score"].numpy(), rewards)
        return {"reward_turned": float(np.nanmean(shaped_B))}

    def _compare_with_reference(self, batch: Batch) -> Numbers:
        """The interval of KL, and how often the reward rose over the reference's own answers."""
        kl_B = sum_tokens(batch, batch.columns["old_logp"] - batch.columns["ref_logp"]).numpy()
        spread = 1.96 * float(kl_B.std(ddof=1)) / len(kl_B) ** 0.5
        metrics = {"kl_low": float(kl_B.mean()) - spread, "kl_high": float(kl_B.mean()) + spread}
        if not self.sources:
            return metrics
        policy_B = batch.columns["reward"].numpy()
        reference_B = self._reference_reward() if self._reference_reward_B is None else self._reference_reward_B
        scored_B = ~np.isnan(policy_B) & ~np.isnan(reference_B)
        policy_B = policy_B[scored_B]
        reference_B = reference_B[scored_B]
        # ties count half
        rose = np.where(policy_B == reference_B, 0.5, policy_B > reference_B)
        low, high = wilson(float(rose.sum()), len(rose))
        return metrics | {
            "reference_reward": float(reference_B.mean()),
            "rose": float(rose.mean()),
            "rose_n": float(len(rose)),
            "rose_low": low,
            "rose_high": high,
        }

    def _reference_reward(self) -> np.ndarray:
        """Rewards [B] of the reference's own answers to the validation prompts."""
        draws = [(p, "0") for p in self.validation_prompts]
        outputs = self._generate("reference", draws, "validation", self.policy.temperature)
        rollouts = self._rollouts(draws, outputs)
        rows = self.runtime.cache_frozen_prefix(self._rows(rollouts), "reference")
        return self.compute_rewards(rollouts, rows, {}).columns["reward"].numpy()


def _without_unscored(batch: Batch, rollouts: Sequence[Rollout]) -> tuple[Batch, Sequence[Rollout]]:
    """The batch and its rollouts without answers that have no reward; what a runtime keeps of features is of other rows
    then."""
    if "reward" not in batch.columns or not batch.columns["reward"].isnan().any():
        return batch, rollouts
    index = (~batch.columns["reward"].isnan()).nonzero()[:, 0].tolist()
    scored = batch.take(index)
    handles = {name: handle for name, handle in scored.handles.items() if name != "features"}
    return replace(scored, handles=handles), [rollouts[i] for i in index]
