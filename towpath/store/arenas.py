"""Arenas: answers of two models to the same prompts, compared blind by raters. Their judgements never become labels.

The functions take a connection; pass them to `Store.submit_write` or `Store.read`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from sqlalchemy import Connection, select

from towpath.errors import DataError
from towpath.records import Comparison, Completion, Conversation, Judgement, Message, Prompt, messages_of, transcript
from towpath.store import schema, statements, tallies, task_queue

ArenaState = Literal["open", "decided", "stopped"]
REASON = "arena"
PRIORITY = 5


@dataclass(frozen=True, slots=True)
class Arena:
    """A comparison of two models, `one` against `other`; `verdict` is set when it is closed."""

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
    """A prompt with both answers; `ours` is the side of the first model's answer, `seats` the number of raters
    wanted."""

    prompt: Prompt
    a: str
    b: str
    ours: Literal["a", "b"]
    seats: int = 1


@dataclass(frozen=True, slots=True)
class Match:
    """One comparison of an arena; identical answers count as a tie and are not shown to raters."""

    comparison: str
    position: int
    prompt_id: str
    prompt: str
    domain: str
    a: str
    b: str
    ours: Literal["a", "b"]
    same: bool
    seats: int
    history: Conversation = ()

    @property
    def text(self) -> str:
        """The whole conversation as one text."""
        return transcript((*self.history, Message("user", self.prompt)))


def create(
    connection: Connection, one: str, other: str, threshold: float, by: str, inputs: Sequence[MatchInput]
) -> Arena:
    """Create an arena and queue its comparisons in the given order."""
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
    inserted = connection.execute(schema.arenas.insert().returning(schema.arenas.c.number), row)
    number = int(inserted.scalar_one())
    _add_prompts(connection, {item.prompt.id: item.prompt for item in inputs})
    completions = []
    comparisons = []
    matches = []
    tasks = []
    for position, item in enumerate(inputs):
        name = f"arena-{number}.{position}"
        prompt = item.prompt.id
        source_a, source_b = (one, other) if item.ours == "a" else (other, one)
        completions.append(Completion(f"{name}.a", prompt, f"arena/{source_a}", item.a, (), (), "stop"))
        completions.append(Completion(f"{name}.b", prompt, f"arena/{source_b}", item.b, (), (), "stop"))
        comparisons.append(Comparison(name, prompt, f"{name}.a", f"{name}.b"))
        same = item.a.strip() == item.b.strip()
        matches.append({"comparison": name, "arena": number, "place": position, "ours": item.ours, "same": int(same)})
        if not same:
            tasks.append(task_queue.Task(name, queue_name(number), REASON, 1.0, item.seats, PRIORITY))
    connection.execute(
        schema.completions.insert(), [asdict(c) | {"token_ids": [], "logprobs": []} for c in completions]
    )
    connection.execute(schema.comparisons.insert(), [asdict(c) for c in comparisons])
    connection.execute(schema.matches.insert(), matches)
    task_queue.add_tasks(connection, tasks)
    return get_arena(connection, number)


def _add_prompts(connection: Connection, prompts: dict[str, Prompt]) -> None:
    existing: set[str] = set()
    for block in statements.blocks(list(prompts)):
        existing.update(connection.scalars(select(schema.prompts.c.id).where(schema.prompts.c.id.in_(block))))
    new = [p for name, p in prompts.items() if name not in existing]
    if new:
        connection.execute(schema.prompts.insert(), [statements.prompt_row(p) for p in new])


def queue_name(number: int) -> str:
    """Return the name of an arena's own queue, which the owner can pause."""
    return f"arena {number}"


def list_arenas(connection: Connection) -> list[Arena]:
    """Return all arenas, newest first."""
    query = select(schema.arenas).order_by(schema.arenas.c.number.desc())
    return [Arena(**dict(row)) for row in connection.execute(query).mappings()]


def get_arena(connection: Connection, number: int) -> Arena:
    """Return an arena by number."""
    row = connection.execute(select(schema.arenas).where(schema.arenas.c.number == number)).mappings().one_or_none()
    if row is None:
        raise DataError(
            f"arena {number}: no such arena", "an arena is identified by its number", "see `towpath arena stats RUN`"
        )
    return Arena(**dict(row))


def list_matches(connection: Connection, number: int) -> list[Match]:
    """Return an arena's comparisons in order."""
    matches = schema.matches
    prompts = schema.prompts
    tasks = schema.tasks
    query = select(
        matches.c.comparison,
        matches.c.place.label("position"),
        prompts.c.id.label("prompt_id"),
        prompts.c.prompt,
        prompts.c.history,
        prompts.c.domain,
        matches.c.ours,
        matches.c.same,
        tasks.c.seats,
    )
    query = statements.join_answers(statements.join_prompts(query.select_from(matches), matches.c.comparison))
    query = query.outerjoin(tasks, tasks.c.comparison == matches.c.comparison).where(matches.c.arena == number)
    fields = Match.__dataclass_fields__
    arena_matches = []
    for row in connection.execute(query.order_by(matches.c.place)).mappings():
        values = {name: value for name, value in row.items() if name in fields}
        values |= {"same": bool(row["same"]), "seats": row["seats"] or 0, "history": messages_of(row["history"])}
        arena_matches.append(Match(**values))
    return arena_matches


def list_judgements(connection: Connection, number: int) -> list[Judgement]:
    """Return an arena's judgements that are not retracted, in order."""
    judgements = schema.judgements
    matches = schema.matches
    query = select(judgements).join(matches, matches.c.comparison == judgements.c.comparison)
    query = query.where(matches.c.arena == number, statements.NOT_RETRACTED)
    return statements.load_judgements(connection, query.order_by(judgements.c.number))


def open_arenas(connection: Connection) -> list[int]:
    """Return the numbers of open arenas."""
    query = select(schema.arenas.c.number).where(schema.arenas.c.state == "open")
    return list(connection.scalars(query.order_by(schema.arenas.c.number)))


def close(connection: Connection, number: int, state: ArenaState, verdict: str) -> Arena:
    """Close an arena: its open tasks leave the queue, current leases may still be judged; a closed arena stays
    unchanged."""
    arena = get_arena(connection, number)
    if arena.state != "open":
        return arena
    table = schema.arenas
    connection.execute(
        table.update().where(table.c.number == number).values(state=state, verdict=verdict, ended=tallies.timestamp())
    )
    tasks = schema.tasks
    matches = schema.matches
    query = (
        select(tasks)
        .join(matches, matches.c.comparison == tasks.c.comparison)
        .where(matches.c.arena == number, tasks.c.state == "open")
    )
    for row in connection.execute(query.order_by(tasks.c.number)).all():
        if row.judged < row.seats:
            task_queue.update_task(connection, row, state="closed")
    return get_arena(connection, number)


def request_more_judgements(connection: Connection, comparisons: Sequence[tuple[str, str]], reason: str) -> int:
    """Queue one more judgement for each labelled comparison, given with its domain, and return how many tasks
    changed."""
    changed = 0
    for name, domain in comparisons:
        if connection.scalar(select(schema.comparisons.c.id).where(schema.comparisons.c.id == name)) is None:
            continue
        changed += task_queue.add_seats(connection, [name], reason) or task_queue.add_tasks(
            connection, [task_queue.Task(name, domain, reason)]
        )
    return changed
