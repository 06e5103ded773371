"""The queue of rating tasks: tasks, leases and gold. The next task is found through an index.

The functions take a connection; pass them to `Store.submit_write` or `Store.read`.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, func, select

from towpath.errors import DataError
from towpath.hashing import hash_uniform
from towpath.records import Choice, Comparison, Conversation, messages_of
from towpath.store import ledger, rating_settings, schema, statements

NoTaskReason = Literal["paused", "spent", "empty"]
ReleaseState = Literal["lapsed", "skipped", "flagged"]
Candidate = tuple[int, int, int, str]
RELEASED_STATES = ("lapsed", "skipped", "flagged", "removed", "trial")
"""Lease states that do not occupy one of the task's seats."""


@dataclass(frozen=True, slots=True)
class Task:
    """A comparison for people, with the reason and the probability of its selection and the number of raters wanted."""

    comparison: str
    domain: str = "general"
    reason: str = "all"
    propensity: float = 1.0
    seats: int = 1
    priority: int = 0


@dataclass(frozen=True, slots=True)
class RankingGroup:
    """Four to nine completions of one prompt to rank; each pair of them is a comparison."""

    id: str
    prompt_id: str
    members: tuple[str, ...]
    domain: str = "general"
    priority: int = 0
    seats: int = 1


@dataclass(frozen=True, slots=True)
class Gold:
    """A comparison with a known answer."""

    comparison: str
    choice: Choice
    note: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """A task assigned to a rater until a time; `order` is the order of the answers on the page: ab, ba, or indices such
    as 2.0.1.3."""

    comparison: str
    rater: str
    order: str
    until: float
    group: str = ""


@dataclass(frozen=True, slots=True)
class TaskView:
    """The prompt and the answers in the rater's order, without their sources."""

    comparison: str
    prompt: str
    domain: str
    answers: tuple[str, ...]
    ranking: bool = False
    history: Conversation = ()
    """System prompt and earlier turns."""


def add_tasks(connection: Connection, tasks: Iterable[Task]) -> int:
    """Queue comparisons that are not queued yet, and return how many were new."""
    return _insert_tasks(connection, [(task, None) for task in {task.comparison: task for task in tasks}.values()])


