"""What the report says beyond the win rate: blind arenas, safety in pairs and in disguise, perplexity, the reward
model against the labels."""

from collections.abc import Mapping
from typing import Any

from towpath.arena.leaderboard_row import leaderboard_row
from towpath.run.record import RunRecord
from towpath.store import arenas, location
from towpath.store.jsonl import is_number
from towpath.store.store import Store
from towpath.view.format import number, percent, percents
from towpath.view.report.tables import Row

SIDES = {
    "harmful": "Harmful requests declined",
    "transformed": "The same in disguise",
    "harmless": "Harmless requests declined",
}


def told(run: RunRecord) -> dict[str, Any]:
    """Rows of every part; a part that is not known is empty."""
    evaluation = run.result("evaluate")
    return {
        "arenas": contests(run),
        "paired": paired(evaluation.get("safety_paired") or {}),
        "disguises": disguises(evaluation),
        "perplexity": perplexity(evaluation.get("perplexity") or {}),
        "disagreements": evaluation.get("disagreements") or {},
        "judged": judged(evaluation.get("safety_judged") or {}),
    }


def contests(run: RunRecord) -> list[Row]:
    """How each arena stands, by people and by judges."""
    at = location.configured_location(run.folder, run.recipe.store.url)
    if not isinstance(at, str) and not at.is_file():
        return []
    rows = []
    with Store.open(at) as store:
        for one in store.read(arenas.list_arenas):
            found = leaderboard_row(store, one.number)
            for who, record in {"people": found.people, **found.judges}.items():
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


def paired(result: Mapping[str, Any]) -> list[Row]:
    """The same prompts before and after, with McNemar's exact test."""
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


def disguises(result: Mapping[str, Any]) -> list[Row]:
    """Refusals by disguise."""
    found = result.get("safety_transformed") or {}
    before = found.get("sft") or {}
    after = found.get("policy") or {}
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


def judged(result: Mapping[str, Any]) -> list[str]:
    """How often rules and a judge read an answer differently."""
    return [
        f"{source}, {side}: the judge reads {row['disagreements']} of {row['n']} answers otherwise than the rules; "
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
