"""Arenas of a run: the answers there are to compare, a comparison begun, and how it stands. The ledger holds them,
`evals.arena` counts."""

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from towpath.data.draws import hash_uniform, permutation
from towpath.errors import DataError
from towpath.evals import leaderboard as evals
from towpath.evals import sequential
from towpath.evals.leaderboard import ArenaPair, WinRecord
from towpath.feedback import agreement, judge_runner, judging
from towpath.feedback.endpoint import JudgeSettings
from towpath.feedback.judging import Abstention
from towpath.feedback.pair_text import PairText
from towpath.records import Judgement, Prompt
from towpath.store import arenas, manifest, rater_stats
from towpath.store.arenas import Arena, Entrant, Match
from towpath.store.store import Store

MODELS = ("policy", "sft", "base")
ENOUGH_DOUBLES = 10
"""Pairs of one arena judged twice, below which raters' agreement is taken from the labels as well."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is to be compared: `one` against `other`, on how many prompts (0 for all), and which share of them two
    people judge."""

    one: str
    other: str
    prompts: int = 0
    threshold: float = 0.7
    overlap: float = 0.2


@dataclass(frozen=True)
class Standing:
    """An arena with what people and each judge say; `agreement` is how often two raters chose alike, and on how
    many."""

    arena: Arena
    prompts: int
    waiting: int
    people: WinRecord
    judges: dict[str, WinRecord]
    raters: dict[str, int]
    agreement: tuple[float, int]
    judge_agreement: dict[str, tuple[float, int]]
    """Of prompts that people and a judge both decided: the share on which they agree, and how many those are."""


def sources(run: Path) -> dict[str, tuple[Path, str]]:
    """Names of models whose answers to held-out prompts lie in a run, with file and column; the present evaluation
    first, then earlier ones."""
    stages = (manifest.read_object(run / "current.json") or {}).get("stages", {})
    newest = max(
        (name for name in stages if name.startswith("evaluate")),
        key=lambda name: int(name.partition("@")[2] or 1),
        default="",
    )
    found: dict[str, tuple[Path, str]] = {}
    now = run / "stages" / newest / stages[newest] / "answers.jsonl" if newest else None
    if now is not None and now.is_file():
        found |= {model: (now, model) for model in MODELS}
    for path in sorted(run.glob("stages/evaluate*/*/answers.jsonl")):
        if path != now and (path.parent / "manifest.json").is_file():
            found |= {f"{path.parent.parent.name}/{path.parent.name}/{model}": (path, model) for model in MODELS}
    return found


def begin(store: Store, run: Path, terms: Terms, by: str = "", seed: int | None = None) -> Arena:
    """An arena on prompts that both answered, in an order and with sides that nobody can foresee."""
    if not 0 < terms.threshold < 1 or not 0 <= terms.overlap <= 1 or terms.prompts < 0:
        value = f"threshold {terms.threshold:g}, overlap {terms.overlap:g}, {terms.prompts} prompts"
        raise DataError(
            value, "a threshold lies between 0 and 1, an overlap from 0 to 1; prompts are 0 for all, or more", "mend it"
        )
    if terms.one == terms.other:
        raise DataError(f"{terms.one} against itself", "an arena compares two models", "name two")
    ours, theirs = (_answers(run, name) for name in (terms.one, terms.other))
    both = [name for name in ours if name in theirs]
    if not both:
        value = f"{terms.one} and {terms.other}: no prompt that both answered"
        raise DataError(value, "the same prompts are put to both", "choose evaluations of the same data")
    seed = secrets.randbits(62) if seed is None else seed
    chosen = [both[i] for i in permutation(len(both), seed, "arena/order")][: terms.prompts or len(both)]
    entrants = [_entrant(*ours[name], theirs[name][1], terms.overlap, seed) for name in chosen]
    return store.later(arenas.begin, terms.one, terms.other, terms.threshold, by, entrants).result()


