"""Arenas: two models' answers to the same prompts, compared blind by the raters of the queue. What is said there
makes no label.

Every function here is work on a connection; hand it to `Store.later` or `Store.read`.

"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import Connection, select

from towpath.errors import DataError
from towpath.records import Comparison, Completion, Judgement, Prompt
from towpath.store import schema, tallies, task_queue

ArenaState = Literal["open", "decided", "stopped"]
REASON = "arena"
PRIORITY = 5
BLOCK = 500


@dataclass(frozen=True, slots=True)
class Arena:
    """Two sources of answers, `one` held against `other`, and how that stands. The verdict is the one with which it
    ended."""

    number: int
    one: str
    other: str
    threshold: float
    state: ArenaState
    verdict: str
    by: str
    at: str
    ended: str


@dataclass(frozen=True, slots=True)
class MatchInput:
    """A prompt with its two answers; `ours` is the side on which the first source's answer lies, `seats` how many
    raters are wanted."""

    prompt: Prompt
    a: str
    b: str
    ours: Literal["a", "b"]
    seats: int = 1


@dataclass(frozen=True, slots=True)
class Match:
    """One comparison of an arena. Where both answers are the same nobody is asked: it is a tie."""

    comparison: str
    place: int
    prompt_id: str
    prompt: str
    domain: str
    a: str
    b: str
    ours: Literal["a", "b"]
    same: bool
    seats: int


def create(
    connection: Connection, one: str, other: str, threshold: float, by: str, entrants: Sequence[MatchInput]
) -> Arena:
    """A new arena with its comparisons in the queue, in the order given."""
    row = {
        "one": one,
        "other": other,
        "threshold": threshold,
        "state": "open",
        "verdict": "",
        "by": by,
        "at": tallies.timestamp(),
        "ended": "",
    }
    made = connection.execute(schema.arenas.insert().returning(schema.arenas.c.number), row)
    number = int(made.scalar_one())
    prompts = {e.prompt.id: e.prompt for e in entrants}
    known = {
        name
        for part in _blocks(list(prompts))
        for name in connection.scalars(select(schema.prompts.c.id).where(schema.prompts.c.id.in_(part)))
    }
    fresh = [
        asdict(p) | {"about": list(p.about), "harmful": int(p.harmful)}
        for name, p in prompts.items()
        if name not in known
    ]
    if fresh:
        connection.execute(schema.prompts.insert(), fresh)
    completions = []
    comparisons = []
    matches = []
    tasks = []
    for place, entrant in enumerate(entrants):
        name = f"arena-{number}.{place}"
        sources = (one, other) if entrant.ours == "a" else (other, one)
        for side, said, source in (("a", entrant.a, sources[0]), ("b", entrant.b, sources[1])):
            completions.append(Completion(f"{name}.{side}", entrant.prompt.id, f"arena/{source}", said, (), (), "stop"))
        comparisons.append(Comparison(name, entrant.prompt.id, f"{name}.a", f"{name}.b"))
        same = entrant.a.strip() == entrant.b.strip()
        matches.append({"comparison": name, "arena": number, "place": place, "ours": entrant.ours, "same": int(same)})
        if not same:
            tasks.append(task_queue.Task(name, queue_name(number), REASON, 1.0, entrant.seats, PRIORITY))
    connection.execute(
        schema.completions.insert(), [asdict(c) | {"token_ids": [], "logprobs": []} for c in completions]
    )
    connection.execute(schema.comparisons.insert(), [asdict(c) for c in comparisons])
    connection.execute(schema.matches.insert(), matches)
    task_queue.add_tasks(connection, tasks)
    return get_arena(connection, number)


def queue_name(number: int) -> str:
    """The queue in which an arena's comparisons wait: one of its own, which the owner can hold back."""
    return f"arena {number}"


def list_arenas(connection: Connection) -> list[Arena]:
    """All arenas, the newest first."""
    return [
        Arena(**dict(row))
        for row in connection.execute(select(schema.arenas).order_by(schema.arenas.c.number.desc())).mappings()
    ]


