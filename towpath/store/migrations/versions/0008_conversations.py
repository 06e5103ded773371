"""Add the earlier turns of a prompt, its system prompt among them."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the column; prompts that are there already have one turn."""
    op.add_column("prompts", sa.Column("history", sa.JSON, nullable=False, server_default="[]"))
