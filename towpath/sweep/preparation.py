"""Preparation of a sweep: its space, target and judge, the stages that trials read, and which study it is."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from towpath.data.corpus import Corpus, digest
from towpath.errors import RecipeError, ResourceError, Waiting
from towpath.judges.selection import select_judges
from towpath.recipe import Recipe
from towpath.recipe.reader import flatten
from towpath.run.fingerprint import PlannedStage, plan_stages
from towpath.run.loading import load_corpus
from towpath.run.pipeline import Pipeline
from towpath.store import location
from towpath.store.publish import lock_folder, replace_file
from towpath.store.store import Store
from towpath.sweep.record import CURRENT, STUDY, sweep_folder
from towpath.sweep.sampler import import_optuna
from towpath.sweep.space import Space, parse_space
from towpath.sweep.study import TrialStudy

FORMAT = 2
"""Version of what a trial is; trials of another version are not comparable."""
DEFAULT_TARGET = 0.5
POLL = 0.5
"""Seconds between two checks of what other processes do."""
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
    import_optuna()
    return space


def _people_by_default(recipe: Recipe) -> bool:
    return not recipe.evaluate.judges and recipe.preferences.raters == "people"


def prepare(recipe: Recipe, folder: Path, say: Say, force: bool = False) -> SweepPlan:
    """Run the stages that the policy stage reads, unless they are done; a closed gate stops the sweep unless forced."""
    space = parse_space(recipe)
    with _lock_when_free(folder), Store.open(location.ledger_location(folder, recipe.store.url)) as store:
        pipeline = Pipeline(recipe, folder, store, say, force, None)
        _deciding_judge(recipe, pipeline.corpus)  # before hours of work on what the trials read
        try:
            pipeline.run("", (), before="policy")
        except Waiting as waiting:
            raise Waiting(waiting.value, "a sweep needs the labels of the run", f"`towpath run {folder}`") from None
        return _plan(recipe, folder, space, pipeline.corpus, pipeline.stages)


def read_plan(recipe: Recipe, folder: Path, store: Store) -> SweepPlan:
    """The plan of a sweep whose inputs are done."""
    corpus = load_corpus(recipe, folder)
    return _plan(recipe, folder, parse_space(recipe), corpus, plan_stages(recipe, folder, corpus, store))


def _deciding_judge(recipe: Recipe, corpus: Corpus) -> str:
    """The entry of `evaluate.judges` that compares trials."""
    specs = select_judges(recipe.evaluate, recipe.preferences.raters, corpus)
    if not specs:
        raise RecipeError(
            "no evaluation judge fits the run's data",
            "trials are compared by a judge of win rates; the written rubric judges the bundled recipes' data alone",
            "set evaluate.judges, such as ['judge'], ['model'] or ['python:MODULE:FUNCTION']",
        )
    return specs[0]


def _plan(recipe: Recipe, folder: Path, space: Space, corpus: Corpus, stages: Sequence[PlannedStage]) -> SweepPlan:
    judge = _deciding_judge(recipe, corpus)
    target = recipe.sweep.target_kl or recipe.policy.kl.target or DEFAULT_TARGET
    identity = _identity(recipe, space, target, judge, stages)
    return SweepPlan(recipe, folder, space, target, judge, stages, corpus, identity)


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


def announce(plan: SweepPlan, say: Say) -> None:
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
    if not (plan.recipe.health.probes and plan.corpus.safety):
        say("sweep: sweep.max_safety_rise is not checked: there are no safety probes (data.safety, health.probes)")
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
