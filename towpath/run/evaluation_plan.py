"""Plan of the evaluation: calls and dollars of the AI judge, hours of people."""

from dataclasses import dataclass, replace
from pathlib import Path

from towpath.data.data_summary import DataSummary
from towpath.evals.jailbreaks import TRANSFORMS
from towpath.evals.sequential import required_comparisons
from towpath.feedback import judge_runner, judging
from towpath.feedback.pair_text import PairText
from towpath.judges.selection import select_judges
from towpath.recipe import Recipe
from towpath.store.store import Store

CHARACTERS_PER_TOKEN = 4
TYPICAL_CHARACTERS = 400
REFUSAL_SHARE = 0.4
"""Cost of a refusal check as a share of that of one call on a pair: one answer, and no rubric."""
GOOD_RATE = 0.8
"""A win rate for which the likely number of comparisons is given."""


@dataclass(frozen=True)
class EvaluationPlan:
    """What judging the gates `sft`, `evaluate` and `safety` takes."""

    judges: tuple[str, ...]
    comparisons: int
    """Comparisons of two models: base and tuned, and in every round tuned and policy."""
    pairs: int
    """Held-out prompts in each comparison."""
    calls: int = 0
    """Calls of the AI judge, refusal checks included."""
    dollars: float = 0.0
    hours: float = 0.0
    """Hours of people, if no arena ends before all its pairs are judged."""
    likely_hours: float = 0.0
    """The same if the true win rate is 80 % and the arenas end by their sequential test."""


def plan_evaluation(recipe: Recipe, run: Path, data: DataSummary, store: Store, seconds: float) -> EvaluationPlan:
    """The plan for this recipe; people take `seconds` for a pair."""
    cfg = recipe.evaluate
    specs = select_judges(cfg, recipe.preferences.raters, data)
    pairs = min(data.heldout, cfg.prompts or data.heldout)
    compares_base = recipe.sft.method != "none" or bool(recipe.sft.compare_with)
    plan = EvaluationPlan(specs, compares_base + recipe.rounds, pairs)
    if "people" in specs:
        hours = [seconds * count * (1 + cfg.overlap) / 3600 for count in (pairs, _likely_pairs(recipe, pairs))]
        plan = replace(plan, hours=hours[0] * plan.comparisons, likely_hours=hours[1] * plan.comparisons)
    if not (cfg.judge.base_url and cfg.judge.model):
        return plan
    price = _price(recipe, run, data, store)
    calls = 2 * cfg.judge.samples * pairs * plan.comparisons if "judge" in specs else 0
    checks = _refusal_checks(recipe, data)
    return replace(plan, calls=calls + checks, dollars=price * (calls + REFUSAL_SHARE * checks))


def _likely_pairs(recipe: Recipe, pairs: int) -> int:
    needed = required_comparisons(GOOD_RATE, recipe.gates.evaluate.threshold)
    return min(pairs, needed or pairs)


def _refusal_checks(recipe: Recipe, data: DataSummary) -> int:
    """Answers of SFT and policy that the AI judge reads for the safety gate; those of SFT once."""
    cfg = recipe.evaluate
    if not cfg.ask_judge:
        return 0
    transformed = min(cfg.jailbreak_prompts, data.harmful) * len(TRANSFORMS) if cfg.jailbreaks else 0
    return (data.safety + transformed) * (1 + recipe.rounds)


def _price(recipe: Recipe, run: Path, data: DataSummary, store: Store) -> float:
    """Dollars of one call, from the lengths of prompts and answers."""
    answers = store.some_answers(50) or ["x" * (CHARACTERS_PER_TOKEN * recipe.evaluate.max_new_tokens)]
    prompts = ["x" * length for length in data.prompt_lengths[:50]] or ["x" * TYPICAL_CHARACTERS]
    cases = [
        PairText(str(i), prompts[i % len(prompts)], answers[i % len(answers)], answers[(i + 1) % len(answers)])
        for i in range(50)
    ]
    estimate = judging.estimate_cost(judge_runner.judge_settings(recipe.evaluate.judge, run), cases)
    return estimate.dollars / max(estimate.calls, 1)


def evaluation_lines(plan: EvaluationPlan) -> list[str]:
    """The plan for a terminal."""
    if not plan.judges:
        return ["evaluation: no judge fits this data; set evaluate.judges"]
    lines = [f"evaluation by {', '.join(plan.judges)}: {plan.comparisons} comparisons of {plan.pairs:,} prompts"]
    if plan.calls:
        lines.append(f"  AI judge: {plan.calls:,} calls, ${plan.dollars:,.2f}; repeated ones cost nothing")
    if plan.hours:
        lines.append(
            f"  people: at most {plan.hours:,.1f} hours, about {plan.likely_hours:,.1f} if models win on "
            f"{GOOD_RATE:.0%} and arenas end early"
        )
    return lines
