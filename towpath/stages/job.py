"""Job: the input of a stage (its part of the recipe, folders, ledger, prompts), and the log of its metrics."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from towpath.data.chat import Chat
from towpath.data.corpus import Corpus
from towpath.health.history import Recorder
from towpath.models import base
from towpath.recipe.stage_configs import PairsConfig, StageConfig
from towpath.records import Completion, Finding
from towpath.runtime.contract import Runtime
from towpath.runtime.launch import launch
from towpath.runtime.process import release_memory
from towpath.store import jsonl, manifest
from towpath.store.publish import is_intact, publish, replace_file
from towpath.store.store import Store

C = TypeVar("C", bound=StageConfig, covariant=True)


@dataclass
class Job(Generic[C]):
    """One stage of one run: what `run(job)` of a module of `towpath.stages` reads, and where it writes."""

    config: C
    """The sections of the recipe that the stage declares: `PolicyConfig.from_recipe(recipe)`."""
    run: Path
    name: str
    folder: Path
    inputs: dict[str, Path]
    store: Store
    corpus: Corpus
    round: int = 1
    checkpoint_seconds: float = field(default_factory=lambda: float(os.environ.get("TOWPATH_CHECKPOINT_SECONDS", "20")))
    findings: list[Finding] = field(default_factory=list)
    callbacks: Sequence[Any] = ()
    """Objects whose methods `on_step` and `on_validation` the training loop calls with step and metrics."""
    on_answers: Callable[..., None] | None = None
    """Called with step, answers and batch of every validation of a policy stage."""
    start_cache: Path | None = None
    """Folder of completions of untrained weights, which the trials of a sweep share."""
    launcher: Callable[..., Runtime] = launch
    """Makes the runtime: `towpath.runtime.launch.launch`, or another with its parameters."""

    @cached_property
    def chat(self) -> Chat:
        return Chat(base.load_tokenizer(base.find(self.config.model.source, self.run)), self.config.model.template)

    @property
    def base_model(self) -> str:
        """Folder of the base model."""
        return base.find(self.config.model.source, self.run)

    @cached_property
    def reward_chat(self: "Job[PairsConfig]") -> Chat:
        """The chat of the reward model's tokenizer, which is the policy's unless the recipe names another model."""
        reward = self.config.reward
        if not reward.source:
            return self.chat
        key = "reward.base" if reward.base else "reward.pretrained"
        return Chat(base.load_tokenizer(base.find(reward.source, self.run, key)), reward.template)

    def launch(self, packing: bool = True, training: bool = True, samples_apart: bool = False) -> Runtime:
        """A runtime for this stage, once the memory of those that are no longer used is free; `samples_apart`: with the
        workers that the recipe sets apart for sampling."""
        release_memory()
        apart = {"samples_apart": True} if samples_apart and self.config.cluster.sample_workers else {}
        runtime = self.launcher(self.config.model, self.chat.pad, packing, training, self.config.cluster, **apart)
        runtime.record_workers(self.folder / manifest.WORKERS)
        return runtime

    def tokens(self: "Job[PairsConfig]", completion: Completion) -> Sequence[int]:
        """The sampled tokens; a text without tokens is tokenized and cut to preferences.max_new_tokens."""
        return completion.token_ids or self.chat.answer(completion.text)[: self.config.preferences.max_new_tokens]

    @cached_property
    def log(self) -> "MetricsLog":
        return MetricsLog(self.folder)

    def result_of(self, stage: str) -> dict[str, Any]:
        """The result of an input stage."""
        return manifest.read(self.inputs[stage])["result"]


class MetricsLog:
    """metrics.jsonl, the record of a stage; trackers follow the file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self.recorder = Recorder([row for row in jsonl.read(self.path) if "step" in row and "phase" in row])

    def rewind(self, step: int) -> None:
        """Remove rows written after the checkpoint that is being resumed."""
        rows = [row for row in jsonl.read(self.path) if isinstance(row.get("step"), int) and row["step"] < step]
        replace_file(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self.recorder = Recorder(rows)

    def write(self, step: int, phase: str, numbers: dict[str, float]) -> None:
        """Append one row; it is on disk when this returns."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "phase": phase, **numbers}) + "\n")
        self.recorder.add(step, phase, numbers)


def publish_model(job: Job[StageConfig], runtime: Runtime, role: str, folder: Path) -> None:
    """Export a role's model to a folder that transformers loads, unless an interrupted run has done so."""
    if not is_intact(folder):
        publish(folder, lambda target: runtime.export(role, target, job.chat))