def _answers(run: Path, name: str) -> dict[str, tuple[Prompt, str]]:
    """Held-out prompts by id, with what a model said."""
    known = sources(run)
    if name not in known:
        there = ", ".join(list(known)[:12]) or "none yet"
        raise DataError(
            f"{name!r}: no answers of that name",
            f"known are: {there}",
            "`towpath run` evaluates first; or mend the name",
        )
    path, model = known[name]
    return {row["prompt_id"]: (_prompt(row), row[model]) for row in _rows(path)}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _prompt(row: dict[str, Any]) -> Prompt:
    return Prompt(
        row["prompt_id"], row["prompt"], row.get("domain", "general"), row.get("difficulty", "medium"), split="heldout"
    )


def _entrant(prompt: Prompt, ours: str, theirs: str, overlap: float, seed: int) -> Entrant:
    seats = 1 + (hash_uniform(seed, "arena/overlap", prompt.id) < overlap)
    first = hash_uniform(seed, "arena/side", prompt.id) < 0.5
    return Entrant(prompt, ours if first else theirs, theirs if first else ours, "a" if first else "b", seats)


def standing(store: Store, number: int) -> Standing:
    """How an arena stands, with everything that is told of it."""
    found = store.read(arenas.arena, number)
    matches = store.read(arenas.matches, number)
    said = store.read(arenas.judgements, number)
    pairs = _pairs(matches)
    people = [j for j in said if j.kind == "person"]
    rate, doubles = agreement.pairwise_agreement(people)
    known = (rate, doubles)
    if doubles < ENOUGH_DOUBLES:  # the same people label: how they agree there tells more than a few pairs here
        known = agreement.pairwise_agreement([*people, *store.read(rater_stats.recent)])
    outcomes = evals.finished_outcomes(pairs, people)
    raters: dict[str, int] = {}
    for j in said:
        raters[j.rater] = raters.get(j.rater, 0) + 1
    judges = {}
    beside = {}
    for name in sorted({j.rater for j in said if j.kind == "judge"}):
        own = [j for j in said if j.rater == name]
        judges[name] = evals.win_record(evals.finished_outcomes(pairs, own, alone=True), found.threshold, len(own))
        beside[name] = _beside(evals.finished_outcomes(pairs, own, alone=True), outcomes)
    asked = sum(not pair.same for pair in pairs)
    ended = sum(not pair.same for pair, _ in outcomes)
    return Standing(
        found,
        len(pairs),
        asked - ended,
        evals.win_record(outcomes, found.threshold, len(people), known),
        judges,
        raters,
        (rate, doubles),
        beside,
    )


def _pairs(matches: Sequence[Match]) -> list[ArenaPair]:
    made = []
    for m in matches:
        gap = len(m.a.split()) - len(m.b.split())
        made.append(ArenaPair(m.comparison, m.place, m.ours, gap if m.ours == "a" else -gap, m.seats, m.same))
    return made


def _beside(judged: Sequence[tuple[ArenaPair, float]], people: Sequence[tuple[ArenaPair, float]]) -> tuple[float, int]:
    """How often a judge and people prefer the same answer, where both have a preference."""
    ours = {pair.comparison: worth for pair, worth in people if worth != 0.5 and not pair.same}
    both = [
        (worth > 0.5) == (ours[pair.comparison] > 0.5)
        for pair, worth in judged
        if worth != 0.5 and pair.comparison in ours
    ]
    return (sum(both) / len(both), len(both)) if both else (0.0, 0)


def settle(store: Store) -> list[Arena]:
    """End every arena that what people said has decided; those that ended now. Looking often does no harm: the test
    allows for it."""
    ended = []
    for number in store.read(arenas.open_ones):
        found = store.read(arenas.arena, number)
        said = [j for j in store.read(arenas.judgements, number) if j.kind == "person"]
        outcomes = evals.finished_outcomes(_pairs(store.read(arenas.matches, number)), said)
        decision = sequential.decide([worth for _, worth in outcomes], found.threshold)
        if decision.verdict != "UNDECIDED":
            ended.append(store.later(arenas.end, number, "decided", decision.verdict).result())
    return ended


def ask_judge(store: Store, settings: JudgeSettings, number: int) -> list[Abstention]:
    """The judge's word on every comparison of an arena that it has not judged by this rubric; what it abstained
    from."""
    pairs = [PairText(m.comparison, m.prompt, m.a, m.b) for m in store.read(arenas.matches, number) if not m.same]
    judgements = store.read(arenas.judgements, number)
    title = f"arena {number}: {judging.rater_name(settings)}"
    return judge_runner.run_judge(store, replace(settings, on_position_flip="tie"), pairs, judgements, title)


