"""Rollouts: prompts in a fixed order, answers drawn, every role's opinion of them, and the numbers of the step."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from towpath.data.batch import Batch, make_row
from towpath.data.draws import hash_uniform, permutation, uniforms
from towpath.data.intervals import wilson
from towpath.errors import RecipeError
from towpath.recipe import Decoding, Rewards
from towpath.records import Prompt
from towpath.rewards import shaping, sources
from towpath.rollout.engine import Drawn, Request
from towpath.runtime.local import Local
from towpath.stages.job import Checkpoints, Job
from towpath.stages.reward import judged
from towpath.stages.rollout_statistics import of_rollout, summed
from towpath.stages.sample_log import Showing
from towpath.stages.sampler import engine, generate
from towpath.store.publish import fault_point

Numbers = dict[str, float]
LOOKED = (
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
"""What a look keeps of all that is said of a rollout."""
OPENING = 24
"""Tokens in which an answer declines, if it does."""
ASKED = 8
"""Of so many rows one is asked again whether the sampler's log-probabilities are the trainer's."""
EXACT = 5e-5
"""Nats a token by which they may differ, and be taken for the same."""
Chosen = tuple[Prompt, str]
"""A prompt and the name of the draw, which decides the random numbers."""


class Experience:
    """Batches of rollouts for the loop; with adapters the sampler is a plain copy of the policy, merged before each
    use, else the policy itself."""

    def __init__(self, job: Job, runtime: Local) -> None:
        self.job = job
        self.runtime = runtime
        self.cfg = job.recipe.policy
        order = sorted(job.corpus.train, key=lambda p: hash_uniform(job.recipe.seed, "policy/validation", p.id))
        self.held = order[: self.cfg.validation_prompts]
        self.prompts = order[self.cfg.validation_prompts :]
        # compiled layers are not drawn with
        apart = runtime.roles["policy"].trunk in runtime.adapters or job.recipe.model.compile.on
        self.drawn: Any = job.model(job.inputs["sft"] / "weights").requires_grad_(False) if apart else None
        """The copy, where there is one."""
        self.engine = engine(job, self.drawn or runtime.trunks["policy"], self.cfg.max_new_tokens)
        self.in_flight = Checkpoints(job.folder / "pending_rollouts")
        columns = job.corpus.column_names
        self.scorers = {
            source.source: sources.load_source(source.source, columns=columns)
            for source in self.cfg.rewards.sources
            if source.source != "model"
        }
        self.watched = {of: sources.load_source(of, "watch", columns) for of in self.cfg.rewards.watch}
        self.showing = Showing(job)
        self.judges = bool(self.scorers) or "reward" in runtime.roles
        self.fit = runtime.roles["critic"].fit if "critic" in runtime.roles else None
        self.features_BTD: Tensor | None = None
        """What a critic that is solved for reads of the last rollout."""
        self.reference_reward_B: np.ndarray | None = None
        """Rewards of the reference's answers to the prompts kept from training, once they are known."""
        self.looked: tuple[int, Batch, Numbers] | None = None
        """The last validation, for whoever asks for it again."""

    def chosen(self, step: int) -> list[Chosen]:
        """The draws of a step: every prompt once an epoch, `group` answers to each, no state to lose."""
        count = len(self.prompts)
        size = self.cfg.rollout // self.cfg.group
        found = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, count)
            order = permutation(count, self.job.recipe.seed, f"{self.job.name}/prompts", epoch)
            found += [
                (self.prompts[order[place]], f"{epoch}" if copy == 0 else f"{epoch}.{copy}")
                for copy in range(self.cfg.group)
            ]
        return found

    def batch(self, step: int, knobs: Numbers) -> tuple[Batch, Numbers]:
        """One rollout, drawn and scored as the knobs stand, and what there is to say of it."""
        begun = time.monotonic()
        self.runtime.temperature = knobs.get("temperature", self.cfg.temperature)
        chosen = self.chosen(step)
        drawn = self._drawn(step, chosen)
        generated = time.monotonic()
        prompts = [p for p, _ in chosen]
        texts = self._texts(drawn)
        batch = self._scored(
            prompts,
            drawn,
            texts,
            turned(self.cfg.rewards, knobs),
            self.cfg.epochs == 1 and self.cfg.batch >= len(chosen),
        )
        batch = self._valued(batch) if "critic" in self.runtime.roles else batch
        batch = batch.with_columns(group=torch.arange(len(chosen), device=self.runtime.device) // self.cfg.group)
        numbers = of_rollout(batch, prompts, drawn, texts)
        tokens = sum(len(d.token_ids) for d in drawn)
        seconds = generated - begun
        return batch, numbers | {
            "seconds_generate": seconds,
            "seconds_score": time.monotonic() - generated,
            "tokens_per_second": tokens / max(seconds, 1e-9),
        }

    def validate(self, step: int, knobs: Numbers, against_reference: bool = False) -> Numbers:
        """Reward and KL on prompts that are never trained on, the same random numbers each time.

        `reward` is the recipe's, `reward_turned` what remedies made of it.
        """
        if self.looked is None or self.looked[0] != step:
            self.looked = step, *self._look(step, knobs)
        _, batch, numbers = self.looked
        return numbers | self._against_reference(batch) if against_reference else numbers

    def _look(self, step: int, knobs: Numbers) -> tuple[Batch, Numbers]:
        """Answers to the prompts kept from training, and the openings of those to the safety set's, at the recipe's
        own settings."""
        self.runtime.temperature = self.cfg.temperature
        asked = [(p, "0") for p in self.held]
        probes = self.showing.probes
        self._sync("policy")
        requests = [
            *self._requests(asked, "validation"),
            *self._requests([(p, "0") for p in probes], "probes", OPENING),
        ]
        drawn = generate(self.engine, requests, "validation answers")
        drawn, openings = drawn[: len(asked)], drawn[len(asked) :]
        texts = self._texts(drawn)
        batch = self._scored(self.held, drawn, texts, self.cfg.rewards)
        told = of_rollout(batch, self.held, drawn, texts)
        self.showing.answers(step, self.held, texts, batch)
        if step == -1 and self.judges and not any(name.startswith("policy") for name in self.job.inputs):
            # where a first round begins is the reference
            self.reference_reward_B = batch.columns["reward"].cpu().numpy()
        kept = {key: told[key] for key in LOOKED if key in told}
        kept |= {key: x for key, x in told.items() if key.startswith(("reward/", "score/", "watched/"))}
        if (now := turned(self.cfg.rewards, knobs)) is not self.cfg.rewards:
            kept["reward_turned"] = float(
                self._final(batch.columns["score"].cpu().numpy(), self.held, drawn, now).mean()
            )
        return batch, kept | (self.showing.declined(step, probes, self._texts(openings)) if probes else {})

    def _against_reference(self, batch: Batch) -> Numbers:
        """How far it is from the reference, and, where answers are scored, how often the reward rose over the
        reference's own answers."""
        kl_B = summed(batch, batch.columns["old_logp"] - batch.columns["ref_logp"]).cpu().numpy()
        spread = 1.96 * float(kl_B.std(ddof=1)) / len(kl_B) ** 0.5
        found = {"kl_low": float(kl_B.mean()) - spread, "kl_high": float(kl_B.mean()) + spread}
        if not self.judges:
            return found
        ours = batch.columns["reward"].cpu().numpy()
        theirs = self._reference_reward() if self.reference_reward_B is None else self.reference_reward_B
        rose = np.where(ours == theirs, 0.5, ours > theirs)
        low, high = wilson(float(rose.sum()), len(rose))
        return found | {
            "reference_reward": float(theirs.mean()),
            "rose": float(rose.mean()),
            "rose_low": low,
            "rose_high": high,
        }

    def _reference_reward(self) -> np.ndarray:
        """What the reference's own answers to the prompts kept from training are rewarded with [B]."""
        drawn = self._generate([(p, "0") for p in self.held], "validation", adapter=None)
        rows = self.runtime.grounded(self._rows(self.held, drawn))
        return self._judged(self.held, drawn, self._texts(drawn), rows, self.cfg.rewards)["reward"].cpu().numpy()

    def _drawn(self, step: int, chosen: list[Chosen]) -> list[Drawn]:
        """The rollout in flight if one was saved at this step, else a new one, saved."""
        found = self.in_flight.newest("rollout")
        if found and found[0] == step:
            return _unpacked(found[1], self.job.chat.stops)
        drawn = self._generate(chosen, f"{self.job.name}/{step}")
        self.in_flight.save(step, _packed(drawn), {}, prefix="rollout", keep=1)
        fault_point("rollout")
        return drawn

    def _generate(self, chosen: Sequence[Chosen], stream: str, adapter: str | None = "policy") -> list[Drawn]:
        self._sync(adapter)
        return generate(self.engine, self._requests(chosen, stream), "rollout")

    def _requests(self, chosen: Sequence[Chosen], stream: str, longest: int = 0) -> list[Request]:
        how = Decoding(temperature=self.runtime.temperature)
        job = self.job
        longest = min(longest or self.cfg.max_new_tokens, self.cfg.max_new_tokens)
        return [
            Request(job.chat.prompt(p.prompt), how, uniforms(longest, job.recipe.seed, stream, name, p.id))
            for p, name in chosen
        ]

    def _sync(self, adapter: str | None) -> None:
        trunk = self.runtime.roles["policy" if adapter else "reference"].trunk
        if trunk in self.runtime.adapters:
            self.runtime.adapters[trunk].merge_into(self.drawn, adapter)
        elif self.drawn is not None:
            with torch.no_grad():
                for mine, theirs in zip(self.drawn.parameters(), self.runtime.trunks[trunk].parameters(), strict=True):
                    mine.copy_(theirs)
        self.engine.refresh(self.drawn or self.runtime.trunks[trunk])

    def _rows(self, prompts: Sequence[Prompt], drawn: Sequence[Drawn]) -> Batch:
        return Batch(
            [make_row(self.job.chat.prompt(p.prompt), d.token_ids) for p, d in zip(prompts, drawn, strict=True)]
        )

    def _texts(self, drawn: Sequence[Drawn]) -> list[str]:
        return [self.job.chat.text(d.token_ids) for d in drawn]

    def _scored(
        self,
        prompts: Sequence[Prompt],
        drawn: Sequence[Drawn],
        texts: Sequence[str],
        rewards: Rewards,
        on_policy: bool = False,
    ) -> Batch:
        """Rollouts with what every role of the runtime says of them; where one update follows, the policy says it
        there."""
        runtime = self.runtime
        batch = runtime.grounded(self._rows(prompts, drawn))
        self.features_BTD = None
        columns = {"ref_logp": runtime.score("reference", batch, ("logp",)).logp_BT}
        columns["sampler_logp"] = torch.zeros_like(columns["ref_logp"])
        for i, d in enumerate(drawn):
            columns["sampler_logp"][i, : len(d.logprobs)] = torch.tensor(d.logprobs)
        if on_policy:
            columns |= {
                "old_logp": columns["sampler_logp"],
                "on_policy": torch.ones(len(batch), dtype=torch.bool, device=runtime.device),
            }
        else:
            columns |= self._old(batch, columns["sampler_logp"])
        if self.job.recipe.engine.type != "local" and self.job.recipe.engine.correction:
            columns["correction"] = columns["ref_logp"].new_full((len(batch),), self.job.recipe.engine.correction)
        if self.judges:
            columns |= self._judged(prompts, drawn, texts, batch, rewards)
        return batch.with_columns(ended=self._ended(drawn), **columns)

    def _old(self, batch: Batch, sampler_BT: Tensor) -> dict[str, Tensor]:
        """The policy's log-probabilities before it moves. In float32 those of the engine in this process are the
        same: every eighth row is asked again, and all where that shows otherwise."""
        if self.job.dtype == torch.float32 and self.job.recipe.engine.type == "local":
            asked_B = torch.arange(len(batch), device=sampler_BT.device) % ASKED == 0
            some = batch.take(asked_B.nonzero()[:, 0].tolist())
            said = self.runtime.score("policy", some, ("logp",)).logp_BT
            old_BT = sampler_BT.clone()
            old_BT[asked_B, : said.shape[1]] = said
            if float(summed(batch, (old_BT - sampler_BT).abs()).sum()) <= EXACT * sum(
                row.answer_length for row in some.rows
            ):
                return {"old_logp": old_BT, "asked": asked_B}
        return {"old_logp": self.runtime.score("policy", batch, ("logp",)).logp_BT}

    def _ended(self, drawn: Sequence[Drawn]) -> Tensor:
        return torch.tensor([d.finish == "stop" for d in drawn], device=self.runtime.device)

    def _judged(
        self, prompts: Sequence[Prompt], drawn: Sequence[Drawn], texts: Sequence[str], batch: Batch, cfg: Rewards
    ) -> dict[str, Tensor]:
        """`score`, what the sources say together, and `reward`, what the answer gets for it; each source apart where
        there are several."""
        told = []
        asked = [p.prompt for p in prompts]
        more = self.job.corpus.columns_of(prompts)
        columns: dict[str, Tensor] = {}
        for source in cfg.sources:
            if source.source == "model":
                said = judged(self.runtime, batch, cfg, ("features",) if self.fit else ())
                self.features_BTD = said.features_BTD if self.fit else None
                told.append(said.score_B.cpu().numpy())
                columns |= {"spread": said.spread_B} if len(said.spread_B) else {}
            else:
                told.append(np.asarray(self.scorers[source.source](asked, texts, more)))
        score_B = shaping.combine_sources(np.stack(told), cfg)
        parts = {"score": score_B, "reward": self._final(score_B, prompts, drawn, cfg)}
        if len(told) > 1:
            parts |= {f"score/{source.source}": scores for source, scores in zip(cfg.sources, told, strict=True)}
        parts |= {f"watched/{of}": np.asarray(scorer(asked, texts, more)) for of, scorer in self.watched.items()}
        return columns | {
            name: torch.tensor(x, dtype=torch.float32, device=self.runtime.device) for name, x in parts.items()
        }

    def _final(
        self, score_B: np.ndarray, prompts: Sequence[Prompt], drawn: Sequence[Drawn], cfg: Rewards
    ) -> np.ndarray:
        ended_B = np.array([d.finish == "stop" for d in drawn])
        return shaping.shape_rewards(score_B, [d.token_ids for d in drawn], ended_B, [p.domain for p in prompts], cfg)

    @torch.no_grad()
    def _valued(self, batch: Batch) -> Batch:
        """The batch with what the critic foresees of it."""
        if self.fit is None:
            return batch.with_columns(value=self.runtime.score("critic", batch, ("value",)).value_BT)
        if self.features_BTD is None:
            self.features_BTD = self.runtime.score("critic", batch, ("features",)).features_BTD
        mask_BT = torch.from_numpy(batch.mask_BT).to(self.runtime.device)
        return batch.with_columns(value=torch.where(mask_BT, self.fit.head(self.features_BTD), 0.0))

    def learned(self, batch: Batch) -> None:
        """A critic that is solved for learns what the answers of the last rollout came to."""
        if self.fit is not None and self.features_BTD is not None:
            if "outcome" not in batch.columns:
                fix = "add the column `outcome` [B,T]: the sum of rewards from each token on"
                raise RecipeError(
                    f"policy.algo = {self.cfg.algo!r}: its `prepare` leaves no `outcome`",
                    "a critic's head is fitted to one",
                    fix,
                )
            mask_BT = torch.from_numpy(batch.mask_BT).to(self.runtime.device)
            self.fit.learn(self.features_BTD[mask_BT], batch.columns["outcome"][mask_BT], self.cfg.ppo.critic_decay)
            self.features_BTD = None


def turned(cfg: Rewards, knobs: Numbers) -> Rewards:
    """Rewards as the knobs stand: weights of domains, bonus for diversity, penalty for repetition."""
    weights = {name.removeprefix("domain_weight/"): x for name, x in knobs.items() if name.startswith("domain_weight/")}
    told = {name: knobs[name] for name in ("diversity_bonus", "repetition_penalty") if name in knobs}
    if not weights and not told:
        return cfg
    return cfg.model_copy(update={"domains": dict(cfg.domains) | weights, **told})


def _packed(drawn: Sequence[Drawn]) -> dict[str, Tensor]:
    return {
        "lengths": torch.tensor([len(d.token_ids) for d in drawn]),
        "tokens": torch.tensor([t for d in drawn for t in d.token_ids]),
        "logprobs": torch.tensor([x for d in drawn for x in d.logprobs], dtype=torch.float64),
    }


def _unpacked(tensors: dict[str, Tensor], stops: Sequence[int]) -> list[Drawn]:
    drawn = []
    begin = 0
    for length in tensors["lengths"].tolist():
        tokens = tensors["tokens"][begin : begin + length].tolist()
        drawn.append(
            Drawn(
                tokens,
                tensors["logprobs"][begin : begin + length].tolist(),
                "stop" if tokens[-1] in stops else "length",
            )
        )
        begin += length
    return drawn
