"""What can be known to go wrong before a run starts: data, template, rates, batches, disk and memory."""

import math
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from towpath.algos import data_of
from towpath.data import checks
from towpath.data.chat import Chat
from towpath.data.checks import first_names as _named
from towpath.data.corpus import Corpus
from towpath.errors import DataError, RecipeError, TowpathError
from towpath.evals.evaluator import NO_JUDGE, NO_JUDGE_CODE, NO_JUDGE_FIX, NO_JUDGE_REASON, find_evaluator
from towpath.feedback import judge_runner, rules
from towpath.models.cpu import build
from towpath.recipe import SUITED, Method, Policy, Recipe
from towpath.records import Finding
from towpath.rewards import sources
from towpath.run import model_checks
from towpath.run.sizes import Size, disk_needed, memory_available, memory_needed
from towpath.stages import trackers

ENOUGH_PROMPTS = 200
ENOUGH_PAIRS = 50
LEAST_AUDIT = 0.1
EPOCHS = 2
"""Passes over a rollout beyond which an algorithm without a critic wastes its nats: held strongly, four bought 0.83
of best-of-n's gain, two 0.88, one 0.91 (docs/performance.md)."""
RATES: dict[str, dict[Method, tuple[float, float]]] = {
    "sft": {"lora": (5e-5, 2e-4), "full": (5e-5, 2e-4)},
    "reward": {"lora": (5e-5, 2e-4), "full": (1e-6, 5e-5)},
    "policy": {"lora": (5e-6, 5e-4), "full": (1e-6, 5e-5)},
    "pairs": {"lora": (5e-6, 5e-4), "full": (5e-7, 1e-5)},
}
"""Usual peak rates by stage and method; those of the policy are PPO's, known for full weights and scaled for LoRA."""
_OF_DATA = (
    "prompts",
    "prompt-length",
    "row-length",
    "duplicates",
    "leak",
    "safety-set",
    "demonstrations",
    "preferences",
)


def check(
    recipe: Recipe, run: Path, corpus: Corpus, chat: Chat | None, force: bool = False, parameters: int | None = None
) -> list[Finding]:
    """Everything worth knowing before a run; `force` makes refused rates warnings."""
    size, of_model = model_checks.of_model(recipe, Path(chat.tokenizer.name_or_path)) if chat else (Size(), [])
    size = replace(size, parameters=parameters) if parameters else size
    findings = [
        *_judges(recipe, corpus),
        *corpus.findings,
        *_rates(recipe, force),
        *_batches(recipe, corpus),
        *_evidence(recipe, corpus),
        *checks.check_data(recipe, run, corpus, chat, size.context),
    ]
    findings += [*_alike_decoding(recipe), *_domains(recipe, corpus), *of_engine(recipe), *_kernels(recipe)]
    findings += [*_raters(recipe, run), *trackers.missing(recipe.track), *of_model]
    if chat is None:
        findings.append(
            Finding(
                "template",
                "info",
                "no tokenizer at hand: template and lengths were not looked at",
                "",
                "name a model that loads",
            )
        )
    else:
        findings += model_checks.of_template(chat, corpus, size)
    return findings + _resources(recipe, run, size)


def require(findings: Sequence[Finding], force: bool = False) -> None:
    """Raise what must stop a run; `force` lets all of it through."""
    errors = [f for f in findings if f.severity == "error"]
    if not errors or force:
        return
    kind = DataError if all(f.code in _OF_DATA for f in errors) else RecipeError
    # loading would refuse the model again
    forced = "" if any(f.code == "model" for f in errors) else "; --force goes on all the same"
    if len(errors) == 1:
        raise kind(errors[0].evidence, errors[0].cause, f"{errors[0].remedy}{forced}")
    told = "\n".join(f"  {f.evidence}\n    {f.cause}\n    {f.remedy}" for f in errors)
    raise kind(f"{len(errors)} findings stop this run:\n{told}", "errors of the check stop a run", f"fix them{forced}")


