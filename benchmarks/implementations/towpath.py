"""Towpath's stages and training loop on a workload, with prescribed answer lengths.

python -m benchmarks.implementations.towpath WORKLOAD MODEL OUT
"""

import gc
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from benchmarks.models import prepare_model
from benchmarks.workload import EOS, PAD, BenchResult, Workload, spelled
from towpath.algos import dpo as dpo_algo
from towpath.algos import reward_model
from towpath.algos import sft as sft_algo
from towpath.data.batch import Batch, make_row
from towpath.data.chat import Prompted, as_messages
from towpath.data.corpus import Corpus
from towpath.data.draws import uniforms
from towpath.models.heads import WIDE
from towpath.recipe import Decoding, Recipe
from towpath.recipe.reader import check, override
from towpath.recipe.stage_configs import PolicyConfig, RewardConfig, SftConfig, StageConfig
from towpath.records import Prompt
from towpath.rollout import local as local_engine
from towpath.rollout.engine import SampleOutput, SampleRequest
from towpath.rollout.local import LocalEngine
from towpath.rollout.reward_models import WEIGHTS
from towpath.runtime.contract import RoleSpec, Runtime
from towpath.runtime.local import Local
from towpath.runtime.process import prepare_process, release_memory
from towpath.stages import loop, policy, reward_training, sft
from towpath.stages.job import Job
from towpath.store import jsonl
from towpath.store.store import Store

HELD = 4
"""Validation prompts; validation is not timed."""


class Words:
    """Replaces the chat template: prompts are token ids as words."""

    eos = EOS
    pad = PAD
    stops = (EOS,)

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.template = self.tokenizer.chat_template = "{{ messages[0]['content'] }}"

    def rendered_by(self, _tokenizer: Any, text: str) -> str:
        return text

    def template_tokens(self, text: str) -> list[int]:
        message = [{"role": "user", "content": text}]
        return list(self.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))

    def prompt(self, prompt: Prompted) -> list[int]:
        text = as_messages(prompt)[-1].content
        return [int(word[1:]) for word in text.split()]

    answer = prompt

    def ended(self, ids: Sequence[int]) -> bool:
        return bool(ids) and ids[-1] == EOS

    def text(self, ids: Sequence[int]) -> str:
        return spelled(list(ids))


class Prescribed(LocalEngine):
    """The local engine with prescribed answer lengths: no answer ends early, and if lengths differ the last token
    becomes EOS."""

    workload: Workload
    counts: Counter[str]

    def generate(self, requests: Sequence[SampleRequest], greedy: bool = False, tick: Any = None) -> list[SampleOutput]:
        lengths = self.workload.answer_lengths()
        self.eos = [-1]
        shortened = [
            SampleRequest(r.prompt, r.decoding, r.uniforms[: lengths[i % len(lengths)]]) for i, r in enumerate(requests)
        ]
        outputs = super().generate(shortened, greedy, tick)
        if not self.workload.forced:
            outputs = [SampleOutput([*d.token_ids[:-1], EOS], d.logprobs, "stop") for d in outputs]
        self.counts["answers"] += len(outputs)
        self.counts["answer_tokens"] += sum(len(d.token_ids) for d in outputs)
        return outputs


