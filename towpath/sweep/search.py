"""Search: trains the trials of a study, confirms the best with new seeds, and writes the verdict."""

import json
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from towpath import interrupt
from towpath.progress import progress
from towpath.recipe import Recipe
from towpath.recipe.reader import keys
from towpath.runtime.process import prepare_process
from towpath.store import location
from towpath.store.publish import fault_point, replace_file
from towpath.store.store import Store
from towpath.sweep import rules, sampler, verdict
from towpath.sweep.preparation import POLL, Say, SweepPlan, confirmation_task, open_confirmation, open_trials
from towpath.sweep.record import CONFIRMATION, VERDICT
from towpath.sweep.space import Settings, recipe_settings
from towpath.sweep.study import Claim, TrialStudy
from towpath.sweep.trial import TrialJob, run_trial
from towpath.sweep.trial_record import TrialRecord, to_row


def work(plan: SweepPlan, say: Say, is_wanted: Callable[[], bool] = lambda: True) -> None:
    """Work on trials, then on their confirmation, until all have ended; writes the verdict."""
    prepare_process()
    with Store.open(location.ledger_location(plan.run, plan.recipe.store.url)) as store, open_trials(plan) as trials:
        TrialWorker(plan, trial_job(plan, store), trials, say, is_wanted).run()


def trial_job(plan: SweepPlan, store: Store) -> TrialJob:
    """What all trials of a sweep share."""
    by_name = {stage.name: stage for stage in plan.stages}
    inputs = {name: by_name[name].folder for name in by_name["policy"].inputs}
    names = [name for name in ("sft", "baseline", "judge_model") if name in by_name]
    judge_inputs = {name: by_name[name].folder for name in names}
    return TrialJob(
        plan.recipe, plan.run, plan.folder, inputs, judge_inputs, plan.corpus, store, plan.judge, plan.target
    )


class TrialWorker:
    """One process that works on the trials of a study."""

    def __init__(
        self, plan: SweepPlan, shared: TrialJob, trials: TrialStudy, say: Say, is_wanted: Callable[[], bool]
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
        number, seed = confirmation_task(self.plan, numbers, index)
        settings = next(record.settings for record in self.trials.records() if record.number == number)
        study.set_attribute(index, "settings", json.dumps(settings))
        folder = study.folder / str(index)
        record = run_trial(self.shared, index, settings, folder, seed, None, self.is_wanted)
        self.say(f"confirmation of trial {number}, seed {seed}: {describe(record)}")
        return record


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
    running = _running(number, records, settings_of)
    if recipe.sweep.sampler == "tpe":
        rows = [sampler.Observation(r.number, r.settings, verdict.sampler_value(r, recipe.sweep)) for r in records]
        mean = sum(row.value for row in rows) / max(1, len(rows))
        # as if they came to the mean: none is drawn twice
        rows += [sampler.Observation(other, settings, mean) for other, settings in running.items()]
        return sampler.draw_tpe(plan.space, seed, number, rows)
    usual = str((keys(Recipe)["policy.learning_rate"].json_schema_extra or {}).get("usual", ""))
    first = rules.conservative_settings(plan.space, own, usual, recipe.policy.method)
    trials = [
        rules.RuleTrial(r.settings, verdict.sampler_value(r, recipe.sweep), _last_kl(r), r.codes) for r in records
    ]
    return rules.next_settings(plan.space, trials, first, plan.target, list(running.values()))


def _running(
    number: int, records: Sequence[TrialRecord], settings_of: Callable[[int], Settings | None]
) -> dict[int, Settings]:
    """The settings of earlier trials that have not ended: other processes train them."""
    ended = {record.number for record in records}
    settings = {other: settings_of(other) for other in range(number) if other not in ended}
    return {other: own for other, own in settings.items() if own}


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
