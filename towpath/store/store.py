"""What happened, for ever: one Store of verbs over SQLite or PostgreSQL."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock, local
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, Select, Table, func, or_, select

from towpath.errors import DataError
from towpath.records import Comparison, Completion, Demonstration, Judgement, Label, Prompt
from towpath.store import ledger, schema, spending, statements, tallies, task_queue, verdicts
from towpath.store.publish import fault_point
from towpath.store.writer import Writer

P = ParamSpec("P")
T = TypeVar("T")

BLOCK = 500
REFERENCES_RULE = "a completion needs its prompt, a comparison its prompt and both completions"
ONE_JUDGEMENT_RULE = "a rater judges a known comparison once a round"


class Store:
    """The ledger of one run. Everything is added, nothing is changed; labels alone are derived anew."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer: Writer | None = None
        self._starting = Lock()
        self._shared = local()

    @classmethod
    def open(cls, location: Path | str) -> "Store":
        """Open, creating and migrating as need be; a path is SQLite, a URL is whatever it says."""
        engine = ledger.open_engine(location)
        try:
            with ledger.translate_errors(engine):
                ledger.migrate(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish what waits to be written and let go of the file."""
        with self._starting:
            if self._writer is not None:
                self._writer.close()
        self._engine.dispose()

    @property
    def folder(self) -> Path | None:
        """The folder that the ledger's file lies in; None of a database server."""
        file = self._engine.url.database
        return Path(file).resolve().parent if self._engine.dialect.name == "sqlite" and file else None

    def require_writable(self) -> None:
        """Raise a ResourceError where nothing can be written, before anybody rates."""
        with ledger.translate_errors(self._engine), ledger.transaction(self._engine) as connection:
            connection.execute(schema.settings.update().where(schema.settings.c.name == "").values(value=None))

    def read(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a reading function of `store/` returns."""
        with ledger.translate_errors(self._engine), self._engine.connect() as connection:
            return work(connection, *args, **kwargs)

    def submit_write(
        self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> "Future[T]":
        """Have a writing function of `store/` done by the one thread that writes; the future is there once the
        result is on disk."""
        with self._starting:
            if self._writer is None:
                self._writer = Writer(self._engine)
        return self._writer.submit(lambda connection: work(connection, *args, **kwargs))

    def add_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Add prompts that are not there yet."""
        self._add(schema.prompts, [asdict(p) | {"about": list(p.about), "harmful": int(p.harmful)} for p in prompts])

    def add_completions(self, completions: Iterable[Completion]) -> None:
        """Add completions that are not there yet."""
        self._add(
            schema.completions,
            [asdict(c) | {"token_ids": list(c.token_ids), "logprobs": list(c.logprobs)} for c in completions],
        )

    def add_comparisons(self, comparisons: Iterable[Comparison]) -> None:
        """Add comparisons that are not there yet."""
        self._add(schema.comparisons, [asdict(c) for c in comparisons])

    def add_judgements(self, judgements: Iterable[Judgement]) -> int:
        """Add judgements; one told again is the same one, one told differently is refused. How many were new."""
        asked = list(judgements)
        fresh: list[Judgement] = []
        with self._transaction(ONE_JUDGEMENT_RULE) as connection:
            by_key: dict[str, Judgement] = {}
            by_turn: dict[tuple[str, str, int], Judgement] = {}
            for j in _existing_judgements(connection, asked):
                by_key[j.key] = by_turn[judgement_slot(j)] = j
            for j in asked:
                before = by_key.get(j.key) or by_turn.get(judgement_slot(j))
                if before is None:
                    by_key[j.key] = by_turn[judgement_slot(j)] = j
                    fresh.append(j)
                elif verdict_fields(before) != verdict_fields(j):
                    raise DataError(
                        describe_conflict(before, j),
                        "judgements are never changed",
                        "judge in a new round to say otherwise",
                    )
            tallies.insert_judgements(connection, fresh)
        return len(fresh)

    def retract(self, keys: Sequence[str]) -> int:
        """Take judgements back: they stay in the ledger and count no longer."""
        with self._transaction("what is taken back was judged") as connection:
            return tallies.retract(connection, keys)

    def add_tasks(self, tasks: Iterable[task_queue.Task]) -> int:
        """Put comparisons in the queue for people, those that are not in it yet; how many were new."""
        with self._transaction("a task is of a known comparison") as connection:
            return task_queue.add_tasks(connection, tasks)

    def add_groups(self, groups: Iterable[task_queue.RankingGroup]) -> int:
        """Put groups of answers in the queue, to be ranked; how many were new."""
        with self._transaction("a group is of one known prompt and its completions") as connection:
            return task_queue.add_groups(connection, groups)

    def put_gold(self, gold: Iterable[task_queue.Gold]) -> None:
        """Say what the right answers of comparisons are."""
        with self._transaction("gold is a known comparison") as connection:
            task_queue.set_gold(connection, gold)

    def written_demonstrations(self) -> list[Demonstration]:
        """The better answers that raters wrote, as demonstrations."""
        return self.read(verdicts.approved_demonstrations)

    def reply(self, digest: str) -> dict[str, Any] | None:
        """What a judge answered to a question before."""
        return self.read(
            lambda connection: connection.scalar(
                select(schema.replies.c.reply).where(schema.replies.c.digest == digest)
            )
        )

    def save_reply(self, digest: str, reply: dict[str, Any]) -> None:
        """Remember what a judge answered; the first answer stays."""
        with self._transaction("a question has one answer") as connection:
            ledger.upsert(connection, schema.replies, [{"digest": digest, "reply": reply, "at": tallies.timestamp()}])

    def judge_account(self, rater: str) -> "JudgeAccount":
        """What a judge's calls cost, in labels, arenas and refusal checks alike."""
        return JudgeAccount(self, rater)

    def replace_labels(self, labels: Sequence[Label]) -> None:
        """Replace the labels of these comparisons, all at once; those of other comparisons stay."""
        with self._transaction("a comparison that is known has one label") as connection:
            for part in _blocks(labels):
                connection.execute(
                    schema.labels.delete().where(schema.labels.c.comparison.in_([label.comparison for label in part]))
                )
                connection.execute(schema.labels.insert(), [asdict(label) for label in part])

    def prompts(self) -> dict[str, Prompt]:
        """Every prompt by id."""
        rows = self._rows(select(schema.prompts))
        return {row["id"]: Prompt(**dict(row, about=tuple(row["about"]), harmful=bool(row["harmful"]))) for row in rows}

    def completions(self, source: str | None = None) -> dict[str, Completion]:
        """Every completion by id, or those of one source."""
        query = select(schema.completions)
        if source is not None:
            query = query.where(schema.completions.c.source == source)
        rows = self._rows(query)
        return {
            row["id"]: Completion(**dict(row, token_ids=tuple(row["token_ids"]), logprobs=tuple(row["logprobs"])))
            for row in rows
        }

    def comparisons(self, round: int | None = None) -> list[Comparison]:
        """Comparisons in the order they were added; those of arenas are no one's labels and are left out."""
        query = (
            select(schema.comparisons)
            .where(schema.comparisons.c.id.not_in(statements.IN_ARENAS))
            .order_by(schema.comparisons.c.number)
        )
        if round is not None:
            query = query.where(schema.comparisons.c.round == round)
        return [Comparison(**_without_number(row)) for row in self._rows(query)]

    def judgements(self) -> list[Judgement]:
        """Judgements in the order they were given, without those that were taken back and those of arenas."""
        back = select(schema.retractions.c.key)
        table = schema.judgements
        query = select(table).where(table.c.key.not_in(back), table.c.comparison.not_in(statements.IN_ARENAS))
        return [Judgement(**_without_number(row)) for row in self._rows(query.order_by(table.c.number))]

    def labels(self) -> list[Label]:
        """Labels as last derived."""
        return [Label(**row) for row in self._rows(select(schema.labels).order_by(schema.labels.c.comparison))]

    def counts(self) -> dict[str, int]:
        """How many rows each table of the ledger has."""
        return self.read(
            lambda connection: {
                t.name: connection.scalar(select(func.count()).select_from(t)) or 0 for t in schema.LEDGER
            }
        )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What this thread adds within the block is in the ledger as a whole, or not at all."""
        with self._transaction("") as connection:
            self._shared.connection = connection
            try:
                yield
            finally:
                del self._shared.connection

    @contextmanager
    def _transaction(self, rule: str) -> Iterator[Connection]:
        shared: Connection | None = getattr(self._shared, "connection", None)
        if shared is not None:
            with ledger.translate_errors(self._engine, rule):
                yield shared
            return
        with ledger.translate_errors(self._engine, rule), ledger.transaction(self._engine) as connection:
            yield connection
            fault_point("commit")

    def _add(self, table: Table, rows: list[dict[str, Any]]) -> None:
        unique = {row["id"]: row for row in reversed(rows)}
        with self._transaction(REFERENCES_RULE) as connection:
            known = {
                name
                for part in _blocks(list(unique))
                for name in connection.scalars(select(table.c.id).where(table.c.id.in_(part)))
            }
            fresh = [row for row in reversed(unique.values()) if row["id"] not in known]
            if fresh:
                connection.execute(table.insert(), fresh)

    def _rows(self, query: Select[Any]) -> list[dict[str, Any]]:
        return self.read(lambda connection: [dict(row) for row in connection.execute(query).mappings()])


def judgement_slot(j: Judgement) -> tuple[str, str, int]:
    """A rater has one turn at a comparison a round."""
    return j.comparison, j.rater, j.round


def verdict_fields(j: Judgement) -> tuple[object, ...]:
    """What makes two judgements the same: not the clock, the key or the side it was shown on."""
    return *judgement_slot(j), j.kind, j.choice, j.strength


def describe_conflict(before: Judgement, now: Judgement) -> str:
    """How two judgements that should be one differ."""
    old, new = (f"{j.choice} at strength {j.strength} as {j.kind}" for j in (before, now))
    if judgement_slot(before) != judgement_slot(now):
        return (
            f"{now.comparison}: {now.rater} uses key {now.key!r}, which belongs to {before.comparison}, "
            f"{before.rater}, round {before.round}"
        )
    return f"{now.comparison}: {now.rater} said {old} and now {new}"


def _existing_judgements(connection: Connection, asked: Sequence[Judgement]) -> Iterator[Judgement]:
    table = schema.judgements
    for part in _blocks(asked):
        same = or_(table.c.key.in_([j.key for j in part]), table.c.comparison.in_({j.comparison for j in part}))
        for row in connection.execute(select(table).where(same)).mappings():
            yield Judgement(**_without_number(dict(row)))


def _blocks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[begin : begin + BLOCK] for begin in range(0, len(items), BLOCK))


def _without_number(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "number"}


@dataclass(frozen=True)
class JudgeAccount:
    """What the calls of one judge cost, kept in the ledger call by call."""

    store: Store
    rater: str

    def total(self) -> float:
        """Dollars spent so far, and held for calls that never ended."""
        return self.store.read(spending.rater_dollars, self.rater)

    def reserve(self, dollars: float) -> int:
        """A call is about to be made that costs at most so much; the number of its entry."""
        return self.store.submit_write(spending.reserve, self.rater, dollars).result()

    def commit(self, number: int, dollars: float) -> None:
        """The call has ended, and cost so much."""
        self.store.submit_write(spending.commit, number, dollars).result()
