"""Sweep: runs the trials of a study, confirms the best with new seeds, gives a verdict; resumes where it stopped."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from towpath import interrupt
from towpath.data.corpus import Corpus, digest
from towpath.errors import RecipeError, ResourceError, Waiting
from towpath.judges.selection import select_judges
from towpath.progress import progress
from towpath.recipe import Recipe
from towpath.recipe.reader import flatten, keys
from towpath.run.cluster_checks import connected
from towpath.run.fingerprint import PlannedStage, plan_stages
from towpath.run.loading import load_corpus
from towpath.run.pipeline import Pipeline
from towpath.store import location
from towpath.store.publish import fault_point, lock_folder, replace_file
from towpath.store.store import Store
from towpath.sweep import rules, sampler, verdict
from towpath.sweep.record import CONFIRMATION, CURRENT, STUDY, VERDICT, sweep_folder
from towpath.sweep.space import Settings, Space, parse_space, recipe_settings
from towpath.sweep.study import Claim, TrialStudy
from towpath.sweep.trial_record import TrialRecord, to_row

if TYPE_CHECKING:
    from towpath.sweep.trial import TrialJob

FORMAT = 1
"""Version of what a trial is; trials of another version are not comparable."""
DEFAULT_TARGET = 0.5
POLL = 0.5
"""Seconds between two looks at trials that others work on."""
LOCK_SECONDS = 60.0
"""Longest wait for another process that prepares the run."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep searches, and what its trials have in common."""

    recipe: Recipe
    run: Path
    space: Space
    target: float
    judge: str
    stages: Sequence[PlannedStage]
    corpus: Corpus
    identity: dict[str, Any]

    @property
    def study(self) -> str:
        """The name of the study: trials of other studies are not comparable."""
        return digest(self.identity)[:12]

    @property
    def folder(self) -> Path:
        """The folder of the study."""
        return sweep_folder(self.run) / self.study

    @property
    def storage(self) -> Path | str:
        """Where the study is kept."""
        url = self.recipe.sweep.storage
        return location.database_url(url, "sweep.storage") if url else sweep_folder(self.run) / "study.db"


def run_sweep(recipe: Recipe, folder: Path, say: Say, overrides: Sequence[str] = (), force: bool = False) -> None:
    """Run or resume the sweep of a run: its missing inputs, its trials, their confirmation."""
    check_sweep(recipe)
    with interrupt.handle_signals(), connected(recipe, folder):
        plan = prepare(recipe, folder, say, force)
        _announce(plan, say)
        if recipe.sweep.processes > 1:
            from towpath.sweep.processes import run_processes

            run_processes(plan, say, overrides)
        else:
            work(plan, say)


def check_sweep(recipe: Recipe) -> Space:
    """Raise for a space, a storage or a target that cannot be searched, before anything is run; returns the space."""
    space = parse_space(recipe)
    if not space:
        raise RecipeError("sweep.space is empty", "a sweep needs a range", "add ranges to [sweep.space]")
    if recipe.sweep.storage:
        location.database_url(recipe.sweep.storage, "sweep.storage")
    if "people" in (*recipe.evaluate.judges[:1], *(["people"] if _people_by_default(recipe) else [])):
        raise RecipeError(
            "the evaluation judge is people",
            "a sweep compares many trials, each at several checkpoints, which people cannot judge in time",
            'name another judge for the sweep: --set \'evaluate.judges=["judge"]\' (AI), "model" (a held-out reward '
            'model), "python:MODULE:FUNCTION"; the run\'s own evaluation stays with people',
        )
    sampler.import_optuna()
    return space


def _people_by_default(recipe: Recipe) -> bool:
    return not recipe.evaluate.judges and recipe.preferences.raters == "people"


def prepare(recipe: Recipe, folder: Path, say: Say, force: bool = False) -> SweepPlan:
    """Run the stages that the policy stage reads, unless they are done; a closed gate stops the sweep unless forced."""
    space = parse_space(recipe)
    with _lock_when_free(folder), Store.open(location.ledger_location(folder, recipe.store.url)) as store:
        pipeline = Pipeline(recipe, folder, store, say, force, None)
        try:
            pipeline.run("", (), before="policy")
        except Waiting as waiting:
            raise Waiting(waiting.value, "a sweep needs the labels of the run", f"`towpath run {folder}`") from None
        return _plan(recipe, folder, space, pipeline.corpus, pipeline.stages)


