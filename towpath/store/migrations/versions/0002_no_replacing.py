"""Forbid replacing and truncating judgements."""

from alembic import op

revision = "0002"
down_revision = "0001"

# SQLite's INSERT OR REPLACE removes the old row without firing its delete trigger.
STATEMENTS = {
    "sqlite": [
        "CREATE TRIGGER judgements_no_replace BEFORE INSERT ON judgements WHEN EXISTS (SELECT 1 FROM judgements "
        "WHERE number = NEW.number"
        ' OR "key" = NEW."key" OR (comparison = NEW.comparison AND rater = NEW.rater AND round = NEW.round))'
        " BEGIN SELECT RAISE(ABORT, 'judgements are append-only'); END"
    ],
    "postgresql": [
        "CREATE TRIGGER judgements_no_truncate BEFORE TRUNCATE ON judgements FOR EACH STATEMENT EXECUTE FUNCTION "
        "judgements_append_only()"
    ],
}


def upgrade() -> None:
    """Close the ways around the first two triggers."""
    for statement in STATEMENTS.get(op.get_bind().dialect.name, []):
        op.execute(statement)
