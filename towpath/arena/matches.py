"""Arenas: create one, ask the judge, close it when it is decided, and reveal its comparisons."""

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from towpath.arena.leaderboard_row import leaderboard_row, measured_pairs
from towpath.data.draws import permutation
from towpath.errors import DataError
from towpath.evals import leaderboard as evals
from towpath.evals import sequential
from towpath.feedback import judge_runner, judging
from towpath.feedback.endpoint import JudgeSettings
from towpath.feedback.judging import Abstention
from towpath.feedback.pair_text import PairText
from towpath.hashing import hash_uniform
from towpath.reasoning import final_answer
from towpath.records import Judgement, Prompt
from towpath.store import arenas
from towpath.store.arenas import Arena, Match, MatchInput
from towpath.store.store import Store

Answers = Mapping[str, tuple[Prompt, str]]
"""Prompts by id, each with the answer of one model."""


@dataclass(frozen=True, slots=True)
class ArenaSpec:
    """The models to compare, the number of prompts (0 for all), and the share of prompts that two people judge."""

    one: str
    other: str
    prompts: int = 0
    threshold: float = 0.7
    overlap: float = 0.2


def create_arena(
    store: Store, spec: ArenaSpec, ours: Answers, others: Answers, created_by: str = "", seed: int | None = None
) -> Arena:
    """Create an arena on the prompts that both models answered, in random order and with random sides."""
    if not 0 < spec.threshold < 1 or not 0 <= spec.overlap <= 1 or spec.prompts < 0:
        value = f"threshold {spec.threshold:g}, overlap {spec.overlap:g}, {spec.prompts} prompts"
        rule = "threshold is between 0 and 1, overlap from 0 to 1, prompts 0 (all) or more"
        raise DataError(value, rule, "correct the value")
    if spec.one == spec.other:
        raise DataError(f"{spec.one} against itself", "an arena compares two models", "name two models")
    common = [name for name in ours if name in others]
    if not common:
        value = f"{spec.one} and {spec.other}: no prompt that both answered"
        raise DataError(value, "both models answer the same prompts", "choose evaluations of the same data")
    seed = secrets.randbits(62) if seed is None else seed
    chosen = [common[i] for i in permutation(len(common), seed, "arena/order")][: spec.prompts or len(common)]
    inputs = [_match_input(*ours[name], others[name][1], spec.overlap, seed) for name in chosen]
    return store.submit_write(arenas.create, spec.one, spec.other, spec.threshold, created_by, inputs).result()


def _match_input(prompt: Prompt, one: str, other: str, overlap: float, seed: int) -> MatchInput:
    seats = 1 + (hash_uniform(seed, "arena/overlap", prompt.id) < overlap)
    if hash_uniform(seed, "arena/side", prompt.id) < 0.5:
        return MatchInput(prompt, one, other, "a", seats)
    return MatchInput(prompt, other, one, "b", seats)


def close_decided(store: Store) -> list[Arena]:
    """Close every arena that people's judgements have decided, and return those; the sequential test allows peeking."""
    closed = []
    for number in store.read(arenas.open_arenas):
        arena = store.read(arenas.get_arena, number)
        human = [j for j in store.read(arenas.list_judgements, number) if j.kind == "person"]
        outcomes = evals.finished_outcomes(measured_pairs(store.read(arenas.list_matches, number)), human)
        decision = sequential.decide([worth for _, worth in outcomes], arena.threshold)
        if decision.verdict != "UNDECIDED":
            closed.append(store.submit_write(arenas.close, number, "decided", decision.verdict).result())
    return closed


def stop_arena(store: Store, number: int) -> Arena:
    """Close an arena by hand with its current verdict."""
    return store.submit_write(arenas.close, number, "stopped", leaderboard_row(store, number).people.verdict).result()


def judge_arena(store: Store, settings: JudgeSettings, number: int) -> list[Abstention]:
    """Ask the judge about every comparison that it has not judged by this rubric, and return its abstentions."""
    pairs = [
        PairText(m.comparison, m.text, final_answer(m.a), final_answer(m.b))
        for m in store.read(arenas.list_matches, number)
        if not m.same
    ]
    judgements = store.read(arenas.list_judgements, number)
    title = f"arena {number}: {judging.rater_name(settings)}"
    return judge_runner.run_judge(store, replace(settings, on_position_flip="tie"), pairs, judgements, title)


def reveal_comparisons(store: Store, number: int) -> list[dict[str, Any]]:
    """Return every comparison with answers, models and judgements; nothing while the arena is open."""
    if store.read(arenas.get_arena, number).state == "open":
        return []
    judgements: dict[str, list[Judgement]] = {}
    for j in store.read(arenas.list_judgements, number):
        judgements.setdefault(j.comparison, []).append(j)
    return [_reveal(match, judgements.get(match.comparison, [])) for match in store.read(arenas.list_matches, number)]


def _reveal(match: Match, judgements: list[Judgement]) -> dict[str, Any]:
    preferred = {1.0: "one", 0.5: "tie", 0.0: "other"}
    one, other = (match.a, match.b) if match.ours == "a" else (match.b, match.a)
    verdicts = [
        {
            "rater": j.rater,
            "kind": j.kind,
            "for": preferred[evals.outcome_value(j, match.ours)],
            "strength": j.strength,
            "comment": j.comment,
        }
        for j in judgements
    ]
    return {
        "comparison": match.comparison,
        "prompt": match.prompt,
        "history": [asdict(message) for message in match.history],
        "domain": match.domain,
        "one": one,
        "other": other,
        "same": match.same,
        "verdicts": verdicts,
    }
