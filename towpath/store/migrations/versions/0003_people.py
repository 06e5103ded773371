"""Add rating: tasks, leases, flags, gold and accounts; more columns for judgements and labels."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

COUNTED = (
    "INSERT INTO tallies (rater, kind, judged, retracted, milliseconds, cost)"
    " SELECT rater, kind, count(*), 0, coalesce(sum(milliseconds), 0), 0 FROM judgements GROUP BY rater, kind"
)


def upgrade() -> None:
    """Widen judgements and labels, make the tables of the rating page, and count what is there."""
    op.add_column("judgements", sa.Column("comment", sa.Text, nullable=False, server_default=""))
    op.add_column("judgements", sa.Column("cost", sa.Float, nullable=False, server_default="0"))
    op.add_column("judgements", sa.Column("details", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("labels", sa.Column("chance", sa.Float))
    op.add_column("labels", sa.Column("by", sa.String, nullable=False, server_default="majority"))
    op.create_index("ix_completions_prompt_id", "completions", ["prompt_id"])
    _counters()
    _queue()
    _create_rating_tables()
    _people()
    op.execute(COUNTED)


def _comparison(**more: Any) -> "sa.Column[str]":
    return sa.Column("comparison", sa.String, sa.ForeignKey("comparisons.id"), nullable=False, **more)


def _whole(*names: str) -> "list[sa.Column[int]]":
    return [sa.Column(name, sa.Integer, nullable=False) for name in names]


def _words(*names: str) -> "list[sa.Column[str]]":
    return [sa.Column(name, sa.String, nullable=False) for name in names]


def _counters() -> None:
    op.create_table(
        "retractions", sa.Column("key", sa.String, sa.ForeignKey("judgements.key"), primary_key=True), *_words("at")
    )
    op.create_table(
        "tallies",
        sa.Column("rater", sa.String, primary_key=True),
        sa.Column("kind", sa.String, primary_key=True),
        *_whole("judged", "retracted"),
        sa.Column("milliseconds", sa.BigInteger, nullable=False),
        sa.Column("cost", sa.Float, nullable=False),
    )
    op.create_table(
        "queues", sa.Column("domain", sa.String, primary_key=True), *_whole("tasks", "waiting", "done", "paused")
    )


def _queue() -> None:
    op.create_table(
        "groups",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("prompt_id", sa.String, sa.ForeignKey("prompts.id"), nullable=False),
        sa.Column("members", sa.JSON, nullable=False),
    )
    op.create_table(
        "tasks",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        _comparison(unique=True),
        *_words("domain", "reason"),
        sa.Column("propensity", sa.Float, nullable=False),
        *_whole("seats", "taken", "judged", "rank", "lane"),
        *_words("state"),
        sa.Column("group_id", sa.String, sa.ForeignKey("groups.id")),
    )
    op.create_index("ix_tasks_next", "tasks", ["domain", "lane", "rank", "number"])
    op.create_index("ix_tasks_begun", "tasks", ["lane", "rank", "number"])
    op.create_table(
        "seats",
        _comparison(primary_key=True),
        sa.Column("rater", sa.String, primary_key=True),
        *_words("state"),
        sa.Column("until", sa.Float, nullable=False),
        *_words("shown"),
        sa.Column("at", sa.Float, nullable=False),
        *_whole("gold"),
    )
    op.create_index("ix_seats_rater_state", "seats", ["rater", "state", "until"])
    op.create_index("ix_seats_state", "seats", ["state", "until"])
    op.create_index("ix_seats_rater_at", "seats", ["rater", "at"])
    op.create_index("ix_seats_at", "seats", ["at"])


def _create_rating_tables() -> None:
    op.create_table(
        "flags",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        _comparison(index=True),
        *_words("rater"),
        sa.Column("reason", sa.Text, nullable=False),
        *_words("at"),
        sa.Column("settled", sa.String, nullable=False, index=True),
    )
    op.create_table(
        "gold", _comparison(primary_key=True), *_words("choice"), sa.Column("note", sa.Text, nullable=False)
    )
    op.create_table(
        "written",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("prompt_id", sa.String, sa.ForeignKey("prompts.id"), nullable=False, index=True),
        _comparison(),
        *_words("rater"),
        sa.Column("text", sa.Text, nullable=False),
        *_words("at"),
    )
    op.create_table(
        "replies",
        sa.Column("digest", sa.String, primary_key=True),
        sa.Column("reply", sa.JSON, nullable=False),
        *_words("at"),
    )


def _people() -> None:
    op.create_table(
        "accounts",
        sa.Column("name", sa.String, primary_key=True),
        *_words("role", "password"),
        *_whole("session", "active"),
        *_words("at"),
    )
    op.create_table(
        "invitations",
        sa.Column("digest", sa.String, primary_key=True),
        *_words("role", "by"),
        sa.Column("until", sa.Float, nullable=False),
        *_words("used_by"),
    )
    op.create_table(
        "guidelines",
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("text", sa.Text, nullable=False),
        *_words("by", "at"),
    )
    op.create_table(
        "settings", sa.Column("name", sa.String, primary_key=True), sa.Column("value", sa.JSON, nullable=False)
    )