class Clock:
    """Counts tokens and updates, and times the steps of the loop only."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self._wrap_runtime()
        self._wrap_step()

    def _wrap_runtime(self) -> None:
        step = Local.step
        forward_backward = Local.forward_backward
        counts = self.counts

        def counted_step(runtime: Local, rate: float, max_grad_norm: float) -> float:
            counts["updates"] += 1
            return step(runtime, rate, max_grad_norm)

        def counted_pass(runtime: Local, needs: Any, batch: Batch, loss: Any, weight: float, *more: Any) -> Any:
            counts["tokens_optimised"] += sum(len(r.ids) for r in batch.rows)
            return forward_backward(runtime, needs, batch, loss, weight, *more)

        Local.step = counted_step
        Local.forward_backward = counted_pass

    def _wrap_step(self) -> None:
        step = loop._step

        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            before = Counter(self.counts)
            numbers = step(*arguments)
            self.seconds += time.perf_counter() - begin
            self.work = getattr(self, "work", Counter()) + (self.counts - before)
            return numbers

        loop._step = timed


def job_of(
    workload: Workload,
    model: Path,
    folder: Path,
    settings: Sequence[str],
    spare: int = 0,
    config: type[StageConfig] = PolicyConfig,
) -> Job[Any]:
    """The job of a stage for the workload."""
    shared = [
        f'model.source="{model}"',
        f'model.dtype="{workload.precision}"',
        "track.tensorboard=false",
        f"seed={workload.seed}",
    ]
    shared.append("model.tokens_per_pass=4096")  # other libraries compute a whole minibatch in one pass
    recipe = check(Recipe, override({}, [*shared, *settings]), "benchmark")
    words = Words(model)
    texts = [spelled(ids) for ids in workload.prompt_ids(len(words.tokenizer), spare)]
    corpus = Corpus(tuple(Prompt(f"p{i}", text) for i, text in enumerate(texts)))
    start = folder / "start"
    start.mkdir()
    (start / "weights").symlink_to(model)
    job = Job(
        config.from_recipe(recipe),
        folder,
        workload.task,
        folder / workload.task,
        {"sft": start},
        Store.open(folder / "towpath.db"),
        corpus,
        1,
        1e9,
    )
    job.__dict__["chat"] = Words(model)
    return job


def rollouts(workload: Workload, model: Path, folder: Path) -> BenchResult:
    """PPO or GRPO with the policy stage."""
    answers = workload.prompts * workload.group
    longest = workload.new_tokens[1]
    settings = {
        "algo": workload.task,
        "method": workload.method,
        "steps": 1,
        "rollout": answers,
        "group": workload.group,
        "batch": workload.minibatch,
        "epochs": workload.epochs,
        "learning_rate": 3e-6,
        "temperature": 0.7,
        "max_new_tokens": longest,
        "validate_every": 1000,
        "validation_prompts": HELD,
        "ppo.critic_warmup": 0,
        "ppo.critic_learning_rate": 3e-6,
        "lora.rank": workload.rank,
        "lora.alpha": 2 * workload.rank,
        "ppo.critic": "adapter" if workload.method == "full" else "head",
    } | workload.options.get("towpath", {})
    lines = [f"policy.{key}={_toml(value)}" for key, value in settings.items()] + [
        f"reward.method={_toml(workload.method)}"
    ]
    if workload.task == "grpo":
        lines.append('policy.rewards.sources=[{ source = "rule:words:8-35"}]')
    job = job_of(workload, model, folder, lines, HELD)
    if workload.task == "ppo":
        job.inputs["reward"] = _reward_folder(workload, job, model, folder)
    clock = Clock()
    Prescribed.workload = workload
    Prescribed.counts = clock.counts
    local_engine.LocalEngine = Prescribed
    policy.run(job)
    rows = [line for line in jsonl.read(job.folder / "metrics.jsonl") if line["phase"] == "train"]
    phases = {name: sum(line[f"seconds_{name}"] for line in rows) for name in ("generate", "score", "optimise")}
    phases["optimise"] = clock.seconds - phases["generate"] - phases["score"]  # includes advantages and bookkeeping
    names = ("kl", "sampler_error", "first_ratio_error", "policy_loss", "value_loss", "grad_norm")
    return BenchResult(phases, dict(clock.work), {key: rows[-1][key] for key in names if key in rows[-1]})


def _reward_folder(workload: Workload, job: Job, model: Path, folder: Path) -> Path:
    """The folder of a reward stage with a random head."""
    stage = folder / "reward"
    start = folder / "reward-start"
    weights = model if workload.reward_model is None else prepare_model(workload.reward_model, model.parent)
    (stage / "weights").mkdir(parents=True)
    start.mkdir()
    (start / "weights").symlink_to(weights)
    for part in weights.iterdir():
        (stage / "weights" / part.name).symlink_to(part)
    there = _elsewhere(job, stage, {"sft": start})
    runtime = reward_training.open_runtime(there)
    width = len(runtime.head("reward")["weight"])
    draw = torch.Generator().manual_seed(0)
    features = {
        "features": torch.randn(64, width + WIDE, generator=draw).bfloat16(),
        "score": torch.randn(64, generator=draw),
    }
    features |= {"ended": torch.ones(64, dtype=torch.bool), "row": torch.arange(64)}
    runtime.save("reward", stage / "weights" / WEIGHTS)
    save_file(features, stage / "weights" / reward_training.VALUE_FEATURES)
    del runtime
    release_memory()  # as between stages
    return stage


def _elsewhere(job: Job, folder: Path, inputs: dict[str, Path]) -> Job:
    other = Job(job.config, job.run, job.name, folder, inputs, job.store, job.corpus)
    other.__dict__["chat"] = job.chat
    return other


def _run_loop(
    clock: Clock, job: Job, runtime: Runtime, algo: Any, config: Any, batch: Batch, size: int
) -> dict[str, float]:
    """Train on a batch in minibatches of `size` groups."""
    steps = loop.minibatches(batch.groups, size, 1, job.config.seed, "benchmark")
    config_ = loop.LoopConfig(
        algo, config, len(steps), size, lambda step, _knobs: (batch.take(steps[step]), {}), loop.schedule("linear", 0.1)
    )
    loop.train(config_, runtime, job, job.name)
    last = jsonl.read(job.folder / "metrics.jsonl")[-1]
    return {key: last[key] for key in ("loss", "grad_norm")}


def supervised(workload: Workload, model: Path, folder: Path) -> BenchResult:
    """Supervised fine-tuning, every row once."""
    job = job_of(workload, model, folder, [f"sft.method={_toml(workload.method)}"], config=SftConfig)
    clock = Clock()
    runtime = sft.open_runtime(job)
    rows = workload.rows(len(job.chat.tokenizer))
    numbers = _run_loop(
        clock,
        job,
        runtime,
        sft_algo,
        job.config.sft,
        Batch([make_row(prompt, answer) for prompt, (answer,) in rows]),
        workload.minibatch,
    )
    return BenchResult({"optimise": clock.seconds}, dict(clock.work), numbers)


def pairs(workload: Workload, model: Path, folder: Path) -> BenchResult:
    """DPO including the reference pass."""
    settings = ['policy.algo="dpo"', f"policy.method={_toml(workload.method)}", "policy.learning_rate=3e-6"]
    job = job_of(workload, model, folder, settings)
    clock = Clock()
    runtime, _ = policy.open_runtime(job, dpo_algo)
    rows = workload.rows(len(job.chat.tokenizer), 2)
    batch = Batch([make_row(prompt, answer) for prompt, both in rows for answer in both], {}, (2,) * len(rows))
    begin = time.perf_counter()
    batch = batch.with_columns(ref_logp=runtime.score("reference", batch, ("logp",)).logp_BT)
    score = time.perf_counter() - begin
    numbers = _run_loop(clock, job, runtime, dpo_algo, job.config.policy, batch, workload.minibatch)
    return BenchResult({"score": score, "optimise": clock.seconds}, dict(clock.work), numbers)


def reward_model_loop(workload: Workload, model: Path, folder: Path) -> BenchResult:
    """Training of the reward model."""
    job = job_of(workload, model, folder, [f"reward.method={_toml(workload.method)}"], config=RewardConfig)
    clock = Clock()
    runtime = reward_training.open_runtime(job)
    rows = workload.rows(len(job.chat.tokenizer), 2)
    beats = torch.tensor([[0.0, 1.0], [0.0, 0.0]]).repeat(len(rows), 1)
    columns = {"beats": beats, "place": torch.arange(2).repeat(len(rows))}
    batch = Batch(
        [make_row(prompt, answer) for prompt, both in rows for answer in both],
        columns,
        (2,) * len(rows),
        frozenset({"beats"}),
    )
    numbers = _run_loop(clock, job, runtime, reward_model, job.config.reward, batch, workload.minibatch)
    return BenchResult({"optimise": clock.seconds}, dict(clock.work), numbers)


def generated(workload: Workload, model: Path, folder: Path) -> BenchResult:
    """Generation only: the best of two calls after a warm-up, as for other libraries."""
    job = job_of(workload, model, folder, [])
    runtime = job.launch(training=False)
    runtime.open({"model": RoleSpec(str(model))})
    engine = LocalEngine(None, -1, PAD)
    runtime.publish("model", engine)
    longest = workload.new_tokens[1]
    how = Decoding(temperature=1.0)
    requests = [
        SampleRequest(job.chat.prompt(p.prompt), how, uniforms(longest, workload.seed, "generate", p.id))
        for p in job.corpus.prompts
    ]
    engine.generate(requests[:4])
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        outputs = engine.generate(requests)
        seconds.append(time.perf_counter() - begin)
    return BenchResult(
        {"generate": min(seconds)},
        {"answers": len(outputs), "answer_tokens": sum(len(d.token_ids) for d in outputs)},
        {"first_token_logp": float(np.mean([d.logprobs[0] for d in outputs]))},
    )


TASKS = {
    "ppo": rollouts,
    "grpo": rollouts,
    "sft": supervised,
    "dpo": pairs,
    "reward": reward_model_loop,
    "generate": generated,
}


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def main() -> None:
    """Run one workload and write its result."""
    workload = Workload.read(Path(sys.argv[1]))
    model = Path(sys.argv[2])
    prepare_process()
    for _ in range(1 + bool(os.environ.get("BENCH_WARM"))):
        gc.collect()
        with tempfile.TemporaryDirectory() as folder:
            result = TASKS[workload.task](workload, model, Path(folder))
    result.write(Path(sys.argv[3]), {name: version(name) for name in ("towpath", "torch", "transformers")})


if __name__ == "__main__":
    main()
