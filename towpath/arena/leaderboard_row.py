"""The state of one arena: win rates by people and by each judge, agreement, and what is left to judge."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from towpath.evals import leaderboard as evals
from towpath.evals.leaderboard import ArenaPair, WinRecord
from towpath.feedback import agreement
from towpath.store import arenas, rater_stats
from towpath.store.arenas import Arena, Match
from towpath.store.store import Store

MIN_DOUBLE_JUDGED = 10
"""With fewer pairs of the arena judged twice, rater agreement is estimated from the labels as well."""


@dataclass(frozen=True)
class LeaderboardRow:
    """An arena's state; `agreement` is how often two raters agreed and on how many pairs."""

    arena: Arena
    prompts: int
    waiting: int
    people: WinRecord
    judges: dict[str, WinRecord]
    raters: dict[str, int]
    agreement: tuple[float, int]
    judge_agreement: dict[str, tuple[float, int]]
    """For each judge: how often it agrees with people where both have a preference, and on how many prompts."""


def leaderboard_row(store: Store, number: int) -> LeaderboardRow:
    """Compute an arena's state from the ledger."""
    arena = store.read(arenas.get_arena, number)
    judgements = store.read(arenas.list_judgements, number)
    pairs = measured_pairs(store.read(arenas.list_matches, number))
    human = [j for j in judgements if j.kind == "person"]
    rate, doubles = agreement.pairwise_agreement(human)
    rater_agreement = (rate, doubles)
    if doubles < MIN_DOUBLE_JUDGED:  # the same people label, and a few pairs here say little
        rater_agreement = agreement.pairwise_agreement([*human, *store.read(rater_stats.recent_judgements)])
    outcomes = evals.finished_outcomes(pairs, human)
    judges = {}
    judge_agreement = {}
    for name in sorted({j.rater for j in judgements if j.kind == "judge"}):
        own = [j for j in judgements if j.rater == name]
        judge_outcomes = evals.finished_outcomes(pairs, own, single_rater=True)
        judges[name] = evals.win_record(judge_outcomes, arena.threshold, len(own))
        judge_agreement[name] = _judge_agreement(judge_outcomes, outcomes)
    to_judge = sum(not pair.same for pair in pairs)
    decided = sum(not pair.same for pair, _ in outcomes)
    return LeaderboardRow(
        arena,
        len(pairs),
        to_judge - decided,
        evals.win_record(outcomes, arena.threshold, len(human), rater_agreement),
        judges,
        dict(Counter(j.rater for j in judgements)),
        (rate, doubles),
        judge_agreement,
    )


def measured_pairs(matches: Sequence[Match]) -> list[ArenaPair]:
    """Return an arena's matches as pairs for the win-rate statistics."""
    pairs = []
    for match in matches:
        gap = len(match.a.split()) - len(match.b.split())
        signed_gap = gap if match.ours == "a" else -gap
        pairs.append(ArenaPair(match.comparison, match.position, match.ours, signed_gap, match.seats, match.same))
    return pairs


def _judge_agreement(
    judge_outcomes: Sequence[tuple[ArenaPair, float]], human_outcomes: Sequence[tuple[ArenaPair, float]]
) -> tuple[float, int]:
    human = {pair.comparison: worth for pair, worth in human_outcomes if worth != 0.5 and not pair.same}
    agreed = [
        (worth > 0.5) == (human[pair.comparison] > 0.5)
        for pair, worth in judge_outcomes
        if worth != 0.5 and pair.comparison in human
    ]
    return (sum(agreed) / len(agreed), len(agreed)) if agreed else (0.0, 0)


def format_terminal(row: LeaderboardRow) -> str:
    """Format an arena's state for the terminal."""
    arena = row.arena
    verdict = f", {arena.verdict}" if arena.verdict else ""
    lines = [
        f"arena {arena.number}: {arena.one} against {arena.other}, {arena.state}{verdict}",
        f"  prompts: {row.prompts}",
        f"  waiting: {row.waiting}",
    ]
    for name, record in {"people": row.people, **row.judges}.items():
        lines += _record_lines(name, record)
        rate, count = row.judge_agreement.get(name, (0.0, 0))
        if count:
            lines.append(f"    agrees with people on {rate:.1%} of {count}")
    if row.agreement[1]:
        lines.append(f"  raters agree on {row.agreement[0]:.1%} of {row.agreement[1]} pairs that two judged")
    return "\n".join(lines)


def _record_lines(name: str, record: WinRecord) -> list[str]:
    wilson = _format_interval(record.wilson)
    lines = [
        f"  {name}: {format_record(record)}",
        f"    {record.wins} wins, {record.ties} ties, {record.losses} losses; {record.rule}",
        f"    fixed n (Wilson) {wilson}, bootstrap over prompts {_format_interval(record.bootstrap)}",
    ]
    if record.equal_length:
        interval = _format_interval(record.equal_length.interval)
        lines.append(f"    at equal length {record.equal_length.rate:.1%} {interval}")
    if record.true_rate:
        interval = _format_interval(record.true_rate.interval)
        lines.append(
            f"    corrected for rater errors {record.true_rate.rate:.1%} {interval} "
            f"(rater accuracy {record.accuracy:.0%})"
        )
    return lines


def format_record(record: WinRecord) -> str:
    """Format a win rate as one sentence."""
    if not record.n:
        return "nothing is judged yet"
    rate = f"preferred on {record.rate:.1%} of {record.n} prompts, anytime interval {_format_interval(record.anytime)}"
    if record.verdict != "UNDECIDED":
        side = "above" if record.verdict == "PASS" else "below"
        return f"{rate}: {record.verdict}, {side} {record.threshold:.0%} since prompt {record.decided_at}"
    return f"{rate}: UNDECIDED at {record.threshold:.0%}; {prompts_to_decide(record)}"


def prompts_to_decide(record: WinRecord) -> str:
    """Describe how many more prompts would decide the arena."""
    if not record.n:
        return "nothing is judged yet"
    if record.more:
        return f"about {record.more:,} more prompts would decide it"
    return "at this rate no number of prompts would decide it"


def _format_interval(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.1%}, {interval[1]:.1%}]"
