"""Preflight checks: what can go wrong is found before a run starts, in data, template, learning rates, batches, disk
and memory."""

import importlib
import math
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from towpath import algos
from towpath.algos import data_of
from towpath.data import checks
from towpath.data.chat import Chat
from towpath.data.checks import first_names
from towpath.data.corpus import Corpus
from towpath.errors import DataError, RecipeError, TowpathError
from towpath.evals.no_judge import NO_JUDGE_CODE
from towpath.feedback import judge_runner, rules
from towpath.models.cpu import build
from towpath.models.memory import memory_available
from towpath.planning.memory import StageMemory, memory_parts
from towpath.planning.sizes import Size, disk_needed, gigabytes, gpu_memory_needed
from towpath.recipe import ALGORITHM_DEFAULTS, Method, Policy, Recipe, Rewards
from towpath.records import Finding, Severity
from towpath.rewards import sources
from towpath.run import cluster_checks, engine_checks, judge_checks, model_checks, plan, task_checks, trackers
from towpath.run.fingerprint import needs_labels
from towpath.run.gpu_checks import check_gpu, check_gpu_memory, uses_gpu
from towpath.run.run_plan import RunModels, memories_here, shape_of_model
from towpath.run.worker_plan import place_workers

ENOUGH_PROMPTS = 200
ENOUGH_PAIRS = 50
MIN_AUDIT_SHARE = 0.1
MAX_EPOCHS = 2
"""Passes over a rollout beyond which an algorithm without a critic gains KL and no reward: with a strong penalty, four
passes reached 0.83 of best-of-n's gain, two 0.88, one 0.91 (docs/performance.md)."""
SFT_TO_POLICY = (10, 40)
"""The usual ratio of the learning rates of SFT and policy."""
RATES: dict[str, dict[Method, tuple[float, float]]] = {
    "sft": {"lora": (5e-5, 2e-4), "full": (5e-5, 2e-4)},
    "reward": {"lora": (5e-5, 2e-4), "full": (1e-6, 5e-5)},
    "policy": {"lora": (5e-6, 5e-4), "full": (1e-6, 5e-5)},
    "pairs": {"lora": (5e-6, 5e-4), "full": (5e-7, 1e-5)},
}
"""Usual peak learning rates by stage and method; those of the policy are PPO's, known for full weights and scaled for
LoRA."""
DATA_CODES = (
    "prompts",
    "prompt-length",
    "prompt-template",
    "row-length",
    "duplicates",
    "leak",
    "safety-set",
    "demonstrations",
    "preferences",
)
"""Findings on data; an error among others is one of the recipe."""
SEVERITY_ORDER = {"error": 0, "critical": 0, "warning": 1, "info": 2}


def check(
    recipe: Recipe, run: Path, corpus: Corpus, chat: Chat | None, force: bool = False, parameters: int | None = None
) -> list[Finding]:
    """All findings before a run; with `force` a learning rate far outside the usual range is a warning."""
    size = Size()
    model_findings: list[Finding] = []
    if chat:
        size, model_findings = model_checks.check_model(recipe, Path(chat.tokenizer.name_or_path))
    if parameters:
        size = replace(size, parameters=parameters)
    findings = [
        *judge_checks.check_judges(recipe, run, corpus),
        *corpus.findings,
        *_check_rates(recipe, force),
        *_check_batches(recipe, corpus),
        *_check_heldout(recipe, corpus),
        *(_check_labels(recipe, corpus) if needs_labels(recipe) else ()),
        *_check_accuracy(recipe, corpus),
        *checks.check_data(recipe, run, corpus, chat, size.context),
        *_check_decoding(recipe),
        *_check_domains(recipe, corpus),
        *engine_checks.check_engine(recipe),
        *check_gpu(recipe),
        *_check_kernels(recipe),
        *(_check_raters(recipe, run) if needs_labels(recipe) else ()),
        *trackers.missing(recipe.track),
        *task_checks.check_tasks(recipe.evaluate, run),
        *model_checks.check_classifiers(recipe, run),
        *model_findings,
    ]
    if chat:
        findings += model_checks.check_template(chat, corpus, size)
        findings += model_checks.check_turns(chat, corpus, recipe.sft)
    else:
        evidence = "no tokenizer: template and lengths were not checked"
        findings.append(Finding("template", "info", evidence, "", "name a model that loads"))
    resources = _check_resources(recipe, run, size)
    if chat and not any(finding.severity == "error" for finding in resources):  # workers would fill the memory
        resources += cluster_checks.check_cluster(recipe, run, Path(chat.tokenizer.name_or_path))
    return findings + resources


