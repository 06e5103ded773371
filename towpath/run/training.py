"""`towpath.train`: one algorithm from Python, without the pipeline, on prompts with a reward or on pairs of answers."""

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
from towpath.planning.sizes import model_size
from towpath.recipe import ALGORITHM_DEFAULTS, Decoding, Recipe
from towpath.recipe.reader import check, flatten, merge
from towpath.recipe.stage_configs import PolicyConfig
from towpath.records import Comparison, Completion, Finding, Label, as_row, finding_of, prompt_of, transcript
from towpath.run import arguments, engine_checks, model_checks, preflight, trackers
from towpath.run.record import METRICS
from towpath.runtime.process import prepare_process
from towpath.stages import generation, policy
from towpath.stages.job import Job
from towpath.stages.restarts import run_stage
from towpath.store import jsonl, manifest
from towpath.store.publish import lock_folder
from towpath.store.store import Store
from towpath.terminal import print_status

FORMAT = 3
"""Version of what a training folder means; a folder of another version is not resumed."""
MAX_ROLLOUT = 64
MAX_BATCH = 32
MIN_VALIDATION_PROMPTS = 4
MAX_VALIDATION_PROMPTS = 32


@dataclass(frozen=True)
class Trained:
    """A finished training: a folder that transformers loads, its metrics and its findings."""

    job: Job[PolicyConfig]
    result: dict[str, Any]

    def __repr__(self) -> str:
        return (
            f"Trained({self.job.config.policy.algo!r}, folder={str(self.folder)!r}, "
            f"kl_per_prompt={self.result['kl_per_prompt']:.3g})"
        )

    @property
    def folder(self) -> Path:
        """The model and its tokenizer."""
        return self.job.folder / "weights"

    @property
    def findings(self) -> list[Finding]:
        """Findings of the check and of the health monitor."""
        path = self.job.folder / "findings.json"
        rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        of_check = [row for row in manifest.read(self.job.folder)["findings"] if row not in rows]
        return [finding_of(row) for row in [*of_check, *rows]]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row for each step, one for each validation."""
        return jsonl.read(self.job.folder / METRICS)

    def generate(
        self,
        prompts: Sequence[str | Sequence[Mapping[str, str]]],
        temperature: float = 0.0,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """An answer to each prompt, a text or a list of messages; greedy at temperature 0."""
        longest = self.job.config.policy.max_new_tokens if max_new_tokens is None else max_new_tokens
        if temperature < 0 or longest < 1:
            value = f"temperature = {temperature}, max_new_tokens = {longest}"
            raise RecipeError(value, "temperature >= 0 and max_new_tokens >= 1", "change the value")
        decoding = Decoding(temperature=temperature or 1.0)
        conversations = arguments.prompts(prompts)
        wanted = [
            (prompt_of(str(number), messages), "asked", decoding) for number, messages in enumerate(conversations)
        ]
        completions = generation.sample(
            self.job, self.folder, wanted, "policy", longest, "answers", greedy=not temperature
        )
        return [completion.text for completion in completions]


def train(
    algo: str,
    *,
    model: str | Path | Mapping[str, Any],
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
    cluster: Mapping[str, Any] | None = None,
    health: Mapping[str, Any] | None = None,
    track: Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
    **settings: Any,
) -> Trained:
    """Optimise a model for a reward on its own answers, or on pairs of answers.

    `prompts` are texts, conversations (lists of messages), or rows with `prompt` and further columns. `reward` is a
    function that returns a number for each completion, or None to leave it out; its arguments are filled by name:
    `prompts`, `completions` (or `answers`), columns of the rows, and `**kwargs`, as in TRL; where prompts are
    conversations it gets messages. Two parameters of other names get prompts and completions. `reward` may also be a
    source as recipes name it (`rule:words:8-35`, `math`, an address), or a list, where
    `{"source": ..., "weight": 0.5}` sets a weight.
    DPO, IPO, KTO and ORPO take `pairs` instead, (prompt, better, worse), and pass over them `epochs` times; they do not
    use `kl` and `steps`. Further settings are keys of `[policy]` with `__` for the dot: `learning_rate=1e-5`,
    `grpo__scale="none"`, `lora__alpha=64`. `template` is `model.template`; `model` is a source, or a mapping with
    keys of `[model]`; `engine`, `cluster`, `health` and `track` hold keys of the sections of these names. `callbacks`
    are objects with any of the methods `on_train_begin(steps)`, `on_step(step, metrics)`,
    `on_validation(step, metrics)` and `on_train_end(result)`; one that returns True from the middle two stops the
    training, and the best weights are kept.
    SIGTERM, SIGHUP and SIGUSR1 write a checkpoint and raise SystemExit(75). The same call in the same folder resumes; a
    call with another reward, or changed code, starts again.
    """
    rows = prompts
    if isinstance(prompts, Iterable) and not isinstance(prompts, str | bytes | Mapping):
        rows = list(prompts)
    on_pairs = data_of(algo) == "comparisons"
    conversations = arguments.prompts(rows)
    valid_pairs = arguments.pairs(pairs)
    columns = arguments.columns(rows) if isinstance(rows, list) else {}
    names = {name for row in columns.values() for name in row}
    _require_data(
        algo, on_pairs, {"prompts": bool(conversations), "reward": reward is not None, "pairs": bool(valid_pairs)}
    )
    distinct = list(dict.fromkeys(conversations or [prompt for prompt, _, _ in valid_pairs]))
    defaults: dict[str, Any] = {} if on_pairs else {"kl.coef": kl, "kl.target": 0.0, "steps": steps}
    if reward is not None:
        if "rewards__sources" in settings:
            fix = "give reward a list of sources"
            raise RecipeError("reward and rewards__sources", "rewards are set in one place", fix)
        defaults["rewards.sources"] = arguments.rewards(reward, names)
    tables: dict[str, Any] = {
        "seed": seed,
        "model": {"dtype": dtype, "template": template}
        | (dict(model) if isinstance(model, Mapping) else {"source": model}),
        "engine": {"type": engine} if isinstance(engine, str) else dict(engine or {}),
        "cluster": dict(cluster or {}),
        "health": dict(health or {}),
        "track": dict(track or {}),
    }
    tables = {key: arguments.setting(key, item) for key, item in tables.items()}
    recipe = _recipe(algo, tables, defaults | settings, len(distinct), names)
    prepare_process()
    by_id = {f"p{number}": columns[prompt] for number, prompt in enumerate(distinct) if prompt in columns}
    corpus = Corpus(
        tuple(prompt_of(f"p{number}", messages) for number, messages in enumerate(distinct)),
        columns=by_id,
        conversational=arguments.is_conversational(rows) if isinstance(rows, list) else False,
    )
    job = replace(_job(recipe, Path(folder), corpus, valid_pairs), callbacks=tuple(callbacks))
    with interrupt.handle_signals(), lock_folder(job.folder):
        if not (job.folder / manifest.NAME).is_file():
            _require_context(job, valid_pairs)
            repeated = 0 if on_pairs else len(conversations) - len(distinct)
            _run(job, recipe, repeated)
    manifest.verify(job.folder)
    return Trained(job, manifest.read(job.folder)["result"])


def _run(job: Job[PolicyConfig], recipe: Recipe, repeated: int) -> None:
    """Check, train, and write the manifest."""
    job.findings += _check(recipe, repeated)
    job.findings += model_checks.check_experts(recipe, Path(base.find(job.config.model.source, job.run)))
    if job.findings:
        print_status(preflight.lines(job.findings))
    for callback in job.callbacks:
        getattr(callback, "on_train_begin", lambda _steps: None)(job.config.policy.steps)
    with trackers.follow(recipe, job.run, job.name, job.folder):
        job, result = run_stage(policy.run, job)
    manifest.write(job.folder, {"result": result, "findings": [as_row(finding) for finding in job.findings]})
    for callback in job.callbacks:
        getattr(callback, "on_train_end", lambda _result: None)(result)


def _check(recipe: Recipe, repeated: int) -> list[Finding]:
    """Findings on settings and prompts, as warnings: models may be tiny here, and learning rates for them large."""
    findings = preflight.check_policy_rate(recipe)
    if repeated:
        findings.append(
            Finding(
                "prompts",
                "warning",
                f"{repeated} prompts are there more than once",
                "a validation prompt must not be trained on",
                "each was used once",
            )
        )
    return [replace(finding, severity="warning") for finding in findings]


def _require_data(algo: str, on_pairs: bool, given_arguments: Mapping[str, bool]) -> None:
    """Raise unless there is what the algorithm learns from, and nothing else."""
    needed = {"pairs"} if on_pairs else {"prompts", "reward"}
    present = {name for name, is_present in given_arguments.items() if is_present}
    if present != needed:
        rule = "it learns from judged pairs" if on_pairs else "it learns from its own answers"
        fix = f"give it {' and '.join(sorted(needed))}, and nothing else"
        raise RecipeError(f"train({algo!r}) with {' and '.join(sorted(present)) or 'nothing'}", rule, fix)


def _recipe(
    algo: str, tables: dict[str, Any], settings: Mapping[str, Any], prompts: int, columns: Collection[str] = ()
) -> Recipe:
    """A recipe with defaults for so many prompts: a tenth of them, at most 32, validate."""
    named = {key.replace("__", "."): value for key, value in settings.items()}
    values = flatten({key: arguments.setting(f"policy.{key}", value) for key, value in named.items()})
    validation = max(MIN_VALIDATION_PROMPTS, min(MAX_VALIDATION_PROMPTS, prompts // 10))
    group = values.get("group", ALGORITHM_DEFAULTS.get(algo, {}).get("group", 1))
    group = max(1, group) if isinstance(group, int) else 1  # other types are refused below
    trainable = (prompts - validation) * group
    if trainable < 1:
        rule = f"{validation} are for validation, and one must be left to train on"
        raise RecipeError(f"distinct prompts: {prompts}", rule, "give more prompts")
    size = max(group, min(MAX_ROLLOUT, trainable) // group * group)
    rollout = values.get("rollout", size)
    defaults = {
        "ppo.critic_warmup": 0,
        "algo": algo,
        "rollout": size,
        "batch": min(MAX_BATCH, rollout if isinstance(rollout, int) else size),
        "validation_prompts": validation,
    }
    overrides = {f"policy.{key}": value for key, value in (defaults | values).items()}
    recipe = check(Recipe, merge(tables, overrides), "train()")
    for finding in (*preflight.check_rollouts(recipe.policy, prompts, columns), *engine_checks.check_engine(recipe)):
        if finding.severity == "error":
            raise RecipeError(finding.evidence, finding.cause, finding.remedy)
    return recipe


def _require_context(job: Job[PolicyConfig], pairs: Sequence[arguments.Pair]) -> None:
    """Raise if a prompt with its answer is longer than the model's context."""
    context = model_size(Path(base.find(job.config.model.source, job.run))).context
    max_new_tokens = job.config.policy.max_new_tokens
    prompt_tokens = {p.messages: len(job.chat.prompt(p.messages)) for p in job.corpus.prompts}
    rows = [(tokens + max_new_tokens, transcript(prompt), f"with max_new_tokens = {max_new_tokens}")
            for prompt, tokens in prompt_tokens.items()]  # fmt: skip
    for prompt, *answers in pairs:
        rows += [(prompt_tokens[prompt] + len(job.chat.answer(text)), text, "with its prompt") for text in answers]
    longest, text, part = max(rows)
    if context and longest > context:
        raise DataError(
            f"{text[:60]!r}: {longest} tokens {part}",
            f"the model's context is {context}",
            "shorten or remove it, or lower max_new_tokens",
        )


