"""Pipeline: runs the stages of a recipe in order, with gates between them, and resumes where it stopped."""

import importlib
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from towpath import interrupt
from towpath.data.corpus import Corpus
from towpath.data.refused_rows import FILE
from towpath.errors import GateClosed, RecipeError, TowpathError, Waiting
from towpath.models import content, memory
from towpath.progress import print_note, progress
from towpath.recipe import Recipe
from towpath.recipe.stage_configs import STAGE_CONFIGS
from towpath.records import Finding, Verdict
from towpath.rewards import sources
from towpath.run import results, trackers
from towpath.run.cluster_checks import connected
from towpath.run.fingerprint import PlannedStage, import_from_run_folder, plan_stages
from towpath.run.gates import GATES_AFTER
from towpath.run.loading import load_corpus, summarise
from towpath.run.plan_record import begin_stage, record_plan
from towpath.run.record import read_current, write_current
from towpath.run.status import stage_verdicts, verdict_line
from towpath.store import location, manifest
from towpath.store.publish import fault_point, lock_folder, remove_temporary
from towpath.store.store import Store

PACKAGES = ("torch", "transformers", "numpy", "towpath")
Say = Callable[[str], None]
Reporter = Callable[[Path, list[Verdict], str], Any]
"""Writes the report of a run: (folder, verdicts, name)."""


def run(
    recipe: Recipe,
    folder: Path,
    say: Say,
    only: str = "",
    force: bool = False,
    redo: Sequence[str] = (),
    write_report: Reporter | None = None,
) -> list[Verdict]:
    """Run all stages, or `only` one; stop at a closed gate, and raise Waiting where people must act. Stages in `redo`
    are run again."""
    with (
        interrupt.handle_signals(),
        lock_folder(folder),
        Store.open(location.ledger_location(folder, recipe.store.url)) as store,
        connected(recipe, folder),
    ):
        pipeline = Pipeline(recipe, folder, store, say, force, write_report)
        return pipeline.run(only, redo)


