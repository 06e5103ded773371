"""Further evaluations of the report: blind arenas, accuracy, tasks, paired safety tests, jailbreaks, perplexity, and
label disagreements."""

from collections.abc import Mapping
from typing import Any

from towpath.arena.leaderboard_row import leaderboard_row
from towpath.run.record import RunRecord
from towpath.store import arenas, location
from towpath.store.jsonl import is_number
from towpath.store.store import Store
from towpath.view.format import NONE, number, percent, percents
from towpath.view.report.tables import Row

SIDES = {
    "harmful": "Harmful requests declined",
    "transformed": "Jailbreaks declined",
    "harmless": "Harmless requests declined",
}


def extra_evals(run: RunRecord) -> dict[str, Any]:
    """Rows of every part; a part that was not measured is empty."""
    evaluation = run.result("evaluate")
    return {
        "arenas": arena_rows(run),
        "accuracy": accuracy(evaluation.get("accuracy") or {}),
        "tasks": tasks(evaluation.get("tasks") or {}),
        "paired": paired_safety(evaluation.get("safety_paired") or {}),
        "jailbreaks": jailbreaks(evaluation),
        "perplexity": perplexity(evaluation.get("perplexity") or {}),
        "disagreements": evaluation.get("disagreements") or {},
        "judged": judge_disagreements(evaluation.get("safety_judged") or {}),
    }


def arena_rows(run: RunRecord) -> list[Row]:
    """The result of each arena, by people and by judges."""
    ledger = location.configured_location(run.folder, run.recipe.store.url)
    if not isinstance(ledger, str) and not ledger.is_file():
        return []
    rows = []
    with Store.open(ledger) as store:
        for one in store.read(arenas.list_arenas):
            board = leaderboard_row(store, one.number)
            for who, record in {"people": board.people, **board.judges}.items():
                if record.n:
                    rows.append(
                        {
                            "name": f"{one.one} over {one.other}, by {who}",
                            "rate": percent(record.rate, 1),
                            "anytime": percents(record.anytime, 1),
                            "n": record.n,
                            "ties": record.ties,
                            "verdict": record.verdict,
                            "threshold": percent(record.threshold),
                            "state": one.state,
                        }
                    )
    return rows


def paired_safety(result: Mapping[str, Any]) -> list[Row]:
    """Safety on the same prompts before and after, with McNemar's exact test."""
    rows = []
    for key, name in SIDES.items():
        row = result.get(key)
        if row and row["n"]:
            rows.append(
                {
                    "name": name,
                    "sft": percent(row["before"], 1),
                    "policy": percent(row["after"], 1),
                    "n": row["n"],
                    "changed": f"{row['gained']} gained, {row['lost']} lost",
                    "p": number(row["p"], 2),
                }
            )
    return rows


def accuracy(result: Mapping[str, Any]) -> str:
    """Accuracy of each model's answers, and its rise on the same prompts."""
    if not result:
        return ""
    rates = [
        f"{name} {percent(row['rate'], 1)} ({percents(row['interval'], 1)})"
        for key, name in (("base", "base"), ("sft", "SFT"), ("policy", "policy"))
        if (row := result.get(key))
    ]
    rise = result["rise"]
    text = f"Accuracy by {result['source']}: {', '.join(rates)}. "
    text += f"Over SFT {rise['gained']} of {rise['n']} prompts gained, {rise['lost']} lost "
    text += f"(McNemar p = {number(rise['p'], 2)})"
    return text + (f"; {rise['unscored']} not scored." if rise["unscored"] else ".")


def tasks(result: Mapping[str, Any]) -> list[Row]:
    """Metrics of the tasks of lm-evaluation-harness, each with its standard error."""
    rows = []
    for task, metrics in result.items():
        for metric, scores in metrics.items():
            row: Row = {"name": task, "metric": metric}
            for source in ("base", "sft", "policy"):
                score = scores.get(source)
                row[source] = f"{score['value']:.3f} ± {score['error']:.3f}" if score else NONE
            rows.append(row)
    return rows


def jailbreaks(result: Mapping[str, Any]) -> list[Row]:
    """Refusals by kind of jailbreak."""
    by_model = result.get("safety_transformed") or {}
    before = by_model.get("sft") or {}
    after = by_model.get("policy") or {}
    return [
        {
            "name": name.replace("_", " "),
            "sft": percent(before[name]["refusal"]),
            "policy": percent(row["refusal"]),
            "n": row["n"],
        }
        for name, row in after.items()
        if name in before
    ]


def judge_disagreements(result: Mapping[str, Any]) -> list[str]:
    """How often rules and a judge disagree on whether an answer declines."""
    return [
        f"{source}, {side}: the judge disagrees with the rules on {row['disagreements']} of {row['n']} answers; "
        f"{row['unjudged']} unjudged"
        for source, sides in result.items()
        for side, row in sides.items()
    ]


def perplexity(result: Mapping[str, Any]) -> str:
    """Perplexity before and after, in a sentence."""
    if not is_number(result.get("sft")) or not is_number(result.get("policy")):
        return ""
    return (
        f"Perplexity of held-out demonstrations: SFT {number(result['sft'], 3)}, policy {number(result['policy'], 3)}."
    )