def _job(recipe: Recipe, run: Path, corpus: Corpus, pairs: Sequence[arguments.Pair]) -> Job[PolicyConfig]:
    """A policy stage that starts from the model, with the pairs as labels, in a folder named by a hash of the call."""
    model_folder = Path(base.find(recipe.model.source, run)).resolve()
    prompts = [p.text for p in corpus.prompts]
    texts = [(transcript(prompt), better, worse) for prompt, better, worse in pairs]
    call = [
        FORMAT,
        recipe.model_dump(mode="json", exclude={"track", "cluster", "sweep"}),
        prompts,
        texts,
        str(model_folder),
    ]
    run.mkdir(parents=True, exist_ok=True)
    call += [content.fetch(recipe.model.source, run), content.template(recipe.model.template)]
    call += [corpus.columns] if corpus.columns else []
    name = hashlib.sha256(json.dumps(call, sort_keys=True, default=repr).encode()).hexdigest()[:12]
    start = run / name / "start"
    start.mkdir(parents=True, exist_ok=True)
    if not (start / "weights").is_symlink():
        (start / "weights").symlink_to(model_folder, target_is_directory=True)
    config = PolicyConfig.from_recipe(recipe)
    job = Job(config, run, "policy", run / name, {"sft": start}, Store.open(run / "towpath.db"), replace(corpus), 1)
    if pairs:
        _store_pairs(job, name, pairs)
    return job


