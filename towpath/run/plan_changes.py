"""Changes of a recipe that might save time or money, each planned again."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from towpath.feedback.label_budget import Prices, evaluate_split
from towpath.planning.devices import load_devices
from towpath.planning.run_plan import Change, RunPlan
from towpath.recipe import Recipe
from towpath.recipe.reader import check, merge
from towpath.run.plan import JUDGE_ACCURACY, PERSON_ACCURACY, LabelPlan
from towpath.run.run_plan import Planned
from towpath.run.what_if import WhatIf

JUDGED_SHARE = 0.65
"""Of the pairs, which published teams leave to a judge."""
JUDGE_PRICE = 0.014
"""Dollars of a pair by a strong judge, where the recipe names none."""


@dataclass(frozen=True)
class Idea:
    """One change before it is planned."""

    title: str
    settings: Mapping[str, Any]
    consequence: str
    options: Mapping[str, Any] | None = None
    """Fields of WhatIf."""


Replan = Callable[[Recipe, WhatIf], Planned]


def planned_changes(planned: Planned, wanted: WhatIf, replan: Replan) -> list[Change]:
    """What each idea would change of the whole run; ideas that a recipe refuses are left out."""
    before = planned.run
    changes = []
    for idea in _ideas(planned, wanted):
        recipe = check(
            Recipe, merge(planned.recipe.model_dump(exclude_unset=True), dict(idea.settings)), "towpath plan"
        )
        after = replan(recipe, replace(wanted, **(idea.options or {}))).run
        if after.too_large and not before.too_large:
            continue
        if after.computation.source != before.computation.source:
            continue  # of settings that were not measured, beside some that were
        settings = dict(idea.settings) | {f"--{name}": value for name, value in (idea.options or {}).items()}
        seconds = after.seconds.likely - before.seconds.likely
        dollars = after.dollars.likely - before.dollars.likely
        changes.append(Change(idea.title, settings, seconds, dollars, idea.consequence))
    return changes


def _ideas(planned: Planned, wanted: WhatIf) -> Iterator[Idea]:
    recipe = planned.recipe
    labels = planned.labels
    cfg = recipe.preferences
    if planned.labels.plan.hours:
        yield from _people(recipe, labels)
    if cfg.raters in ("people", "blend", "judge") and labels.pairs >= 2000:
        half = {"preferences.prompts": (cfg.prompts or planned.counts.train) // 2, "budget.pairs": labels.pairs // 2}
        consequence = "the learning curve of the report says what more labels would bring"
        yield Idea("half of the pairs", half, consequence, {"pairs": wanted.pairs // 2} if wanted.pairs else None)
    for stage in ("sft", "policy"):
        if getattr(recipe, stage).method == "full":
            consequence = f"{_gpus(planned.run)}quality is often equal; compare both on the evaluation"
            yield Idea(f"LoRA in {stage} instead of full weights", {f"{stage}.method": "lora"}, consequence)
    if recipe.policy.epochs > 2:
        consequence = "fewer passes over each rollout learn less of it"
        yield Idea("2 epochs over each rollout", {"policy.epochs": 2}, consequence)
    if planned.labels.evaluation.likely_hours and recipe.evaluate.overlap:
        consequence = "the agreement of the evaluation's raters is not measured"
        yield Idea("one rater for each evaluated pair", {"evaluate.overlap": 0.0}, consequence)
    if wanted.on and not recipe.budget.device_hour:
        yield from _other_gpus(planned.run, wanted)


def _people(recipe: Recipe, labels: LabelPlan) -> Iterator[Idea]:
    cfg = recipe.preferences
    raters = recipe.budget.raters
    yield Idea(f"{2 * raters} raters instead of {raters}", {"budget.raters": 2 * raters}, "the hours stay as they are")
    share = 1.0 if cfg.raters == "people" else cfg.human_share
    if share > 1 - JUDGED_SHARE:
        human = round(1 - JUDGED_SHARE, 2)
        error, after = (_label_error(recipe, labels, *split) for split in ((share < 1, share), (True, human)))
        settings: dict[str, Any] = {"preferences.raters": "blend", "preferences.human_share": human}
        consequence = f"expected label error {error:.1%} → {after:.1%}{_assumed(labels)}"
        if not recipe.judge.base_url:
            settings |= {"judge.base_url": "http://localhost:8000/v1", "judge.model": "judge"}
            settings["judge.price_out"] = recipe.judge.price_out or _token_price(recipe)
            consequence += f", at ${JUDGE_PRICE:g} a pair"
        yield Idea(f"a judge for {JUDGED_SHARE:.0%} of the pairs", settings, consequence)
    if cfg.overlap > 0.05:
        halved = round(cfg.overlap / 2, 3)
        consequence = "agreement is measured on fewer pairs"
        yield Idea(f"overlap {halved:g} instead of {cfg.overlap:g}", {"preferences.overlap": halved}, consequence)


def _assumed(labels: LabelPlan) -> str:
    """The accuracies that were not measured."""
    rows = zip(("people", "the judge"), (PERSON_ACCURACY, JUDGE_ACCURACY), labels.trust_measured, strict=True)
    words = [f"{name} right {accuracy:.0%}" for name, accuracy, is_measured in rows if not is_measured]
    return f" (assumed: {', '.join(words)})" if words else ""


def _token_price(recipe: Recipe) -> float:
    """Dollars of a million tokens of the judge's replies at which a pair costs what a strong judge's does."""
    return 1e6 * JUDGE_PRICE / (2 * recipe.judge.samples * recipe.judge.max_tokens)


def _label_error(recipe: Recipe, labels: LabelPlan, use_judge: bool, people: float) -> float:
    """The expected share of wrong labels."""
    import numpy as np

    judge = np.sort(np.atleast_1d(np.asarray(labels.trust.judge, dtype=float)))
    prices = Prices(labels.seconds, recipe.budget.wage, JUDGE_PRICE)
    audit = recipe.preferences.audit_share
    shares = (use_judge, people, recipe.preferences.overlap)
    return evaluate_split(labels.pairs, shares, labels.trust.person, judge, prices, audit).error


def _gpus(plan: RunPlan) -> str:
    largest = plan.largest
    return "it fits one device; " if largest and plan.device_memory and largest in plan.too_large else ""


def _other_gpus(plan: RunPlan, wanted: WhatIf) -> Iterator[Idea]:
    table = load_devices(wanted.devices)
    count, _, name = wanted.on.lower().rpartition("x")
    here = table.find(name.strip())
    number = int(count or 1)
    for device in table.known.values():
        if device.name != here.name and device.dollars and device.memory >= 40e9:
            on = f"{number}x{device.name}"
            yield Idea(f"{number} × {device.name} instead of {here.name}", {}, "prices of the table", {"on": on})
    if number > 1:
        on = f"{number // 2}x{here.name}"
        yield Idea(f"{number // 2} GPUs instead of {number}", {}, "if the models fit", {"on": on})
    on = f"{2 * number}x{here.name}"
    yield Idea(f"{2 * number} GPUs instead of {number}", {}, "beyond one host steps take longer", {"on": on})
