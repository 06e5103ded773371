"""What the owner has set for the people who rate."""

from dataclasses import asdict, dataclass, fields

from sqlalchemy import Connection

from towpath.store import audit, ledger, schema, statements


@dataclass(frozen=True, slots=True)
class Settings:
    """The owner's settings. `overlap` None leaves it to the queue; `hours` None is no ceiling; `lease` is in seconds."""

    paused: bool = False
    overlap: float | None = None
    gold_share: float = 0.1
    show_gold: bool = False
    hours: float | None = None
    safety: bool = False
    lease: float = 1800.0


def read(connection: Connection) -> Settings:
    """The settings as they stand."""
    known = {field.name for field in fields(Settings)}
    return Settings(**{name: value for name, value in connection.execute(statements.SETTINGS) if name in known})


def put(connection: Connection, settings: Settings, by: str = "") -> None:
    """Replace the settings; `by` is who did, for the audit log."""
    if by:
        audit.record(connection, by, "settings", before=asdict(read(connection)), after=asdict(settings))
    ledger.upsert(connection, schema.settings, [{"name": name, "value": value} for name, value in asdict(settings).items()], changed=["value"])
