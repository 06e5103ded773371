"""What labels will take: people's hours, a judge's dollars, days, and the split that leaves the fewest wrong labels
for the money."""

import math
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from towpath.data.corpus_reader import Corpus
from towpath.feedback import agreement, calibration, judge_runner, judging, label_budget
from towpath.feedback.label_budget import LabelRequest, Prices, RaterAccuracy, SpendingLimit
from towpath.feedback.pair_text import PairText
from towpath.feedback.rater_quality import PEOPLE
from towpath.recipe import Recipe
from towpath.records import Judgement
from towpath.store import spending
from towpath.store.store import Store

PERSON = 0.87
JUDGE = 0.8
"""How often a person and a judge are right, until it is measured: people who agree on three pairs of four; a good
judge beside them."""
ENOUGH = 30
TYPICAL = 400


@dataclass(frozen=True)
class Labels:
    """The plan of a run's labels."""

    pairs: int
    seconds: float
    measured: int
    """Judgements of people behind `seconds`; 0 where it is assumed."""
    plan: label_budget.LabelPlan
    spent: label_budget.LabelCost
    burn_down: tuple[label_budget.BurnDownDay, ...]
    stopped: str | None
    best: label_budget.BudgetSplit | None
    trust: RaterAccuracy
    trust_measured: tuple[bool, bool]


def labels(recipe: Recipe, run: Path, corpus: Corpus, store: Store) -> Labels:
    """The plan by this recipe, with what has been measured so far in place of what is assumed."""
    cfg = recipe.preferences
    money = recipe.budget
    judgements = store.judgements()
    own = [j for j in judgements if j.kind == "person"]
    timed = sum(j.milliseconds is not None for j in own)
    seconds = label_budget.seconds_per_pair(own, money.seconds)
    pairs = money.pairs or expected(recipe, corpus)
    judged = cfg.raters in ("judge", "blend")
    prices = Prices(seconds, money.wage, _judge_price(recipe, run, corpus, store) if judged else 0.0)
    share = {"people": 1.0, "blend": cfg.human_share}.get(cfg.raters, 0.0)
    ceiling = SpendingLimit(money.dollars or inf, money.hours or inf)
    wanted = LabelRequest(pairs, share, cfg.overlap if share else 0.0, float(judged), money.raters, money.hours_a_day)
    planned = label_budget.plan_labels(wanted, prices, ceiling)
    spent = _spent(own, store, prices)
    trust, known = _trust(recipe, run, judgements)
    offered = replace(prices, judge=_judge_price(recipe, run, corpus, store)) if recipe.judge.base_url else prices
    best = (
        label_budget.best_split(pairs, money.dollars, trust, offered)
        if money.dollars and recipe.judge.base_url
        else None
    )
    days = tuple(label_budget.burn_down(own, planned, prices))
    return Labels(
        pairs,
        seconds,
        timed,
        planned,
        spent,
        days,
        label_budget.stop_reason(spent, ceiling, prices),
        best,
        trust,
        known,
    )


def _spent(own: list[Judgement], store: Store, prices: Prices) -> label_budget.LabelCost:
    """People's hours, and what every call of a judge has cost, whether or not a judgement came of it."""
    people = label_budget.label_cost(own, prices)
    dollars = store.read(spending.total_dollars)
    return replace(people, dollars=people.dollars + dollars, judge_dollars=dollars)


def expected(recipe: Recipe, corpus: Corpus) -> int:
    """Comparisons that sampling will make at most."""
    cfg = recipe.preferences
    prompts = min(len(corpus.train), cfg.prompts or len(corpus.train))
    return round(prompts * (math.comb(cfg.completions, 2) + cfg.base_share)) * recipe.rounds


def _judge_price(recipe: Recipe, run: Path, corpus: Corpus, store: Store) -> float:
    """Dollars a pair: of what the judge has judged, or reckoned from the length of prompts and answers."""
    said = [j for j in store.judgements() if j.kind == "judge" and j.cost]
    if len(said) >= ENOUGH:
        return sum(j.cost for j in said) / len(said)
    answers = [c.text for c in list(store.completions().values())[:200]] or ["x" * TYPICAL]
    prompts = [p.prompt for p in corpus.train[:200]] or ["x" * TYPICAL]
    cases = [
        PairText(str(i), prompts[i % len(prompts)], answers[i % len(answers)], answers[(i + 1) % len(answers)])
        for i in range(100)
    ]
    return judging.estimate_cost(judge_runner.judge_settings(recipe.judge, run), cases).dollars / len(cases)


def _trust(recipe: Recipe, run: Path, judgements: list[Judgement]) -> tuple[RaterAccuracy, tuple[bool, bool]]:
    """How often people and the judge are right, and whether each was measured."""
    rate, n = agreement.pairwise_agreement([j for j in judgements if j.kind in PEOPLE])
    person = min(max(agreement.accuracy_ceiling(rate), 0.55), 0.99) if n >= ENOUGH else PERSON
    rows = calibration.audit_rows(judgements, f"judge:{recipe.judge.model}") if recipe.judge.model else []
    if len(rows) < ENOUGH:
        return RaterAccuracy(person, JUDGE), (n >= ENOUGH, False)
    fitted = calibration.calibrate(rows)
    return RaterAccuracy(person, [fitted.chance(row.certainty) for row in rows]), (n >= ENOUGH, True)


def told(found: Labels) -> str:
    """The plan in a few lines."""
    how = f"measured on {found.measured} judgements" if found.measured else "assumed; people take 36 to 480"
    lines = [f"labels for {found.pairs:,} pairs: {found.plan.told()}", f"seconds a pair: {found.seconds:.0f} ({how})"]
    if found.plan.judge_dollars:
        lines.append(f"of that the judge: ${found.plan.judge_dollars:,.2f}")
    if found.spent.judgements or found.spent.judge_dollars:
        spent = found.spent
        lines.append(f"so far: {spent.judgements:,} judgements, {spent.hours:,.1f} hours, ${spent.dollars:,.2f}")
    lines += [
        f"  {day.day}: {day.judgements:,} judgements, {day.hours:,.1f} hours; {day.left:,.1f} left"
        for day in found.burn_down
    ]
    if found.best:
        best = found.best
        known = found.trust_measured
        who = f"judge {'all' if best.judged else 'none'}, people {best.people:.0%}, of those twice {best.overlap:.0%}"
        lines.append(
            f"best split for the money: {who}: {best.error:.1%} wrong labels expected for ${best.dollars:,.0f}, "
            f"{best.hours:,.0f} hours"
        )
        if not all(known):
            assumed = [
                f"{name} right {value:.0%}"
                for name, value, seen in zip(("people", "judge"), (PERSON, JUDGE), known, strict=True)
                if not seen
            ]
            lines.append(f"  assumed until measured: {', '.join(assumed)}")
    if found.stopped:
        lines.append(f"stopped: {found.stopped}")
    return "\n".join(lines)


def as_json(found: Labels) -> dict[str, Any]:
    """The plan for scripts; no ceiling is null."""
    rows = asdict(found)
    rows["burn_down"] = [{**row, "day": str(row["day"])} for row in rows["burn_down"]]
    return rows
