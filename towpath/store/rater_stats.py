"""How the rating goes: read from counters and from the newest rows, so that it costs the same however much has been
judged."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from towpath.records import Judgement
from towpath.store import acknowledgements, people, rating_settings, schema, statements, task_queue, trials, verdicts
from towpath.store.rating_settings import RatingSettings
from towpath.store.trials import Trial

HOUR = 3600.0
RECENT_LEASES = 2000  # settled seats from which agreement is told
BLOCK = 500


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The tasks of one domain."""

    domain: str
    tasks: int
    waiting: int
    done: int
    paused: bool


@dataclass(frozen=True, slots=True)
class RaterStats:
    """What one rater, judge or rule has done. `pace` is in pairs an hour over the last hour; gold is (right, of)."""

    name: str
    kind: str
    judged: int
    retracted: int
    seconds: float | None
    pace: float | None
    gold: tuple[int, int]


@dataclass(frozen=True, slots=True)
class RaterProgress:
    """What a rater is shown of their own work. `today` counts from the time that their page calls the start of the
    day."""

    judged: int
    waiting: int
    pace: float | None
    gold: tuple[int, int] | None
    hours_left: float | None
    today: int | None = None
    goal: int | None = None


@dataclass(frozen=True, slots=True)
class RatingPage:
    """All that the rating page shows at one moment. `last` is the pair that undo would take back, and what was done
    with it; `why` no sheet."""

    progress: RaterProgress
    last: tuple[str, str] | None
    guideline: people.Guideline
    sheet: task_queue.TaskView | None
    house: RatingSettings
    why: str = ""
    trial: Trial | None = None
    acknowledged: bool = True


@dataclass(frozen=True, slots=True)
class RatingStats:
    """What the owner sees."""

    queues: list[QueueStats]
    raters: list[RaterStats]
    leased: int
    flags: int
    written: int
    unreviewed: int
    hours_used: float
    hours: float | None
    paused: bool


def rating_page(connection: Connection, rater: str, at: float, day: float | None = None) -> RatingPage:
    """Seat a rater, or give them a trial pair, and tell what they see."""
    house = rating_settings.read(connection)
    guideline = people.get_guideline(connection)
    trial = None if house.paused else trials.current_trial(connection, rater, house)
    seat = trial.seat if trial is not None else task_queue.next_lease(connection, rater, at)
    why, sheet = (seat, None) if isinstance(seat, str) else ("", task_queue.task_view(connection, seat))
    return RatingPage(
        rater_progress(connection, rater, at, day),
        verdicts.last_settled(connection, rater),
        guideline,
        sheet,
        house,
        why,
        trial,
        acknowledgements.is_acknowledged(connection, rater, guideline.version),
    )


def rater_progress(connection: Connection, rater: str, at: float, day: float | None = None) -> RaterProgress:
    """One rater's own figures; `day` is when their day began."""
    house = rating_settings.read(connection)
    mine = connection.execute(statements.RATER_TALLY, {"rater": rater}).one_or_none()
    waiting = int(connection.scalar(statements.WAITING) or 0)
    left = None if house.hours is None else max(0.0, house.hours - task_queue.seconds_used(connection) / HOUR)
    right = gold_accuracy(connection, rater).get(rater, (0, 0)) if house.show_gold else None
    judged = mine.judged - mine.retracted if mine else 0
    today = None if day is None else judged_since(connection, rater, day)
    return RaterProgress(
        judged, waiting, judging_pace(connection, at, rater).get(rater), right, left, today, house.goal
    )


def judged_since(connection: Connection, rater: str, since: float) -> int:
    """How many pairs and rankings a rater has judged since a time."""
    seats = schema.seats
    query = (
        select(func.count())
        .select_from(seats)
        .where(seats.c.rater == rater, seats.c.at >= since, seats.c.state == "judged")
    )
    return connection.scalar(query) or 0