def read_plan(recipe: Recipe, folder: Path, store: Store) -> SweepPlan:
    """The plan of a sweep whose inputs are done."""
    corpus = load_corpus(recipe, folder)
    return _plan(recipe, folder, parse_space(recipe), corpus, plan_stages(recipe, folder, corpus, store))


def _plan(recipe: Recipe, folder: Path, space: Space, corpus: Corpus, stages: Sequence[PlannedStage]) -> SweepPlan:
    specs = select_judges(recipe.evaluate, recipe.preferences.raters, corpus)
    if not specs:
        raise RecipeError(
            "no evaluation judge fits the run's data",
            "trials are compared by a judge of win rates; the written rubric judges the bundled recipes' data alone",
            "set evaluate.judges, such as ['judge'], ['model'] or ['python:MODULE:FUNCTION']",
        )
    target = recipe.sweep.target_kl or recipe.policy.kl.target or DEFAULT_TARGET
    identity = _identity(recipe, space, target, specs[0], stages)
    return SweepPlan(recipe, folder, space, target, specs[0], stages, corpus, identity)


def _identity(
    recipe: Recipe, space: Space, target: float, judge: str, stages: Sequence[PlannedStage]
) -> dict[str, Any]:
    """What would make trials incomparable if it changed: the policy stage's configuration without the keys that are
    searched, its inputs, the judge, the objective and the space."""
    by_name = {stage.name: stage for stage in stages}
    config = deepcopy(by_name["policy"].config)
    for key in space:
        *parents, last = key.split(".")
        table: Any = config
        for parent in parents:
            table = table.get(parent, {})
        table.pop(last, None)
    return {
        "format": FORMAT,
        "seed": recipe.seed,
        "config": config,
        "inputs": {name: by_name[name].fingerprint for name in by_name["policy"].inputs},
        "judge": {judge: by_name["evaluate"].config["judges"].get(judge)},
        "tie_margin": recipe.evaluate.tie_margin,
        "objective": recipe.sweep.objective,
        "target_kl": target,
        "space": {key: search_range.row() for key, search_range in space.items()},
    }


def _announce(plan: SweepPlan, say: Say) -> None:
    """Write study.json, and say which study it is."""
    root = sweep_folder(plan.run)
    current = root / CURRENT
    try:
        before = json.loads(current.read_text(encoding="utf-8"))["study"]
    except (OSError, ValueError, KeyError, TypeError):
        before = ""
    exists = (plan.folder / STUDY).is_file()
    if before and before != plan.study:
        changed = _changed(root / before / STUDY, plan.identity)
        verb = "returns to" if exists else "begins"
        say(f"sweep: {verb} study {plan.study}: {changed} changed since study {before}, whose trials are kept")
    sweep = plan.recipe.sweep
    content = {
        "study": plan.study,
        "identity": plan.identity,
        "judge": plan.judge,
        "sweep": sweep.model_dump(mode="json", exclude={"storage", "space"}),
        "target_kl": plan.target,
        "algorithm": plan.recipe.policy.algo,
        "seed": plan.recipe.seed,
    }
    replace_file(plan.folder / STUDY, json.dumps(content, indent=1))
    replace_file(current, json.dumps({"study": plan.study}))
    keys_text = ", ".join(plan.space)
    what = f"{sweep.objective.replace('_', ' ')} at KL {plan.target:g}"
    say(f"sweep: study {plan.study}, {sweep.trials} trials over {keys_text}; {what}, judged by {plan.judge}")


