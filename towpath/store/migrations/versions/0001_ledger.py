"""The ledger: prompts, completions, comparisons, judgements, labels."""

from alembic import op

from towpath.store.schema import APPEND_ONLY, metadata

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables, and make judgements append-only."""
    connection = op.get_bind()
    metadata.create_all(connection)
    for statement in APPEND_ONLY.get(connection.dialect.name, []):
        op.execute(statement)
