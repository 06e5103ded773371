"""The queue of what people are to judge: tasks, seats, leases. The next task is read off an index, never counted for.

Every function here is work on a connection; hand it to `Store.later` or `Store.read`.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, func, select

from towpath.errors import DataError
from towpath.records import Choice, Comparison
from towpath.store import ledger, rating_settings, schema, statements

BLOCK = 500

NoTaskReason = Literal["paused", "spent", "empty"]
ReleaseState = Literal["lapsed", "skipped", "flagged"]
Candidate = tuple[int, int, int, str]
RELEASED_STATES = ("lapsed", "skipped", "flagged", "removed", "trial")
"""States of a seat that its task does not count as taken."""


@dataclass(frozen=True, slots=True)
class Task:
    """A comparison for people: why it was chosen, how likely that was, how many raters are wanted. The higher the
    priority the sooner."""

    comparison: str
    domain: str = "general"
    reason: str = "all"
    propensity: float = 1.0
    seats: int = 1
    priority: int = 0


@dataclass(frozen=True, slots=True)
class RankingGroup:
    """Four to nine completions of one prompt, to be put in order; each pair of them is a comparison."""

    id: str
    prompt_id: str
    members: tuple[str, ...]
    domain: str = "general"
    priority: int = 0
    seats: int = 1


@dataclass(frozen=True, slots=True)
class Gold:
    """A comparison whose answer the owner knows."""

    comparison: str
    choice: Choice
    note: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """A rater's place at a task: until when, and in which order the answers lie (ab, ba, or the members of a group
    as 2.0.1.3)."""

    comparison: str
    rater: str
    shown: str
    until: float
    group: str = ""


@dataclass(frozen=True, slots=True)
class TaskView:
    """What lies before a rater: the prompt, and the answers in the order in which this rater sees them. Where they
    come from is not told."""

    comparison: str
    prompt: str
    domain: str
    answers: tuple[str, ...]
    ranking: bool = False


def add_tasks(connection: Connection, tasks: Iterable[Task]) -> int:
    """Put comparisons in the queue that are not in it yet; how many those were."""
    return _insert_tasks(connection, [(task, None) for task in {task.comparison: task for task in tasks}.values()])


def add_groups(connection: Connection, groups: Iterable[RankingGroup]) -> int:
    """Put groups in the queue, with the comparisons of all their pairs; how many were new. Each waits as the first
    of its comparisons."""
    known = set(connection.scalars(select(schema.groups.c.id)))
    fresh = [group for group in {group.id: group for group in groups}.values() if group.id not in known]
    for group in fresh:
        if not 4 <= len(set(group.members)) == len(group.members) <= 9:
            raise DataError(
                f"{group.id}: {len(group.members)} answers",
                "a ranking has four to nine different answers",
                "split it, or leave it out",
            )
    if fresh:
        connection.execute(
            schema.groups.insert(), [{"id": g.id, "prompt_id": g.prompt_id, "members": list(g.members)} for g in fresh]
        )
        connection.execute(
            schema.comparisons.insert(), [asdict(c) for group in fresh for c in group_comparisons(group)]
        )
    tasks = [(Task(group_comparisons(g)[0].id, g.domain, "ranking", 1.0, g.seats, g.priority), g.id) for g in fresh]
    return _insert_tasks(connection, tasks)


def group_comparisons(group: RankingGroup) -> list[Comparison]:
    """The K(K-1)/2 comparisons of a group."""
    pairs = [(i, j) for i in range(len(group.members)) for j in range(i + 1, len(group.members))]
    return [Comparison(f"{group.id}.{i}-{j}", group.prompt_id, group.members[i], group.members[j]) for i, j in pairs]


def propose_groups(connection: Connection, most: int) -> list[RankingGroup]:
    """Groups that could be ranked: training prompts with four to nine answers of one sampling, not ranked yet."""
    completions = schema.completions
    prompts = schema.prompts
    query = (
        select(completions.c.prompt_id)
        .join(prompts, prompts.c.id == completions.c.prompt_id)
        .where(prompts.c.split == "train")
    )
    query = query.where(completions.c.prompt_id.not_in(select(schema.groups.c.prompt_id))).group_by(
        completions.c.prompt_id
    )
    found = connection.scalars(query.having(func.count() >= 4).limit(most)).all()
    groups = []
    for prompt in found:
        domain = connection.scalar(select(prompts.c.domain).where(prompts.c.id == prompt)) or "general"
        samplings: dict[str, list[str]] = {}
        for name in connection.scalars(
            select(completions.c.id).where(completions.c.prompt_id == prompt).order_by(completions.c.id)
        ):
            samplings.setdefault(name.split(".")[0], []).append(name)
        fitting = [(prefix, names) for prefix, names in samplings.items() if 4 <= len(names) <= 9]
        groups += [
            RankingGroup(f"{prefix}.{prompt}.ranking", prompt, tuple(names), domain) for prefix, names in fitting[:1]
        ]
    return groups


def add_seats(connection: Connection, comparisons: Collection[str], reason: str, seats: int = 1) -> int:
    """Ask `seats` more raters about comparisons that are in the queue or were; how many tasks changed."""
    changed = 0
    for name in comparisons:
        row = connection.execute(select(schema.tasks).where(schema.tasks.c.comparison == name)).one_or_none()
        if row is not None:
            update_task(
                connection, row, seats=max(row.seats, row.taken) + seats - row.seats, state="open", reason=reason
            )
            changed += 1
    return changed


def set_gold(connection: Connection, gold: Iterable[Gold]) -> None:
    """Set or change what the right answer of comparisons is."""
    told = list(gold)
    for item in told:
        if connection.scalar(statements.IS_MATCH, {"comparison": item.comparison}):
            raise DataError(
                f"{item.comparison}: a comparison of an arena",
                "gold is asked of every rater, and would be counted there",
                "take another",
            )
    ledger.upsert(connection, schema.gold, [asdict(item) for item in told], changed=["choice", "note"])


def remove_gold(connection: Connection, comparison: str) -> None:
    """A comparison is gold no longer."""
    connection.execute(schema.gold.delete().where(schema.gold.c.comparison == comparison))


def pause_domain(connection: Connection, domain: str, paused: bool) -> None:
    """Hold back the tasks of a domain, or let them go on."""
    connection.execute(schema.queues.update().where(schema.queues.c.domain == domain).values(paused=int(paused)))


def next_lease(connection: Connection, rater: str, at: float) -> Lease | NoTaskReason:
    """The task a rater sits at, else the next one that waits for them; or why there is none."""
    house = rating_settings.read(connection)
    if house.paused:
        return "paused"
    seat = _current_lease(connection, rater, at)
    if seat is not None:
        return _renew(connection, seat, at + house.lease)
    if house.hours is not None and seconds_used(connection) >= house.hours * 3600:
        return "spent"
    expire(connection, at)
    name = _next_gold(connection, rater, house.gold_share) or _next_task(connection, rater)
    return lease_task(connection, rater, name, at, house) if name else "empty"


def lease_task(
    connection: Connection, rater: str, comparison: str, at: float, house: rating_settings.RatingSettings
) -> Lease:
    """Seat a rater at a comparison, whether it waits or not; in the order it was shown to them before, if it was."""
    before = connection.execute(statements.LEASE, {"comparison": comparison, "rater": rater}).one_or_none()
    task = connection.execute(statements.TASK, {"comparison": comparison}).one_or_none()
    group = (task.group_id or "") if task is not None else ""
    until = at + house.lease
    if before is not None:
        shown = before.shown
        free = before.state in RELEASED_STATES
        update_lease(connection, comparison, rater, state="leased", until=until, at=at)
    else:
        shown = _presentation_order(connection, rater, comparison, group)
        free = True
        is_gold = connection.scalar(statements.IS_GOLD, {"comparison": comparison}) or 0
        row = {
            "comparison": comparison,
            "rater": rater,
            "state": "leased",
            "until": until,
            "shown": shown,
            "at": at,
            "gold": is_gold,
        }
        connection.execute(schema.seats.insert(), row)
    if task is not None and free:
        twice = house.overlap is not None and task.seats == 1 and hash_uniform("overlap", comparison) < house.overlap
        update_task(connection, task, taken=1, seats=int(twice))
    return Lease(comparison, rater, shown, until, group)


def task_view(connection: Connection, seat: Lease) -> TaskView:
    """The texts of a seat."""
    row = connection.execute(statements.PAIR, {"comparison": seat.comparison}).one()
    if seat.group:
        members = connection.scalar(select(schema.groups.c.members).where(schema.groups.c.id == seat.group)) or []
        ids = [members[int(i)] for i in seat.shown.split(".")]
    else:
        ids = [row.a, row.b] if seat.shown == "ab" else [row.b, row.a]
    texts = dict(connection.execute(statements.TEXTS, {"ids": ids}).all())
    return TaskView(seat.comparison, row.prompt, row.domain, tuple(texts[i] for i in ids), bool(seat.group))


def find_lease(connection: Connection, comparison: str, rater: str) -> Lease | None:
    """A rater's seat at a comparison, whatever became of it."""
    seats = schema.seats
    tasks = schema.tasks
    query = select(seats.c.shown, seats.c.until, tasks.c.group_id).outerjoin(
        tasks, tasks.c.comparison == seats.c.comparison
    )
    row = connection.execute(query.where(seats.c.comparison == comparison, seats.c.rater == rater)).one_or_none()
    return Lease(comparison, rater, row.shown, row.until, row.group_id or "") if row is not None else None


