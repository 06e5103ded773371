"""Add the cost of every judge call."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """A table of calls; what earlier judgements cost is carried over as one row a judge."""
    op.create_table(
        "spending",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("rater", sa.String, nullable=False, index=True),
        sa.Column("dollars", sa.Float, nullable=False),
        sa.Column("at", sa.String, nullable=False),
    )
    op.execute(
        "INSERT INTO spending (rater, dollars, at) SELECT rater, cost, '' FROM tallies WHERE kind = 'judge' AND cost "
        "> 0"
    )