def rating_stats(connection: Connection, at: float) -> RatingStats:
    """The owner's figures."""
    house = rating_settings.read(connection)
    queues = [
        QueueStats(q.domain, q.tasks, q.waiting, q.done, bool(q.paused))
        for q in connection.execute(select(schema.queues).order_by("domain"))
    ]
    paced = judging_pace(connection, at)
    right = gold_accuracy(connection)
    raters = []
    for row in connection.execute(select(schema.tallies).order_by("kind", "rater")):
        person = row.kind == "person"
        seconds = row.milliseconds / 1000 / row.judged if row.judged and row.milliseconds else None
        told = (paced.get(row.rater), right.get(row.rater, (0, 0))) if person else (None, (0, 0))
        raters.append(RaterStats(row.rater, row.kind, row.judged - row.retracted, row.retracted, seconds, *told))
    seats = schema.seats
    flags = schema.flags
    leased = (
        connection.scalar(select(func.count()).select_from(seats).where(seats.c.state == "leased", seats.c.until > at))
        or 0
    )
    flagged = connection.scalar(select(func.count(flags.c.comparison.distinct())).where(flags.c.settled == "")) or 0
    written = (
        connection.scalar(select(func.count()).select_from(schema.written).where(schema.written.c.state != "replaced"))
        or 0
    )
    used = task_queue.seconds_used(connection) / HOUR
    return RatingStats(
        queues, raters, leased, flagged, written, verdicts.count_unreviewed(connection), used, house.hours, house.paused
    )


def judging_pace(connection: Connection, at: float, rater: str | None = None) -> dict[str, float]:
    """Pairs an hour by rater over the last hour, for those who judged three or more in it: from the first of them to
    now."""
    seats = schema.seats
    query = select(seats.c.rater, func.count(), func.min(seats.c.at)).where(
        seats.c.at > at - HOUR, seats.c.state == "judged"
    )
    if rater is not None:
        query = query.where(seats.c.rater == rater)
    rows = connection.execute(query.group_by(seats.c.rater)).all()
    return {name: (count - 1) / max(at - first, 1.0) * HOUR for name, count, first in rows if count >= 3}


def gold_accuracy(connection: Connection, rater: str | None = None) -> dict[str, tuple[int, int]]:
    """(right, of) by rater, over the gold that people have judged."""
    known = dict(connection.execute(select(schema.gold.c.comparison, schema.gold.c.choice)).all())
    names = list(known)
    found = dict[str, tuple[int, int]]()
    table = schema.judgements
    back = select(schema.retractions.c.key).where(schema.retractions.c.key == table.c.key).exists()
    for begin in range(0, len(names), BLOCK):
        part = names[begin : begin + BLOCK]
        query = select(table.c.rater, table.c.comparison, table.c.choice).where(
            table.c.comparison.in_(part), table.c.kind == "person", ~back
        )
        if rater is not None:
            query = query.where(table.c.rater == rater)
        for name, comparison, choice in connection.execute(query):
            right, of = found.get(name, (0, 0))
            found[name] = (right + (choice == known[comparison]), of + 1)
    return found


def recent_judgements(connection: Connection) -> list[Judgement]:
    """What people have said of the pairs dealt with last, for a look at how far they agree."""
    seats = schema.seats
    table = schema.judgements
    query = select(seats.c.comparison).where(seats.c.at > 0, seats.c.comparison.not_in(statements.IN_ARENAS))
    names = connection.scalars(query.order_by(seats.c.at.desc()).limit(RECENT_LEASES)).all()
    back = select(schema.retractions.c.key).where(schema.retractions.c.key == table.c.key).exists()
    found: list[Judgement] = []
    unique = list(dict.fromkeys(names))
    for begin in range(0, len(unique), BLOCK):
        part = unique[begin : begin + BLOCK]
        rows = connection.execute(
            select(table).where(table.c.comparison.in_(part), table.c.kind == "person", ~back)
        ).mappings()
        found += [Judgement(**{name: value for name, value in row.items() if name != "number"}) for row in rows]
    return found