def require(findings: Sequence[Finding], force: bool = False) -> None:
    """Raise if findings are errors, unless `force` is set."""
    errors = [f for f in findings if f.severity == "error"]
    if not errors or force:
        return
    kind = DataError if all(f.code in DATA_CODES for f in errors) else RecipeError
    # Loading would refuse a wrong model again.
    forced = "" if any(f.code == "model" for f in errors) else "; --force continues all the same"
    if len(errors) == 1:
        raise kind(errors[0].evidence, errors[0].cause, f"{errors[0].remedy}{forced}")
    rows = "\n".join(f"  {f.evidence}\n    {f.cause}\n    {f.remedy}" for f in errors)
    raise kind(f"{len(errors)} findings stop this run:\n{rows}", "errors of the check stop a run", f"fix them{forced}")


def lines(findings: Sequence[Finding]) -> str:
    """Findings for the terminal, one block each: a missing evaluation judge first, then by severity."""
    blocks = []
    for f in sorted(findings, key=lambda f: (f.code != NO_JUDGE_CODE, SEVERITY_ORDER[f.severity])):
        details = [f"  {word:<6} {text}" for word, text in (("cause:", f.cause), ("fix:", f.remedy)) if text]
        blocks.append("\n".join([f"{f.severity.upper()} {f.code}: {f.evidence}", *details]))
    return "\n".join(blocks)


def _check_rates(recipe: Recipe, force: bool) -> Iterator[Finding]:
    for name, stage in (("sft", recipe.sft), ("reward", recipe.reward)):
        if stage.method == "none":
            continue
        yield from _check_rate(name, stage.learning_rate, RATES[name], stage.method, force)
    yield from check_policy_rate(recipe, force)
    policy = recipe.policy
    if "." in policy.algo:
        evidence = f"policy.learning_rate = {policy.learning_rate:g}: no usual range is known for {policy.algo}"
        yield Finding("learning-rate", "info", evidence, "an algorithm of your own", "")
    yield from _check_rate_ratio(recipe)


def check_policy_rate(recipe: Recipe, force: bool = False) -> list[Finding]:
    """Whether the policy's learning rate is usual for its algorithm; an algorithm of the user's own has no range."""
    cfg = recipe.policy
    if "." in cfg.algo:
        return []
    usual = RATES["pairs" if data_of(cfg.algo) == "comparisons" else "policy"]
    return list(_check_rate("policy", cfg.learning_rate, usual, cfg.method, force))


def _check_rate(
    stage: str, rate: float, ranges: Mapping[Method, tuple[float, float]], method: Method, force: bool
) -> Iterator[Finding]:
    low, high = ranges[method]
    factor = max(low / rate, rate / high)
    if factor <= 1 + 1e-9:
        return
    usual = f"{low:g}–{high:g}"
    if stage == "policy" and method == "lora":
        usual += ", scaled for LoRA from {:g}–{:g} for full weights".format(*ranges["full"])
    side = "below" if rate < low else "above"
    evidence = f"{stage}.learning_rate = {rate:g} is {side} the usual range of method {method!r} ({usual})"
    far = factor > 10 + 1e-9
    if far:
        effect = "nothing would be learned" if rate < low else "training would become unstable"
        cause = f"more than ten times outside: {effect}"
    else:
        cause = "slower than need be" if rate < low else "training may become unstable"
    severity: Severity = "error" if far and not force else "warning"
    yield Finding("learning-rate", severity, evidence, cause, f"set {stage}.learning_rate within {low:g}–{high:g}")


