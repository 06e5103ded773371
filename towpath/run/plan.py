"""Plan of labels and evaluation: hours of people, dollars of a judge, days, and the split of labels between both with
the fewest wrong ones for the money."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from towpath.data.data_summary import DataSummary
from towpath.data.intervals import accuracy_ceiling
from towpath.feedback import agreement, calibration, judge_runner, judging, label_budget
from towpath.feedback.label_budget import LabelRequest, Prices, RaterAccuracy, SpendingLimit
from towpath.feedback.pair_text import PairText
from towpath.feedback.rater_quality import PEOPLE
from towpath.recipe import Recipe
from towpath.records import Judgement
from towpath.run.evaluation_plan import EvaluationPlan, evaluation_lines, plan_evaluation
from towpath.store import judgement_reads, spending
from towpath.store.store import Store

PERSON_ACCURACY = 0.87
"""Until it is measured: of people who agree on three pairs of four."""
JUDGE_ACCURACY = 0.8
MIN_JUDGEMENTS = 30
"""Judgements from which an accuracy or a price counts as measured."""
TYPICAL_CHARACTERS = 400
PRICED_PAIRS = 100
PRICED_ANSWERS = 200
MAX_MEASURED = 20_000
"""Judgements that measurements are made on, the newest, so that a plan of a million takes no longer."""


@dataclass(frozen=True)
class LabelPlan:
    """The plan of a run's labels."""

    pairs: int
    seconds: float
    measured: int
    """Judgements of people that `seconds` was measured on; 0 where it is assumed."""
    plan: label_budget.PlannedLabels
    costs: label_budget.LabelCost
    burn_down: tuple[label_budget.BurnDownDay, ...]
    stopped: str | None
    best: label_budget.BudgetSplit | None
    trust: RaterAccuracy
    trust_measured: tuple[bool, bool]
    evaluation: EvaluationPlan
    judge_measured: bool = False
    """Whether the judge's dollars for a pair were measured."""


def plan_labels(recipe: Recipe, run: Path, data: DataSummary, store: Store) -> LabelPlan:
    """The plan for this recipe, with measurements in place of assumptions where there are any."""
    cfg = recipe.preferences
    limits = recipe.budget
    by_people, count = store.read(judgement_reads.newest, ("person",), MAX_MEASURED)
    seconds = label_budget.seconds_per_pair(by_people, limits.seconds)
    pairs = limits.pairs or max_comparisons(recipe, data.train)
    has_judge = cfg.raters in ("judge", "blend")
    judge_price, judge_measured = 0.0, False
    if has_judge or recipe.judge.base_url:
        judge_price, judge_measured = _judge_price(recipe, run, data, store)
    prices = Prices(seconds, limits.wage, judge_price if has_judge else 0.0)
    human_share = {"people": 1.0, "blend": cfg.human_share}.get(cfg.raters, 0.0)
    ceiling = SpendingLimit(limits.dollars or math.inf, limits.hours or math.inf)
    overlap = cfg.overlap if human_share else 0.0
    wanted = LabelRequest(pairs, human_share, overlap, float(has_judge), limits.raters, limits.hours_a_day)
    planned = label_budget.plan_labels(wanted, prices, ceiling)
    costs = _costs(by_people, count, store, prices)
    # hours of judgements older than those measured are spent before the first day that is listed
    earlier_hours = costs.hours - label_budget.label_cost(by_people, prices).hours
    remaining = replace(planned, hours=planned.hours - earlier_hours)
    trust, trust_measured = _trust(recipe, store)
    best = None
    if limits.dollars and recipe.judge.base_url:
        best = label_budget.best_split(pairs, limits.dollars, trust, replace(prices, judge=judge_price))
    return LabelPlan(
        pairs=pairs,
        seconds=seconds,
        measured=sum(j.milliseconds is not None for j in by_people),
        plan=planned,
        costs=costs,
        burn_down=tuple(label_budget.burn_down(by_people, remaining, prices)),
        stopped=label_budget.stop_reason(costs, ceiling, prices),
        best=best,
        trust=trust,
        trust_measured=trust_measured,
        evaluation=plan_evaluation(recipe, run, data, store, seconds),
        judge_measured=judge_measured,
    )


def max_comparisons(recipe: Recipe, train: int) -> int:
    """Comparisons that sampling makes at most of so many training prompts."""
    cfg = recipe.preferences
    prompts = min(train, cfg.prompts or train)
    return round(prompts * (math.comb(cfg.completions, 2) + cfg.base_share)) * recipe.rounds