class Pipeline:
    """One run of a recipe in a folder."""

    def __init__(
        self, recipe: Recipe, folder: Path, store: Store, say: Say, force: bool, write_report: Reporter | None
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.store = store
        self.say = say
        self.force = force
        self.write_report = write_report
        self.corpus = load_corpus(recipe, folder)
        (folder / "stages").mkdir(exist_ok=True)
        content.fetch(recipe.model.source, folder)
        if recipe.reward.source:
            key = "reward.base" if recipe.reward.base else "reward.pretrained"
            content.fetch(sources.model_of(recipe.reward.source), folder, key)
        for name in sources.classifiers(recipe.policy.rewards):
            content.fetch(sources.model_of(name), folder, "policy.rewards")
        if recipe.sft.method == "none" and recipe.sft.compare_with:
            content.fetch(recipe.sft.compare_with, folder, "sft.compare_with")
        for name in recipe.evaluate.judges:
            if name.startswith("model:"):
                content.fetch(sources.model_of(name), folder, "evaluate.judges")
        self.stages = plan_stages(recipe, folder, self.corpus, store)
        self.findings: list[Finding] = []

    def run(self, only: str, redo: Sequence[str], before: str = "") -> list[Verdict]:
        """Run the stages that are not done; with `before` those ahead of the first stage of that kind."""
        for name in (only, *redo):
            self._require_stage(name)
        again = [(stage.name, stage.folder) for stage in self.stages if {stage.name, stage.kind} & set(redo)]
        results.move_aside(self.folder, again, self.say)
        self._check()
        self._explain_reruns()
        self._write_current()
        self._record_plan()
        from towpath.runtime.process import exempt_imports_from_gc, prepare_process

        prepare_process()
        exempt_imports_from_gc()
        try:
            for number in range(len(self.stages)):
                if before and self.stages[number].kind == before:
                    break
                if not only or self._is_next(only, number):
                    self._advance(number)
        except Waiting as waiting:
            self._write_current(str(waiting.value))
            raise
        except TowpathError:
            self._write_current()
            raise
        return stage_verdicts(self.recipe, self.stages)

    def _record_plan(self, again: bool = False) -> None:
        """Record what the stages are planned to take; a plan is no input of a run, so that nothing depends on it."""
        try:
            data = summarise(self.recipe, self.folder)
            record_plan(self.recipe, self.folder, data, self.store, self.stages, again)
        except (TowpathError, OSError) as error:
            self.say(f"the time of this run was not planned: {error}")

    def _is_next(self, only: str, number: int) -> bool:
        """Whether a stage is of the wanted kind; a later round is not until the round before it has ended."""
        done = {stage.name for stage in self.stages if stage.done}
        stage = self.stages[number]
        return stage.kind == only and (stage.round == 1 or done.issuperset(stage.inputs))

    def _advance(self, number: int) -> None:
        """Run one stage and judge the gates after it."""
        is_new = self._run_stage(self.stages[number])
        # The judgements it collected are part of its fingerprint, and of those after it.
        if is_new and self.stages[number].kind == "label":
            self._replan(self.stages[number])
        # a finding on the reward model is repeated by the stages that use it
        self.findings += [finding for finding in self.stages[number].findings() if finding not in self.findings]
        self._write_current()
        verdicts = self._judge_gates(number)
        if self.write_report:
            self.write_report(self.folder, verdicts, self.recipe.name)

    def _replan(self, label: PlannedStage) -> None:
        """Plan again with the judgements of the label stage, whose folder moves to its new fingerprint."""
        self.stages = plan_stages(self.recipe, self.folder, self.corpus, self.store)
        planned = next(stage for stage in self.stages if stage.name == label.name)
        if planned.fingerprint != label.fingerprint and not planned.done:
            manifest.update(label.folder, fingerprint=planned.fingerprint, config=planned.config)
            shutil.rmtree(planned.folder, ignore_errors=True)
            label.folder.rename(planned.folder)
        self._record_plan(again=True)

    def _run_stage(self, stage: PlannedStage) -> bool:
        """Run a stage unless it is done; returns whether it was run."""
        inputs = self._inputs(stage)
        if stage.done and stage.kind == "label":
            results.restore_labels(stage.folder, self.store, self.say)
        results.verify(stage.name, stage.folder, inputs, self.say)
        if stage.done:
            self.say(f"{stage.name}: already done ({stage.fingerprint})")
            return False
        from towpath.runtime.process import release_memory
        from towpath.stages.job import Job
        from towpath.stages.restarts import run_stage

        module = importlib.import_module(f"towpath.stages.{stage.kind}")
        stage.folder.mkdir(parents=True, exist_ok=True)
        config = STAGE_CONFIGS[stage.kind].from_recipe(self.recipe)
        job = Job(config, self.folder, stage.name, stage.folder, inputs, self.store, self.corpus, stage.round)
        verb = "resumes" if (stage.folder / "checkpoints").exists() else "starts"
        self.say(f"{stage.name}: {verb} ({stage.fingerprint})")
        remove_temporary(stage.folder)
        memory.reset_peak()
        begin_stage(stage.folder)
        start = time.monotonic()
        earlier = _seconds_of_earlier_attempts(stage.folder)
        try:
            with progress(stage.name), trackers.follow(self.recipe, self.folder, stage.name, stage.folder, self.say):
                job, result = run_stage(module.run, job)
            fault_point(f"end-{stage.name}")
        except TowpathError as error:
            if isinstance(error, Waiting):
                error.stage = stage.kind
            self._say_findings(job.findings)
            self.findings += [finding for finding in job.findings if finding not in self.findings]
            raise
        finally:
            (stage.folder / "seconds").write_text(f"{earlier + time.monotonic() - start:.1f}")
        release_memory()
        seconds = earlier + time.monotonic() - start
        self._write_manifest(stage, result, job.findings, seconds, job.corpus)
        self._say_findings(job.findings)
        self.say(f"{stage.name}: done in {earlier + time.monotonic() - start:.0f} s")
        return True

    def _inputs(self, stage: PlannedStage) -> dict[str, Path]:
        """The folders of the stages that a stage reads, all of which must be done."""
        by_name = {planned.name: planned for planned in self.stages}
        missing = [name for name in stage.inputs if not by_name[name].done]
        if missing:
            rule = "a stage needs the results of the stages before it"
            raise RecipeError(f"{stage.name}: {', '.join(missing)} not done", rule, f"`towpath run {self.folder}`")
        return {name: by_name[name].folder for name in stage.inputs}

    def _write_manifest(
        self, stage: PlannedStage, result: Mapping[str, Any], findings: list[Finding], seconds: float, corpus: Corpus
    ) -> None:
        inputs = [planned for planned in self.stages if planned.name in stage.inputs]
        fingerprints = {planned.name: planned.fingerprint for planned in inputs}
        content = {
            "stage": stage.name,
            "fingerprint": stage.fingerprint,
            "status": "done",
            "config": stage.config,
            "seed": self.recipe.seed,
            "inputs": {name: fingerprints[name] for name in stage.inputs},
            "results": {planned.name: manifest.results_digest(planned.folder) for planned in inputs},
            "recipe": self.recipe.model_dump(mode="json"),
            "versions": {name: _version(name) for name in PACKAGES}
            | {"python": platform.python_version(), "machine": platform.machine()},
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "peak_memory_bytes": memory.peak_bytes() + manifest.peak_of_workers(stage.folder),
            "peak_device_bytes": memory.device_peak_bytes() + manifest.peak_of_workers(stage.folder, on_gpus=True),
            "workers": _workers(stage.folder),
            "restarts": manifest.read_restarts(stage.folder),
            "findings": [asdict(finding) for finding in findings],
            "data": corpus.counts | {"skipped_rows_file": FILE if corpus.refused or corpus.filtered else ""},
            "result": result,
        }
        manifest.write(stage.folder, content)

    def _judge_gates(self, number: int) -> list[Verdict]:
        """The current verdicts; raises if a gate after this stage fails and stops the run."""
        verdicts = stage_verdicts(self.recipe, self.stages[: number + 1])
        names = GATES_AFTER.get(self.stages[number].kind, ())
        for verdict in verdicts:
            if verdict.gate not in names:
                continue
            self.say(verdict_line(verdict))
            if verdict.verdict == "FAIL" and verdict.action == "stop" and not self.force:
                if self.write_report:
                    self.write_report(self.folder, verdicts, self.recipe.name)
                raise GateClosed(
                    f"gate {verdict.gate} is closed: {verdict.value or 0.0:.3f}",
                    f"more than {verdict.threshold} is needed",
                    f"see `towpath report`; improve the stage, or set gates.{verdict.gate}.action = 'warn'",
                )
        return verdicts

    def _require_stage(self, name: str) -> None:
        kinds = list(dict.fromkeys(stage.kind for stage in self.stages))
        if name and name not in kinds:
            raise RecipeError(f"{name!r}: no such stage", "one of " + ", ".join(kinds), "fix the name")

    def _check(self) -> None:
        from towpath.run import preflight

        self.findings = examine(self.recipe, self.folder, self.corpus, self.force)
        self._say_findings(self.findings)
        preflight.require(self.findings, self.force)

    def _say_findings(self, findings: list[Finding]) -> None:
        from towpath.run import preflight

        serious = [finding for finding in findings if finding.severity != "info"]
        if serious:
            self.say(preflight.lines(serious))

    def _explain_reruns(self) -> None:
        """Say which finished stages will run again, and which of their values changed."""
        before = read_current(self.folder).stages
        for stage in self.stages:
            old = self.folder / "stages" / stage.name / before.get(stage.name, "none")
            if stage.done or not (old / manifest.NAME).is_file():
                continue
            record = manifest.read_object(old / manifest.NAME)
            if not record or not {"config", "inputs"} <= set(record):
                self.say(f"{stage.name} will run again: {old / manifest.NAME} is damaged")
                continue
            reason = "; ".join(_changes(record["config"], stage.config))
            if not reason:
                fingerprints = {planned.name: planned.fingerprint for planned in self.stages}
                changed = [name for name in stage.inputs if record["inputs"].get(name) != fingerprints[name]]
                reason = f"its inputs changed: {', '.join(changed)}"
            self.say(f"{stage.name} will run again: {reason}")

    def _write_current(self, waiting_for: str = "") -> None:
        fingerprints = {stage.name: stage.fingerprint for stage in self.stages}
        write_current(self.folder, fingerprints, self.findings, waiting_for)


def examine(recipe: Recipe, folder: Path, corpus: Corpus, force: bool = False) -> list[Finding]:
    """The preflight check of a run, with the model's own tokenizer."""
    location.configured_location(folder, recipe.store.url)  # refuses a password before anything is written
    import_from_run_folder(folder)
    from towpath.data.chat import Chat
    from towpath.models import base
    from towpath.run import preflight

    model = base.find(recipe.model.source, folder)
    chat = Chat(base.load_tokenizer(model), recipe.model.template)
    return preflight.check(recipe, folder, corpus, chat, force=force)


def sample_prefixes(folder: Path) -> set[str]:
    """The prefixes of comparison ids that belong to the present recipe."""
    stages = read_current(folder).stages
    return {fingerprint[:6] for name, fingerprint in stages.items() if name.startswith("sample")}


def _seconds_of_earlier_attempts(folder: Path) -> float:
    try:
        return float((folder / "seconds").read_text() or 0)
    except FileNotFoundError:
        return 0.0
    except (OSError, ValueError):
        print_note(f"{folder / 'seconds'}: damaged; the time of earlier attempts is not counted")
        return 0.0


def _workers(folder: Path) -> list[dict[str, Any]]:
    """Host and device of each worker of a stage; empty where the run's own process did the work."""
    rows = manifest.read_workers(folder).get("workers", [])
    return [{"host": row.get("host"), "device": row.get("device")} for row in rows]


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "not installed"


def _changes(old: Any, new: Any, key: str = "") -> list[str]:
    """The values that differ, with their dotted keys."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [] if old == new else [f"{key} {old} → {new}"]
    lines = []
    for name in sorted({*old, *new}):
        lines += _changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    return lines
