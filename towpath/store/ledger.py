"""The file or server under a Store: opened durably, migrated, its failures told in the house's words."""

import os
import re
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, Executable, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DatabaseError, IntegrityError, NoSuchModuleError, OperationalError

from towpath.errors import DataError, ResourceError, TowpathError
from towpath.store.publish import fault

NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs"}
PRIVATE = 0o600
PATIENCE = 30  # seconds to wait for another process that writes
PEN = 0x70A7  # PostgreSQL's advisory lock that stands for SQLite's one writer


def engine_of(place: Path | str) -> Engine:
    """The engine of a path or URL; SQLite only on a local disk, and durable."""
    url = make_url(place) if isinstance(place, str) and "://" in place else URL.create("sqlite", database=str(place))
    if url.get_backend_name() != "sqlite":
        return _server(url)
    if url.database and url.database != ":memory:":
        path = Path(url.database)
        _require_local(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _require_private(path)
    engine = create_engine(url, connect_args={"timeout": PATIENCE})
    event.listen(engine, "connect", _durable)
    event.listen(engine, "begin", _begin)
    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that holds the pen from its start, so that what it read is still so when it writes."""
    with engine.connect().execution_options(writing=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:pen)"), {"pen": PEN})
        yield connection


def upsert(connection: Connection, table: Table, rows: list[dict[str, Any]], added: Sequence[str] = (), changed: Sequence[str] = ()) -> None:
    """Insert rows; where the primary key is there already, add to the columns `added` and replace the columns `changed`, or leave all as it was."""
    if not rows:
        return
    connection.execute(_upserting(connection.dialect.name, table, tuple(added), tuple(changed)), rows)


@cache
def _upserting(dialect: str, table: Table, added: tuple[str, ...], changed: tuple[str, ...]) -> Executable:
    keys = [column.name for column in table.primary_key]
    insert = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    new: dict[str, Any] = {name: table.c[name] + insert.excluded[name] for name in added} | {name: insert.excluded[name] for name in changed}
    return insert.on_conflict_do_update(index_elements=keys, set_=new) if new else insert.on_conflict_do_nothing(index_elements=keys)


def migrate(engine: Engine) -> None:
    """Bring the tables to the newest version: all of the way, or not at all."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    with engine.connect() as connection:
        version = MigrationContext.configure(connection).get_current_revision()
    if version == scripts.get_current_head():
        return
    if version is not None and version not in {script.revision for script in scripts.walk_revisions()}:
        rule = f"this Towpath knows versions up to {scripts.get_current_head()}"
        raise DataError(f"{_name(engine)}: a ledger of version {version}", rule, "use the Towpath that wrote it, or a newer one")
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        fault("migrate")


@contextmanager
def told(engine: Engine, rule: str = "") -> Iterator[None]:
    """What the user can mend is told as such; all else passes."""
    try:
        yield
    except IntegrityError as error:
        raise DataError(f"{_name(engine)}: {error.orig}", rule, "mend the rows; none were added") from error
    except DatabaseError as error:
        explained = _unreachable(engine, error) or _explained(_name(engine), error.orig)
        if explained is None:
            raise
        raise explained from error


def _explained(place: str, error: BaseException | None) -> TowpathError | None:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or getattr(error, "sqlstate", "") == "53100":
        return ResourceError(
            f"{place}: the disk is full", "the ledger keeps every judgement", "free space and run again; nothing that was kept is lost"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ResourceError(f"{place}: another process has been writing for {PATIENCE} s", "one writes at a time", "wait for it, or stop it")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return ResourceError(f"{place}: {error}", "the ledger and its folder must be writable", "mend the path or its permissions")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return DataError(f"{place}: {error}", "a ledger is an SQLite file", "name a run's towpath.db, or bring it back from a backup")
    return None


def _unreachable(engine: Engine, error: DatabaseError) -> TowpathError | None:
    """A database server that does not answer, or not to us; it gives no code where there was no connection."""
    if engine.dialect.name != "postgresql" or not isinstance(error, OperationalError):
        return None
    if not error.connection_invalidated and getattr(error.orig, "sqlstate", None) is not None:
        return None
    return ResourceError(f"{_name(engine)}: {error.orig}", "the ledger's database must be reachable", "start it, or mend store.url")


def _server(url: URL) -> Engine:
    rule, fix = "a ledger lies in SQLite or PostgreSQL", "give store.url as postgresql+psycopg://USER@HOST/NAME"
    if url.get_backend_name() != "postgresql":
        raise DataError(f"{url.render_as_string()}: a database of another kind", rule, fix)
    try:
        return create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=20)
    except ModuleNotFoundError as error:
        shown = url.render_as_string()
        raise ResourceError(f"{shown}: no driver {error.name!r}", "a database server needs its driver", "pip install 'towpath[postgres]'") from error
    except NoSuchModuleError as error:
        raise DataError(f"{url.render_as_string()}: {error}", rule, fix) from error


def _name(engine: Engine) -> str:
    return engine.url.database or "" if engine.dialect.name == "sqlite" else engine.url.render_as_string()


def _durable(connection: Any, _record: Any) -> None:
    """What was acknowledged survives power loss. The driver's own, late BEGIN is off: `_begin` says when."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writing") else "BEGIN")


def _require_local(path: Path) -> None:
    """SQLite's locks do not hold on a network disk."""
    mounts = Path("/proc/mounts")
    kind = kind_of_disk(path, mounts.read_text(encoding="utf-8", errors="surrogateescape")) if mounts.is_file() else ""
    if kind in NETWORK:
        raise ResourceError(f"{path}: on a network disk ({kind})", "SQLite's locks do not hold there", "use a local disk")


def _require_private(path: Path) -> None:
    """A ledger holds password hashes, so that only its owner may read it; SQLite gives -wal and -shm the mode of the file itself."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE))
    except FileExistsError:
        pass
    except OSError:
        return  # SQLite names the path and the reason
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        with suppress(OSError):  # gone meanwhile, another user's, or on a read-only disk
            found = file.stat()
            if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & 0o077:
                file.chmod(PRIVATE)


def kind_of_disk(path: Path, mounts: str) -> str:
    """The file system a path lies on, by the text of /proc/mounts: the deepest mount above it, the last of equals."""
    target, deepest, kind = path.resolve(), -1, ""
    for line in mounts.splitlines():
        _, point, told = line.split(" ")[:3]
        # Spaces and the like stand there as \040.
        place = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point))
        if target.is_relative_to(place) and len(place.parts) >= deepest:
            deepest, kind = len(place.parts), told
    return kind