def lines(findings: Sequence[Finding]) -> str:
    """Findings for the terminal, the worst first but for a missing evaluation judge, which colours all else: one
    block each."""
    order = {"error": 0, "critical": 0, "warning": 1, "info": 2}
    blocks = []
    for f in sorted(findings, key=lambda f: (f.code != NO_JUDGE_CODE, order[f.severity])):
        more = [f"  {word:<6} {text}" for word, text in (("cause:", f.cause), ("fix:", f.remedy)) if text]
        blocks.append("\n".join([f"{f.severity.upper()} {f.code}: {f.evidence}", *more]))
    return "\n".join(blocks)


def _judges(recipe: Recipe, corpus: Corpus) -> Iterator[Finding]:
    """Whether a judge of win rates fits the data, and whether simulated labels mean anything here."""
    if find_evaluator(corpus) is not None:
        return
    evidence = f"{NO_JUDGE}: the gates sft and evaluate will be UNDECIDED, and stop nothing"
    yield Finding(NO_JUDGE_CODE, "warning", evidence, NO_JUDGE_REASON, NO_JUDGE_FIX)
    if recipe.preferences.raters == "simulated":
        evidence = "preferences.raters = 'simulated' labels this data by the bundled recipes' rubric"
        remedy = "set preferences.raters to people, judge, blend or recorded"
        yield Finding(
            "simulated-labels", "warning", evidence, "such labels say nothing about what people prefer here", remedy
        )


def _rates(recipe: Recipe, force: bool) -> list[Finding]:
    found = [
        _rate(name, stage.learning_rate, RATES[name], stage.method, force)
        for name, stage in (("sft", recipe.sft), ("reward", recipe.reward))
    ]
    found += of_rate(recipe, force)
    if "." in recipe.policy.algo:
        evidence = (
            f"policy.learning_rate = {recipe.policy.learning_rate:g}: no usual range is known for {recipe.policy.algo}"
        )
        found.append(Finding("learning-rate", "info", evidence, "an algorithm of your own", ""))
    return [f for f in [*found, _ratio(recipe)] if f]


def of_rate(recipe: Recipe, force: bool = False) -> list[Finding]:
    """What there is to say of the policy's rate alone; nothing of an algorithm of one's own."""
    cfg = recipe.policy
    if "." in cfg.algo:
        return []
    usual = RATES["pairs" if data_of(cfg.algo) == "comparisons" else "policy"]
    found = _rate("policy", cfg.learning_rate, usual, cfg.method, force)
    return [found] if found else []


def of_engine(recipe: Recipe) -> list[Finding]:
    """Whether the Python that draws answers is there and has vLLM."""
    if recipe.engine.type == "local":
        return []
    remedy = "python -m venv ENV; ENV/bin/pip install vllm; engine.python = 'ENV/bin/python'"
    if not recipe.engine.python:
        cause = "engine.type = 'vllm' needs the Python of an environment that has vLLM"
        return [Finding("engine", "error", "engine.python = '': no Python is named", cause, remedy)]
    asked = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        found = subprocess.run([recipe.engine.python, "-c", asked], capture_output=True, check=False).returncode == 0
    except OSError:
        found = False
    cause = "engine.type = 'vllm' needs an environment that has vLLM"
    return (
        []
        if found
        else [
            Finding("engine", "error", f"engine.python = {recipe.engine.python!r}: no Python with vLLM", cause, remedy)
        ]
    )


def _kernels(recipe: Recipe) -> list[Finding]:
    """Whether a CPU does what lies between matrix products as fast as it can."""
    hindrance = build.hindrance() if recipe.model.device != "cuda" else ""
    cause = "on a CPU a training step takes a fifth longer without compiled kernels, and drawing a third"
    return (
        [Finding("kernels", "info", f"kernels are not compiled: {hindrance}", cause, "apt install g++")]
        if hindrance
        else []
    )


