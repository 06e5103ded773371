"""Rating statistics for raters and owners, from counters and recent rows, so that their cost does not grow with the
ledger."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from towpath.records import Judgement
from towpath.store import acknowledgements, people, rating_settings, schema, statements, task_queue, trials, verdicts
from towpath.store.rating_settings import RatingSettings
from towpath.store.trials import Trial

HOUR = 3600.0
RECENT_LEASES = 2000
"""Number of most recent leases from which agreement is estimated."""

_judgements = schema.judgements
_seats = schema.seats
_flags = schema.flags
_gold = schema.gold
_prompts = schema.prompts


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Counts of one domain's tasks."""

    domain: str
    tasks: int
    waiting: int
    done: int
    paused: bool


@dataclass(frozen=True, slots=True)
class RaterActivity:
    """Activity of one rater, judge or rule; `pace` is pairs per hour over the last hour, `gold` is (correct, all)."""

    name: str
    kind: str
    judgements: int
    retracted: int
    seconds: float | None
    pace: float | None
    gold: tuple[int, int]


@dataclass(frozen=True, slots=True)
class RaterProgress:
    """A rater's own statistics; `today` counts from the start of the day in the browser's time zone."""

    judgements: int
    waiting: int
    pace: float | None
    gold: tuple[int, int] | None
    hours_left: float | None
    today: int | None = None
    goal: int | None = None


@dataclass(frozen=True, slots=True)
class RatingPage:
    """The content of the rating page; `last` is the pair that undo returns to, with the rater's action."""

    progress: RaterProgress
    last: tuple[str, str] | None
    guideline: people.Guideline
    task: task_queue.TaskView | None
    settings: RatingSettings
    no_task_reason: str = ""
    trial: Trial | None = None
    acknowledged: bool = True


@dataclass(frozen=True, slots=True)
class RatingStats:
    """The owner's statistics."""

    queues: list[QueueStats]
    raters: list[RaterActivity]
    leased: int
    flags: int
    written: int
    unreviewed: int
    hours_used: float
    hours: float | None
    paused: bool


def rating_page(connection: Connection, rater: str, at: float, day: float | None = None) -> RatingPage:
    """Lease a task or assign a trial pair to a rater, and return the page's content."""
    settings = rating_settings.read(connection)
    guideline = people.get_guideline(connection)
    trial = None if settings.paused else trials.current_trial(connection, rater, settings)
    lease = trial.lease if trial is not None else task_queue.next_lease(connection, rater, at)
    no_task = isinstance(lease, str)
    return RatingPage(
        rater_progress(connection, rater, at, day),
        verdicts.last_settled(connection, rater),
        guideline,
        None if no_task else task_queue.task_view(connection, lease),
        settings,
        lease if no_task else "",
        trial,
        acknowledgements.is_acknowledged(connection, rater, guideline.version),
    )


def rater_progress(connection: Connection, rater: str, at: float, day: float | None = None) -> RaterProgress:
    """Return one rater's statistics; `day` is when their day began."""
    settings = rating_settings.read(connection)
    tally = connection.execute(statements.RATER_TALLY, {"rater": rater}).one_or_none()
    hours_left = None
    if settings.hours is not None:
        hours_left = max(0.0, settings.hours - task_queue.seconds_used(connection) / HOUR)
    return RaterProgress(
        judgements=tally.judged - tally.retracted if tally else 0,
        waiting=int(connection.scalar(statements.WAITING) or 0),
        pace=judging_pace(connection, at, rater).get(rater),
        gold=gold_accuracy(connection, rater).get(rater, (0, 0)) if settings.show_gold else None,
        hours_left=hours_left,
        today=None if day is None else judged_since(connection, rater, day),
        goal=settings.goal,
    )


def judged_since(connection: Connection, rater: str, since: float) -> int:
    """Count the pairs and rankings that a rater has judged since a time."""
    return _count(connection, _seats, _seats.c.rater == rater, _seats.c.at >= since, _seats.c.state == "judged")


def rating_stats(connection: Connection, at: float) -> RatingStats:
    """Return the owner's statistics."""
    settings = rating_settings.read(connection)
    queues = [
        QueueStats(q.domain, q.tasks, q.waiting, q.done, bool(q.paused))
        for q in connection.execute(select(schema.queues).order_by("domain"))
    ]
    flagged = select(func.count(_flags.c.comparison.distinct())).where(_flags.c.settled == "")
    return RatingStats(
        queues,
        _rater_activity(connection, at),
        leased=_count(connection, _seats, _seats.c.state == "leased", _seats.c.until > at),
        flags=connection.scalar(flagged) or 0,
        written=_count(connection, schema.written, schema.written.c.state != "replaced"),
        unreviewed=verdicts.count_unreviewed(connection),
        hours_used=task_queue.seconds_used(connection) / HOUR,
        hours=settings.hours,
        paused=settings.paused,
    )


def _rater_activity(connection: Connection, at: float) -> list[RaterActivity]:
    pace = judging_pace(connection, at)
    gold = gold_accuracy(connection)
    raters = []
    for row in connection.execute(select(schema.tallies).order_by("kind", "rater")):
        person = row.kind == "person"
        raters.append(
            RaterActivity(
                row.rater,
                row.kind,
                row.judged - row.retracted,
                row.retracted,
                seconds=row.milliseconds / 1000 / row.judged if row.judged and row.milliseconds else None,
                pace=pace.get(row.rater) if person else None,
                gold=gold.get(row.rater, (0, 0)) if person else (0, 0),
            )
        )
    return raters


