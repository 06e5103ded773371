"""Add arenas."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """A table of arenas, and one of the comparisons that belong to them."""
    op.create_table(
        "arenas",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("one", sa.String, nullable=False),
        sa.Column("other", sa.String, nullable=False),
        sa.Column("threshold", sa.Float, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("verdict", sa.String, nullable=False),
        sa.Column("by", sa.String, nullable=False),
        sa.Column("at", sa.String, nullable=False),
        sa.Column("ended", sa.String, nullable=False),
    )
    op.create_table(
        "matches",
        sa.Column("comparison", sa.String, sa.ForeignKey("comparisons.id"), primary_key=True),
        sa.Column("arena", sa.Integer, sa.ForeignKey("arenas.number"), nullable=False, index=True),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("ours", sa.String, nullable=False),
        sa.Column("same", sa.Integer, nullable=False),
    )