def _raters(recipe: Recipe, run: Path) -> Iterator[Finding]:
    """Whether those who label can: a judge that is named, rules that are rules."""
    cfg = recipe.preferences
    if cfg.raters == "recorded" and recipe.rounds > 1:
        cause = "a further round needs labels of the policy's own answers"
        yield Finding(
            "raters",
            "error",
            f"rounds = {recipe.rounds} with preferences.raters = 'recorded'",
            cause,
            "set rounds to 1",
        )
    if cfg.raters == "blend" and cfg.audit_share < LEAST_AUDIT:
        cause = f"the judge is measured on a slice drawn by lot, at least {LEAST_AUDIT:g}"
        yield Finding(
            "raters",
            "error",
            f"preferences.audit_share = {cfg.audit_share:g}",
            cause,
            f"set it to {LEAST_AUDIT:g} or more",
        )
    if cfg.raters == "blend" and cfg.human_share < cfg.audit_share:
        value = f"preferences.human_share = {cfg.human_share:g}, preferences.audit_share = {cfg.audit_share:g}"
        yield Finding(
            "raters",
            "error",
            value,
            "the audit is part of what people see",
            f"set preferences.human_share to {cfg.audit_share:g} or more",
        )
    try:
        if cfg.raters in ("judge", "blend"):
            judge_runner.judge_settings(recipe.judge, run)
            for name, text in cfg.rules.items():
                rules.load_rule(text, name, run)
    except TowpathError as error:
        yield Finding("raters", "error", error.value, error.rule, error.fix)


def _rate(
    stage: str, rate: float, ranges: Mapping[Method, tuple[float, float]], method: Method, force: bool
) -> Finding | None:
    low, high = ranges[method]
    beyond = max(low / rate, rate / high)
    if beyond <= 1 + 1e-9:
        return None
    usual = f"{low:g}–{high:g}"
    if stage == "policy" and method == "lora":
        usual += ", scaled for LoRA from {:g}–{:g} for full weights".format(*ranges["full"])
    evidence = (
        f"{stage}.learning_rate = {rate:g} is {'below' if rate < low else 'above'} the usual range of method "
        f"{method!r} ({usual})"
    )
    wild = beyond > 10 + 1e-9
    cause = "nothing would be learned" if rate < low else "training would become unstable"
    cause = (
        f"more than ten times outside: {cause}"
        if wild
        else "slower than need be"
        if rate < low
        else "training may become unstable"
    )
    return Finding(
        "learning-rate",
        "error" if wild and not force else "warning",
        evidence,
        cause,
        f"set {stage}.learning_rate within {low:g}–{high:g}",
    )


def _ratio(recipe: Recipe) -> Finding | None:
    sft = recipe.sft
    policy = recipe.policy
    if sft.method != policy.method:
        evidence = f"sft.method is {sft.method}, policy.method is {policy.method}: their rates were not compared"
        return Finding("learning-rate-ratio", "info", evidence, "LoRA and full weights want different rates", "")
    ratio = sft.learning_rate / policy.learning_rate
    if 10 - 1e-6 <= ratio <= 40 + 1e-6:
        return None
    evidence = (
        f"policy.learning_rate = {policy.learning_rate:g} is {ratio:.3g}x below sft.learning_rate = "
        f"{sft.learning_rate:g}; 10–40x is usual"
    )
    cause = "the policy shapes its own data, so errors feed back" if ratio < 10 else "the policy may hardly move"
    remedy = f"set policy.learning_rate within {sft.learning_rate / 40:.2g}–{sft.learning_rate / 10:.2g}"
    return Finding("learning-rate-ratio", "warning", evidence, cause, remedy)


def of_rollouts(policy: Policy, prompts: int, columns: Collection[str] = ()) -> Iterator[Finding]:
    """Whether a rollout can be made of so many training prompts, whose rows have these columns, and be learned from."""
    if policy.batch > policy.rollout:
        evidence = f"policy.batch = {policy.batch} is more than policy.rollout = {policy.rollout}"
        yield Finding(
            "batch",
            "error",
            evidence,
            "a rollout is split into batches",
            f"set policy.batch to {policy.rollout} or less",
        )
    left = prompts - policy.validation_prompts
    met = policy.rollout // policy.group
    if met > left:
        of = f" in groups of {policy.group}" if policy.group > 1 else ""
        evidence = f"policy.rollout = {policy.rollout}{of}, but {max(left, 0)} of {prompts} training prompts are left"
        cause = (
            f"policy.validation_prompts = {policy.validation_prompts} are kept apart, and a rollout meets a prompt once"
        )
        remedy = "lower policy.validation_prompts, or add prompts"
        remedy += f", or set policy.rollout to {left * policy.group} or less" if left > 0 else ""
        yield Finding("rollout", "error", evidence, cause, remedy)
    yield from _groups(policy, columns)


