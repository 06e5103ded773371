"""The tables of the ledger, as they are now. How a ledger on disk gets there is in `migrations/`."""

from sqlalchemy import JSON, Column, Float, ForeignKey, Integer, MetaData, String, Table, Text, UniqueConstraint

metadata = MetaData()

prompts = Table(
    "prompts", metadata, Column("id", String, primary_key=True), Column("prompt", Text, nullable=False), Column("domain", String, nullable=False),
    Column("difficulty", String, nullable=False), Column("about", JSON, nullable=False), Column("harmful", Integer, nullable=False),
    Column("split", String, nullable=False), Column("twin", String, nullable=False),
)  # fmt: skip

completions = Table(
    "completions", metadata, Column("id", String, primary_key=True), Column("prompt_id", String, ForeignKey("prompts.id"), nullable=False),
    Column("source", String, nullable=False, index=True), Column("text", Text, nullable=False), Column("token_ids", JSON, nullable=False),
    Column("logprobs", JSON, nullable=False), Column("finish", String, nullable=False), Column("decoding", JSON, nullable=False),
)  # fmt: skip

comparisons = Table(
    "comparisons", metadata, Column("number", Integer, primary_key=True, autoincrement=True), Column("id", String, nullable=False, unique=True),
    Column("prompt_id", String, ForeignKey("prompts.id"), nullable=False), Column("a", String, ForeignKey("completions.id"), nullable=False),
    Column("b", String, ForeignKey("completions.id"), nullable=False), Column("round", Integer, nullable=False),
)  # fmt: skip

judgements = Table(
    "judgements", metadata, Column("number", Integer, primary_key=True, autoincrement=True), Column("key", String, nullable=False, unique=True),
    Column("comparison", String, ForeignKey("comparisons.id"), nullable=False), Column("rater", String, nullable=False),
    Column("kind", String, nullable=False), Column("choice", String, nullable=False), Column("shown", String, nullable=False),
    Column("strength", Integer, nullable=False), Column("milliseconds", Integer), Column("round", Integer, nullable=False),
    Column("guideline", String, nullable=False), Column("at", String, nullable=False), UniqueConstraint("comparison", "rater", "round"),
)  # fmt: skip

labels = Table(
    "labels", metadata, Column("comparison", String, ForeignKey("comparisons.id"), primary_key=True), Column("choice", String, nullable=False),
    Column("strength", Float, nullable=False), Column("judgements", Integer, nullable=False),
)  # fmt: skip
