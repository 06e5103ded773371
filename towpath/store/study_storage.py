"""Storage of Optuna's studies: a SQLite file in the run's folder, or a database that several machines share."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy.exc
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url

from towpath.errors import RecipeError, ResourceError

LOCK_TIMEOUT = 30  # seconds to wait for another writer
CREATION_LOCK = 0x70A8  # PostgreSQL advisory lock


def open_study_storage(optuna: Any, location: Path | str) -> Any:
    """Return Optuna's storage at a path or URL; `optuna` is the module."""
    key = "sweep.storage"
    try:
        url = URL.create("sqlite", database=str(location)) if isinstance(location, Path) else make_url(location)
    except sqlalchemy.exc.ArgumentError:
        fix = "postgresql+psycopg://USER@HOST/NAME, or leave it empty for a file in the run's folder"
        raise RecipeError(f"{key}: not a database URL", "a URL names driver, host and database", fix) from None
    is_file = url.get_backend_name() == "sqlite"
    options = {"connect_args": {"timeout": LOCK_TIMEOUT}} if is_file else {"pool_pre_ping": True}
    try:
        with translate_storage_errors(optuna), _creation_lock(url):
            return optuna.storages.RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=options)
    except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
        fix = "pip install 'towpath[postgres]', and begin the URL with postgresql+psycopg://"
        raise RecipeError(f"{key}: {error}", "the driver of the database must be installed", fix) from None


@contextmanager
def _creation_lock(url: URL) -> Iterator[None]:
    """Hold a lock while tables are created: two machines that begin at once would both create them."""
    if url.get_backend_name() != "postgresql":
        with Path(f"{url.database}.lock").open("w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        return
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": CREATION_LOCK})
            yield  # the lock ends with the connection
    finally:
        engine.dispose()


@contextmanager
def translate_storage_errors(optuna: Any) -> Iterator[None]:
    """Raise ResourceError where the database cannot be reached, is read-only or full."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.DBAPIError) as error:
        cause: BaseException = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).strip().partition("\n")[0]
        rule = "the study keeps the trials of the sweep"
        fix = "free space, or check that the database of sweep.storage runs; then run the same command to resume"
        raise ResourceError(f"the study's database: {reason}", rule, fix) from error