def _batches(recipe: Recipe, corpus: Corpus) -> list[Finding]:
    found = list(of_rollouts(recipe.policy, len(corpus.train), corpus.column_names))
    sft = recipe.sft
    shown = len(corpus.demonstrations) - max(1, round(sft.validation * len(corpus.demonstrations)))
    if shown < sft.batch:
        evidence = f"{max(shown, 0)} demonstrations to train on, sft.batch = {sft.batch}"
        cause = f"{len(corpus.demonstrations)} in all, of which sft.validation = {sft.validation:g} is kept apart"
        found.append(
            Finding(
                "demonstrations",
                "error",
                evidence,
                cause,
                "add demonstrations" + (f", or set sft.batch to {shown} or less" if shown > 0 else ""),
            )
        )
    return found


def _groups(policy: Policy, columns: Collection[str] = ()) -> Iterator[Finding]:
    """What algorithms ask of groups and pairs; and that every source of rewards is one."""
    if policy.rollout % policy.group:
        evidence = f"policy.rollout = {policy.rollout} is no multiple of policy.group = {policy.group}"
        remedy = f"set policy.rollout to {max(1, policy.rollout // policy.group) * policy.group}"
        yield Finding("group", "error", evidence, "a rollout is made of whole groups", remedy)
    if "group" in SUITED.get(policy.algo, {}) and policy.group < 2:
        evidence = f"policy.algo = {policy.algo!r} with policy.group = {policy.group}"
        yield Finding(
            "group",
            "error",
            evidence,
            "an answer is compared with others to the same prompt",
            "set policy.group to 4 or more",
        )
    if "epochs" in SUITED.get(policy.algo, {}) and policy.epochs > EPOCHS:
        evidence = f"policy.algo = {policy.algo!r} with policy.epochs = {policy.epochs}"
        cause = (
            "one number an answer is noisy credit: read again and again it buys KL, not reward (docs/performance.md)"
        )
        yield Finding("epochs", "warning", evidence, cause, f"set policy.epochs to 1, or {EPOCHS} at most")
    if data_of(policy.algo) == "rollouts" and not any(source.weight for source in policy.rewards.sources):
        evidence = (
            "every source of policy.rewards has weight 0"
            if policy.rewards.sources
            else "policy.rewards.sources is empty"
        )
        yield Finding("rewards", "error", evidence, "nothing is rewarded", "give it a source with a weight")
    for source in policy.rewards.sources:
        if source.source != "model":
            sources.load_source(source.source, columns=columns)
    for of in policy.rewards.watch:
        sources.load_source(of, "watch", columns)
    if data_of(policy.algo) == "comparisons" and policy.batch < 2:
        yield Finding(
            "batch",
            "error",
            f"policy.batch = {policy.batch}",
            "a pair is two completions",
            "set policy.batch to 2 or more",
        )


def _evidence(recipe: Recipe, corpus: Corpus) -> list[Finding]:
    """Whether there is enough to judge by: held-out prompts, labels, held-out pairs."""
    found = []
    cfg = recipe.preferences
    count = min(len(corpus.heldout), recipe.evaluate.prompts or len(corpus.heldout))
    if not count:
        cause = "evaluation judges on prompts that training never saw"
        found.append(Finding("prompts", "error", "no held-out prompts", cause, _more_heldout(recipe, corpus)))
    elif count < ENOUGH_PROMPTS:
        evidence = f"{count} held-out prompts: a win rate of 70 % comes as 70 ± {_margin(0.7, count):.0f} %"
        limited = count < len(corpus.heldout)
        remedy = "raise evaluate.prompts" if limited else _more_heldout(recipe, corpus)
        remedy = f"{ENOUGH_PROMPTS} give ± {_margin(0.7, ENOUGH_PROMPTS):.0f}: {remedy}"
        found.append(Finding("heldout-few", "warning", evidence, "few prompts judge loosely", remedy))
    prompts = min(len(corpus.train), cfg.prompts or len(corpus.train))
    most = round(prompts * (math.comb(cfg.completions, 2) + cfg.base_share)) * recipe.rounds
    if cfg.raters == "recorded":
        most = cfg.min_labels  # as many as the files hold
    if cfg.min_labels > most:
        evidence = f"preferences.min_labels = {cfg.min_labels}, but {prompts} prompts give at most {most} comparisons"
        remedy = "lower preferences.min_labels, raise preferences.prompts or preferences.completions, or add prompts"
        found.append(Finding("labels", "error", evidence, "the run would wait for labels that cannot come", remedy))
    pairs = most if cfg.raters == "simulated" else min(cfg.min_labels, most)
    held = round(pairs * recipe.reward.validation)
    if held < ENOUGH_PAIRS:
        evidence = f"reward.validation = {recipe.reward.validation:g} holds out about {held} of {pairs} pairs"
        cause = f"an accuracy of 85 % comes as 85 ± {_margin(0.85, max(held, 1)):.0f} %"
        found.append(
            Finding(
                "pairs-few",
                "warning",
                evidence,
                cause,
                f"collect more labels, or raise reward.validation: {ENOUGH_PAIRS} pairs or more",
            )
        )
    return found