def _check_rate_ratio(recipe: Recipe) -> Iterator[Finding]:
    sft = recipe.sft
    policy = recipe.policy
    if sft.method == "none":
        return
    if sft.method != policy.method:
        evidence = f"sft.method is {sft.method}, policy.method is {policy.method}: their rates were not compared"
        yield Finding("learning-rate-ratio", "info", evidence, "LoRA and full weights want different rates", "")
        return
    low, high = SFT_TO_POLICY
    ratio = sft.learning_rate / policy.learning_rate
    if low - 1e-6 <= ratio <= high + 1e-6:
        return
    evidence = (
        f"policy.learning_rate = {policy.learning_rate:g} is {ratio:.3g}x below sft.learning_rate = "
        f"{sft.learning_rate:g}; {low}–{high}x is usual"
    )
    cause = "the policy shapes its own data, so errors feed back" if ratio < low else "the policy may hardly move"
    fix = f"set policy.learning_rate within {sft.learning_rate / high:.2g}–{sft.learning_rate / low:.2g}"
    yield Finding("learning-rate-ratio", "warning", evidence, cause, fix)


def _check_kernels(recipe: Recipe) -> Iterator[Finding]:
    """Whether CPU kernels can be compiled."""
    reason = build.hindrance() if not recipe.model.is_on_gpu else ""
    if reason:
        cause = "without compiled kernels a training step on a CPU takes a fifth longer, and sampling a third"
        yield Finding("kernels", "info", f"kernels are not compiled: {reason}", cause, "apt install g++")


def _check_raters(recipe: Recipe, run: Path) -> Iterator[Finding]:
    """Whether the raters can label: a judge that is configured, rules that load."""
    cfg = recipe.preferences
    if cfg.raters == "recorded" and recipe.rounds > 1:
        evidence = f"rounds = {recipe.rounds} with preferences.raters = 'recorded'"
        cause = "a further round needs labels of the policy's own answers"
        yield Finding("raters", "error", evidence, cause, "set rounds to 1")
    if cfg.raters == "blend" and cfg.audit_share < MIN_AUDIT_SHARE:
        evidence = f"preferences.audit_share = {cfg.audit_share:g}"
        cause = f"the judge is measured on a random slice, at least {MIN_AUDIT_SHARE:g}"
        yield Finding("raters", "error", evidence, cause, f"set it to {MIN_AUDIT_SHARE:g} or more")
    if cfg.raters == "blend" and cfg.human_share < cfg.audit_share:
        evidence = f"preferences.human_share = {cfg.human_share:g}, preferences.audit_share = {cfg.audit_share:g}"
        fix = f"set preferences.human_share to {cfg.audit_share:g} or more"
        yield Finding("raters", "error", evidence, "the audit is part of what people see", fix)
    try:
        if cfg.raters in ("judge", "blend"):
            judge_runner.judge_settings(recipe.judge, run)
            for name, text in cfg.rules.items():
                rules.load_rule(text, name, run)
    except TowpathError as error:
        yield Finding("raters", "error", error.value, error.rule, error.fix)


def check_rollouts(policy: Policy, prompts: int, columns: Collection[str] = ()) -> Iterator[Finding]:
    """Whether a rollout can be made of so many training prompts, whose rows have these columns."""
    if policy.batch > policy.rollout:
        evidence = f"policy.batch = {policy.batch} is more than policy.rollout = {policy.rollout}"
        fix = f"set policy.batch to {policy.rollout} or less"
        yield Finding("batch", "error", evidence, "a rollout is split into batches", fix)
    trainable = prompts - policy.validation_prompts
    if policy.rollout // policy.group > trainable:
        groups = f" in groups of {policy.group}" if policy.group > 1 else ""
        evidence = (
            f"policy.rollout = {policy.rollout}{groups}, but {max(trainable, 0)} of {prompts} training prompts are left"
        )
        cause = (
            f"policy.validation_prompts = {policy.validation_prompts} are held out, and a rollout has each prompt once"
        )
        fix = "lower policy.validation_prompts, or add prompts"
        fix += f", or set policy.rollout to {trainable * policy.group} or less" if trainable > 0 else ""
        yield Finding("rollout", "error", evidence, cause, fix)
    yield from _check_groups(policy)
    yield from _check_settings(policy)
    yield from _check_rewards(policy, columns)