def expire(connection: Connection, at: float) -> int:
    """Free the seats whose time is over, a block at most; how many."""
    over = connection.execute(statements.EXPIRED_LEASES, {"at": at}).all()
    for comparison, rater in over:
        release(connection, comparison, rater, "lapsed", None)
    return len(over)


def release(
    connection: Connection, comparison: str, rater: str, state: ReleaseState, at: float | None, leased: bool = True
) -> None:
    """A rater gives up a seat; one that they held on lease is free again. With no time the seat keeps the time at
    which it was taken."""
    update_lease(connection, comparison, rater, state=state, **({} if at is None else {"at": at}))
    task = connection.execute(statements.TASK, {"comparison": comparison}).one_or_none()
    if task is not None and leased:
        update_task(connection, task, taken=-1)


def update_lease(connection: Connection, comparison: str, rater: str, **new: str | float) -> None:
    """Change columns of a seat."""
    connection.execute(statements.UPDATE_LEASE, {"of_comparison": comparison, "of_rater": rater, **new})


def update_task(
    connection: Connection,
    task: Row[Any],
    taken: int = 0,
    judged: int = 0,
    seats: int = 0,
    state: str = "",
    reason: str = "",
) -> None:
    """Change a task by these amounts, its lane and its queue's counters with it."""
    new = {
        "taken": task.taken + taken,
        "judged": task.judged + judged,
        "seats": task.seats + seats,
        "state": state or task.state,
        "reason": reason or task.reason,
    }
    lane = _lane(new["seats"], new["taken"], new["state"])
    connection.execute(statements.UPDATE_TASK, {"of_number": task.number, "lane": lane, **new})
    before = _queue_counts(task.seats, task.taken, task.judged, task.state)
    after = _queue_counts(new["seats"], new["taken"], new["judged"], new["state"])
    if before != after:
        change = {
            "domain": task.domain,
            "tasks": 0,
            "waiting": after[0] - before[0],
            "done": after[1] - before[1],
            "paused": 0,
        }
        ledger.upsert(connection, schema.queues, [change], added=["waiting", "done"])


