"""Rollouts: prompts in a fixed order, answers drawn, every role's opinion of them, and the numbers of the step."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from towpath.data.batch import Batch, row
from towpath.data.draws import share, shuffled, uniforms
from towpath.data.intervals import wilson
from towpath.errors import RecipeError
from towpath.evals.text import distinct, repetition
from towpath.recipe import Decoding
from towpath.records import Prompt
from towpath.rewards import mix, sources
from towpath.rollout.engine import Drawn, Request
from towpath.runtime.local import Local
from towpath.stages.job import Checkpoints, Job
from towpath.stages.reward import judged
from towpath.stages.sampler import engine
from towpath.store.publish import fault

Numbers = dict[str, float]
Chosen = tuple[Prompt, str]
"""A prompt and the name of the draw, which decides the random numbers."""


class Experience:
    """Batches of rollouts for the loop; the sampler is a plain copy of the policy, refreshed before each use."""

    def __init__(self, job: Job, runtime: Local) -> None:
        self.job, self.runtime, self.cfg = job, runtime, job.recipe.policy
        order = sorted(job.corpus.train, key=lambda p: share(job.recipe.seed, "policy/validation", p.id))
        self.held, self.prompts = order[: self.cfg.validation_prompts], order[self.cfg.validation_prompts :]
        self.sampler = job.model(job.inputs["sft"] / "weights").requires_grad_(False)
        self.engine = engine(job, self.sampler, self.cfg.max_new_tokens)
        self.in_flight = Checkpoints(job.folder / "in-flight")
        self.scorers = {source.of: sources.named(source.of) for source in self.cfg.rewards.sources if source.of != "model"}
        self.judges = bool(self.scorers) or "reward" in runtime.roles
        self.fit = runtime.roles["critic"].fit if "critic" in runtime.roles else None
        self.features_BTD: Tensor | None = None
        """What a critic that is solved for reads of the last rollout."""
        self.looked: tuple[int, Batch, Numbers] | None = None
        """The last validation, for whoever asks for it again."""

    def chosen(self, step: int) -> list[Chosen]:
        """The draws of a step: every prompt once an epoch, `group` answers to each, no state to lose."""
        count, size = len(self.prompts), self.cfg.rollout // self.cfg.group
        found = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, count)
            order = shuffled(count, self.job.recipe.seed, f"{self.job.name}/prompts", epoch)
            found += [(self.prompts[order[place]], f"{epoch}" if copy == 0 else f"{epoch}.{copy}") for copy in range(self.cfg.group)]
        return found

    def batch(self, step: int) -> tuple[Batch, Numbers]:
        """One rollout, scored, and what there is to say of it."""
        begun = time.monotonic()
        chosen = self.chosen(step)
        drawn = self._drawn(step, chosen)
        generated = time.monotonic()
        prompts = [p for p, _ in chosen]
        batch = self._scored(prompts, drawn, on_policy=self.cfg.epochs == 1 and self.cfg.batch >= len(chosen))
        batch = self._valued(batch) if "critic" in self.runtime.roles else batch
        batch = batch.with_columns(group=torch.arange(len(chosen), device=self.runtime.device) // self.cfg.group)
        numbers = self._numbers(batch, prompts, drawn)
        tokens = sum(len(d.token_ids) for d in drawn)
        seconds = generated - begun
        return batch, numbers | {
            "seconds_generate": seconds, "seconds_score": time.monotonic() - generated, "tokens_per_second": tokens / max(seconds, 1e-9),
        }  # fmt: skip

    def validate(self, step: int, against_reference: bool = False) -> Numbers:
        """Reward and KL on prompts that are never trained on, the same random numbers each time."""
        if self.looked is None or self.looked[0] != step:
            drawn = self._generate([(p, "0") for p in self.held], "validation")
            batch = self._scored(self.held, drawn)
            self.looked = step, batch, self._numbers(batch, self.held, drawn)
        _, batch, numbers = self.looked
        kept = {key: numbers[key] for key in ("reward", "score", "kl", "kl_k3", "length", "finish_rate") if key in numbers}
        return kept | self._against_reference(batch) if against_reference else kept

    def _against_reference(self, batch: Batch) -> Numbers:
        """How far it is from the reference, and, where answers are scored, how often the reward rose over the reference's own answers."""
        kl_B = _sum(batch, batch.columns["old_logp"] - batch.columns["ref_logp"]).cpu().numpy()
        spread = 1.96 * float(kl_B.std(ddof=1)) / len(kl_B) ** 0.5
        found = {"kl_low": float(kl_B.mean()) - spread, "kl_high": float(kl_B.mean()) + spread}
        if not self.judges:
            return found
        drawn = self._generate([(p, "0") for p in self.held], "validation", adapter=None)
        rows = self.runtime.grounded(self._rows(self.held, drawn))
        ours, theirs = (x.cpu().numpy() for x in (batch.columns["reward"], self._judged(self.held, drawn, rows)["reward"]))
        rose = np.where(ours == theirs, 0.5, ours > theirs)
        low, high = wilson(float(rose.sum()), len(rose))
        return found | {"reference_reward": float(theirs.mean()), "rose": float(rose.mean()), "rose_low": low, "rose_high": high}

    def _drawn(self, step: int, chosen: list[Chosen]) -> list[Drawn]:
        """The rollout in flight if one was saved at this step, else a new one, saved."""
        found = self.in_flight.newest("rollout")
        if found and found[0] == step:
            return _unpacked(found[1], self.job.chat.eos)
        drawn = self._generate(chosen, f"{self.job.name}/{step}")
        self.in_flight.save(step, _packed(drawn), {}, prefix="rollout", keep=1)
        fault("rollout")
        return drawn

    def _generate(self, chosen: Sequence[Chosen], stream: str, adapter: str | None = "policy") -> list[Drawn]:
        self._sync(adapter)
        cfg, job = self.cfg, self.job
        how = Decoding(temperature=cfg.temperature)
        seed, longest = job.recipe.seed, cfg.max_new_tokens
        return self.engine.generate([Request(job.chat.prompt(p.prompt), how, uniforms(longest, seed, stream, name, p.id)) for p, name in chosen])

    def _sync(self, adapter: str | None) -> None:
        if "base" in self.runtime.adapters and self.runtime.roles["policy"].trunk == "base":
            self.runtime.adapters["base"].merge_into(self.sampler, adapter)
        else:
            source = self.runtime.trunks["policy" if adapter else "reference"]
            with torch.no_grad():
                for mine, theirs in zip(self.sampler.parameters(), source.parameters(), strict=True):
                    mine.copy_(theirs)
        self.engine.refresh()

    def _rows(self, prompts: Sequence[Prompt], drawn: Sequence[Drawn]) -> Batch:
        return Batch([row(self.job.chat.prompt(p.prompt), d.token_ids) for p, d in zip(prompts, drawn, strict=True)])

    def _scored(self, prompts: Sequence[Prompt], drawn: Sequence[Drawn], on_policy: bool = False) -> Batch:
        """Rollouts with what every role of the runtime says of them; where one update follows, the policy says it there."""
        runtime = self.runtime
        batch = runtime.grounded(self._rows(prompts, drawn))
        self.features_BTD = None
        columns = {"ref_logp": runtime.score("reference", batch, ("logp",)).logp_BT}
        columns["sampler_logp"] = torch.zeros_like(columns["ref_logp"])
        for i, d in enumerate(drawn):
            columns["sampler_logp"][i, : len(d.logprobs)] = torch.tensor(d.logprobs)
        if on_policy:
            columns |= {"old_logp": columns["sampler_logp"], "on_policy": torch.ones(len(batch), dtype=torch.bool)}
        else:
            columns["old_logp"] = runtime.score("policy", batch, ("logp",)).logp_BT
        if self.job.recipe.engine.of != "local" and self.job.recipe.engine.correction:
            columns["correction"] = torch.full((len(batch),), self.job.recipe.engine.correction)
        if self.judges:
            columns |= self._judged(prompts, drawn, batch)
        return batch.with_columns(ended=self._ended(drawn), **columns)

    def _ended(self, drawn: Sequence[Drawn]) -> Tensor:
        return torch.tensor([d.finish == "stop" for d in drawn], device=self.runtime.device)

    def _judged(self, prompts: Sequence[Prompt], drawn: Sequence[Drawn], batch: Batch) -> dict[str, Tensor]:
        """`score`, what the sources say together, and `reward`, what the answer gets for it; each source apart where there are several."""
        cfg, told = self.cfg.rewards, []
        texts = [self.job.chat.text(d.token_ids) for d in drawn]
        columns: dict[str, Tensor] = {}
        for source in cfg.sources:
            if source.of == "model":
                said = judged(self.runtime, batch, cfg, ("features",) if self.fit else ())
                self.features_BTD = said.features_BTD if self.fit else None
                told.append(said.score_B.cpu().numpy())
            else:
                told.append(np.asarray(self.scorers[source.of]([p.prompt for p in prompts], texts)))
        score_B = mix.combined(np.stack(told), cfg)
        ended_B = self._ended(drawn).cpu().numpy()
        reward_B = mix.final(score_B, [d.token_ids for d in drawn], ended_B, [p.domain for p in prompts], cfg)
        parts = {"score": score_B, "reward": reward_B}
        if len(told) > 1:
            parts |= {f"score/{source.of}": scores for source, scores in zip(cfg.sources, told, strict=True)}
        return columns | {name: torch.tensor(x, dtype=torch.float32, device=self.runtime.device) for name, x in parts.items()}

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
                raise RecipeError(f"policy.algo = {self.cfg.algo!r}: its `prepare` leaves no `outcome`", "a critic's head is fitted to one", fix)
            mask_BT = torch.from_numpy(batch.mask_BT).to(self.runtime.device)
            self.fit.learn(self.features_BTD[mask_BT], batch.columns["outcome"][mask_BT], self.cfg.ppo.critic_memory)
            self.features_BTD = None

    def _numbers(self, batch: Batch, prompts: Sequence[Prompt], drawn: Sequence[Drawn]) -> Numbers:
        c = batch.columns
        gap_BT = c["old_logp"] - c["ref_logp"]
        k3_BT = torch.expm1(-gap_BT) + gap_BT
        tokens = float(batch.mask_BT.sum())
        mask = torch.from_numpy(batch.mask_BT).to(gap_BT.device)
        kl_B = _sum(batch, gap_BT)
        ids = [d.token_ids for d in drawn]
        numbers = {
            "kl": float(kl_B.mean()), "kl_k3": float(_sum(batch, k3_BT).mean()),
            "kl_per_token": float(gap_BT[mask].sum()) / tokens, "length": tokens / len(drawn),
            "finish_rate": float(c["ended"].float().mean()), **{f"distinct_{n}": distinct(ids, n) for n in (1, 2, 3)},
            "repetition": sum(map(repetition, ids)) / len(ids),
        }  # fmt: skip
        if "on_policy" not in c:
            numbers["sampler_error"] = float((c["old_logp"] - c["sampler_logp"])[mask].abs().mean())
        numbers |= {name: float(c[name].mean()) for name in c if name in ("score", "reward") or name.startswith("score/")}
        if "value" in c:
            last = torch.where(mask, c["reward"][:, None], 0.0)
            error = (last - c["value"])[mask]
            numbers["explained_variance"] = 1 - float(error.var() / last[mask].var().clamp(min=1e-8))
        for domain in sorted({p.domain for p in prompts}) if "reward" in c else ():
            index = [i for i, p in enumerate(prompts) if p.domain == domain]
            numbers[f"reward/{domain}"] = float(c["reward"][index].mean())
        return numbers


def _sum(batch: Batch, x_BT: Tensor) -> Tensor:
    return torch.where(torch.from_numpy(batch.mask_BT).to(x_BT.device), x_BT, 0.0).sum(1)


def _packed(drawn: Sequence[Drawn]) -> dict[str, Tensor]:
    return {
        "lengths": torch.tensor([len(d.token_ids) for d in drawn]),
        "tokens": torch.tensor([t for d in drawn for t in d.token_ids]),
        "logprobs": torch.tensor([x for d in drawn for x in d.logprobs], dtype=torch.float64),
    }


def _unpacked(tensors: dict[str, Tensor], eos: int) -> list[Drawn]:
    drawn, begin = [], 0
    for length in tensors["lengths"].tolist():
        tokens = tensors["tokens"][begin : begin + length].tolist()
        drawn.append(Drawn(tokens, tensors["logprobs"][begin : begin + length].tolist(), "stop" if tokens[-1] == eos else "length"))
        begin += length
    return drawn
