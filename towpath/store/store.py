"""What happened, for ever: one Store of verbs over SQLite or PostgreSQL."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, Table, create_engine, event, func, select
from sqlalchemy.exc import IntegrityError, OperationalError

from towpath.errors import DataError, ResourceError
from towpath.records import Comparison, Completion, Judgement, Label, Prompt
from towpath.store import schema
from towpath.store.publish import fault

NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs"}
BLOCK = 500


class Store:
    """The ledger of one run. Everything is added, nothing is changed; labels alone are derived anew."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, place: Path | str) -> "Store":
        """Open, creating and migrating as need be; a path is SQLite, a URL is whatever it says."""
        if isinstance(place, Path) or "://" not in place:
            path = Path(place)
            _require_local(path)
            engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})
            event.listen(engine, "connect", _durable)
        else:
            engine = create_engine(place)
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        return cls(engine)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
                fault("commit")
        except OperationalError as error:
            if "full" not in str(error.orig):
                raise
            raise ResourceError(
                f"{self._engine.url.database}: the disk is full", "the ledger keeps every judgement", "free space and run again"
            ) from error

    def add_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Add prompts that are not there yet."""
        self._add(schema.prompts, [asdict(p) | {"about": list(p.about), "harmful": int(p.harmful)} for p in prompts])

    def add_completions(self, completions: Iterable[Completion]) -> None:
        """Add completions that are not there yet."""
        self._add(schema.completions, [asdict(c) | {"token_ids": list(c.token_ids), "logprobs": list(c.logprobs)} for c in completions])

    def add_comparisons(self, comparisons: Iterable[Comparison]) -> None:
        """Add comparisons that are not there yet."""
        self._add(schema.comparisons, [asdict(c) for c in comparisons])

    def add_judgements(self, judgements: Iterable[Judgement]) -> int:
        """Add judgements; one told again is the same one, one told differently is refused. How many were new."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        known = {j.key: j for j in self.judgements()}
        fresh: dict[str, Judgement] = {}
        for j in judgements:
            before = known.get(j.key) or fresh.get(j.key)
            if before is None:
                fresh[j.key] = j
            elif (before.comparison, before.rater, before.choice) != (j.comparison, j.rater, j.choice):
                value = f"{j.comparison}: {j.rater} said {before.choice} and now {j.choice}"
                raise DataError(value, "judgements are never changed", "judge in a new round to say otherwise")
        rows = [asdict(j) | {"at": j.at or now} for j in fresh.values()]
        try:
            with self._writing() as connection:
                if rows:
                    connection.execute(schema.judgements.insert(), rows)
        except IntegrityError as error:
            rule = "a rater judges a known comparison once a round"
            raise DataError(f"judgements refused: {error.orig}", rule, "mend the rows; none were added") from error
        return len(rows)

    def put_labels(self, labels: Sequence[Label]) -> None:
        """Replace the labels of these comparisons, all at once."""
        with self._writing() as connection:
            for begin in range(0, len(labels), BLOCK):
                part = labels[begin : begin + BLOCK]
                connection.execute(schema.labels.delete().where(schema.labels.c.comparison.in_([label.comparison for label in part])))
                connection.execute(schema.labels.insert(), [asdict(label) for label in part])

    def prompts(self) -> dict[str, Prompt]:
        """Every prompt by id."""
        return {row["id"]: Prompt(**row | {"about": tuple(row["about"]), "harmful": bool(row["harmful"])}) for row in self._rows(schema.prompts)}

    def completions(self, source: str | None = None) -> dict[str, Completion]:
        """Every completion by id, or those of one source."""
        query = select(schema.completions)
        if source is not None:
            query = query.where(schema.completions.c.source == source)
        rows = self._rows(query)
        return {row["id"]: Completion(**{**row, "token_ids": tuple(row["token_ids"]), "logprobs": tuple(row["logprobs"])}) for row in rows}

    def comparisons(self, round: int | None = None) -> list[Comparison]:
        """Comparisons in the order they were added."""
        query = select(schema.comparisons).order_by(schema.comparisons.c.number)
        if round is not None:
            query = query.where(schema.comparisons.c.round == round)
        return [Comparison(**_without(row, "number")) for row in self._rows(query)]

    def judgements(self) -> list[Judgement]:
        """Judgements in the order they were given."""
        rows = self._rows(select(schema.judgements).order_by(schema.judgements.c.number))
        return [Judgement(**_without(row, "number")) for row in rows]

    def labels(self) -> list[Label]:
        """Labels as last derived."""
        return [Label(**row) for row in self._rows(select(schema.labels).order_by(schema.labels.c.comparison))]

    def counts(self) -> dict[str, int]:
        """How many rows each table has."""
        with self._engine.connect() as connection:
            return {name: connection.scalar(select(func.count()).select_from(table)) or 0 for name, table in schema.metadata.tables.items()}

    def _add(self, table: Table, rows: list[dict[str, Any]]) -> None:
        unique = {row["id"]: row for row in rows}
        with self._writing() as connection:
            known: set[str] = set()
            names = list(unique)
            for begin in range(0, len(names), BLOCK):
                known |= set(connection.scalars(select(table.c.id).where(table.c.id.in_(names[begin : begin + BLOCK]))))
            fresh = [row for name, row in unique.items() if name not in known]
            if fresh:
                connection.execute(table.insert(), fresh)

    def _rows(self, query: Any) -> list[dict[str, Any]]:
        with self._engine.connect() as connection:
            statement = select(query) if isinstance(query, Table) else query
            return [dict(row) for row in connection.execute(statement).mappings()]


def _without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


def _durable(connection: Any, _record: Any) -> None:
    """What was acknowledged survives power loss."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _require_local(path: Path) -> None:
    """SQLite's locks do not hold on a network disk."""
    mounts = Path("/proc/mounts")
    if not mounts.is_file():
        return
    target, best = str(path.resolve()), ("", "")
    for line in mounts.read_text().splitlines():
        _, point, kind = line.split()[:3]
        point = point.encode().decode("unicode_escape")
        if (target == point or target.startswith(point.rstrip("/") + "/")) and len(point) >= len(best[0]):
            best = (point, kind)
    if best[1] in NETWORK:
        raise ResourceError(f"{path}: on a network disk ({best[1]})", "SQLite's locks do not hold there", "use a local disk")
