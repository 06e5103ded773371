"""One algorithm without a pipeline: a model, and prompts with a reward of one's own, or pairs of answers."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from towpath import preflight
from towpath.algos import data_of
from towpath.config import check, override
from towpath.data.sources import Corpus
from towpath.errors import DataError, RecipeError
from towpath.models import base
from towpath.recipe import SUITED, Decoding, Recipe
from towpath.records import Comparison, Completion, Finding, Label, Prompt, as_row, finding_of
from towpath.rewards import sources
from towpath.runtime.local import prepare_process
from towpath.sizes import model_size
from towpath.stages import answers, policy
from towpath.stages.job import Job, read_rows
from towpath.store.store import Store

Reward = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
Pair = tuple[str, str, str]
"""A prompt, the better answer, the worse one."""


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
    def findings(self) -> list[Finding]:
        """What was found on the way."""
        path = self.job.folder / "findings.json"
        rows = json.loads(path.read_text()) if path.is_file() else []
        return [finding_of(row) for row in rows]

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
    algo: str, *, model: str, prompts: Sequence[str] = (), reward: Reward | str | None = None, pairs: Sequence[Pair] = (), kl: float = 0.05,
    steps: int = 100, folder: str | Path = "towpath-train", seed: int = 0, dtype: str = "auto",
    template: str = "model", engine: Mapping[str, Any] | None = None, health: Mapping[str, Any] | None = None, **settings: Any,
) -> Trained:  # fmt: skip
    """Optimise a model for a reward on its own answers, or by pairs of answers.

    `reward` takes prompts and answers and gives a number each, or is a source as recipes name it (`rule:words:8-35`, an address).
    DPO and its kin take `pairs` instead, (prompt, better, worse), and pass over them `epochs` times; `kl` and `steps` are not theirs.
    Further settings are keys of `[policy]` with `__` for the dot: `learning_rate=1e-5`, `grpo__scale="none"`, `lora__alpha=64`.
    `template` is `model.template`; `engine` and `health` hold keys of `[engine]` and `[health]`.
    The same call in the same folder goes on where it stopped.
    """
    on_pairs = data_of(algo) == "comparisons"
    _require(algo, on_pairs, {"prompts": len(prompts) > 0, "reward": reward is not None, "pairs": len(pairs) > 0}, pairs)
    asked = list(dict.fromkeys(prompt for prompt, _, _ in pairs)) if on_pairs else prompts
    told = {"kl.coef": kl, "kl.target": 0.0, "steps": steps} if not on_pairs else {}
    if reward is not None:
        told["rewards.sources"] = [{"of": reward if isinstance(reward, str) else sources.given(reward)}]
    tables: dict[str, Any] = {"seed": seed, "model": {"source": model, "dtype": dtype, "template": template}}
    tables |= {"engine": dict(engine or {}), "health": dict(health or {})}
    recipe = _recipe(algo, tables, told | settings, len(asked))
    prepare_process()
    job = _job(recipe, Path(folder), Corpus(tuple(Prompt(f"p{i}", text) for i, text in enumerate(asked))), pairs)
    done = job.folder / "manifest.json"
    if not done.is_file():
        _require_room(job, pairs)
        result = policy.run(job)
        done.write_text(json.dumps({"result": result}))
    return Trained(job, json.loads(done.read_text())["result"])


def _require(algo: str, on_pairs: bool, given: Mapping[str, bool], pairs: Sequence[Pair]) -> None:
    """What the algorithm learns from is there, nothing else is, and pairs are pairs."""
    needed, have = ({"pairs"} if on_pairs else {"prompts", "reward"}), {name for name, there in given.items() if there}
    if have != needed:
        rule = "it learns from judged pairs" if on_pairs else "it learns from its own answers"
        fix = f"give it {' and '.join(sorted(needed))}, and nothing else"
        raise RecipeError(f"train({algo!r}) with {' and '.join(sorted(have)) or 'nothing'}", rule, fix)
    for number, pair in enumerate(pairs):
        if isinstance(pair, str) or len(pair) != 3 or not all(isinstance(text, str) and text.strip() for text in pair):
            raise RecipeError(f"pairs[{number}] = {str(pair)[:80]!r}", "a pair is three texts", "give (prompt, better answer, worse answer)")


def _recipe(algo: str, tables: dict[str, Any], settings: Mapping[str, Any], prompts: int) -> Recipe:
    """The settings laid over what suits so many prompts: a tenth kept to choose the checkpoint by, at most 32."""
    kept = max(4, min(32, prompts // 10))
    group = max(1, int(settings.get("group", SUITED.get(algo, {}).get("group", 1))))
    room = (prompts - kept) * group
    if room < 1:
        raise RecipeError(f"{prompts} prompts", f"{kept} are kept to choose the checkpoint by, and one must be left", "give more prompts")
    size = max(group, min(64, room) // group * group)
    standard = {"algo": algo, "rollout": size, "batch": min(32, size), "validation_prompts": kept}
    said = standard | {key.replace("__", "."): value for key, value in settings.items()}
    lines = [f"policy.{key}={_toml(value)}" for key, value in said.items()]
    recipe = check(Recipe, override(tables | {"policy": {"ppo": {"critic_warmup": 0}}}, lines), "train()")
    for finding in preflight.of_rollouts(recipe.policy, prompts):
        if finding.severity == "error":
            raise RecipeError(finding.evidence, finding.cause, finding.remedy)
    return recipe


def _require_room(job: Job, pairs: Sequence[Pair]) -> None:
    """No prompt with its answer is longer than what the model reads."""
    context, most = model_size(Path(base.find(job.recipe.model.source))).context, job.recipe.policy.max_new_tokens
    asked = {p.prompt: len(job.chat.prompt(p.prompt)) for p in job.corpus.prompts}
    given = [(asked[prompt] + len(job.chat.answer(text)), text) for prompt, *both in pairs for text in both]
    longest, text = max(given or [(length + most, prompt) for prompt, length in asked.items()])
    if context and longest > context:
        told = "with its prompt" if pairs else f"with max_new_tokens = {most}"
        raise DataError(f"{text[:60]!r}: {longest} tokens {told}", f"the model reads {context}", "shorten or remove it, or lower max_new_tokens")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def _job(recipe: Recipe, run: Path, corpus: Corpus, pairs: Sequence[Pair]) -> Job:
    """A policy stage whose tuned model is the model given, and whose labels are the pairs."""
    place = Path(base.find(recipe.model.source))
    content = json.dumps([recipe.model_dump(mode="json"), [p.prompt for p in corpus.prompts], list(pairs), str(place)], sort_keys=True)
    name = hashlib.sha256(content.encode()).hexdigest()[:12]
    start = run / "start"
    start.mkdir(parents=True, exist_ok=True)
    weights = start / "weights"
    if not weights.exists() or weights.resolve() != place.resolve():
        weights.unlink(missing_ok=True)
        weights.symlink_to(place.resolve(), target_is_directory=True)
    job = Job(recipe, run, "policy", run / name, {"sft": start}, Store.open(run / "towpath.db"), replace(corpus), 1)
    if pairs:
        _put(job, name, pairs)
    return job


def _put(job: Job, name: str, pairs: Sequence[Pair]) -> None:
    """Pairs into the ledger, as the stages before would have left them."""
    numbers = {p.prompt: f"{name}/{p.id}" for p in job.corpus.prompts}
    folder = job.run / f"{name}-pairs"
    folder.mkdir(exist_ok=True)
    job.store.add_prompts([Prompt(numbers[p.prompt], p.prompt) for p in job.corpus.prompts])
    answers_given, comparisons = [], []
    for i, (prompt, *both) in enumerate(pairs):
        ids = [f"{name}/{i}{side}" for side in "ab"]
        for own, text in zip(ids, both, strict=True):
            answers_given.append(Completion(own, numbers[prompt], "given", text, tuple(job.chat.answer(text)), (), "stop"))
        comparisons.append(Comparison(f"{name[:6]}.{i}", numbers[prompt], ids[0], ids[1]))
    job.store.add_completions(answers_given)
    job.store.add_comparisons(comparisons)
    labels = [as_row(Label(c.id, "a", 1.0, 1)) for c in comparisons]
    (folder / "labels.json").write_text(json.dumps(labels))
    job.inputs |= {"sample": folder, "label": folder}