def _store_pairs(job: Job[PolicyConfig], name: str, pairs: Sequence[arguments.Pair]) -> None:
    """Write pairs to the ledger, as the sample and label stages would. Prompt ids are hashes of the text, so that the
    same prompts are held out whatever the settings."""
    ids = {p.messages: f"given/{hashlib.sha256(p.text.encode()).hexdigest()[:12]}" for p in job.corpus.prompts}
    folder = job.folder / "pairs"
    folder.mkdir(exist_ok=True)
    completions = []
    comparisons = []
    for number, (prompt, *answers) in enumerate(pairs):
        sides = [f"{name}/{number}{side}" for side in "ab"]
        for completion_id, text in zip(sides, answers, strict=True):
            tokens = tuple(job.chat.answer(text))
            completions.append(Completion(completion_id, ids[prompt], "given", text, tokens, (), "stop"))
        comparisons.append(Comparison(f"{name[:6]}.{number}", ids[prompt], sides[0], sides[1]))
    job.store.add_prompts([replace(p, id=ids[p.messages]) for p in job.corpus.prompts])
    job.store.add_completions(completions)
    job.store.add_comparisons(comparisons)
    labels = [as_row(Label(comparison.id, "a", 1.0, 1)) for comparison in comparisons]
    (folder / "labels.json").write_text(json.dumps(labels))
    job.inputs |= {"sample": folder, "label": folder}