def add_groups(connection: Connection, groups: Iterable[RankingGroup]) -> int:
    """Queue ranking groups and the comparisons of all their pairs, and return how many were new; a group's task is its
    first comparison."""
    known = set(connection.scalars(select(schema.groups.c.id)))
    fresh = [group for group in {group.id: group for group in groups}.values() if group.id not in known]
    for group in fresh:
        if not 4 <= len(set(group.members)) == len(group.members) <= 9:
            raise DataError(
                f"{group.id}: {len(group.members)} answers",
                "a ranking has four to nine different answers",
                "split or omit it",
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
    """Return the K(K-1)/2 comparisons of a group."""
    pairs = [(i, j) for i in range(len(group.members)) for j in range(i + 1, len(group.members))]
    return [Comparison(f"{group.id}.{i}-{j}", group.prompt_id, group.members[i], group.members[j]) for i, j in pairs]


def propose_groups(connection: Connection, most: int) -> list[RankingGroup]:
    """Return training prompts with four to nine answers of one sample stage that are not ranked yet, as groups."""
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
    prompt_ids = connection.scalars(query.having(func.count() >= 4).limit(most)).all()
    groups = []
    for prompt in prompt_ids:
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
    """Request `seats` more raters for queued comparisons, and return how many tasks changed."""
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
    """Set the known answers of comparisons."""
    items = list(gold)
    for item in items:
        if connection.scalar(statements.IS_MATCH, {"comparison": item.comparison}):
            raise DataError(
                f"{item.comparison}: an arena comparison",
                "every rater judges gold, which would bias the arena",
                "choose another",
            )
    ledger.upsert(connection, schema.gold, [asdict(item) for item in items], changed=["choice", "note"])


def remove_gold(connection: Connection, comparison: str) -> None:
    """Remove a gold comparison."""
    connection.execute(schema.gold.delete().where(schema.gold.c.comparison == comparison))


def pause_domain(connection: Connection, domain: str, paused: bool) -> None:
    """Pause or resume the tasks of a domain."""
    connection.execute(schema.queues.update().where(schema.queues.c.domain == domain).values(paused=int(paused)))


def next_lease(connection: Connection, rater: str, at: float) -> Lease | NoTaskReason:
    """Renew a rater's lease, or lease the next task; return the reason if there is none."""
    settings = rating_settings.read(connection)
    if settings.paused:
        return "paused"
    lease = _current_lease(connection, rater, at)
    if lease is not None:
        return _renew(connection, lease, at + settings.lease)
    if settings.hours is not None and seconds_used(connection) >= settings.hours * 3600:
        return "spent"
    expire(connection, at)
    name = _next_gold(connection, rater, settings.gold_share) or _next_task(connection, rater)
    return lease_task(connection, rater, name, at, settings) if name else "empty"


def lease_task(
    connection: Connection, rater: str, comparison: str, at: float, settings: rating_settings.RatingSettings
) -> Lease:
    """Lease a comparison to a rater, queued or not; a repeated lease keeps its answer order."""
    previous = connection.execute(statements.LEASE, {"comparison": comparison, "rater": rater}).one_or_none()
    task = connection.execute(statements.TASK, {"comparison": comparison}).one_or_none()
    group = (task.group_id or "") if task is not None else ""
    until = at + settings.lease
    if previous is not None:
        order = previous.shown
        free = previous.state in RELEASED_STATES
        update_lease(connection, comparison, rater, state="leased", until=until, at=at)
    else:
        order = _presentation_order(connection, rater, comparison, group)
        free = True
        is_gold = connection.scalar(statements.IS_GOLD, {"comparison": comparison}) or 0
        row = {
            "comparison": comparison,
            "rater": rater,
            "state": "leased",
            "until": until,
            "shown": order,
            "at": at,
            "gold": is_gold,
        }
        connection.execute(schema.seats.insert(), row)
    if task is not None and free:
        twice = (
            settings.overlap is not None and task.seats == 1 and hash_uniform("overlap", comparison) < settings.overlap
        )
        update_task(connection, task, taken=1, seats=int(twice))
    return Lease(comparison, rater, order, until, group)


def task_view(connection: Connection, lease: Lease) -> TaskView:
    """Return the texts of a lease."""
    row = connection.execute(statements.PAIR, {"comparison": lease.comparison}).one()
    if lease.group:
        members = connection.scalar(select(schema.groups.c.members).where(schema.groups.c.id == lease.group)) or []
        ids = [members[int(i)] for i in lease.order.split(".")]
    else:
        ids = [row.a, row.b] if lease.order == "ab" else [row.b, row.a]
    texts = dict(connection.execute(statements.TEXTS, {"ids": ids}).all())
    answers = tuple(texts[i] for i in ids)
    return TaskView(lease.comparison, row.prompt, row.domain, answers, bool(lease.group), messages_of(row.history))


def find_lease(connection: Connection, comparison: str, rater: str) -> Lease | None:
    """Return a rater's lease of a comparison in any state."""
    seats = schema.seats
    tasks = schema.tasks
    query = select(seats.c.shown, seats.c.until, tasks.c.group_id).outerjoin(
        tasks, tasks.c.comparison == seats.c.comparison
    )
    row = connection.execute(query.where(seats.c.comparison == comparison, seats.c.rater == rater)).one_or_none()
    return Lease(comparison, rater, row.shown, row.until, row.group_id or "") if row is not None else None


def expire(connection: Connection, at: float) -> int:
    """Release expired leases, at most one block, and return how many."""
    expired = connection.execute(statements.EXPIRED_LEASES, {"at": at}).all()
    for comparison, rater in expired:
        release(connection, comparison, rater, "lapsed", None)
    return len(expired)


def release(
    connection: Connection, comparison: str, rater: str, state: ReleaseState, at: float | None, leased: bool = True
) -> None:
    """Release a rater's lease; `at` None keeps the time at which it was taken."""
    update_lease(connection, comparison, rater, state=state, **({} if at is None else {"at": at}))
    task = connection.execute(statements.TASK, {"comparison": comparison}).one_or_none()
    if task is not None and leased:
        update_task(connection, task, taken=-1)


def update_lease(connection: Connection, comparison: str, rater: str, **new: str | float) -> None:
    """Change columns of a lease."""
    connection.execute(statements.UPDATE_LEASE, {"lease_comparison": comparison, "lease_rater": rater, **new})


def update_task(
    connection: Connection,
    task: Row[Any],
    taken: int = 0,
    judgements: int = 0,
    seats: int = 0,
    state: str = "",
    reason: str = "",
) -> None:
    """Change a task by these amounts, with its lane and its queue's counters."""
    new = {
        "taken": task.taken + taken,
        "judged": task.judged + judgements,
        "seats": task.seats + seats,
        "state": state or task.state,
        "reason": reason or task.reason,
    }
    lane = _lane(new["seats"], new["taken"], new["state"])
    connection.execute(statements.UPDATE_TASK, {"task_number": task.number, "lane": lane, **new})
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
    """Return how long people have judged."""
    table = schema.tallies
    return int(connection.scalar(select(func.sum(table.c.milliseconds)).where(table.c.kind == "person")) or 0) / 1000


def _insert_tasks(connection: Connection, tasks_and_groups: Sequence[tuple[Task, str | None]]) -> int:
    table = schema.tasks
    fresh = []
    for block in statements.blocks(tasks_and_groups):
        names = [task.comparison for task, _ in block]
        existing = set(connection.scalars(select(table.c.comparison).where(table.c.comparison.in_(names))))
        fresh += [(task, group) for task, group in block if task.comparison not in existing]
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
            "correct the task; none were added",
        )
    rest = {"taken": 0, "judged": 0, "rank": -task.priority, "lane": 1, "state": "open", "group_id": group}
    return {name: value for name, value in asdict(task).items() if name != "priority"} | rest


