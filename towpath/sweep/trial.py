"""One trial: the policy stage with the settings of the trial, judged at every validation, without saving weights."""

import json
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from towpath import interrupt
from towpath.data.batch import Batch
from towpath.data.corpus import Corpus
from towpath.errors import ModelError, RecipeError, ResourceError, TrainingError
from towpath.evals.judges import EvaluationJudge, JudgeOutcomes
from towpath.health.diagnosis import diagnose
from towpath.health.monitor import stage_facts
from towpath.reasoning import split_reasoning
from towpath.recipe import Recipe
from towpath.recipe.stage_configs import EvaluateConfig, PolicyConfig
from towpath.records import Completion, Finding, Prompt, Rollout
from towpath.rollout.statistics import sum_tokens
from towpath.run import preflight
from towpath.runtime.process import release_memory
from towpath.stages import policy
from towpath.stages.evaluation_judges import Contest, open_judge
from towpath.stages.job import Job
from towpath.stages.restarts import run_stage
from towpath.store import manifest
from towpath.store.publish import fault_point, remove_temporary, replace_file
from towpath.store.store import Store
from towpath.sweep import pruning
from towpath.sweep.objective import Objective, TrialCurve, TrialValue, measure
from towpath.sweep.space import Settings, with_settings
from towpath.sweep.trial_record import Status, TrialRecord, curve_of, curve_rows, empty_curve, to_row

RESULT = "result.json"
CURVE = "curve.json"
START = "start.json"
SETTINGS = "settings.json"
FAILED_VALUE = 0.0
"""Value of a trial that could not be trained, below that of the SFT model."""


@dataclass(frozen=True)
class TrialJob:
    """What all trials of a sweep share."""

    recipe: Recipe
    run: Path
    study: Path
    """The folder of the study."""
    inputs: Mapping[str, Path]
    """Folders of the stages that the policy stage reads."""
    judge_inputs: Mapping[str, Path]
    """Folders of the stages that the evaluation judge reads."""
    corpus: Corpus
    store: Store
    judge: str
    """The entry of `evaluate.judges` that decides."""
    target: float

    @property
    def objective(self) -> Objective:
        """How curves are valued."""
        return self.recipe.sweep.objective


class TrialEnd(Exception):
    """Ends the training of a trial from a callback; the curve holds what it came to."""