def _more_heldout(recipe: Recipe, corpus: Corpus) -> str:
    """What gives more held-out prompts here: `data.heldout` has a say only where rows name no split."""
    if corpus.drawn:
        return f"raise data.heldout (now {recipe.data.heldout:g}), add prompts, or give some split = 'heldout'"
    return "give more prompts split = 'heldout': every row names its split, so data.heldout has no effect"


def _margin(rate: float, n: int) -> float:
    """Half of the 95 % interval in points."""
    return 196 * math.sqrt(rate * (1 - rate) / n)


def _domains(recipe: Recipe, corpus: Corpus) -> list[Finding]:
    """Weights of domains that no row belongs to."""
    found = []
    for key, weights, known in (
        ("sft.domains", recipe.sft.domains, {d.domain for d in corpus.demonstrations}),
        ("policy.rewards.domains", recipe.policy.rewards.domains, {p.domain for p in corpus.train}),
    ):
        if lost := sorted(set(weights) - known):
            fix = f"domains are {_named(sorted(known))}"
            found.append(Finding("domains", "warning", f"{key} weighs {_named(lost)}", "no row is of that domain", fix))
    return found


def _alike_decoding(recipe: Recipe) -> list[Finding]:
    found = []
    for key in ("temperature", "max_new_tokens"):
        ours = getattr(recipe.policy, key)
        theirs = getattr(recipe.evaluate, key)
        if ours != theirs:
            evidence = f"policy.{key} = {ours:g}, evaluate.{key} = {theirs:g}"
            cause = "answers are judged under other settings than they were trained with"
            found.append(
                Finding("decoding", "warning", evidence, cause, f"set both to {ours:g}, unless this is what you ask")
            )
    return found


def _resources(recipe: Recipe, run: Path, size: Size) -> list[Finding]:
    if size.parameters is None:
        return [
            Finding(
                "resources", "info", "the size of the model is not known: disk and memory were not looked at", "", ""
            )
        ]
    known = f"{size.parameters / 1e6:,.1f} M parameters"
    place = next(folder for folder in (run.absolute(), *run.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    need = disk_needed(recipe, size)
    there = sum(path.stat().st_size for path in (run / "stages").rglob("*") if path.is_file())
    cause = f"weights in float32 and three checkpoints a stage, {known}, {recipe.rounds} round(s)"
    evidence = f"about {_gb(need)} in all, {_gb(there)} there already, {_gb(free)} free at {place}"
    short = need - there > free
    found = [Finding("disk", "error" if short else "info", evidence, cause, "free space, or use LoRA" if short else "")]
    available = memory_available()
    need = memory_needed(recipe, size)
    if available is not None and recipe.model.device != "cuda":
        short = need > available
        severity = "info" if not short else "error" if recipe.model.device == "cpu" else "warning"
        evidence = f"about {_gb(need)} besides activations, {_gb(available)} available"
        remedy = "use LoRA, a smaller model or fewer tokens_per_pass" if short else ""
        found.append(
            Finding("memory", severity, evidence, f"weights, gradients, optimizer and logits of {known}", remedy)
        )
    return found


def _gb(amount: int) -> str:
    return f"{amount / 1e9:,.1f} GB" if amount >= 1e9 else f"{amount / 1e6:,.0f} MB"