def _check_groups(policy: Policy) -> Iterator[Finding]:
    """What algorithms need of groups, epochs and pairs."""
    algo = f"policy.algo = {policy.algo!r}"
    if policy.rollout % policy.group:
        evidence = f"policy.rollout = {policy.rollout} is no multiple of policy.group = {policy.group}"
        fix = f"set policy.rollout to {max(1, policy.rollout // policy.group) * policy.group}"
        yield Finding("group", "error", evidence, "a rollout is made of whole groups", fix)
    if "group" in ALGORITHM_DEFAULTS.get(policy.algo, {}) and policy.group < 2:
        cause = "an answer is compared with others to the same prompt"
        yield Finding(
            "group", "error", f"{algo} with policy.group = {policy.group}", cause, "set policy.group to 4 or more"
        )
    if "epochs" in ALGORITHM_DEFAULTS.get(policy.algo, {}) and policy.epochs > MAX_EPOCHS:
        evidence = f"{algo} with policy.epochs = {policy.epochs}"
        cause = "one reward an answer is noisy credit: repeated passes buy KL, not reward (docs/performance.md)"
        yield Finding("epochs", "warning", evidence, cause, f"set policy.epochs to 1, or {MAX_EPOCHS} at most")
    if data_of(policy.algo) == "comparisons" and policy.batch < 2:
        evidence = f"policy.batch = {policy.batch}"
        yield Finding("batch", "error", evidence, "a pair is two completions", "set policy.batch to 2 or more")


def _check_settings(policy: Policy) -> Iterator[Finding]:
    """Whether `policy.settings` are those of an algorithm of the user's own."""
    if not policy.settings:
        return
    if "." not in policy.algo:
        evidence = f"policy.settings with policy.algo = {policy.algo!r}"
        fix = f"set keys of [policy.{policy.algo}] instead"
        yield Finding("algorithm", "error", evidence, "settings are for an algorithm of your own", fix)
        return
    algos.require_settings(importlib.import_module(policy.algo), policy.settings)


def _check_rewards(policy: Policy, columns: Collection[str]) -> Iterator[Finding]:
    """Whether something is rewarded, and every source loads."""
    rewards = policy.rewards
    if data_of(policy.algo) == "rollouts" and not any(source.weight for source in rewards.sources):
        evidence = "policy.rewards.sources is empty"
        if rewards.sources:
            evidence = "every source of policy.rewards has weight 0"
        yield Finding("rewards", "error", evidence, "nothing is rewarded", "give it a source with a weight")
    for source in rewards.sources:
        if source.source.partition(":")[0] != "model":
            yield from check_source("policy.rewards.sources", source.source, rewards, columns)
    for source in rewards.watch:
        if not source.startswith("model:"):
            yield from check_source("policy.rewards.watch", source, rewards, columns)


def check_source(key: str, source: str, rewards: Rewards, columns: Collection[str]) -> Iterator[Finding]:
    """Whether a reward source that a key of the recipe names can be called."""
    try:
        sources.load_source(source, columns, rewards.command)
    except TowpathError as error:
        yield Finding("rewards", "error", f"{key}: {error.value}", error.rule, error.fix)