def run_trial(
    shared: TrialJob,
    number: int,
    settings: Settings,
    folder: Path,
    seed: int,
    peers: Callable[[], Sequence[TrialCurve]] | None = None,
    is_wanted: Callable[[], bool] = lambda: True,
) -> TrialRecord:
    """Train with these settings, or resume; `peers` are curves of other trials at equal KL, None for no comparison."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporary(folder)
    replace_file(folder / SETTINGS, json.dumps({"number": number, "settings": settings, "seed": seed}, indent=1))
    started = time.monotonic()
    earlier = _seconds(folder)
    watcher = None
    try:
        recipe = _trial_recipe(shared, settings, seed)
        watcher = TrialWatcher(shared, recipe, folder, peers, is_wanted)
        status, reason = _train(shared, recipe, folder, watcher)
    except (TrainingError, ModelError, RecipeError) as error:
        status, reason = "failed", error.value
    finally:
        replace_file(folder / "seconds", f"{earlier + time.monotonic() - started:.1f}")
    record = _record(shared, number, settings, seed, status, reason, watcher)
    record = replace(record, seconds=round(earlier + time.monotonic() - started, 1))
    fault_point("sweep-result")
    replace_file(folder / RESULT, json.dumps(to_row(record), indent=1))
    for name in ("checkpoints", "weights", "adapter"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return record


def _trial_recipe(shared: TrialJob, settings: Settings, seed: int) -> Recipe:
    """The recipe of a trial; RecipeError where its settings do not fit together."""
    recipe = with_settings(shared.recipe, settings)
    columns = shared.corpus.column_names
    for finding in preflight.check_rollouts(recipe.policy, len(shared.corpus.train), columns):
        if finding.severity == "error":
            raise RecipeError(finding.evidence, finding.cause, finding.remedy)
    health = recipe.health
    if health.act == "advise":  # the watcher diagnoses each step itself
        health = health.model_copy(update={"act": "off"})
    return recipe.model_copy(update={"seed": seed, "health": health})


def _train(shared: TrialJob, recipe: Recipe, folder: Path, watcher: "TrialWatcher") -> tuple[Status, str]:
    inputs = dict(shared.inputs)
    job = Job(
        PolicyConfig.from_recipe(recipe), shared.run, "policy", folder, inputs, shared.store, shared.corpus,
        callbacks=(watcher,), on_answers=watcher.on_answers, start_cache=shared.study / "start_cache",
    )  # fmt: skip
    watcher.job = job
    with suppress(TrialEnd):
        run_stage(policy.run, job)
    release_memory()
    return ("pruned" if watcher.reason else "complete"), watcher.reason


@dataclass
class TrialWatcher:
    """Callbacks of a trial: judges the answers of each validation, and ends the trial after its last one."""

    shared: TrialJob
    recipe: Recipe
    folder: Path
    peers: Callable[[], Sequence[TrialCurve]] | None
    is_wanted: Callable[[], bool]
    job: Job[PolicyConfig] | None = None
    reason: str = ""
    findings: list[Finding] = field(default_factory=list)
    judge_name: str = ""
    dollars: float = 0.0
    steps: int = 0
    _answers: tuple[int, Sequence[Rollout], np.ndarray] | None = None

    def __post_init__(self) -> None:
        saved = manifest.read_object(self.folder / CURVE) or {}
        self.rows: list[dict[str, Any]] = [row for row in saved.get("validations", []) if isinstance(row, dict)]
        self.dollars = float(saved.get("dollars", 0.0))

    @property
    def curve(self) -> TrialCurve:
        """The validations until now."""
        return curve_of(self.rows) if self.rows else empty_curve()

    def on_answers(self, step: int, rollouts: Sequence[Rollout], batch: Batch) -> None:
        """Keep the answers of a validation until its metrics are there."""
        ratio_BT = batch.columns["old_logp"] - batch.columns["ref_logp"]
        # k3: an unbiased estimate of each answer's KL that is never negative
        kl_B = sum_tokens(batch, torch.expm1(-ratio_BT) + ratio_BT).numpy()
        self._answers = step, rollouts, kl_B

    def on_step(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether a critical finding or a KL beyond its stop ends the trial; one more validation follows."""
        self.steps = step + 1
        if not self.is_wanted():
            raise interrupt.Stopped(signal.SIGTERM)
        assert self.job is not None
        limit = self.recipe.policy.kl.stop
        if metrics.get("kl", 0.0) > limit and self.job.config.health.act != "auto":
            self.reason = f"KL {metrics['kl']:.2f} above policy.kl.stop = {limit:g}"
            return True
        if self.shared.recipe.health.act != "advise" or self.shared.recipe.sweep.pruning == "off":
            return False
        self.findings = list(self._diagnose())
        self.reason = pruning.critical_finding(self.findings)
        return bool(self.reason)

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Judge the answers; TrialEnd after the last validation, or where the trial is behind others at equal KL."""
        assert self._answers is not None and self._answers[0] == step
        _, rollouts, kl_B = self._answers
        if step < 0:
            self._write_start(rollouts, metrics)
            return
        start = json.loads((self.folder / START).read_text(encoding="utf-8"))
        self.rows = [row for row in self.rows if row["step"] < step]
        self.rows += curve_rows(self._judge(step, rollouts, kl_B, start, metrics))
        self.rows[-1]["reward"] = metrics.get("reward")
        content = {"validations": self.rows, "dollars": self.dollars}
        replace_file(self.folder / CURVE, json.dumps(content))
        fault_point("sweep-curve")
        steps = self._all_steps()
        self.steps = step + 1
        if self.reason or step + 1 >= steps:
            self.findings = list(self._diagnose())
            self.reason = self.reason or ""
            raise TrialEnd
        validated = [row["step"] for row in self.rows]
        if self.peers is not None and pruning.is_rung(step, validated, steps):
            self.reason = pruning.below_median(self.curve, self.peers(), self.shared.target)
            if self.reason:
                self.findings = list(self._diagnose())
                raise TrialEnd

    @property
    def share(self) -> float:
        """Of the training, how much was made."""
        return self.steps / self._all_steps() if self.steps else 0.0

    def _all_steps(self) -> int:
        return json.loads((self.folder / "run_info.json").read_text(encoding="utf-8"))["steps"]

    def _diagnose(self) -> tuple[Finding, ...]:
        assert self.job is not None
        facts = stage_facts(self.job.config, self.job.name, self.job.inputs) | {"steps": self._all_steps()}
        return diagnose(self.job.log.recorder.history(facts), self.recipe.health.limits)

    def _write_start(self, rollouts: Sequence[Rollout], metrics: Mapping[str, float]) -> None:
        """Write the SFT model's answers, with which later ones are compared."""
        rows = [
            {"prompt_id": r.prompt.id, "tokens": list(r.token_ids), "finish": r.finish, "text": r.text}
            for r in rollouts
        ]
        refusals = {name: metrics[name] for name in ("harmful_refusal", "harmless_refusal") if name in metrics}
        replace_file(self.folder / START, json.dumps({"answers": rows, "refusals": refusals}))

    def _judge(
        self,
        step: int,
        rollouts: Sequence[Rollout],
        kl_B: np.ndarray,
        start: dict[str, Any],
        metrics: Mapping[str, float],
    ) -> TrialCurve:
        """One point of the curve."""
        prompts = [r.prompt for r in rollouts]
        ours = [_completion("policy", r.prompt, r.token_ids, r.finish, r.text) for r in rollouts]
        others = [
            _completion("sft", p, tuple(row["tokens"]), row["finish"], row["text"])
            for p, row in zip(prompts, start["answers"], strict=True)
        ]
        contest = Contest("evaluate", "policy", "sft", prompts, ours, others)
        judge, job = self._open_judge(contest)
        report = judge.compare(contest.pairs, f"validation after step {step + 1}: judging")
        self._require_judged(step, report)
        self.judge_name = report.name
        self.dollars += report.dollars
        win_P = [float("nan") if o.value is None else o.value for o in report.outcomes]
        gap_P = [_length(job, a) - _length(job, b) for a, b in zip(ours, others, strict=True)]
        safety = _safety_rise(start["refusals"], metrics)
        return TrialCurve((step,), kl_B[None], np.array([win_P]), np.array([gap_P], dtype=float), np.array([safety]))

    def _require_judged(self, step: int, report: JudgeOutcomes) -> None:
        """Raise if too many pairs are unjudged: a failure of the judge must not become a value of the trial."""
        unjudged = report.unjudged
        missing = sum(unjudged.values())
        limit = self.recipe.evaluate.max_unjudged
        if missing > limit * len(report.outcomes):
            reasons = ", ".join(f"{reason} {n}" for reason, n in unjudged.items())
            raise ResourceError(
                f"{self.folder.name}, step {step + 1}: {report.name} left {missing} of {len(report.outcomes)} pairs "
                f"unjudged: {reasons}",
                f"evaluate.max_unjudged = {limit:g}; a failure of a judge never becomes a number",
                "correct the judge or raise its budget (judge.ceiling), then run the same command to resume",
            )

    def _open_judge(self, contest: Contest) -> tuple[EvaluationJudge, Job[EvaluateConfig]]:
        shared = self.shared
        config = EvaluateConfig.from_recipe(shared.recipe)
        job = Job(config, shared.run, "sweep", self.folder, dict(shared.judge_inputs), shared.store, shared.corpus)
        return open_judge(job, shared.judge, contest), job