def _costs(by_people: Sequence[Judgement], count: int, store: Store, prices: Prices) -> label_budget.LabelCost:
    """Hours of people, whose older judgements count like the newest, and the cost of all calls of a judge, with or
    without a judgement."""
    people = label_budget.label_cost(by_people, prices)
    share = count / len(by_people) if by_people else 1.0
    dollars = store.read(spending.total_dollars)
    return label_budget.LabelCost(count, people.hours * share, people.dollars * share + dollars, dollars)


def _judge_price(recipe: Recipe, run: Path, data: DataSummary, store: Store) -> tuple[float, bool]:
    """Dollars of the judge for a pair, and whether they were measured or estimated from lengths of prompts and
    answers."""
    cost, count = store.read(judgement_reads.mean_cost, "judge", MAX_MEASURED)
    if count >= MIN_JUDGEMENTS:
        return cost, True
    answers = store.some_answers(PRICED_ANSWERS) or ["x" * TYPICAL_CHARACTERS]
    prompts = ["x" * length for length in data.prompt_lengths] or ["x" * TYPICAL_CHARACTERS]
    cases = [
        PairText(str(i), prompts[i % len(prompts)], answers[i % len(answers)], answers[(i + 1) % len(answers)])
        for i in range(PRICED_PAIRS)
    ]
    return judging.estimate_cost(judge_runner.judge_settings(recipe.judge, run), cases).dollars / len(cases), False


def _trust(recipe: Recipe, store: Store) -> tuple[RaterAccuracy, tuple[bool, bool]]:
    """The accuracy of people and of the judge, and whether each was measured."""
    people, _ = store.read(judgement_reads.newest, PEOPLE, MAX_MEASURED)
    rate, n = agreement.pairwise_agreement(people)
    is_person_measured = n >= MIN_JUDGEMENTS
    person = min(max(accuracy_ceiling(rate), 0.55), 0.99) if is_person_measured else PERSON_ACCURACY
    judge = f"judge:{recipe.judge.model}"
    audit = []
    if recipe.judge.model:
        verdicts = store.read(judgement_reads.beside_people, judge, PEOPLE, MAX_MEASURED)
        audit = calibration.audit_rows([*people, *verdicts], judge)
    if len(audit) < MIN_JUDGEMENTS:
        return RaterAccuracy(person, JUDGE_ACCURACY), (is_person_measured, False)
    calibrated = calibration.calibrate(audit)
    return RaterAccuracy(person, [calibrated.chance(row.certainty) for row in audit]), (is_person_measured, True)


def plan_lines(plan: LabelPlan) -> str:
    """The plan for a terminal."""
    basis = f"measured on {plan.measured} judgements" if plan.measured else "assumed; people take 36 to 480"
    lines = [
        f"labels for {plan.pairs:,} pairs: {plan.plan.describe()}",
        f"seconds a pair: {plan.seconds:.0f} ({basis})",
    ]
    if plan.plan.judge_dollars:
        lines.append(f"of that the judge: ${plan.plan.judge_dollars:,.2f}")
    costs = plan.costs
    if costs.judgements or costs.judge_dollars:
        lines.append(f"until now: {costs.judgements:,} judgements, {costs.hours:,.1f} hours, ${costs.dollars:,.2f}")
    lines += [
        f"  {day.day}: {day.judgements:,} judgements, {day.hours:,.1f} hours; {day.left:,.1f} left"
        for day in plan.burn_down
    ]
    if plan.best:
        lines += _split_lines(plan.best, plan.trust_measured)
    lines += evaluation_lines(plan.evaluation)
    if plan.stopped:
        lines.append(f"stopped: {plan.stopped}")
    return "\n".join(lines)


def _split_lines(best: label_budget.BudgetSplit, trust_measured: tuple[bool, bool]) -> list[str]:
    shares = f"judge {'all' if best.use_judge else 'none'}, people {best.people:.0%}, of those twice {best.overlap:.0%}"
    costs = f"${best.dollars:,.0f}, {best.hours:,.0f} hours"
    lines = [f"best split for the money: {shares}: {best.error:.1%} wrong labels expected for {costs}"]
    accuracies = zip(("people", "judge"), (PERSON_ACCURACY, JUDGE_ACCURACY), trust_measured, strict=True)
    assumed = [f"{name} right {accuracy:.0%}" for name, accuracy, is_measured in accuracies if not is_measured]
    return [*lines, f"  assumed until measured: {', '.join(assumed)}"] if assumed else lines


def as_json(plan: LabelPlan) -> dict[str, Any]:
    """The plan for scripts; an infinite ceiling is null."""
    content = asdict(plan)
    content["spent"] = content.pop("costs")
    content["burn_down"] = [{**row, "day": str(row["day"])} for row in content["burn_down"]]
    return content