def _check_batches(recipe: Recipe, corpus: Corpus) -> Iterator[Finding]:
    yield from check_rollouts(recipe.policy, len(corpus.train), corpus.column_names)
    sft = recipe.sft
    count = len(corpus.demonstrations)
    if sft.method == "none":
        return
    trainable = count - max(1, round(sft.validation * count))
    if trainable < sft.batch:
        evidence = f"{max(trainable, 0)} demonstrations to train on, sft.batch = {sft.batch}"
        cause = f"{count} in all, of which sft.validation = {sft.validation:g} is held out"
        fix = "add demonstrations" + (f", or set sft.batch to {trainable} or less" if trainable > 0 else "")
        yield Finding("demonstrations", "error", evidence, cause, fix)


def _check_accuracy(recipe: Recipe, corpus: Corpus) -> Iterator[Finding]:
    """Whether the source that checks held-out answers can be called."""
    if recipe.evaluate.accuracy:
        source = recipe.evaluate.accuracy
        yield from check_source("evaluate.accuracy", source, recipe.policy.rewards, corpus.column_names)


def _check_heldout(recipe: Recipe, corpus: Corpus) -> Iterator[Finding]:
    """Whether there are enough held-out prompts."""
    count = min(len(corpus.heldout), recipe.evaluate.prompts or len(corpus.heldout))
    if not count:
        cause = "evaluation judges on prompts that training never saw"
        yield Finding("prompts", "error", "no held-out prompts", cause, _more_heldout(recipe, corpus))
    elif count < ENOUGH_PROMPTS:
        evidence = f"{count} held-out prompts: a win rate of 70 % comes as 70 ± {_margin(0.7, count):.0f} %"
        fix = "raise evaluate.prompts" if count < len(corpus.heldout) else _more_heldout(recipe, corpus)
        fix = f"{ENOUGH_PROMPTS} give ± {_margin(0.7, ENOUGH_PROMPTS):.0f}: {fix}"
        yield Finding("heldout-few", "warning", evidence, "the interval is wide with few prompts", fix)


def _check_labels(recipe: Recipe, corpus: Corpus) -> Iterator[Finding]:
    """Whether there can be enough labels and held-out pairs."""
    cfg = recipe.preferences
    most = plan.max_comparisons(recipe, len(corpus.train))
    if cfg.raters == "recorded":
        most = cfg.min_labels  # as many as the files hold
    if cfg.min_labels > most:
        prompts = min(len(corpus.train), cfg.prompts or len(corpus.train))
        evidence = f"preferences.min_labels = {cfg.min_labels}, but {prompts} prompts give at most {most} comparisons"
        fix = "lower preferences.min_labels, raise preferences.prompts or preferences.completions, or add prompts"
        yield Finding("labels", "error", evidence, "the run would wait for labels that cannot come", fix)
    pairs = most if cfg.raters == "simulated" else min(cfg.min_labels, most)
    heldout_pairs = round(pairs * recipe.reward.validation)
    if heldout_pairs < ENOUGH_PAIRS:
        evidence = f"reward.validation = {recipe.reward.validation:g} holds out about {heldout_pairs} of {pairs} pairs"
        cause = f"an accuracy of 85 % comes as 85 ± {_margin(0.85, max(heldout_pairs, 1)):.0f} %"
        fix = f"collect more labels, or raise reward.validation: {ENOUGH_PAIRS} pairs or more"
        yield Finding("pairs-few", "warning", evidence, cause, fix)


def _more_heldout(recipe: Recipe, corpus: Corpus) -> str:
    """How to get more held-out prompts: `data.heldout` applies only where rows name no split."""
    if corpus.random_splits:
        return f"raise data.heldout (now {recipe.data.heldout:g}), add prompts, or give some split = 'heldout'"
    return "give more prompts split = 'heldout': every row names its split, so data.heldout has no effect"


def _margin(rate: float, n: int) -> float:
    """Half of the 95 % confidence interval, in points."""
    return 196 * math.sqrt(rate * (1 - rate) / n)


