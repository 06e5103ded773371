"""The speeds and the memory of this machine for a recipe: what its stages compute, on a few of its own rows and its own
model.

B rows, T answer tokens.
"""

import importlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from towpath import algos
from towpath.algos import reward_model
from towpath.algos import sft as sft_algo
from towpath.data.batch import Batch, Row, make_row
from towpath.data.chat import as_messages
from towpath.data.corpus import Corpus
from towpath.models import base, memory
from towpath.planning.memory import cache_columns
from towpath.planning.sampling import TimedSampling, sampling_speed
from towpath.planning.speed import ROWS_AT_ONCE, Measurement, Speed
from towpath.recipe import Decoding, Lora, Recipe
from towpath.rollout.engine import Engine, SampleRequest
from towpath.rollout.generate import load_engine
from towpath.rollout.reward_models import initial_model
from towpath.runtime.contract import OptimizerConfig, RoleSpec, Runtime, Snapshot
from towpath.runtime.launch import launch, launch_classifier
from towpath.runtime.process import prepare_process, release_memory
from towpath.stages.demonstrations import demonstration_batch
from towpath.stages.sampled_texts import Texts, count_tokens, mean, read_texts, some
from towpath.stages.timing import TrainingSeconds, fastest, once, seconds_per_token, training_seconds
from towpath.store.publish import publish

ROWS = 8, 128
TOKENS = 2, 18
"""Rows, and new tokens of each, of which sampling is timed: few and many."""
LONG_ROWS = 64
LONGEST = 160
"""Rows, and new tokens of each at most, of which it is timed how much more a row costs the longer it is."""
GREEDY_ROWS = 3
MOST_SAMPLED = 6144
"""Tokens of the prompts of many rows."""
BATCHES = 4
"""Batches that are timed, after one that is not; each has other rows, as those of a run have."""
MOST_ROWS = 64
MOST_TOKENS = 2048
"""Of such a batch."""


def measure(
    recipe: Recipe, run: Path, corpus: Corpus, stages: Collection[str], say: Callable[[str], None]
) -> Measurement:
    """Time what these kinds of stage do, on the base model, whose shapes all have; and the most bytes of memory of each
    part. `say` is called with the name of each part before it begins. The settings of this process become those of a
    run's."""
    prepare_process()
    texts = read_texts(recipe, run, corpus)
    timed = _Timed(recipe, run, texts, say)
    training: dict[str, TrainingSeconds] = {}
    score: dict[str, float] = {}
    # in the order of a run, whose stages find memory as the one before has left it
    if recipe.sft.method != "none" and corpus.demonstrations:
        training["sft"] = timed.fine_tuning(corpus)
    sampling = timed.sampling()
    if recipe.reward.is_trained and {"reward", "judge_model"} & set(stages):
        frozen, upper, training["reward"] = timed.reward_training()
        score |= {"reward/frozen": frozen, "reward/upper": upper, "reward": frozen + upper}
    elif "reward" in stages:
        score["reward"] = timed.pretrained_reward()
    score["experience"], training["policy"] = timed.policy(score.get("reward", 0.0))
    score["score"] = timed.scoring()
    greedy = timed.greedy_samples()
    timed.finish()
    speed = Speed(
        **sampling,
        greedy=greedy,
        score=score,
        train={stage: seconds.token for stage, seconds in training.items()},
        optimizer={stage: seconds.step for stage, seconds in training.items()},
        first={stage: seconds.first for stage, seconds in training.items()},
        checkpoint={stage: seconds.checkpoint for stage, seconds in training.items()},
        export={stage: seconds.export for stage, seconds in training.items()},
        rows_at_once=ROWS_AT_ONCE * timed.workers,
    )
    counts = count_tokens(recipe, corpus, texts)
    rows, columns = timed.sampled_cache
    return Measurement(counts, speed, timed.peaks, rows, columns, timed.number_bytes)