def _lane(seats: int, taken: int, state: str) -> int:
    """Return 1 if no seat is taken, 2 if some are free, 0 if the task does not wait."""
    if state != "open" or taken >= seats:
        return 0
    return 2 if taken > 0 else 1


def _queue_counts(seats: int, taken: int, judgements: int, state: str) -> tuple[int, int]:
    """Return a task's contribution to its queue's counters: free seats, and whether it is done."""
    return max(0, seats - taken) if state == "open" else 0, int(judgements >= seats or state == "closed")


def _current_lease(connection: Connection, rater: str, at: float) -> Lease | None:
    for row in connection.execute(statements.ACTIVE_LEASES, {"rater": rater, "at": at}):
        if row.task_state in (None, "open"):
            return Lease(row.comparison, rater, row.shown, row.until, row.group_id or "")
    return None


def _renew(connection: Connection, lease: Lease, until: float) -> Lease:
    """Extend a lease that has used a good part of its time."""
    if until - lease.until < 60:
        return lease
    update_lease(connection, lease.comparison, lease.rater, until=until)
    return Lease(lease.comparison, lease.rater, lease.order, until, lease.group)


def _next_gold(connection: Connection, rater: str, share: float) -> str | None:
    """Return a gold comparison that the rater has not seen, with probability `wanted`, derived from how much they have
    judged."""
    tally = connection.execute(statements.RATER_TALLY, {"rater": rater}).one_or_none()
    if hash_uniform(f"gold/{rater}", str(tally.judged if tally is not None else 0)) >= share:
        return None
    return connection.scalar(statements.NEXT_GOLD, {"rater": rater})


def _next_task(connection: Connection, rater: str) -> str | None:
    """Return the most urgent task of all active domains; partly rated tasks come first within a rank, and are scanned
    in full last."""
    tasks = (_first_partly_rated(connection, rater), _first_in_lane(connection, rater, 1))
    candidates = [task for task in tasks if task is not None]
    if candidates:
        return min(candidates)[-1]
    last = _first_in_lane(connection, rater, 2)
    return last[-1] if last is not None else None


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
    """Return the order of the answers, a random choice that depends on rater and comparison only."""
    if not group:
        return "ab" if hash_uniform(f"order/{rater}", comparison) < 0.5 else "ba"
    members = connection.scalar(select(schema.groups.c.members).where(schema.groups.c.id == group)) or []
    return ".".join(map(str, sorted(range(len(members)), key=lambda i: hash_uniform(f"order/{rater}", f"{group}/{i}"))))
