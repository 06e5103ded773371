"""Add trials, acknowledged guidelines, review of written answers, and bulk retractions."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the tables and columns; better answers that are there already wait for the owner's approval."""
    op.add_column("written", sa.Column("state", sa.String, nullable=False, server_default="waiting"))
    op.create_index("ix_written_state", "written", ["state"])
    op.add_column("retractions", sa.Column("takeout", sa.Integer))
    op.create_index("ix_retractions_takeout", "retractions", ["takeout"])
    op.create_index("ix_judgements_rater", "judgements", ["rater", "number"])
    op.create_table(
        "takeouts",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        *_words("rater", "by", "at"),
        sa.Column("judgements", sa.Integer, nullable=False),
        *_words("restored"),
    )
    op.create_table(
        "trials",
        sa.Column("rater", sa.String, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("comparison", sa.String, sa.ForeignKey("comparisons.id"), primary_key=True),
        *_words("choice"),
        sa.Column("correct", sa.Integer, nullable=False),
        sa.Column("passed", sa.Integer, nullable=False),
        *_words("at"),
    )
    op.create_table(
        "acknowledgements",
        sa.Column("rater", sa.String, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        *_words("at"),
    )


def _words(*names: str) -> "list[sa.Column[str]]":
    return [sa.Column(name, sa.String, nullable=False) for name in names]