class _Timed:
    """One recipe's measurements."""

    def __init__(self, recipe: Recipe, run: Path, texts: Texts, say: Callable[[str], None]) -> None:
        self.recipe = recipe
        self.run = run
        self.texts = texts
        self.folder = base.find(recipe.model.source, run)
        self.draw = np.random.default_rng(0)
        self.workers = 1
        self.on_gpus = False
        self.many = max(4 * ROWS[0], min(ROWS[1], round(MOST_SAMPLED / mean(texts.prompts))))
        self.number_bytes = 4
        self.peaks: dict[str, int] = {}
        self._say = say
        self._part = ""
        self._runtime: Runtime | None = None

    def begin(self, part: str) -> None:
        """Note the memory of the part before, and begin with this one."""
        self.finish()
        self._part = part
        self._say(part)
        memory.reset_peak()

    def note_memory(self) -> None:
        """Note the most memory of this part; what follows in it does not count."""
        if self._part and self._runtime:
            states = self._runtime.worker_states() if self.workers > 1 else ()
            own = memory.device_peak_bytes() if self.on_gpus else memory.peak_bytes()
            whole = own + sum(state.peak_memory_bytes for state in states)
            self.peaks[self._part] = round(whole / max(1, self.workers))
        self._part = ""

    def finish(self) -> None:
        """Note the memory of the part that ends."""
        self.note_memory()
        self._runtime = None
        release_memory()

    def launch(self, training: bool = True, packing: bool = True) -> Runtime:
        runtime = launch(self.recipe.model, self.texts.chat.pad, packing, training, self.recipe.cluster)
        states = runtime.worker_states()
        self.workers = len(states)
        self.on_gpus = any(state.device.startswith("cuda") for state in states)
        for state in states:
            state.peak_memory_bytes = 0.0
        self._runtime = runtime
        return runtime

    def row_count(self, most: int) -> int:
        """Rows of a batch that takes no longer than others where rows are long."""
        return max(4, min(most, round(MOST_TOKENS / (mean(self.texts.prompts) + mean(self.texts.answers)))))

    def rows(self, count: int, longest: int) -> list[Row]:
        """Prompts of the run with answers as long as its demonstrations."""
        prompts = self.draw.integers(0, len(self.texts.prompts), count)
        answers = self.draw.integers(0, len(self.texts.answers), count)
        return [
            make_row(self.texts.prompts[p], self.texts.answers[a][:longest])
            for p, a in zip(prompts.tolist(), answers.tolist(), strict=True)
        ]

    def requests(self, rows: int, tokens: int) -> list[SampleRequest]:
        """Prompts of the run, with so many tokens of each answer at most."""
        chosen = self.draw.integers(0, len(self.texts.prompts), rows).tolist()
        return [SampleRequest(self.texts.prompts[p], Decoding(), self.draw.random(tokens)) for p in chosen]

    @contextmanager
    def engine(self, runtime: Runtime, role: str) -> Iterator[Engine]:
        """The recipe's engine with the weights of a role."""
        with tempfile.TemporaryDirectory() as folder:
            longest = max(map(len, self.texts.prompts)) + max(self.longest, *TOKENS)
            engine = load_engine(runtime, self.recipe.engine, self.texts.chat, Path(folder), longest)
            runtime.publish(role, engine)
            yield engine

    def sampling(self) -> dict[str, float]:
        """Seconds of each part of sampling, and of loading the model, its first use included."""
        self.begin("sampling")
        few, many = ROWS[0], self.many
        runtime = self.launch(training=False)
        load, _ = once(lambda: runtime.open({"model": RoleSpec(self.folder)}))
        with self.engine(runtime, "model") as engine:
            first = self.timed(engine, few, TOKENS[0], once)
            long = self.timed(engine, LONG_ROWS, min(LONGEST, self.longest), once)
            self.note_memory()
            of_few, of_many = ([self.timed(engine, rows, tokens, fastest) for tokens in TOKENS] for rows in (few, many))
        self.number_bytes = 2 if runtime.environment()["arithmetic"] == "bfloat16" else 4
        load += max(0.0, first.seconds - of_few[0].seconds)
        speed = sampling_speed((of_few[0], of_few[1]), (of_many[0], of_many[1]), long)
        return asdict(speed) | {"load": load}

    def timed(
        self, engine: Engine, rows: int, tokens: int, clock: Callable[[Callable[[], Any]], tuple[float, Any]]
    ) -> TimedSampling:
        """Sample so many answers of at most so many tokens, timed by `once` or `fastest`."""
        requests = self.requests(rows, tokens)
        seconds, answers = clock(lambda: engine.generate(requests))
        prompt = mean([request.prompt for request in requests])
        return TimedSampling(seconds, prompt, [len(answer.token_ids) for answer in answers])

    @property
    def sampled_cache(self) -> tuple[int, int]:
        """Rows of a worker, and columns of each, of the cache that `sampling` had while its memory was counted."""
        prompt = max(map(len, self.texts.prompts))
        return LONG_ROWS // self.workers, cache_columns(prompt, min(LONGEST, self.longest), self.on_gpus)

    @property
    def longest(self) -> int:
        """New tokens of the longest answer of any stage."""
        recipe = self.recipe
        return max(section.max_new_tokens for section in (recipe.preferences, recipe.policy, recipe.evaluate))

    def scoring(self) -> float:
        """Seconds of a token of which the policy's model gives the log-probability."""
        self.begin("scoring")
        runtime = self.launch(training=False)
        runtime.open({"model": RoleSpec(self.folder)})
        batches = [
            Batch(self.rows(self.row_count(MOST_ROWS), self.recipe.evaluate.max_new_tokens)) for _ in range(BATCHES + 1)
        ]
        return seconds_per_token(batches, lambda batch: runtime.score("model", batch, ("logp",)))

    def greedy_samples(self) -> float:
        """Seconds of a token step of the evaluation's greedy answers, which are sampled in float32."""
        self.begin("greedy samples")
        runtime = self.launch(training=False)
        runtime.open({"model": RoleSpec(self.folder, dtype="float32")})
        with self.engine(runtime, "model") as engine:
            requests = [self.requests(GREEDY_ROWS, tokens) for tokens in TOKENS]
            # the first time of each meets shapes that have no kernels yet
            timed = [once(lambda few=few: engine.generate(few, greedy=True)) for few in (*requests, *requests)]
        steps = [max(len(answer.token_ids) for answer in answers) for _, answers in timed]
        return max(0.0, timed[3][0] - timed[2][0]) / max(1, steps[3] - steps[2])

    def fine_tuning(self, corpus: Corpus) -> TrainingSeconds:
        """Seconds of fine-tuning."""
        self.begin("sft")
        cfg = self.recipe.sft
        runtime = self.launch(packing=cfg.packing)
        lora = cfg.lora if cfg.method == "lora" else None
        runtime.open({"policy": RoleSpec(self.folder, lora, learning_rate=1e-9)}, OptimizerConfig())
        best = runtime.snapshot()
        whole = demonstration_batch(self.texts.chat, some(corpus.demonstrations), cfg, cfg.domains).batch
        size = min(cfg.batch, len(whole), self.row_count(MOST_ROWS))
        batches = [whole.take(self.draw.permutation(len(whole))[:size]) for _ in range(BATCHES + 1)]
        return self._saved(training_seconds(runtime, batches, sft_algo, cfg, ("policy",)), runtime, "policy", best)

    def reward_training(self) -> tuple[float, float, TrainingSeconds]:
        """Seconds of a token below the adapter and above it, and of training."""
        self.begin("reward")
        cfg = self.recipe.reward
        runtime = self.launch()
        folder = initial_model(cfg, Path(self.folder), self.run)
        lora = cfg.lora if cfg.method == "lora" else None
        spec = RoleSpec(folder, lora, head="scalar", random_head=True, learning_rate=1e-9)
        runtime.open({"reward": spec}, OptimizerConfig())
        best = runtime.snapshot()
        size = 2 * max(1, min(cfg.batch, self.row_count(MOST_ROWS) // 2))
        # another model may have fewer tokens
        vocabulary = len(base.load_tokenizer(folder))
        batches = [self._pairs(size, vocabulary) for _ in range(BATCHES + 1)]
        frozen = seconds_per_token(batches, lambda batch: runtime.cache_frozen_prefix(batch, "reward"))
        batches = [runtime.cache_frozen_prefix(batch, "reward") for batch in batches]
        upper = seconds_per_token(batches, lambda batch: runtime.score("reward", batch, ("score",)))
        seconds = training_seconds(runtime, batches, reward_model, cfg, ("reward",))
        if cfg.method == "full":
            seconds = self._saved(seconds, runtime, "reward", best)
        return frozen, upper, seconds

    def pretrained_reward(self) -> float:
        """Seconds of a token by the reward model from elsewhere, which has a tokenizer of its own."""
        self.begin("reward")
        recipe = self.recipe
        source = recipe.reward.pretrained
        classifier = launch_classifier(
            self.launch(training=False), recipe.model, source, self.run, recipe.reward.template, "reward.pretrained"
        )
        batches = [Batch(self.rows(self.row_count(MOST_ROWS), recipe.policy.max_new_tokens)) for _ in range(3)]
        chat = self.texts.chat

        def score(batch: Batch) -> None:
            prompts = [as_messages(chat.text(row.ids[: row.start].tolist())) for row in batch.rows]
            classifier.score(prompts, [chat.text(row.ids[row.start :].tolist()) for row in batch.rows])

        return seconds_per_token(batches, score)

    def _pairs(self, count: int, vocabulary: int) -> Batch:
        rows = self.rows(count, self.recipe.preferences.max_new_tokens)
        heads = [rows[i - i % 2].ids[: rows[i - i % 2].start] for i in range(count)]
        paired = [
            make_row((head % vocabulary).tolist(), (row.ids[row.start :] % vocabulary).tolist())
            for head, row in zip(heads, rows, strict=True)
        ]
        beats_BK = torch.zeros(count, 2)
        beats_BK[::2, 1] = 1.0
        columns = {"beats": beats_BK, "sure": torch.ones(count, 2), "place": torch.arange(count) % 2}
        return Batch(paired, columns, (2,) * (count // 2), frozenset({"beats", "sure"}))

    def policy(self, reward: float) -> tuple[float, TrainingSeconds]:
        """Seconds of a token of a rollout before the updates, and of training; `reward` is that of a reward model which
        is a model of its own."""
        self.begin("policy")
        cfg = self.recipe.policy
        runtime = self.launch()
        roles = self._policy_roles()
        runtime.open(roles, OptimizerConfig(eps=1e-5))
        best = runtime.snapshot()
        with self.engine(runtime, "policy") as engine:
            engine.generate(self.requests(ROWS[0], min(TOKENS)))
        size = max(1, min(cfg.rollout, self.row_count(2 * MOST_ROWS)))
        batches = [Batch(self.rows(size, cfg.max_new_tokens)) for _ in range(3)]
        experience = seconds_per_token(batches, lambda batch: self._experience(runtime, roles, batch))
        if self._has_reward_model and "reward" not in roles:
            experience += reward
        size = min(cfg.batch, self.row_count(MOST_ROWS))
        batches = [
            runtime.cache_frozen_prefix(_with_columns(Batch(self.rows(size, cfg.max_new_tokens))), "reference")
            for _ in range(BATCHES + 1)
        ]
        algo, config = self._policy_loss()
        seconds = training_seconds(runtime, batches, algo, config, roles)
        return experience, self._saved(seconds, runtime, "policy", best)

    def _saved(self, seconds: TrainingSeconds, runtime: Runtime, role: str, best: Snapshot) -> TrainingSeconds:
        """The same with seconds of a checkpoint and of the export. That is what the end of a stage has in memory: new
        best weights beside the old ones, a checkpoint, and the model as it is written."""
        better = runtime.snapshot()
        with tempfile.TemporaryDirectory(dir=self.run) as folder:
            state = Path(folder) / "state"
            model = Path(folder) / "model"
            checkpoint, _ = once(lambda: publish(state, lambda target: runtime.write_state(target, better)))
            export, _ = once(lambda: publish(model, lambda target: runtime.export(role, target, self.texts.chat)))
        del best  # the old ones, until here
        return replace(seconds, checkpoint=checkpoint, export=export)

    @property
    def _has_reward_model(self) -> bool:
        return any(source.source == "model" for source in self.recipe.policy.rewards.sources)

    def _policy_roles(self) -> dict[str, RoleSpec]:
        """Those of the policy stage, from the base model."""
        cfg = self.recipe.policy
        lora: Lora | None = cfg.lora if cfg.method == "lora" else None
        roles = {"policy": RoleSpec(self.folder, lora, learning_rate=1e-9), "reference": RoleSpec(self.folder)}
        reward = self.recipe.reward
        adapter = reward.lora if reward.method == "lora" else None
        if self._has_reward_model and not reward.source:
            roles["reward"] = RoleSpec(self.folder, adapter, head="scalar", random_head=True)
        if cfg.algo == "ppo":
            basis = "reward" if "reward" in roles else "reference"
            if cfg.ppo.critic == "head":
                roles["critic"] = RoleSpec(reads=basis, head="closed_form")
            else:
                roles["critic"] = RoleSpec(copies=basis, lora=adapter, head="scalar", learning_rate=1e-9)
        return roles

    def _experience(self, runtime: Runtime, roles: Mapping[str, RoleSpec], batch: Batch) -> None:
        """What the policy stage computes of rollouts before their updates, and the fit of the critic after them."""
        recipe = self.recipe
        temperature = recipe.policy.temperature
        batch = runtime.cache_frozen_prefix(batch, "reference")
        runtime.score("reference", batch, ("logp",), temperature)
        exact = recipe.engine.type == "local" and not recipe.policy.staleness
        again = batch.take(range(0, len(batch), 8)) if exact else batch
        runtime.score("policy", again, ("logp",), temperature)
        fits_critic = "critic" in roles and roles["critic"].head == "closed_form"
        if "reward" in roles:
            out = runtime.score("reward", batch, ("score", *(["features"] if fits_critic else [])))
            if out.features is not None:
                batch = batch.with_handle("features", out.features)
        if "critic" in roles and not fits_critic:
            runtime.score("critic", batch, ("value",))
        if fits_critic:
            wants = ("value",) if "features" in batch.handles else ("value", "features")
            out = runtime.score("critic", batch, wants)
            features = batch.handles.get("features") or out.features
            assert features is not None
            runtime.fit("critic", features, torch.zeros(out.value_BT.shape), recipe.policy.ppo.critic_decay)

    def _policy_loss(self) -> tuple[Any, Any]:
        """The policy's algorithm on its own role; for one on pairs, or one of the user's, that of fine-tuning, whose
        passes are alike."""
        name = self.recipe.policy.algo
        if name in ("ppo", "grpo", "rloo", "reinforce"):
            return importlib.import_module(algos.module_name(name)), self.recipe.policy
        return sft_algo, self.recipe.sft


def _with_columns(batch: Batch) -> Batch:
    """What losses on rollouts read besides the rows."""
    shape = batch.mask_BT.shape
    names = ("old_logp", "ref_logp", "sampler_logp", "value", "returns")
    zeros = dict.fromkeys(names, torch.zeros(shape))
    return batch.with_columns(advantage=torch.randn(shape), group=torch.arange(len(batch)), **zeros)
