"""One algorithm without a pipeline: a model, and prompts with a reward of one's own, or pairs of answers."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from towpath import interrupt
from towpath.algos import data_of
from towpath.data.corpus import Corpus
from towpath.errors import DataError, RecipeError
from towpath.models import base, content
from towpath.recipe import SUITED, Decoding, Recipe
from towpath.recipe.reader import check, flat, laid
from towpath.records import Comparison, Completion, Finding, Label, Prompt, as_row, finding_of
from towpath.run import arguments, model_checks, preflight
from towpath.run.sizes import model_size
from towpath.runtime.local import prepare_process
from towpath.stages import generation, policy
from towpath.stages.job import Job, read_rows
from towpath.store import manifest
from towpath.store.publish import lock_folder
from towpath.store.store import Store
from towpath.terminal import print_status

FORM = 3
"""Raised where a training's folder comes to mean something else: an earlier one is not taken up."""


@dataclass(frozen=True)
class Trained:
    """What training leaves: a folder that transformers loads, and what happened on the way."""

    job: Job
    result: dict[str, Any]

    def __repr__(self) -> str:
        return (
            f"Trained({self.job.recipe.policy.algo!r}, folder={str(self.folder)!r}, "
            f"kl_per_prompt={self.result['kl_per_prompt']:.3g})"
        )

    @property
    def folder(self) -> Path:
        """The model and its tokenizer."""
        return self.job.folder / "weights"

    @property
    def findings(self) -> list[Finding]:
        """What was found before it began and on the way."""
        watched = self.job.folder / "findings.json"
        rows = json.loads(watched.read_text(encoding="utf-8")) if watched.is_file() else []
        before = [row for row in manifest.read(self.job.folder)["findings"] if row not in rows]
        return [finding_of(row) for row in [*before, *rows]]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row a step, one a validation."""
        return read_rows(self.job.folder / "metrics.jsonl")

    def generate(
        self, prompts: Sequence[str], temperature: float = 0.0, max_new_tokens: int | None = None
    ) -> list[str]:
        """An answer to each prompt; greedy at temperature 0."""
        longest = self.job.recipe.policy.max_new_tokens if max_new_tokens is None else max_new_tokens
        if temperature < 0 or longest < 1:
            value = f"temperature = {temperature}, max_new_tokens = {longest}"
            raise RecipeError(value, "a temperature is 0 or more, an answer a token or more", "give such")
        how = Decoding(temperature=temperature or 1.0)
        wanted = [(Prompt(str(i), text), "asked", how) for i, text in enumerate(arguments.prompts(prompts))]
        model = self.job.model(self.folder)
        drawn = generation.draw(self.job, model, wanted, "policy", longest, "answers", greedy=not temperature)
        return [completion.text for completion in drawn]


def train(
    algo: str,
    *,
    model: str | Path,
    prompts: Iterable[Any] = (),
    reward: arguments.Rewards | None = None,
    pairs: Iterable[Any] = (),
    kl: float = 0.05,
    steps: int = 100,
    folder: str | Path = "towpath-train",
    seed: int = 0,
    dtype: str = "auto",
    template: str = "model",
    engine: str | Mapping[str, Any] | None = None,
    health: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Trained:
    """Optimise a model for a reward on its own answers, or by pairs of answers.

    `prompts` are texts, or rows with `prompt` and further columns. `reward` is a function that returns a number for
    each completion; it is called by the names of its parameters: `prompts`, `completions` (or `answers`), columns of
    the rows, and `**kwargs`, as in TRL. Two parameters of other names get prompts and completions. Or it is a source
    as recipes name it (`rule:words:8-35`, an address), or a list of such, where `{"source": ..., "weight": 0.5}` gives
    one a weight. DPO and its kin take `pairs` instead, (prompt, better, worse), and pass over them `epochs` times;
    `kl` and `steps` are not theirs. Further settings are keys of `[policy]` with `__` for the dot:
    `learning_rate=1e-5`, `grpo__scale="none"`, `lora__alpha=64`. `template` is `model.template`; `engine` and
    `health` hold keys of `[engine]` and `[health]`. SIGTERM, SIGHUP and SIGUSR1 write a checkpoint and raise
    SystemExit(75). The same call in the same folder goes on where it stopped; with another reward, or other code in
    it, it is another call.
    """
    rows = (
        list(prompts) if isinstance(prompts, Iterable) and not isinstance(prompts, str | bytes | Mapping) else prompts
    )
    on_pairs = data_of(algo) == "comparisons"
    texts = arguments.prompts(rows)
    judged = arguments.pairs(pairs)
    columns = arguments.columns(rows) if isinstance(rows, list) else {}
    names = {name for row in columns.values() for name in row}
    _require(algo, on_pairs, {"prompts": bool(texts), "reward": reward is not None, "pairs": bool(judged)})
    asked = list(dict.fromkeys(texts or [prompt for prompt, _, _ in judged]))
    told = {"kl.coef": kl, "kl.target": 0.0, "steps": steps} if not on_pairs else {}
    if reward is not None:
        if "rewards__sources" in settings:
            raise RecipeError(
                "reward and rewards__sources", "what is rewarded is said once", "give reward a list of them"
            )
        told["rewards.sources"] = arguments.rewards(reward, names)
    drawing = {"type": engine} if isinstance(engine, str) else dict(engine or {})
    tables: dict[str, Any] = {"seed": seed, "model": {"source": model, "dtype": dtype, "template": template}}
    tables |= {"engine": drawing, "health": dict(health or {})}
    tables = {key: arguments.setting(key, item) for key, item in tables.items()}
    recipe = _recipe(algo, tables, told | settings, len(asked), names)
    prepare_process()
    by_id = {f"p{i}": columns[text] for i, text in enumerate(asked) if text in columns}
    job = _job(
        recipe,
        Path(folder),
        Corpus(tuple(Prompt(f"p{i}", text) for i, text in enumerate(asked)), columns=by_id),
        judged,
    )
    with interrupt.handle_signals(), lock_folder(job.folder):
        if not _done(job).is_file():
            _require_room(job, judged)
            job.findings += _noticed(recipe, 0 if on_pairs else len(texts) - len(asked))
            job.findings += model_checks.of_experts(recipe, Path(base.find(recipe.model.source, job.run)))
            if job.findings:
                print_status(preflight.lines(job.findings))
            result = policy.run(job)
            manifest.write(job.folder, {"result": result, "findings": [as_row(finding) for finding in job.findings]})
    manifest.verify(job.folder)
    return Trained(job, manifest.read(job.folder)["result"])


def _done(job: Job) -> Path:
    """Where a training that has ended says what came of it."""
    return job.folder / manifest.NAME


def _noticed(recipe: Recipe, twice: int) -> list[Finding]:
    """What is odd of the settings and the prompts, and forbids nothing here: models may be tiny, and rates for them
    large."""
    found = preflight.of_rate(recipe)
    if twice:
        evidence = f"{twice} prompts are there more than once"
        found.append(
            Finding(
                "prompts",
                "warning",
                evidence,
                "a prompt kept from training must not be trained on",
                "each was taken once",
            )
        )
    return [replace(finding, severity="warning") for finding in found]


def _require(algo: str, on_pairs: bool, there: Mapping[str, bool]) -> None:
    """What the algorithm learns from is there, and nothing else is."""
    needed = {"pairs"} if on_pairs else {"prompts", "reward"}
    have = {name for name, said in there.items() if said}
    if have != needed:
        rule = "it learns from judged pairs" if on_pairs else "it learns from its own answers"
        fix = f"give it {' and '.join(sorted(needed))}, and nothing else"
        raise RecipeError(f"train({algo!r}) with {' and '.join(sorted(have)) or 'nothing'}", rule, fix)


def _recipe(
    algo: str, tables: dict[str, Any], settings: Mapping[str, Any], prompts: int, columns: Collection[str] = ()
) -> Recipe:
    """The settings laid over what suits so many prompts: a tenth kept to choose the checkpoint by, at most 32."""
    named = {key.replace("__", "."): value for key, value in settings.items()}
    said = flat({key: arguments.setting(f"policy.{key}", value) for key, value in named.items()})
    kept = max(4, min(32, prompts // 10))
    group = said.get("group", SUITED.get(algo, {}).get("group", 1))
    group = max(1, group) if isinstance(group, int) else 1  # what is no number is refused below
    room = (prompts - kept) * group
    if room < 1:
        raise RecipeError(
            f"prompts that differ: {prompts}",
            f"{kept} are kept to choose the checkpoint by, and one must be left",
            "give more prompts",
        )
    size = max(group, min(64, room) // group * group)
    rollout = said.get("rollout", size)
    standard = {
        "algo": algo,
        "rollout": size,
        "batch": min(32, rollout if isinstance(rollout, int) else size),
        "validation_prompts": kept,
    }
    over = {f"policy.{key}": value for key, value in ({"ppo.critic_warmup": 0} | standard | said).items()}
    recipe = check(Recipe, laid(tables, over), "train()")
    for finding in (*preflight.of_rollouts(recipe.policy, prompts, columns), *preflight.of_engine(recipe)):
        if finding.severity == "error":
            raise RecipeError(finding.evidence, finding.cause, finding.remedy)
    return recipe


def _require_room(job: Job, pairs: Sequence[arguments.Pair]) -> None:
    """No prompt with its answer is longer than what the model reads."""
    context = model_size(Path(base.find(job.recipe.model.source, job.run))).context
    most = job.recipe.policy.max_new_tokens
    asked = {p.prompt: len(job.chat.prompt(p.prompt)) for p in job.corpus.prompts}
    rows = [
        (asked[prompt] + len(job.chat.answer(text)), text, "with its prompt")
        for prompt, *both in pairs
        for text in both
    ]
    rows += [(length + most, prompt, f"with max_new_tokens = {most}") for prompt, length in asked.items()]
    longest, text, told = max(rows)
    if context and longest > context:
        raise DataError(
            f"{text[:60]!r}: {longest} tokens {told}",
            f"the model reads {context}",
            "shorten or remove it, or lower max_new_tokens",
        )


def _job(recipe: Recipe, run: Path, corpus: Corpus, pairs: Sequence[arguments.Pair]) -> Job:
    """A policy stage whose tuned model is the model given, and whose labels are the pairs."""
    place = Path(base.find(recipe.model.source, run)).resolve()
    called = [FORM, recipe.model_dump(mode="json"), [p.prompt for p in corpus.prompts], list(pairs), str(place)]
    run.mkdir(parents=True, exist_ok=True)
    called += [content.fetch(recipe.model.source, run), content.template(recipe.model.template)]
    called += [corpus.columns] if corpus.columns else []
    told = json.dumps(called, sort_keys=True, default=repr)
    name = hashlib.sha256(told.encode()).hexdigest()[:12]
    start = run / name / "start"
    start.mkdir(parents=True, exist_ok=True)
    if not (start / "weights").is_symlink():
        (start / "weights").symlink_to(place, target_is_directory=True)
    job = Job(recipe, run, "policy", run / name, {"sft": start}, Store.open(run / "towpath.db"), replace(corpus), 1)
    if pairs:
        _put(job, name, pairs)
    return job


def _put(job: Job, name: str, pairs: Sequence[arguments.Pair]) -> None:
    """Pairs into the ledger, as the stages before would have left them. A prompt is numbered by its text: what is
    held out does not change with the settings."""
    numbers = {p.prompt: f"given/{hashlib.sha256(p.prompt.encode()).hexdigest()[:12]}" for p in job.corpus.prompts}
    folder = job.folder / "pairs"
    folder.mkdir(exist_ok=True)
    job.store.add_prompts([Prompt(numbers[p.prompt], p.prompt) for p in job.corpus.prompts])
    answers_given = []
    comparisons = []
    for i, (prompt, *both) in enumerate(pairs):
        ids = [f"{name}/{i}{side}" for side in "ab"]
        for own, text in zip(ids, both, strict=True):
            answers_given.append(
                Completion(own, numbers[prompt], "given", text, tuple(job.chat.answer(text)), (), "stop")
            )
        comparisons.append(Comparison(f"{name[:6]}.{i}", numbers[prompt], ids[0], ids[1]))
    job.store.add_completions(answers_given)
    job.store.add_comparisons(comparisons)
    labels = [as_row(Label(c.id, "a", 1.0, 1)) for c in comparisons]
    (folder / "labels.json").write_text(json.dumps(labels))
    job.inputs |= {"sample": folder, "label": folder}