def seconds_used(connection: Connection) -> float:
    """How long people have judged so far."""
    table = schema.tallies
    return int(connection.scalar(select(func.sum(table.c.milliseconds)).where(table.c.kind == "person")) or 0) / 1000


def hash_uniform(stream: str, name: str) -> float:
    """A number in [0, 1) that belongs to a name."""
    return int.from_bytes(hashlib.blake2b(f"{stream}/{name}".encode(), digest_size=8).digest(), "little") / 2**64


def _insert_tasks(connection: Connection, asked: Sequence[tuple[Task, str | None]]) -> int:
    table = schema.tasks
    fresh = []
    for begin in range(0, len(asked), BLOCK):
        part = asked[begin : begin + BLOCK]
        known = set(
            connection.scalars(
                select(table.c.comparison).where(table.c.comparison.in_([task.comparison for task, _ in part]))
            )
        )
        fresh += [(task, group) for task, group in part if task.comparison not in known]
    if not fresh:
        return 0
    connection.execute(table.insert(), [_task_row(task, group) for task, group in fresh])
    tasks = Counter(task.domain for task, _ in fresh)
    seats = Counter[str]()
    for task, _ in fresh:
        seats[task.domain] += task.seats
    rows = [
        {"domain": domain, "tasks": count, "waiting": seats[domain], "done": 0, "paused": 0}
        for domain, count in tasks.items()
    ]
    ledger.upsert(connection, schema.queues, rows, added=["tasks", "waiting"])
    return len(fresh)