def get_arena(connection: Connection, number: int) -> Arena:
    """One arena by its number."""
    row = connection.execute(select(schema.arenas).where(schema.arenas.c.number == number)).mappings().one_or_none()
    if row is None:
        raise DataError(
            f"arena {number}: there is none", "an arena is named by its number", "`towpath arena stats RUN` lists them"
        )
    return Arena(**dict(row))


def list_matches(connection: Connection, number: int) -> list[Match]:
    """The comparisons of an arena in their order."""
    table = schema.matches
    comparisons = schema.comparisons
    prompts = schema.prompts
    tasks = schema.tasks
    a = schema.completions.alias()
    b = schema.completions.alias()
    query = select(
        table.c.comparison, table.c.place, prompts.c.id.label("prompt_id"), prompts.c.prompt, prompts.c.domain
    )
    query = query.add_columns(
        a.c.text.label("a"), b.c.text.label("b"), table.c.ours, table.c.same, tasks.c.seats
    ).select_from(table)
    query = query.join(comparisons, comparisons.c.id == table.c.comparison).join(
        prompts, prompts.c.id == comparisons.c.prompt_id
    )
    query = query.join(a, a.c.id == comparisons.c.a).join(b, b.c.id == comparisons.c.b)
    query = (
        query.outerjoin(tasks, tasks.c.comparison == table.c.comparison)
        .where(table.c.arena == number)
        .order_by(table.c.place)
    )
    return [
        Match(**dict(row, same=bool(row["same"]), seats=row["seats"] or 0))
        for row in connection.execute(query).mappings()
    ]


def list_judgements(connection: Connection, number: int) -> list[Judgement]:
    """What was said of an arena's comparisons and not taken back, in the order it was said."""
    table = schema.judgements
    matched = schema.matches
    back = select(schema.retractions.c.key).where(schema.retractions.c.key == table.c.key).exists()
    query = (
        select(table).join(matched, matched.c.comparison == table.c.comparison).where(matched.c.arena == number, ~back)
    )
    rows = connection.execute(query.order_by(table.c.number)).mappings()
    return [Judgement(**{name: value for name, value in row.items() if name != "number"}) for row in rows]


def open_arenas(connection: Connection) -> list[int]:
    """The numbers of arenas that are still judged."""
    return list(
        connection.scalars(
            select(schema.arenas.c.number).where(schema.arenas.c.state == "open").order_by(schema.arenas.c.number)
        )
    )


def close(connection: Connection, number: int, state: ArenaState, verdict: str) -> Arena:
    """End an arena: its comparisons wait no longer; those that lie before a rater may still be judged. One that has
    ended stays as it is."""
    found = get_arena(connection, number)
    if found.state != "open":
        return found
    table = schema.arenas
    connection.execute(
        table.update().where(table.c.number == number).values(state=state, verdict=verdict, ended=tallies.timestamp())
    )
    tasks = schema.tasks
    matched = schema.matches
    query = (
        select(tasks)
        .join(matched, matched.c.comparison == tasks.c.comparison)
        .where(matched.c.arena == number, tasks.c.state == "open")
    )
    for row in connection.execute(query.order_by(tasks.c.number)).all():
        if row.judged < row.seats:
            task_queue.update_task(connection, row, state="closed")
    return get_arena(connection, number)


def request_more_judgements(connection: Connection, comparisons: Sequence[tuple[str, str]], reason: str) -> int:
    """Ask one more rater about labelled comparisons, given with their domains; those that never were in the queue
    are put there. How many."""
    changed = 0
    for name, domain in comparisons:
        if connection.scalar(select(schema.comparisons.c.id).where(schema.comparisons.c.id == name)) is None:
            continue
        changed += task_queue.add_seats(connection, [name], reason) or task_queue.add_tasks(
            connection, [task_queue.Task(name, domain, reason)]
        )
    return changed


def _blocks(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[at : at + BLOCK] for at in range(0, len(items), BLOCK)]