def flagged_pairs(connection: Connection) -> list[dict[str, str]]:
    """Pairs whose flags are open, with the reasons, oldest first."""
    flags = schema.flags
    comparisons = schema.comparisons
    prompts = schema.prompts
    query = select(flags.c.comparison, flags.c.rater, flags.c.reason, flags.c.at, prompts.c.prompt).where(
        flags.c.settled == ""
    )
    query = query.join(comparisons, comparisons.c.id == flags.c.comparison).join(
        prompts, prompts.c.id == comparisons.c.prompt_id
    )
    return [dict(row) for row in connection.execute(query.order_by(flags.c.number).limit(BLOCK)).mappings()]


def open_task_seats(connection: Connection) -> dict[str, int]:
    """How many people are to judge each comparison whose task is open."""
    tasks = schema.tasks
    return {
        row.comparison: row.seats
        for row in connection.execute(select(tasks.c.comparison, tasks.c.seats).where(tasks.c.state == "open"))
    }


def list_gold(connection: Connection) -> list[dict[str, str]]:
    """Gold with the prompts it belongs to."""
    gold = schema.gold
    comparisons = schema.comparisons
    prompts = schema.prompts
    query = select(gold, prompts.c.prompt).join(comparisons, comparisons.c.id == gold.c.comparison)
    rows = connection.execute(
        query.join(prompts, prompts.c.id == comparisons.c.prompt_id).order_by(gold.c.comparison).limit(BLOCK)
    )
    return [dict(row) for row in rows.mappings()]


def own_judgements(connection: Connection, rater: str, most: int = 20) -> list[dict[str, str]]:
    """A rater's newest judgements of pairs, with their prompts."""
    seats = schema.seats
    table = schema.judgements
    comparisons = schema.comparisons
    prompts = schema.prompts
    back = select(schema.retractions.c.key).where(schema.retractions.c.key == table.c.key).exists()
    query = select(table.c.comparison, table.c.choice, prompts.c.prompt).select_from(seats)
    query = query.join(table, (table.c.comparison == seats.c.comparison) & (table.c.rater == seats.c.rater))
    query = query.join(comparisons, comparisons.c.id == table.c.comparison).join(
        prompts, prompts.c.id == comparisons.c.prompt_id
    )
    query = query.where(seats.c.rater == rater, seats.c.state == "judged", seats.c.shown.in_(["ab", "ba"]), ~back)
    query = query.where(seats.c.comparison.not_in(statements.IN_ARENAS))
    return [dict(row) for row in connection.execute(query.order_by(seats.c.at.desc()).limit(most)).mappings()]


def judgement_rows(connection: Connection, after: int) -> list[dict[str, Any]]:
    """The next block of judgements with the texts they are about, by their number."""
    table = schema.judgements
    comparisons = schema.comparisons
    prompts = schema.prompts
    a = schema.completions.alias()
    b = schema.completions.alias()
    back = select(schema.retractions.c.key).where(schema.retractions.c.key == table.c.key).exists()
    query = select(
        table,
        prompts.c.prompt,
        prompts.c.domain,
        a.c.text.label("a"),
        b.c.text.label("b"),
        a.c.source.label("source_a"),
    )
    query = (
        query.add_columns(b.c.source.label("source_b"))
        .select_from(table)
        .join(comparisons, comparisons.c.id == table.c.comparison)
    )
    query = (
        query.join(prompts, prompts.c.id == comparisons.c.prompt_id)
        .join(a, a.c.id == comparisons.c.a)
        .join(b, b.c.id == comparisons.c.b)
    )
    query = query.where(table.c.number > after, ~back, table.c.comparison.not_in(statements.IN_ARENAS))
    rows = connection.execute(query.order_by(table.c.number).limit(BLOCK)).mappings()
    return [dict(row) for row in rows]
