"""Create the ledger: prompts, completions, comparisons, judgements, labels."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# What a migration made once stays so: the tables are written out, not taken from the schema of the day.
APPEND_ONLY = {
    "sqlite": [
        f"CREATE TRIGGER judgements_no_{verb} BEFORE {verb} ON judgements BEGIN SELECT RAISE(ABORT, 'judgements are "
        "append-only'); END"
        for verb in ("update", "delete")
    ],
    "postgresql": [
        "CREATE FUNCTION judgements_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION "
        "'judgements are append-only'; END $$",
        "CREATE TRIGGER judgements_append_only BEFORE UPDATE OR DELETE ON judgements FOR EACH ROW EXECUTE FUNCTION "
        "judgements_append_only()",
    ],
}


def upgrade() -> None:
    """Make the tables, and make judgements append-only."""
    _answers()
    _opinions()
    for statement in APPEND_ONLY.get(op.get_bind().dialect.name, []):
        op.execute(statement)


def _answers() -> None:
    op.create_table(
        "prompts",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("domain", sa.String, nullable=False),
        sa.Column("difficulty", sa.String, nullable=False),
        sa.Column("about", sa.JSON, nullable=False),
        sa.Column("harmful", sa.Integer, nullable=False),
        sa.Column("split", sa.String, nullable=False),
        sa.Column("twin", sa.String, nullable=False),
    )
    op.create_table(
        "completions",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("prompt_id", sa.String, sa.ForeignKey("prompts.id"), nullable=False),
        sa.Column("source", sa.String, nullable=False, index=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("token_ids", sa.JSON, nullable=False),
        sa.Column("logprobs", sa.JSON, nullable=False),
        sa.Column("finish", sa.String, nullable=False),
        sa.Column("decoding", sa.JSON, nullable=False),
    )


def _opinions() -> None:
    op.create_table(
        "comparisons",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("prompt_id", sa.String, sa.ForeignKey("prompts.id"), nullable=False),
        sa.Column("a", sa.String, sa.ForeignKey("completions.id"), nullable=False),
        sa.Column("b", sa.String, sa.ForeignKey("completions.id"), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
    )
    op.create_table(
        "judgements",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("key", sa.String, nullable=False, unique=True),
        sa.Column("comparison", sa.String, sa.ForeignKey("comparisons.id"), nullable=False),
        sa.Column("rater", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("choice", sa.String, nullable=False),
        sa.Column("shown", sa.String, nullable=False),
        sa.Column("strength", sa.Integer, nullable=False),
        sa.Column("milliseconds", sa.Integer),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("guideline", sa.String, nullable=False),
        sa.Column("at", sa.String, nullable=False),
        sa.UniqueConstraint("comparison", "rater", "round"),
    )
    op.create_table(
        "labels",
        sa.Column("comparison", sa.String, sa.ForeignKey("comparisons.id"), primary_key=True),
        sa.Column("choice", sa.String, nullable=False),
        sa.Column("strength", sa.Float, nullable=False),
        sa.Column("judgements", sa.Integer, nullable=False),
    )
