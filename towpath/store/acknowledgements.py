"""Which version of the guidelines each rater has acknowledged."""

from sqlalchemy import Connection, func, select

from towpath.errors import DataError
from towpath.store import ledger, people, schema, tallies


def is_acknowledged(connection: Connection, rater: str, version: int) -> bool:
    """Return whether a rater has acknowledged a version; version 0 (no guidelines) needs none."""
    table = schema.acknowledgements
    query = select(func.count()).select_from(table).where(table.c.rater == rater, table.c.version == version)
    return version == 0 or bool(connection.scalar(query))


def acknowledge(connection: Connection, rater: str, version: int) -> None:
    """Record that a rater has read a version."""
    if version == 0 or people.get_guideline(connection, version).version != version:
        raise DataError(f"version {version}", "only an existing version can be acknowledged", "reload the page")
    ledger.upsert(
        connection, schema.acknowledgements, [{"rater": rater, "version": version, "at": tallies.timestamp()}]
    )