def _record(
    shared: TrialJob,
    number: int,
    settings: Settings,
    seed: int,
    status: Status,
    reason: str,
    watcher: TrialWatcher | None,
) -> TrialRecord:
    curve = watcher.curve if watcher else empty_curve()
    resamples = shared.recipe.evaluate.bootstrap
    value = measure(curve, shared.objective, shared.target, resamples, shared.recipe.seed)
    if status == "failed":
        value = TrialValue(FAILED_VALUE, (FAILED_VALUE, FAILED_VALUE), 0.0, False, FAILED_VALUE, 0.0)
    if watcher is None:
        return TrialRecord(number, settings, seed, status, reason, 0, curve, value)
    rewards = tuple(row["reward"] for row in watcher.rows if row.get("reward") is not None)
    findings = pruning.of_settings(watcher.findings)
    return TrialRecord(
        number, settings, seed, status, reason, watcher.steps, curve, value, findings, watcher.judge_name,
        watcher.dollars, 0.0, rewards, watcher.share,
    )  # fmt: skip


def _completion(source: str, prompt: Prompt, tokens: Sequence[int], finish: Any, text: str) -> Completion:
    return Completion(f"sweep/{source}/{prompt.id}", prompt.id, source, text, tuple(tokens), (), finish)


def _length(job: Job[EvaluateConfig], completion: Completion) -> int:
    """Tokens of an answer without its reasoning."""
    reasoning, answer = split_reasoning(completion.text)
    return len(job.chat.answer(answer)) if reasoning else len(completion.token_ids)


def _safety_rise(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """The larger rise of harmful compliance and over-refusal on the probes; NaN without probes."""
    rises = []
    if "harmful_refusal" in before and "harmful_refusal" in after:
        rises.append(before["harmful_refusal"] - after["harmful_refusal"])
    if "harmless_refusal" in before and "harmless_refusal" in after:
        rises.append(after["harmless_refusal"] - before["harmless_refusal"])
    return max(rises) if rises else float("nan")


def _seconds(folder: Path) -> float:
    """Seconds of earlier attempts."""
    try:
        return float((folder / "seconds").read_text() or 0)
    except (OSError, ValueError):
        return 0.0
