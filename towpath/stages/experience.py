"""Rollouts: prompts in a fixed order, answers drawn, every role's opinion of them, and the numbers of the step."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from towpath.data.batch import Batch, row
from towpath.data.draws import share, shuffled, uniforms
from towpath.evals.text import distinct, repetition
from towpath.evals.winrate import wilson
from towpath.recipe import Decoding
from towpath.records import Prompt
from towpath.rollout.engine import Drawn, Request
from towpath.rollout.local import LocalEngine
from towpath.runtime.local import Local
from towpath.stages.job import Checkpoints, Job
from towpath.store.publish import fault

Numbers = dict[str, float]


class Experience:
    """Batches of rollouts for the loop; the sampler is a plain copy of the policy, refreshed before each use."""

    def __init__(self, job: Job, runtime: Local, algo: Any) -> None:
        self.job, self.runtime, self.algo, self.cfg = job, runtime, algo, job.recipe.policy
        order = sorted(job.corpus.train, key=lambda p: share(job.recipe.seed, "policy/validation", p.id))
        self.held, self.prompts = order[: self.cfg.validation_prompts], order[self.cfg.validation_prompts :]
        self.sampler = job.model(job.inputs["sft"] / "weights").requires_grad_(False)
        self.engine = LocalEngine(self.sampler, job.chat.eos, job.chat.pad)
        self.in_flight = Checkpoints(job.folder / "in-flight")
        self.looked: tuple[int, Batch, Numbers] | None = None
        """The last validation, for whoever asks for it again."""

    def chosen(self, step: int) -> list[tuple[int, Prompt]]:
        """The prompts of a step with the epoch each is met in: every prompt once an epoch, no state to lose."""
        count, size = len(self.prompts), self.cfg.rollout
        found = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, count)
            order = shuffled(count, self.job.recipe.seed, f"{self.job.name}/prompts", epoch)
            found.append((epoch, self.prompts[order[place]]))
        return found

    def batch(self, step: int) -> tuple[Batch, Numbers]:
        """One rollout, scored, and what there is to say of it."""
        begun = time.monotonic()
        chosen = self.chosen(step)
        drawn = self._drawn(step, chosen)
        generated = time.monotonic()
        prompts = [p for _, p in chosen]
        batch = self._scored(prompts, drawn, ("policy", "reference", "reward", "critic"))
        numbers = self._numbers(batch, prompts, drawn)
        tokens = sum(len(d.token_ids) for d in drawn)
        seconds = generated - begun
        return batch, numbers | {
            "seconds_generate": seconds, "seconds_score": time.monotonic() - generated, "tokens_per_second": tokens / max(seconds, 1e-9),
        }  # fmt: skip

    def validate(self, step: int, against_reference: bool = False) -> Numbers:
        """Reward and KL on prompts that are never trained on, the same random numbers each time."""
        if self.looked is None or self.looked[0] != step:
            drawn = self._generate([(0, p) for p in self.held], "validation")
            batch = self._scored(self.held, drawn, ("policy", "reference", "reward"))
            self.looked = step, batch, self._numbers(batch, self.held, drawn)
        _, batch, numbers = self.looked
        kept = {key: numbers[key] for key in ("reward", "score", "kl", "kl_k3", "length", "finish_rate")}
        return kept | self._against_reference(batch) if against_reference else kept

    def _against_reference(self, batch: Batch) -> Numbers:
        """The same prompts and random numbers answered by the reference: how often the reward rose."""
        drawn = self._generate([(0, p) for p in self.held], "validation", adapter=None)
        reference = self._scored(self.held, drawn, ("reward",))
        ours, theirs = (self._final(b).cpu().numpy() for b in (batch, reference))
        rose = np.where(ours == theirs, 0.5, ours > theirs)
        low, high = wilson(float(rose.sum()), len(rose))
        kl_B = _sum(batch, batch.columns["old_logp"] - batch.columns["ref_logp"]).cpu().numpy()
        spread = 1.96 * float(kl_B.std(ddof=1)) / len(kl_B) ** 0.5
        return {
            "reference_reward": float(theirs.mean()), "rose": float(rose.mean()), "rose_low": low, "rose_high": high,
            "kl_low": float(kl_B.mean()) - spread, "kl_high": float(kl_B.mean()) + spread,
        }  # fmt: skip

    def _drawn(self, step: int, chosen: list[tuple[int, Prompt]]) -> list[Drawn]:
        """The rollout in flight if one was saved at this step, else a new one, saved."""
        found = self.in_flight.newest("rollout")
        if found and found[0] == step:
            return _unpacked(found[1], self.job.chat.eos)
        drawn = self._generate(chosen, f"{self.job.name}/{step}")
        self.in_flight.save(step, _packed(drawn), {}, prefix="rollout", keep=1)
        fault("rollout")
        return drawn

    def _generate(self, chosen: Sequence[tuple[int, Prompt]], stream: str, adapter: str | None = "policy") -> list[Drawn]:
        self._sync(adapter)
        cfg, job = self.cfg, self.job
        how = Decoding(temperature=cfg.temperature)
        seed, longest = job.recipe.seed, cfg.max_new_tokens
        return self.engine.generate([Request(job.chat.prompt(p.prompt), how, uniforms(longest, seed, stream, epoch, p.id)) for epoch, p in chosen])

    def _sync(self, adapter: str | None) -> None:
        if "base" in self.runtime.adapters and self.runtime.roles["policy"].trunk == "base":
            self.runtime.adapters["base"].merge_into(self.sampler, adapter)
            return
        source = self.runtime.trunks["policy" if adapter else "reference"]
        with torch.no_grad():
            for mine, theirs in zip(self.sampler.parameters(), source.parameters(), strict=True):
                mine.copy_(theirs)

    def _scored(self, prompts: Sequence[Prompt], drawn: Sequence[Drawn], roles: Sequence[str]) -> Batch:
        rows = [row(self.job.chat.prompt(p.prompt), d.token_ids) for p, d in zip(prompts, drawn, strict=True)]
        runtime = self.runtime
        batch = runtime.grounded(Batch(rows))
        ended = torch.tensor([d.finish == "stop" for d in drawn], device=runtime.device)
        columns: dict[str, Tensor] = {"ended": ended}
        if "policy" in roles:
            columns["old_logp"] = runtime.score("policy", batch, ("logp",)).logp_BT
            columns["ref_logp"] = runtime.score("reference", batch, ("logp",)).logp_BT
        fixed = "critic" in roles and runtime.roles["critic"].features_fixed
        said = runtime.score("reward", batch, ("score", "features") if fixed else ("score",))
        columns["score"] = said.score_B
        if fixed:
            columns["features"] = said.features_BTD
        batch = batch.with_columns(**columns)
        if "critic" in roles:
            with torch.no_grad():
                value = runtime.forward("critic", batch, ("value",)) if fixed else runtime.score("critic", batch, ("value",))
            batch = batch.with_columns(value=value.value_BT)
        if "policy" in roles:
            sampled = torch.zeros_like(columns["old_logp"])
            for i, d in enumerate(drawn):
                sampled[i, : len(d.logprobs)] = torch.tensor(d.logprobs)
            batch = batch.with_columns(sampler_logp=sampled)
        return batch

    def _final(self, batch: Batch) -> Tensor:
        return self.algo.final_scores(batch.columns["score"], batch.columns["ended"], self.cfg)

    def _numbers(self, batch: Batch, prompts: Sequence[Prompt], drawn: Sequence[Drawn]) -> Numbers:
        c = batch.columns
        final = self._final(batch)
        gap_BT = c["old_logp"] - c["ref_logp"]
        k3_BT = torch.expm1(-gap_BT) + gap_BT
        tokens = float(batch.mask_BT.sum())
        mask = torch.from_numpy(batch.mask_BT).to(gap_BT.device)
        kl_B = _sum(batch, gap_BT)
        ids = [d.token_ids for d in drawn]
        numbers = {
            "score": float(c["score"].mean()), "reward": float(final.mean()), "kl": float(kl_B.mean()), "kl_k3": float(_sum(batch, k3_BT).mean()),
            "kl_per_token": float(gap_BT[mask].sum()) / tokens, "length": tokens / len(drawn),
            "finish_rate": float(c["ended"].float().mean()), **{f"distinct_{n}": distinct(ids, n) for n in (1, 2, 3)},
            "repetition": sum(map(repetition, ids)) / len(ids),
            "sampler_error": float((c["old_logp"] - c["sampler_logp"])[mask].abs().mean()),
        }  # fmt: skip
        if "value" in c:
            last = torch.where(mask, final[:, None], 0.0)
            error = (last - c["value"])[mask]
            numbers["explained_variance"] = 1 - float(error.var() / last[mask].var().clamp(min=1e-8))
        for domain in sorted({p.domain for p in prompts}):
            index = [i for i, p in enumerate(prompts) if p.domain == domain]
            numbers[f"reward/{domain}"] = float(final[index].mean())
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
