"""One algorithm without a pipeline: a model, prompts, and a reward of one's own."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from towpath.algos import data_of
from towpath.config import check, override
from towpath.data.sources import Corpus
from towpath.errors import RecipeError
from towpath.models import base
from towpath.recipe import Decoding, Recipe
from towpath.records import Prompt
from towpath.rewards import sources
from towpath.runtime.local import prepare_process
from towpath.stages import answers, policy
from towpath.stages.job import Job, read_rows
from towpath.store.store import Store

Reward = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class Trained:
    """What training leaves: a folder that transformers loads, and what happened on the way."""

    job: Job
    result: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The model and its tokenizer."""
        return self.job.folder / "weights"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row a step, one a validation."""
        return read_rows(self.job.folder / "metrics.jsonl")

    def generate(self, prompts: Sequence[str], temperature: float = 0.0, max_new_tokens: int | None = None) -> list[str]:
        """An answer to each prompt; greedy at temperature 0."""
        cfg = self.job.recipe.policy
        how = Decoding(temperature=temperature or 1.0)
        wanted = [(Prompt(str(i), text), "asked", how) for i, text in enumerate(prompts)]
        model = self.job.model(self.folder)
        drawn = answers.draw(self.job, model, wanted, "policy", max_new_tokens or cfg.max_new_tokens, "answers", greedy=not temperature)
        return [completion.text for completion in drawn]


def train(
    algo: str, *, model: str, prompts: Sequence[str], reward: Reward | str, kl: float = 0.05, steps: int = 100, folder: str | Path = "towpath-train",
    seed: int = 0, dtype: str = "auto", **settings: Any,
) -> Trained:  # fmt: skip
    """Optimise a model for a reward on its own answers.

    `reward` takes prompts and answers and gives a number each, or is a source as recipes name it (`rule:words:8-35`, an address).
    Further settings are keys of `[policy]` with `__` for the dot: `learning_rate=1e-5`, `grpo__scale="none"`, `lora__alpha=64`.
    The same call in the same folder goes on where it stopped.
    """
    if data_of(algo) != "rollouts":
        raise RecipeError(f"train({algo!r}): it learns from judged pairs", "train() takes algorithms that learn from their own answers", "use a run")
    source = reward if isinstance(reward, str) else sources.given(reward)
    recipe = _recipe(algo, model, source, {"kl.coef": kl, "kl.target": 0.0, "steps": steps} | settings, len(prompts), seed, dtype)
    corpus = Corpus(tuple(Prompt(f"p{i}", text) for i, text in enumerate(prompts)))
    prepare_process()
    job = _job(recipe, Path(folder), corpus)
    done = job.folder / "manifest.json"
    if not done.is_file():
        result = policy.run(job)
        done.write_text(json.dumps({"result": result}))
    return Trained(job, json.loads(done.read_text())["result"])


def _recipe(algo: str, model: str, source: str, settings: Mapping[str, Any], prompts: int, seed: int, dtype: str) -> Recipe:
    """The settings laid over what suits so many prompts: a tenth kept to choose the checkpoint by, at most 32."""
    kept = max(4, min(32, prompts // 10))
    group = 1 if algo in ("ppo", "reinforce") else 4
    room = (prompts - kept) * int(settings.get("group", group))
    if room < 1:
        raise RecipeError(f"{prompts} prompts", f"{kept} are kept to choose the checkpoint by, and one must be left", "give more prompts")
    size = min(64, room) // group * group
    standard = {
        "algo": algo,
        "group": group,
        "rollout": size,
        "batch": min(32, size),
        "validation_prompts": kept,
        "rewards.sources": [{"of": source}],
    }
    said = standard | {key.replace("__", "."): value for key, value in settings.items()}
    lines = [f"policy.{key}={_toml(value)}" for key, value in said.items()]
    tables = override({"seed": seed, "model": {"source": model, "dtype": dtype}, "policy": {"ppo": {"critic_warmup": 0}}}, lines)
    return check(Recipe, tables, "train()")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def _job(recipe: Recipe, run: Path, corpus: Corpus) -> Job:
    """A policy stage whose tuned model is the model given."""
    place = Path(base.local(recipe.model.source))
    content = json.dumps([recipe.model_dump(mode="json"), [p.prompt for p in corpus.prompts], str(place)], sort_keys=True)
    folder = run / hashlib.sha256(content.encode()).hexdigest()[:12]
    start = run / "start"
    start.mkdir(parents=True, exist_ok=True)
    weights = start / "weights"
    if not weights.exists() or weights.resolve() != place.resolve():
        weights.unlink(missing_ok=True)
        weights.symlink_to(place.resolve(), target_is_directory=True)
    return Job(recipe, run, "policy", folder, {"sft": start}, Store.open(run / "towpath.db"), replace(corpus), 1)