def _count(connection: Connection, table: Any, *conditions: Any) -> int:
    return connection.scalar(select(func.count()).select_from(table).where(*conditions)) or 0


def judging_pace(connection: Connection, at: float, rater: str | None = None) -> dict[str, float]:
    """Return pairs per hour by rater over the last hour, for raters with at least three, counted from their first."""
    query = select(_seats.c.rater, func.count(), func.min(_seats.c.at)).where(
        _seats.c.at > at - HOUR, _seats.c.state == "judged"
    )
    if rater is not None:
        query = query.where(_seats.c.rater == rater)
    rows = connection.execute(query.group_by(_seats.c.rater)).all()
    return {name: (count - 1) / max(at - first, 1.0) * HOUR for name, count, first in rows if count >= 3}


def gold_accuracy(connection: Connection, rater: str | None = None) -> dict[str, tuple[int, int]]:
    """Return (correct, all) by rater over the gold comparisons that people have judged."""
    answers = dict(connection.execute(select(_gold.c.comparison, _gold.c.choice)).all())
    counts = dict[str, tuple[int, int]]()
    for block in statements.blocks(list(answers)):
        query = select(_judgements.c.rater, _judgements.c.comparison, _judgements.c.choice).where(
            _judgements.c.comparison.in_(block), _judgements.c.kind == "person", statements.NOT_RETRACTED
        )
        if rater is not None:
            query = query.where(_judgements.c.rater == rater)
        for name, comparison, choice in connection.execute(query):
            correct, total = counts.get(name, (0, 0))
            counts[name] = (correct + (choice == answers[comparison]), total + 1)
    return counts


def recent_judgements(connection: Connection) -> list[Judgement]:
    """Return people's judgements of the most recently rated pairs, to estimate agreement."""
    query = select(_seats.c.comparison).where(_seats.c.at > 0, _seats.c.comparison.not_in(statements.IN_ARENAS))
    names = connection.scalars(query.order_by(_seats.c.at.desc()).limit(RECENT_LEASES)).all()
    judgements: list[Judgement] = []
    for block in statements.blocks(list(dict.fromkeys(names))):
        judgements += statements.load_judgements(
            connection,
            select(_judgements).where(
                _judgements.c.comparison.in_(block), _judgements.c.kind == "person", statements.NOT_RETRACTED
            ),
        )
    return judgements


def flagged_pairs(connection: Connection) -> list[dict[str, str]]:
    """Return pairs with open flags and the reasons, oldest first."""
    query = select(_flags.c.comparison, _flags.c.rater, _flags.c.reason, _flags.c.at, _prompts.c.prompt)
    query = statements.join_prompts(query.select_from(_flags).where(_flags.c.settled == ""), _flags.c.comparison)
    query = query.order_by(_flags.c.number).limit(statements.BLOCK)
    return [dict(row) for row in connection.execute(query).mappings()]


def open_task_seats(connection: Connection) -> dict[str, int]:
    """Return how many people are to judge each comparison with an open task."""
    tasks = schema.tasks
    rows = connection.execute(select(tasks.c.comparison, tasks.c.seats).where(tasks.c.state == "open"))
    return {row.comparison: row.seats for row in rows}


def list_gold(connection: Connection) -> list[dict[str, str]]:
    """Return gold comparisons with their prompts."""
    query = statements.join_prompts(select(_gold, _prompts.c.prompt).select_from(_gold), _gold.c.comparison)
    rows = connection.execute(query.order_by(_gold.c.comparison).limit(statements.BLOCK))
    return [dict(row) for row in rows.mappings()]


def own_judgements(connection: Connection, rater: str, limit: int = 20) -> list[dict[str, str]]:
    """Return a rater's newest judgements of pairs, with their prompts."""
    query = select(_judgements.c.comparison, _judgements.c.choice, _prompts.c.prompt).select_from(_seats)
    same_pair = (_judgements.c.comparison == _seats.c.comparison) & (_judgements.c.rater == _seats.c.rater)
    query = statements.join_prompts(query.join(_judgements, same_pair), _judgements.c.comparison).where(
        _seats.c.rater == rater,
        _seats.c.state == "judged",
        _seats.c.shown.in_(["ab", "ba"]),
        statements.NOT_RETRACTED,
        _seats.c.comparison.not_in(statements.IN_ARENAS),
    )
    return [dict(row) for row in connection.execute(query.order_by(_seats.c.at.desc()).limit(limit)).mappings()]


def judgement_rows(connection: Connection, after: int) -> list[dict[str, Any]]:
    """Return the next block of judgements after a number, with prompt and answers."""
    query = select(_judgements, _prompts.c.prompt, _prompts.c.history, _prompts.c.domain).select_from(_judgements)
    query = statements.join_answers(statements.join_prompts(query, _judgements.c.comparison)).where(
        _judgements.c.number > after, statements.NOT_RETRACTED, _judgements.c.comparison.not_in(statements.IN_ARENAS)
    )
    rows = connection.execute(query.order_by(_judgements.c.number).limit(statements.BLOCK)).mappings()
    return [dict(row) for row in rows]