def _task_row(task: Task, group: str | None) -> dict[str, Any]:
    if task.seats < 1 or not 0 < task.propensity <= 1:
        value = f"{task.comparison}: {task.seats} seats, propensity {task.propensity}"
        raise DataError(
            value,
            "a task has at least one seat, and a propensity above 0 and at most 1",
            "mend the task; none were added",
        )
    rest = {"taken": 0, "judged": 0, "rank": -task.priority, "lane": 1, "state": "open", "group_id": group}
    return {name: value for name, value in asdict(task).items() if name != "priority"} | rest


def _lane(seats: int, taken: int, state: str) -> int:
    """1 nobody sits there, 2 some seats are left, 0 it does not wait."""
    return 0 if state != "open" or taken >= seats else 2 if taken > 0 else 1


def _queue_counts(seats: int, taken: int, judged: int, state: str) -> tuple[int, int]:
    """What a task adds to its queue's counters: seats that wait, tasks that are done."""
    return max(0, seats - taken) if state == "open" else 0, int(judged >= seats or state == "closed")


def _current_lease(connection: Connection, rater: str, at: float) -> Lease | None:
    for row in connection.execute(statements.ACTIVE_LEASES, {"rater": rater, "at": at}):
        if row.standing in (None, "open"):
            return Lease(row.comparison, rater, row.shown, row.until, row.group_id or "")
    return None


def _renew(connection: Connection, seat: Lease, until: float) -> Lease:
    """The same seat for longer, once a good part of its time is over."""
    if until - seat.until < 60:
        return seat
    update_lease(connection, seat.comparison, seat.rater, until=until)
    return Lease(seat.comparison, seat.rater, seat.shown, until, seat.group)


def _next_gold(connection: Connection, rater: str, wanted: float) -> str | None:
    """Gold that the rater has not met, as often as wanted: when its turn comes is a draw from how much they have
    judged."""
    tally = connection.execute(statements.RATER_TALLY, {"rater": rater}).one_or_none()
    if hash_uniform(f"gold/{rater}", str(tally.judged if tally is not None else 0)) >= wanted:
        return None
    return connection.scalar(statements.NEXT_GOLD, {"rater": rater})


def _next_task(connection: Connection, rater: str) -> str | None:
    """The most urgent task of all domains that go on: begun ones before fresh ones of one rank. All begun ones are
    looked through only at the end."""
    found = [
        task
        for task in (_first_partly_rated(connection, rater), _first_in_lane(connection, rater, 1))
        if task is not None
    ]
    last = _first_in_lane(connection, rater, 2) if not found else None
    return min(found)[-1] if found else last[-1] if last is not None else None


def _first_partly_rated(connection: Connection, rater: str) -> Candidate | None:
    row = connection.execute(statements.FIRST_PARTLY_RATED, {"rater": rater}).one_or_none()
    return (row.rank, -2, row.number, row.comparison) if row is not None else None


def _first_in_lane(connection: Connection, rater: str, lane: int) -> Candidate | None:
    numbers = [
        number
        for number in connection.scalars(statements.FIRST_PER_DOMAIN, {"rater": rater, "lane": lane})
        if number is not None
    ]
    row = connection.execute(statements.MOST_URGENT, {"numbers": numbers}).one_or_none() if numbers else None
    return (row.rank, -lane, row.number, row.comparison) if row is not None else None


def _presentation_order(connection: Connection, rater: str, comparison: str, group: str) -> str:
    """The order in which a rater sees the answers: a draw that belongs to the two."""
    if not group:
        return "ab" if hash_uniform(f"order/{rater}", comparison) < 0.5 else "ba"
    members = connection.scalar(select(schema.groups.c.members).where(schema.groups.c.id == group)) or []
    return ".".join(map(str, sorted(range(len(members)), key=lambda i: hash_uniform(f"order/{rater}", f"{group}/{i}"))))