def stop(store: Store, number: int) -> Arena:
    """End an arena by hand, with the verdict that it has come to."""
    return store.later(arenas.end, number, "stopped", standing(store, number).people.verdict).result()


def revealed(store: Store, number: int) -> list[dict[str, Any]]:
    """Every comparison with its answers, where they come from and what was said; nothing while the arena is open."""
    found = store.read(arenas.arena, number)
    if found.state == "open":
        return []
    said: dict[str, list[Judgement]] = {}
    for j in store.read(arenas.judgements, number):
        said.setdefault(j.comparison, []).append(j)
    return list(_told(found, store.read(arenas.matches, number), said))


def _told(found: Arena, matches: Sequence[Match], said: dict[str, list[Judgement]]) -> Iterator[dict[str, Any]]:
    words = {1.0: "one", 0.5: "tie", 0.0: "other"}
    for m in matches:
        one, other = (m.a, m.b) if m.ours == "a" else (m.b, m.a)
        verdicts = [
            {
                "rater": j.rater,
                "kind": j.kind,
                "for": words[evals.outcome_value(j, m.ours)],
                "strength": j.strength,
                "comment": j.comment,
            }
            for j in said.get(m.comparison, [])
        ]
        yield {
            "comparison": m.comparison,
            "prompt": m.prompt,
            "domain": m.domain,
            "one": one,
            "other": other,
            "same": m.same,
            "said": verdicts,
        }


def disagreements(run: Path) -> list[dict[str, Any]]:
    """Labelled pairs on which the reward model of the newest evaluation prefers the other answer, the surest first."""
    found = [path for path, model in sources(run).values() if model == "policy"]
    path = next((p for p in (path.parent / "disagreements.jsonl" for path in found) if p.is_file()), None)
    return sorted(_rows(path) if path else [], key=lambda row: -row["confidence"])


def as_json(found: Standing) -> dict[str, Any]:
    """A standing for scripts."""
    return asdict(found)


def lines(found: Standing) -> str:
    """A standing for the terminal."""
    a = found.arena
    shown = [
        f"arena {a.number}: {a.one} against {a.other}, {a.state}{f', {a.verdict}' if a.verdict else ''}",
        f"  prompts: {found.prompts}",
    ]
    shown.append(f"  waiting: {found.waiting}")
    for name, r in {"people": found.people, **found.judges}.items():
        shown += [f"  {name}: {sentence(r)}", f"    {r.wins} wins, {r.ties} ties, {r.losses} losses; {r.rule}"]
        shown.append(f"    fixed n (Wilson) {_span(r.wilson)}, by prompts drawn again {_span(r.bootstrap)}")
        if r.equal_length:
            shown.append(f"    at equal length {r.equal_length.rate:.1%} {_span(r.equal_length.interval)}")
        if r.true_rate:
            shown.append(
                f"    without raters' errors {r.true_rate.rate:.1%} {_span(r.true_rate.interval)} (a rater is right "
                f"in {r.accuracy:.0%})"
            )
        if name in found.judge_agreement and found.judge_agreement[name][1]:
            shown.append("    agrees with people on {:.1%} of {}".format(*found.judge_agreement[name]))
    if found.agreement[1]:
        shown.append(f"  raters agree on {found.agreement[0]:.1%} of {found.agreement[1]} pairs that two judged")
    return "\n".join(shown)


def sentence(record: WinRecord) -> str:
    """A record in one sentence."""
    if not record.n:
        return "nothing is judged yet"
    known = f"preferred on {record.rate:.1%} of {record.n} prompts, {_span(record.anytime)} however often one looks"
    if record.verdict != "UNDECIDED":
        side = "above" if record.verdict == "PASS" else "below"
        return f"{known}: {record.verdict}, {side} {record.threshold:.0%} since prompt {record.decided_at}"
    return f"{known}: UNDECIDED at {record.threshold:.0%}; {hint(record)}"


def hint(record: WinRecord) -> str:
    """About how many more prompts would decide."""
    if not record.n:
        return "nothing is judged yet"
    return f"about {record.more:,} more would decide it" if record.more else "at this rate no number of prompts would"


def _span(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.1%}, {interval[1]:.1%}]"
