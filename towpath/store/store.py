"""The ledger of a run: an append-only Store over SQLite or PostgreSQL."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
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

REFERENCES_RULE = "a completion needs its prompt, a comparison its prompt and both completions"
ONE_JUDGEMENT_RULE = "a rater judges a known comparison once a round"


class Store:
    """The ledger of one run: rows are only added; labels alone are replaced."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer: Writer | None = None
        self._starting = Lock()
        self._shared = local()

    @classmethod
    def open(cls, location: Path | str) -> "Store":
        """Open a ledger, creating and migrating it if needed; a path is SQLite, a URL any supported database."""
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
        """Finish pending writes and close the database."""
        with self._starting:
            if self._writer is not None:
                self._writer.close()
        self._engine.dispose()

    @property
    def folder(self) -> Path | None:
        """The folder of the ledger's file; None for a database server."""
        file = self._engine.url.database
        return Path(file).resolve().parent if self._engine.dialect.name == "sqlite" and file else None

    def require_writable(self) -> None:
        """Raise ResourceError if the ledger cannot be written."""
        with ledger.translate_errors(self._engine), ledger.transaction(self._engine) as connection:
            connection.execute(schema.settings.update().where(schema.settings.c.name == "").values(value=None))

    def read(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a reading function of `store/` and return its result."""
        with ledger.translate_errors(self._engine), self._engine.connect() as connection:
            return work(connection, *args, **kwargs)

    def submit_write(
        self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> "Future[T]":
        """Submit a writing function of `store/` to the writer thread; the future resolves once the result is on
        disk."""
        with self._starting:
            if self._writer is None:
                self._writer = Writer(self._engine)
        return self._writer.submit(lambda connection: work(connection, *args, **kwargs))

    def add_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Add new prompts."""
        self._add(schema.prompts, map(statements.prompt_row, prompts))

    def add_completions(self, completions: Iterable[Completion]) -> None:
        """Add new completions."""
        self._add(
            schema.completions,
            (asdict(c) | {"token_ids": list(c.token_ids), "logprobs": list(c.logprobs)} for c in completions),
        )

    def add_comparisons(self, comparisons: Iterable[Comparison]) -> None:
        """Add new comparisons."""
        self._add(schema.comparisons, map(asdict, comparisons))

    def add_judgements(self, judgements: Iterable[Judgement]) -> int:
        """Add judgements and return how many were new; a repetition is ignored, a contradiction raises DataError."""
        count = 0
        with self._transaction(ONE_JUDGEMENT_RULE) as connection:
            for block in statements.read_blocks(judgements):
                new, conflicts = _new_judgements(connection, block)
                for conflict in conflicts.values():
                    raise DataError(conflict, "judgements are never changed", "judge again in a new round")
                tallies.insert_judgements(connection, new)
                count += len(new)
        return count

    def add_consistent_judgements(self, judgements: Sequence[Judgement]) -> tuple[int, dict[int, str]]:
        """Add the judgements that contradict none: how many were new, and the contradictions by index."""
        with self._transaction(ONE_JUDGEMENT_RULE) as connection:
            new, conflicts = _new_judgements(connection, judgements)
            tallies.insert_judgements(connection, new)
        return len(new), conflicts

    def retract(self, keys: Sequence[str]) -> int:
        """Retract judgements, which stay in the ledger."""
        with self._transaction("only existing judgements are retracted") as connection:
            return tallies.retract(connection, keys)

    def add_tasks(self, tasks: Iterable[task_queue.Task]) -> int:
        """Queue comparisons for people that are not queued yet, and return how many were new."""
        with self._transaction("a task needs a known comparison") as connection:
            return task_queue.add_tasks(connection, tasks)

    def add_groups(self, groups: Iterable[task_queue.RankingGroup]) -> int:
        """Queue groups of answers for ranking, and return how many were new."""
        with self._transaction("a group needs one known prompt and its completions") as connection:
            return task_queue.add_groups(connection, groups)

    def set_gold(self, gold: Iterable[task_queue.Gold]) -> None:
        """Set the known answers of comparisons."""
        with self._transaction("gold needs a known comparison") as connection:
            task_queue.set_gold(connection, gold)

    def written_demonstrations(self) -> list[Demonstration]:
        """Return the approved answers that raters wrote, as demonstrations."""
        return self.read(verdicts.approved_demonstrations)

    def reply(self, digest: str) -> dict[str, Any] | None:
        """Return a cached reply of a judge."""
        return self.read(
            lambda connection: connection.scalar(
                select(schema.replies.c.reply).where(schema.replies.c.digest == digest)
            )
        )

    def save_reply(self, digest: str, reply: dict[str, Any]) -> None:
        """Cache a judge's reply; the first one stays."""
        with self._transaction("a judge's reply is cached once") as connection:
            ledger.upsert(connection, schema.replies, [{"digest": digest, "reply": reply, "at": tallies.timestamp()}])

    def judge_account(self, rater: str) -> "JudgeAccount":
        """Return the account of a judge's costs, for labels, arenas and refusal checks alike."""
        return JudgeAccount(self, rater)

    def replace_labels(self, labels: Sequence[Label]) -> None:
        """Replace the labels of these comparisons in one transaction; other labels stay."""
        with self._transaction("a known comparison has one label") as connection:
            for block in statements.blocks(labels):
                names = [label.comparison for label in block]
                connection.execute(schema.labels.delete().where(schema.labels.c.comparison.in_(names)))
                connection.execute(schema.labels.insert(), [asdict(label) for label in block])

    def prompts(self) -> dict[str, Prompt]:
        """Return every prompt by id."""
        rows = self._rows(select(schema.prompts))
        return {row["id"]: statements.prompt_of(row) for row in rows}

    def completions(self, source: str | None = None) -> dict[str, Completion]:
        """Return completions by id, all or those of one source."""
        query = select(schema.completions)
        if source is not None:
            query = query.where(schema.completions.c.source == source)
        rows = self._rows(query)
        return {
            row["id"]: Completion(**dict(row, token_ids=tuple(row["token_ids"]), logprobs=tuple(row["logprobs"])))
            for row in rows
        }

    def answers_of(
        self, comparisons: Iterable[Comparison], tokens: bool = False
    ) -> Iterator[tuple[Comparison, Prompt, Completion, Completion]]:
        """Yield each comparison with its prompt and both completions, without log-probabilities, and without token ids
        unless they are asked for; only a block of them is read at once."""
        for block in statements.read_blocks(comparisons):
            completions = self.read(statements.load_answers, {name for c in block for name in (c.a, c.b)}, tokens)
            prompts = self.read(statements.load_prompts, {c.prompt_id for c in block})
            for c in block:
                yield c, prompts[c.prompt_id], completions[c.a], completions[c.b]

    def prompts_of(self, ids: Collection[str]) -> dict[str, Prompt]:
        """Return the prompts of these ids that there are."""
        return self.read(statements.load_prompts, ids)

    def completions_of(self, ids: Collection[str]) -> dict[str, Completion]:
        """Return the completions of these ids that there are, without tokens."""
        return self.read(statements.load_answers, ids, False)

    def comparisons_of(self, ids: Collection[str]) -> dict[str, Comparison]:
        """Return the comparisons of these ids that there are, without those of arenas."""
        table = schema.comparisons
        comparisons: dict[str, Comparison] = {}
        for block in statements.blocks(list(ids)):
            for row in self._rows(select(table).where(table.c.id.in_(block), table.c.id.not_in(statements.IN_ARENAS))):
                comparisons[row["id"]] = Comparison(**statements.without_number(row))
        return comparisons

    def some_answers(self, limit: int) -> list[str]:
        """Return the texts of a few completions."""
        query = select(schema.completions.c.text).limit(limit)
        return self.read(lambda connection: list(connection.scalars(query)))

    def comparisons(self, round: int | None = None) -> list[Comparison]:
        """Return comparisons in insertion order, without those of arenas."""
        query = (
            select(schema.comparisons)
            .where(schema.comparisons.c.id.not_in(statements.IN_ARENAS))
            .order_by(schema.comparisons.c.number)
        )
        if round is not None:
            query = query.where(schema.comparisons.c.round == round)
        return [Comparison(**statements.without_number(row)) for row in self._rows(query)]

    def stream_comparisons(self, unjudged: bool = False) -> Iterator[Comparison]:
        """Yield comparisons in insertion order, without those of arenas, all or those without a judgement; only a
        block of them is read at once."""
        table = schema.comparisons
        query = select(table).where(table.c.id.not_in(statements.IN_ARENAS))
        if unjudged:
            verdicts_on_it = select(schema.judgements.c.key).where(
                schema.judgements.c.comparison == table.c.id, statements.NOT_RETRACTED
            )
            query = query.where(~verdicts_on_it.exists())
        query = query.order_by(table.c.number).limit(statements.BLOCK)
        last = -1
        while rows := self._rows(query.where(table.c.number > last)):
            yield from (Comparison(**statements.without_number(row)) for row in rows)
            last = rows[-1]["number"]

    def judgements(self, raters: Sequence[str] | None = None) -> list[Judgement]:
        """Return judgements in insertion order, all or those of some raters, without retracted ones and those of
        arenas."""
        table = schema.judgements
        query = select(table).where(statements.NOT_RETRACTED, table.c.comparison.not_in(statements.IN_ARENAS))
        if raters is not None:
            query = query.where(table.c.rater.in_(raters))
        return self.read(statements.load_judgements, query.order_by(table.c.number))

    def labels(self) -> list[Label]:
        """Return the current labels."""
        return [Label(**row) for row in self._rows(select(schema.labels).order_by(schema.labels.c.comparison))]

    def counts(self) -> dict[str, int]:
        """Return the number of rows of each table."""
        return self.read(
            lambda connection: {
                t.name: connection.scalar(select(func.count()).select_from(t)) or 0 for t in schema.LEDGER
            }
        )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything that this thread adds within the block together, or nothing."""
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

    def _add(self, table: Table, rows: Iterable[dict[str, Any]]) -> None:
        """Insert rows whose id is not there, a block at a time, in one transaction."""
        with self._transaction(REFERENCES_RULE) as connection:
            for block in statements.read_blocks(rows):
                unique = {row["id"]: row for row in reversed(block)}
                existing = set(connection.scalars(select(table.c.id).where(table.c.id.in_(unique))))
                new = [row for row in reversed(unique.values()) if row["id"] not in existing]
                if new:
                    connection.execute(table.insert(), new)

    def _rows(self, query: Select[Any]) -> list[dict[str, Any]]:
        return self.read(lambda connection: [dict(row) for row in connection.execute(query).mappings()])


def judgement_slot(j: Judgement) -> tuple[str, str, int]:
    """Return what a rater judges once: (comparison, rater, round)."""
    return j.comparison, j.rater, j.round


def verdict_fields(j: Judgement) -> tuple[object, ...]:
    """Return the fields that make two judgements equal: not the time, the key or the side."""
    return *judgement_slot(j), j.kind, j.choice, j.strength


def describe_conflict(before: Judgement, now: Judgement) -> str:
    """Describe how two judgements of one slot differ."""
    old, new = (f"{j.choice} at strength {j.strength} as {j.kind}" for j in (before, now))
    if judgement_slot(before) != judgement_slot(now):
        return (
            f"{now.comparison}: {now.rater} uses key {now.key!r}, which belongs to {before.comparison}, "
            f"{before.rater}, round {before.round}"
        )
    return f"{now.comparison}: {now.rater} judged {old} before and {new} now"


def _new_judgements(connection: Connection, judgements: Sequence[Judgement]) -> tuple[list[Judgement], dict[int, str]]:
    """Those of the judgements that the ledger does not have, and those that contradict it or each other, by index."""
    by_key: dict[str, Judgement] = {}
    by_slot: dict[tuple[str, str, int], Judgement] = {}
    new: list[Judgement] = []
    conflicts: dict[int, str] = {}
    for j in _existing_judgements(connection, judgements):
        by_key[j.key] = by_slot[judgement_slot(j)] = j
    for index, j in enumerate(judgements):
        existing = by_key.get(j.key) or by_slot.get(judgement_slot(j))
        if existing is None:
            by_key[j.key] = by_slot[judgement_slot(j)] = j
            new.append(j)
        elif verdict_fields(existing) != verdict_fields(j):
            conflicts[index] = describe_conflict(existing, j)
    return new, conflicts


def _existing_judgements(connection: Connection, judgements: Sequence[Judgement]) -> Iterator[Judgement]:
    table = schema.judgements
    for block in statements.blocks(judgements):
        same = or_(table.c.key.in_([j.key for j in block]), table.c.comparison.in_({j.comparison for j in block}))
        yield from statements.load_judgements(connection, select(table).where(same))


@dataclass(frozen=True)
class JudgeAccount:
    """The costs of one judge's calls, stored in the ledger."""

    store: Store
    rater: str

    def total(self) -> float:
        """Return dollars spent, and reserved for calls that never ended."""
        return self.store.read(spending.rater_dollars, self.rater)

    def reserve(self, dollars: float) -> int:
        """Reserve the maximum price of a call and return its number."""
        return self.store.submit_write(spending.reserve, self.rater, dollars).result()

    def commit(self, number: int, dollars: float) -> None:
        """Record the actual price of a call."""
        self.store.submit_write(spending.commit, number, dollars).result()