def _changed(path: Path, identity: Mapping[str, Any]) -> str:
    try:
        old = flatten(json.loads(path.read_text(encoding="utf-8"))["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return "settings"
    new = flatten(identity)
    names = [name for name in (*old, *new) if old.get(name) != new.get(name)]
    names = list(dict.fromkeys(name.removeprefix("config.") for name in names))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "settings"


def work(plan: SweepPlan, say: Say, is_wanted: Callable[[], bool] = lambda: True) -> None:
    """Work on trials, then on their confirmation, until all have ended; writes the verdict."""
    from towpath.runtime.process import prepare_process
    from towpath.sweep.trial import TrialJob

    prepare_process()
    recipe = plan.recipe
    by_name = {stage.name: stage for stage in plan.stages}
    with Store.open(location.ledger_location(plan.run, recipe.store.url)) as store:
        inputs = {name: by_name[name].folder for name in by_name["policy"].inputs}
        names = [name for name in ("sft", "baseline", "judge_model") if name in by_name]
        judge_inputs = {name: by_name[name].folder for name in names}
        shared = TrialJob(
            recipe, plan.run, plan.folder, inputs, judge_inputs, plan.corpus, store, plan.judge, plan.target
        )
        with open_trials(plan) as trials:
            Worker(plan, shared, trials, say, is_wanted).run()


class Worker:
    """One process that works on the trials of a study."""

    def __init__(
        self, plan: SweepPlan, shared: "TrialJob", trials: TrialStudy, say: Say, is_wanted: Callable[[], bool]
    ) -> None:
        self.plan = plan
        self.shared = shared
        self.trials = trials
        self.say = say
        self.is_wanted = is_wanted
        self.sweep = plan.recipe.sweep

    def run(self) -> None:
        """Trials, confirmation, verdict."""
        if len(self.trials.records()) < self.trials.limit:
            (self.plan.folder / VERDICT).unlink(missing_ok=True)  # of fewer trials
        self._work_on(self.trials, "sweep", self._run_trial)
        records = self.trials.records()
        mirror(self.trials.folder, records)
        numbers = verdict.finalists(records, self.sweep)
        with open_confirmation(self.plan, numbers) as confirmation:
            content = {"folder": confirmation.folder.name, "finalists": numbers}
            replace_file(self.plan.folder / CONFIRMATION, json.dumps(content))
            self._work_on(confirmation, "confirmation", lambda n: self._run_confirmation(confirmation, numbers, n))
            records = confirmation.records()
        mirror(confirmation.folder, records)
        write_verdict(self.plan, numbers, records)

    def _work_on(self, study: TrialStudy, title: str, run: Callable[[int], TrialRecord]) -> None:
        with progress(title, study.limit, start=len(study.records())) as bar:
            while True:
                claim = study.claim()
                if claim == "done":
                    return
                if isinstance(claim, Claim):
                    try:
                        record = self._ended(study, claim.number) or run(claim.number)
                        study.finish(record)
                        fault_point("sweep-finish")
                    finally:
                        claim.release()
                    bar.advance(1)
                else:
                    time.sleep(POLL)
                    bar.advance(len(study.records()) - bar.done)
                if not self.is_wanted():
                    raise interrupt.Stopped(signal.SIGTERM)

    def _ended(self, study: TrialStudy, number: int) -> TrialRecord | None:
        """The result of a trial whose process was killed before it was reported."""
        return next((record for record in study.records() if record.number == number), None)

    def _run_trial(self, number: int) -> TrialRecord:
        from towpath.sweep.trial import run_trial

        settings = self.trials.settings_of(number)
        if settings is None:
            settings = choose_settings(self.plan, number, self.trials.records(), self.trials.settings_of)
            fault_point("sweep-settings")
            self.trials.set_attribute(number, "settings", json.dumps(settings))
        self.trials.set_parameters(number, self.plan.space, settings)
        compares = self.sweep.pruning == "all" and number > 0

        def peers() -> list[Any]:
            return [record.curve for record in self.trials.records() if record.number != number]

        folder = self.trials.folder / str(number)
        seed = self.plan.recipe.seed
        wanted = self.is_wanted
        record = run_trial(self.shared, number, settings, folder, seed, peers if compares else None, wanted)
        self.say(f"trial {number}: {describe(record)}")
        return record

    def _run_confirmation(self, study: TrialStudy, numbers: Sequence[int], index: int) -> TrialRecord:
        from towpath.sweep.trial import run_trial

        number, seed = confirmation_task(self.plan, numbers, index)
        settings = next(record.settings for record in self.trials.records() if record.number == number)
        study.set_attribute(index, "settings", json.dumps(settings))
        folder = study.folder / str(index)
        record = run_trial(self.shared, index, settings, folder, seed, None, self.is_wanted)
        self.say(f"confirmation of trial {number}, seed {seed}: {describe(record)}")
        return record


def open_trials(plan: SweepPlan) -> TrialStudy:
    """The study of the trials."""
    sweep = plan.recipe.sweep
    return TrialStudy(plan.storage, f"towpath/{plan.study}", plan.folder / "trials", sweep.trials, sweep.patience)


def open_confirmation(plan: SweepPlan, numbers: Sequence[int]) -> TrialStudy:
    """The study of the confirmation: its trials are finalists with a new seed each."""
    sweep = plan.recipe.sweep
    part = f"confirm-{digest([*numbers, sweep.seeds])[:8]}"
    limit = len(numbers) * sweep.seeds
    return TrialStudy(plan.storage, f"towpath/{plan.study}/{part}", plan.folder / part, limit, sweep.patience)


def confirmation_task(plan: SweepPlan, numbers: Sequence[int], index: int) -> tuple[int, int]:
    """Trial and seed of one training of the confirmation: all finalists with one seed, then with the next."""
    round_number, position = divmod(index, len(numbers))
    return numbers[position], plan.recipe.seed + 1 + round_number


def choose_settings(
    plan: SweepPlan, number: int, records: Sequence[TrialRecord], settings_of: Callable[[int], Settings | None]
) -> Settings:
    """The settings of a trial: a function of the seed, its number and the trials that have ended."""
    recipe = plan.recipe
    own = (settings_of(0) if number else None) or recipe_settings(recipe, plan.space)
    if number == 0:
        return own
    seed = recipe.seed
    if recipe.sweep.sampler == "random":
        return sampler.draw_random(plan.space, seed, number)
    if recipe.sweep.sampler == "tpe":
        rows = [sampler.Observation(r.number, r.settings, verdict.sampler_value(r, recipe.sweep)) for r in records]
        return sampler.draw_tpe(plan.space, seed, number, rows)
    usual = str((keys(Recipe)["policy.learning_rate"].json_schema_extra or {}).get("usual", ""))
    first = rules.conservative_settings(plan.space, own, usual, recipe.policy.method)
    trials = [
        rules.RuleTrial(r.settings, verdict.sampler_value(r, recipe.sweep), _last_kl(r), r.codes) for r in records
    ]
    return rules.next_settings(plan.space, trials, first, plan.target)


def _last_kl(record: TrialRecord) -> float:
    """The KL of the last validation; of a trial that could not be trained, far beyond any target."""
    return float(record.curve.kl_V[-1]) if len(record.curve) else 1e3


def write_verdict(plan: SweepPlan, numbers: Sequence[int], records: Sequence[TrialRecord]) -> verdict.SweepVerdict:
    """Judge the confirmation and write verdict.json."""
    confirmed: dict[int, list[TrialRecord]] = {}
    for record in records:
        number, _ = confirmation_task(plan, numbers, record.number)
        confirmed.setdefault(number, []).append(record)
    recipe = plan.recipe
    result = verdict.judge_sweep(
        confirmed, recipe.sweep, recipe.sweep.objective, plan.target, recipe.evaluate.bootstrap, recipe.seed
    )
    content = verdict.to_row(result) | {"finalists": list(numbers)}
    replace_file(plan.folder / VERDICT, json.dumps(content, indent=1))
    return result


def mirror(folder: Path, records: Sequence[TrialRecord]) -> None:
    """Write the results of trials that other machines ran, so that the folder alone shows the sweep."""
    for record in records:
        path = folder / str(record.number) / "result.json"
        if not path.is_file():
            replace_file(path, json.dumps(to_row(record), indent=1))


def describe(record: TrialRecord) -> str:
    """A trial in one line."""
    if record.status == "failed":
        return f"failed: {record.reason}"
    low, high = record.value.interval
    at = "" if record.value.reached else ", did not reach the target"
    text = f"{record.value.value:.1%} [{low:.1%}, {high:.1%}] at KL {record.value.kl:.2f}{at}"
    settings = ", ".join(f"{key.rpartition('.')[2]} {_short(item)}" for key, item in record.settings.items())
    end = f"; ended after step {record.steps}: {record.reason}" if record.reason else ""
    return f"{text} with {settings}{end}"


def _short(item: Any) -> str:
    return f"{item:.3g}" if isinstance(item, float) else str(item)


@contextmanager
def _lock_when_free(folder: Path) -> Iterator[None]:
    """The run's lock; another sweep holds it for the moment in which it checks the inputs."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            lock = lock_folder(folder)
            lock.__enter__()
            break
        except ResourceError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def thread_share(processes: int) -> int:
    """CPU threads of one of so many processes."""
    return max(1, int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)) // processes)
