"""The owner's settings for rating."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from sqlalchemy import Connection

from towpath.store import audit, ledger, schema, statements


@dataclass(frozen=True, slots=True)
class RatingSettings:
    """The owner's settings; `overlap` None leaves it to the tasks, `hours` None is no limit; `lease` and `min_view` are
    in seconds.

    `trial_pairs` gold comparisons are judged with feedback before a rater's work counts; `trial_threshold` is the share
    to get right.
    """

    paused: bool = False
    overlap: float | None = None
    gold_share: float = 0.1
    show_gold: bool = False
    hours: float | None = None
    safety: bool = False
    lease: float = 1800.0
    min_view: float = 1.0
    goal: int | None = None
    break_minutes: float | None = 50.0
    reasons: tuple[str, ...] = ()
    criteria: tuple[str, ...] = ()
    trial_pairs: int = 0
    trial_threshold: float = 0.7


def read(connection: Connection) -> RatingSettings:
    """Read the settings."""
    known = {field.name for field in fields(RatingSettings)}
    rows: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in connection.execute(statements.SETTINGS)
        if name in known
    }
    return RatingSettings(**rows)


def save(connection: Connection, settings: RatingSettings, by: str = "") -> None:
    """Save the settings; `by` is the account for the audit log."""
    if by:
        audit.record(connection, by, "settings", before=asdict(read(connection)), after=asdict(settings))
    ledger.upsert(
        connection,
        schema.settings,
        [{"name": name, "value": value} for name, value in asdict(settings).items()],
        changed=["value"],
    )
