"""Database of a ledger: opened with durable settings, migrated, and its errors translated to Towpath's."""

import json
import os
import re
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy.exc
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, Executable, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, NoSuchModuleError

from towpath.errors import DataError, ResourceError, RowRefused, TowpathError
from towpath.store.publish import fault_point

NETWORK_FILESYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs"}
FILE_MODE = 0o600
LOCK_TIMEOUT = 30  # seconds to wait for another writer
UNAVAILABLE_CODES = ("08", "25006", "28", "3D", "40", "53", "55", "57", "58")
"""PostgreSQL error classes of a server that is unreachable, read-only, full, locked or denies access; retrying later
may succeed."""
DISK_RULE = "the ledger stores every judgement"
DISK_FIX = "free space and run again; everything acknowledged is stored"
WRITER_LOCK = 0x70A7  # PostgreSQL advisory lock, the equivalent of SQLite's single writer
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def open_engine(location: Path | str) -> Engine:
    """Return the engine of a path or URL; SQLite must be on a local disk."""
    url = (
        make_url(location)
        if isinstance(location, str) and "://" in location
        else URL.create("sqlite", database=str(location))
    )
    if url.get_backend_name() != "sqlite":
        return _postgres_engine(url)
    if url.database and url.database != ":memory:":
        path = Path(url.database.removeprefix("file:"))  # SQLite's own URI form, with uri=true
        _require_local(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _require_private(path)
    engine = create_engine(url, connect_args={"timeout": LOCK_TIMEOUT}, json_serializer=_dump_json)
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    return _with_text_cleaning(engine)


def _with_text_cleaning(engine: Engine) -> Engine:
    """Replace NUL, which PostgreSQL cannot store, and lone surrogates, which neither database can, by U+FFFD in both,
    so that a run is the same on both."""
    event.listen(engine, "before_cursor_execute", _clean_parameters, retval=True)
    return engine


def _clean_parameters(
    _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool
) -> tuple[str, Any]:
    return statement, _storable(parameters)


def _dump_json(value: Any) -> str:
    text = json.dumps(value)
    return json.dumps(_storable(value)) if "\\u0000" in text or "\\ud" in text else text


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() and "\x00" not in value else _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {name: _storable(item) for name, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(_storable, value))
    return value


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that holds the writer lock from its start, so that what it read is still true when it
    writes."""
    with engine.connect().execution_options(writing=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:pen)"), {"pen": WRITER_LOCK})
        yield connection


def upsert(
    connection: Connection,
    table: Table,
    rows: list[dict[str, Any]],
    added: Sequence[str] = (),
    changed: Sequence[str] = (),
) -> None:
    """Insert rows; for an existing primary key add to the columns `added` and replace the columns `changed`, or leave
    the row unchanged."""
    if not rows:
        return
    connection.execute(_upsert_statement(connection.dialect.name, table, tuple(added), tuple(changed)), rows)


@cache
def _upsert_statement(dialect: str, table: Table, added: tuple[str, ...], changed: tuple[str, ...]) -> Executable:
    keys = [column.name for column in table.primary_key]
    insert = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    new: dict[str, Any] = {name: table.c[name] + insert.excluded[name] for name in added} | {
        name: insert.excluded[name] for name in changed
    }
    return (
        insert.on_conflict_do_update(index_elements=keys, set_=new)
        if new
        else insert.on_conflict_do_nothing(index_elements=keys)
    )


def migrate(engine: Engine) -> None:
    """Migrate the tables to the newest version, completely or not at all."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    with engine.connect() as connection:
        version = MigrationContext.configure(connection).get_current_revision()
    if version == scripts.get_current_head():
        return
    if version is not None and version not in {script.revision for script in scripts.walk_revisions()}:
        rule = f"this Towpath knows versions up to {scripts.get_current_head()}"
        raise DataError(
            f"{_display_name(engine)}: a ledger of version {version}",
            rule,
            "use the Towpath version that wrote it, or a newer one",
        )
    with transaction(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        fault_point("migrate")


@contextmanager
def translate_errors(engine: Engine, rule: str = "") -> Iterator[None]:
    """Raise database errors as ours: a rejected row, or storage that is unreachable, full, locked or damaged; other
    errors pass."""
    try:
        yield
    except IntegrityError as error:
        raise RowRefused(
            f"{_display_name(engine)}: {error.orig}",
            rule or "rows must be consistent with each other",
            "correct the rows; none were added",
        ) from error
    except (sqlalchemy.exc.DataError, OverflowError) as error:
        raise RowRefused(
            f"{_display_name(engine)}: {error}",
            "a value is too large or has the wrong type for its column",
            "correct it; nothing was added",
        ) from error
    except sqlalchemy.exc.TimeoutError as error:
        fix = "wait, or raise the server's max_connections"
        raise ResourceError(
            f"{_display_name(engine)}: no free connection", "a request needs a connection to the database", fix
        ) from error
    except sqlalchemy.exc.PendingRollbackError as error:
        raise ResourceError(
            f"{_display_name(engine)}: the connection was lost", "the ledger's database must be reachable", "try again"
        ) from error
    except DBAPIError as error:
        translated = (
            _postgres_error(engine, error)
            if engine.dialect.name == "postgresql"
            else _sqlite_error(_display_name(engine), error.orig)
        )
        if translated is None:
            raise
        raise translated from error


def _sqlite_error(name: str, error: BaseException | None) -> TowpathError | None:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return ResourceError(f"{name}: the disk is full", DISK_RULE, DISK_FIX)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ResourceError(
            f"{name}: another process has been writing for {LOCK_TIMEOUT} s",
            "one process writes at a time",
            "wait for it, or stop it",
        )
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return ResourceError(
            f"{name}: {error}",
            "the ledger and its folder must be writable",
            "correct the path, its permissions or its mount",
        )
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL):
        return ResourceError(
            f"{name}: {error}", "the ledger's disk must be readable and writable", "check the disk, then start again"
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return DataError(
            f"{name}: {error}", "a ledger is an SQLite file", "name a run's towpath.db, or restore it from a backup"
        )
    return None


def _postgres_error(engine: Engine, error: DBAPIError) -> TowpathError | None:
    """Translate an error of a server that is unreachable or cannot write; without a connection it has no code."""
    code = getattr(error.orig, "sqlstate", None) or ""
    if code == "53100":
        return ResourceError(f"{_display_name(engine)}: the disk is full", DISK_RULE, DISK_FIX)
    if error.connection_invalidated or not code or code.startswith(UNAVAILABLE_CODES):
        return ResourceError(
            f"{_display_name(engine)}: {error.orig}",
            "the ledger's database must be reachable",
            "start it, or correct store.url",
        )
    return None


def _postgres_engine(url: URL) -> Engine:
    rule = "a ledger is an SQLite or PostgreSQL database"
    fix = "give store.url as postgresql+psycopg://USER@HOST/NAME"
    if url.get_backend_name() != "postgresql":
        raise DataError(f"{url.render_as_string()}: unsupported database", rule, fix)
    try:
        timeout = {} if "connect_timeout" in url.query else {"connect_timeout": LOCK_TIMEOUT}
        return _with_text_cleaning(
            create_engine(
                url, pool_pre_ping=True, pool_size=10, max_overflow=20, connect_args=timeout, json_serializer=_dump_json
            )
        )
    except ModuleNotFoundError as error:
        address = url.render_as_string()
        raise ResourceError(
            f"{address}: no driver {error.name!r}",
            "a database server needs its driver",
            "pip install 'towpath[postgres]'",
        ) from error
    except NoSuchModuleError as error:
        raise DataError(f"{url.render_as_string()}: {error}", rule, fix) from error


def _display_name(engine: Engine) -> str:
    """Return the database's name for error messages, without a password, which may also be among the URL's options."""
    return engine.url.database or "" if engine.dialect.name == "sqlite" else engine.url.set(query={}).render_as_string()


def _set_pragmas(connection: Any, _record: Any) -> None:
    """Make acknowledged writes survive power loss. The driver's own late BEGIN is off; `_begin` starts transactions."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writing") else "BEGIN")


def _require_local(path: Path) -> None:
    """Refuse network disks, where SQLite's locks do not work."""
    mounts = Path("/proc/mounts")
    kind = (
        filesystem_type(path, mounts.read_text(encoding="utf-8", errors="surrogateescape")) if mounts.is_file() else ""
    )
    if kind in NETWORK_FILESYSTEMS:
        raise ResourceError(
            f"{path}: on a network disk ({kind})", "SQLite's locks do not work there", "use a local disk"
        )


def _require_private(path: Path) -> None:
    """Make the ledger readable by its owner alone, since it holds password hashes; SQLite gives -wal and -shm the
    file's mode."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE))
    except FileExistsError:
        pass
    except OSError:
        return  # SQLite reports the path and the reason
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        with suppress(OSError):  # deleted meanwhile, owned by another user, or on a read-only disk
            status = file.stat()
            if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) & 0o077:
                file.chmod(FILE_MODE)


def filesystem_type(path: Path, mounts: str) -> str:
    """Return the type of the filesystem that holds a path, from the text of /proc/mounts: the deepest mount above it,
    the last of equals."""
    target = path.resolve()
    deepest = -1
    kind = ""
    for line in mounts.splitlines():
        _, point, type_name = line.split(" ")[:3]
        # Spaces are written as \040.
        mount = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point))
        if target.is_relative_to(mount) and len(mount.parts) >= deepest:
            deepest = len(mount.parts)
            kind = type_name
    return kind