def _check_domains(recipe: Recipe, corpus: Corpus) -> Iterator[Finding]:
    """Weights of domains that no row has."""
    for key, weights, domains in (
        ("sft.domains", recipe.sft.domains, {d.domain for d in corpus.demonstrations}),
        ("policy.rewards.domains", recipe.policy.rewards.domains, {p.domain for p in corpus.train}),
    ):
        unknown = sorted(set(weights) - domains)
        if unknown:
            fix = f"domains are {first_names(sorted(domains))}"
            yield Finding("domains", "warning", f"{key} weighs {first_names(unknown)}", "no row is of that domain", fix)


def _check_decoding(recipe: Recipe) -> Iterator[Finding]:
    for key in ("temperature", "max_new_tokens"):
        trained = getattr(recipe.policy, key)
        evaluated = getattr(recipe.evaluate, key)
        if trained != evaluated:
            evidence = f"policy.{key} = {trained:g}, evaluate.{key} = {evaluated:g}"
            cause = "answers are judged under other settings than they were trained with"
            yield Finding("decoding", "warning", evidence, cause, f"set both to {trained:g}, unless this is intended")


def _check_resources(recipe: Recipe, run: Path, size: Size) -> list[Finding]:
    """Whether disk and memory suffice."""
    if size.parameters is None:
        evidence = "the size of the model is not known: disk and memory were not checked"
        return [Finding("resources", "info", evidence, "", "")]
    reward, classifiers = model_checks.classifier_sizes(recipe, run)
    others = classifiers + (reward.parameters or 0 if reward else 0)
    parameters = f"{size.parameters / 1e6:,.1f} M parameters"
    if others:
        parameters += f", and {others / 1e6:,.1f} M of other reward models"
    disk = disk_needed(recipe, size, reward)
    findings = [_check_disk(recipe, run, disk, parameters)]
    placement = place_workers(recipe, size, reward, classifiers)
    if uses_gpu(recipe):
        needed = gpu_memory_needed(recipe, size, reward, classifiers, placement.parts)
        return [*findings, *check_gpu_memory(recipe, needed, parameters, placement.device_share)]
    models = RunModels(size, reward, classifiers, shape_of_model(recipe, run))
    memories = memories_here(recipe, run, placement, models)
    return [*findings, *_check_memory(recipe, memories, parameters, len(placement.devices))]


def _check_disk(recipe: Recipe, run: Path, needed: int, parameters: str) -> Finding:
    folder = next(folder for folder in (run.absolute(), *run.absolute().parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    used = sum(path.stat().st_size for path in (run / "stages").rglob("*") if path.is_file())
    evidence = f"about {gigabytes(needed)} in all, {gigabytes(used)} there already, {gigabytes(free)} free at {folder}"
    cause = f"weights in float32 and three checkpoints a stage, {parameters}, {recipe.rounds} round(s)"
    if needed - used > free:
        return Finding("disk", "error", evidence, cause, "free space, or use LoRA")
    return Finding("disk", "info", evidence, cause, "")


def _check_memory(
    recipe: Recipe, memories: Mapping[str, StageMemory], parameters: str, workers: int
) -> Iterator[Finding]:
    """Whether all workers fit this machine together in the largest stage."""
    available = memory_available()
    if available is None:
        return
    stage, memory = max(memories.items(), key=lambda one: one[1].total)
    needed = memory.total
    each = f" for each of {workers} workers" if workers > 1 else ""
    evidence = f"about {gigabytes(needed)} in {stage}{each}, {gigabytes(available)} available"
    cause = f"{parameters}: {memory_parts(memory)}"
    if workers * needed <= available:
        yield Finding("memory", "info", evidence, cause, "")
        return
    severity: Severity = "error" if recipe.model.is_on_cpu or workers > 1 else "warning"
    fix = "use LoRA, a smaller model or fewer tokens_per_pass"
    if workers > 1:
        fits = max(1, available // max(1, needed))
        fix = f"set cluster.workers to {fits}, or cluster.shard = 'fsdp', which divides models over workers; or {fix}"
    yield Finding("memory", severity, evidence, cause, fix)
