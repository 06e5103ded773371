"""The current tables of the ledger; `migrations/` brings existing ledgers to this version."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

prompts = Table(
    "prompts",
    metadata,
    Column("id", String, primary_key=True),
    Column("prompt", Text, nullable=False),
    Column("domain", String, nullable=False),
    Column("difficulty", String, nullable=False),
    Column("about", JSON, nullable=False),
    Column("harmful", Integer, nullable=False),
    Column("split", String, nullable=False),
    Column("twin", String, nullable=False),
    Column("history", JSON, nullable=False, server_default="[]"),
)

completions = Table(
    "completions",
    metadata,
    Column("id", String, primary_key=True),
    Column("prompt_id", String, ForeignKey("prompts.id"), nullable=False),
    Column("source", String, nullable=False, index=True),
    Column("text", Text, nullable=False),
    Column("token_ids", JSON, nullable=False),
    Column("logprobs", JSON, nullable=False),
    Column("finish", String, nullable=False),
    Column("decoding", JSON, nullable=False),
    Index("ix_completions_prompt_id", "prompt_id"),
)

comparisons = Table(
    "comparisons",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("prompt_id", String, ForeignKey("prompts.id"), nullable=False),
    Column("a", String, ForeignKey("completions.id"), nullable=False),
    Column("b", String, ForeignKey("completions.id"), nullable=False),
    Column("round", Integer, nullable=False),
)

judgements = Table(
    "judgements",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("key", String, nullable=False, unique=True),
    Column("comparison", String, ForeignKey("comparisons.id"), nullable=False),
    Column("rater", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("choice", String, nullable=False),
    Column("shown", String, nullable=False),
    Column("strength", Integer, nullable=False),
    Column("milliseconds", Integer),
    Column("round", Integer, nullable=False),
    Column("guideline", String, nullable=False),
    Column("at", String, nullable=False),
    Column("comment", Text, nullable=False, server_default=""),
    Column("cost", Float, nullable=False, server_default="0"),
    Column("details", JSON, nullable=False, server_default="{}"),
    UniqueConstraint("comparison", "rater", "round"),
    Index("ix_judgements_rater", "rater", "number"),
)

labels = Table(
    "labels",
    metadata,
    Column("comparison", String, ForeignKey("comparisons.id"), primary_key=True),
    Column("choice", String, nullable=False),
    Column("strength", Float, nullable=False),
    Column("judgements", Integer, nullable=False),
    Column("chance", Float),
    Column("by", String, nullable=False, server_default="majority"),
)

LEDGER = (prompts, completions, comparisons, judgements, labels)

# Retracted judgements: the rows in `judgements` stay, but no longer count.
retractions = Table(
    "retractions",
    metadata,
    Column("key", String, ForeignKey("judgements.key"), primary_key=True),
    Column("at", String, nullable=False),
    Column("takeout", Integer, index=True),
)

# Bulk retractions of one rater's judgements; `restored` is when one was reversed, or empty.
takeouts = Table(
    "takeouts",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("rater", String, nullable=False),
    Column("by", String, nullable=False),
    Column("at", String, nullable=False),
    Column("judgements", Integer, nullable=False),
    Column("restored", String, nullable=False),
)

# Counters per rater, updated in the transaction of the judgements, so that statistics need no counting.
tallies = Table(
    "tallies",
    metadata,
    Column("rater", String, primary_key=True),
    Column("kind", String, primary_key=True),
    Column("judged", Integer, nullable=False),
    Column("retracted", Integer, nullable=False),
    Column("milliseconds", BigInteger, nullable=False),
    Column("cost", Float, nullable=False),
)

groups = Table(
    "groups",
    metadata,
    Column("id", String, primary_key=True),
    Column("prompt_id", String, ForeignKey("prompts.id"), nullable=False),
    Column("members", JSON, nullable=False),
)

# Tasks for people. `lane` is 1 if no seat is taken, 2 if some are free, 0 if none is; the next task is the first of a
# lane.
tasks = Table(
    "tasks",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("comparison", String, ForeignKey("comparisons.id"), nullable=False, unique=True),
    Column("domain", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("propensity", Float, nullable=False),
    Column("seats", Integer, nullable=False),
    Column("taken", Integer, nullable=False),
    Column("judged", Integer, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("lane", Integer, nullable=False),
    Column("state", String, nullable=False),
    Column("group_id", String, ForeignKey("groups.id")),
    Index("ix_tasks_next", "domain", "lane", "rank", "number"),
    Index("ix_tasks_begun", "lane", "rank", "number"),
)

queues = Table(
    "queues",
    metadata,
    Column("domain", String, primary_key=True),
    Column("tasks", Integer, nullable=False),
    Column("waiting", Integer, nullable=False),
    Column("done", Integer, nullable=False),
    Column("paused", Integer, nullable=False),
)

seats = Table(
    "seats",
    metadata,
    Column("comparison", String, ForeignKey("comparisons.id"), primary_key=True),
    Column("rater", String, primary_key=True),
    Column("state", String, nullable=False),
    Column("until", Float, nullable=False),
    Column("shown", String, nullable=False),
    Column("at", Float, nullable=False),
    Column("gold", Integer, nullable=False),
    Index("ix_seats_rater_state", "rater", "state", "until"),
    Index("ix_seats_state", "state", "until"),
    Index("ix_seats_rater_at", "rater", "at"),
    Index("ix_seats_at", "at"),
)

flags = Table(
    "flags",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("comparison", String, ForeignKey("comparisons.id"), nullable=False, index=True),
    Column("rater", String, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", String, nullable=False),
    Column("settled", String, nullable=False, index=True),
)

gold = Table(
    "gold",
    metadata,
    Column("comparison", String, ForeignKey("comparisons.id"), primary_key=True),
    Column("choice", String, nullable=False),
    Column("note", Text, nullable=False),
)

written = Table(
    "written",
    metadata,
    Column("key", String, primary_key=True),
    Column("prompt_id", String, ForeignKey("prompts.id"), nullable=False, index=True),
    Column("comparison", String, ForeignKey("comparisons.id"), nullable=False),
    Column("rater", String, nullable=False),
    Column("text", Text, nullable=False),
    Column("at", String, nullable=False),
    Column("state", String, nullable=False, server_default="waiting", index=True),
)

# Verdicts on trial pairs, which a rater judges before their work counts; they never become judgements.
trials = Table(
    "trials",
    metadata,
    Column("rater", String, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("comparison", String, ForeignKey("comparisons.id"), primary_key=True),
    Column("choice", String, nullable=False),
    Column("correct", Integer, nullable=False),
    Column("passed", Integer, nullable=False),
    Column("at", String, nullable=False),
)

# Guideline versions that a rater has acknowledged.
acknowledgements = Table(
    "acknowledgements",
    metadata,
    Column("rater", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("at", String, nullable=False),
)

accounts = Table(
    "accounts",
    metadata,
    Column("name", String, primary_key=True),
    Column("role", String, nullable=False),
    Column("password", String, nullable=False),
    Column("active", Integer, nullable=False),
    Column("at", String, nullable=False),
)

# Sessions, and browsers known to an account, by the SHA-256 of their cookies' tokens.
sessions = Table(
    "sessions",
    metadata,
    Column("digest", String, primary_key=True),
    Column("account", String, nullable=False, index=True),
    Column("created", Float, nullable=False),
    Column("seen", Float, nullable=False),
    Column("expires", Float, nullable=False),
)

devices = Table(
    "devices",
    metadata,
    Column("digest", String, primary_key=True),
    Column("account", String, primary_key=True),
    Column("at", Float, nullable=False),
)

resets = Table(
    "resets",
    metadata,
    Column("digest", String, primary_key=True),
    Column("account", String, nullable=False),
    Column("by", String, nullable=False),
    Column("until", Float, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("at", String, nullable=False),
    Column("account", String, nullable=False, index=True),
    Column("action", String, nullable=False, index=True),
    Column("object", String, nullable=False),
    Column("before", JSON, nullable=False),
    Column("after", JSON, nullable=False),
)

invitations = Table(
    "invitations",
    metadata,
    Column("digest", String, primary_key=True),
    Column("role", String, nullable=False),
    Column("by", String, nullable=False),
    Column("until", Float, nullable=False),
    Column("used_by", String, nullable=False),
)

guidelines = Table(
    "guidelines",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=True),
    Column("text", Text, nullable=False),
    Column("by", String, nullable=False),
    Column("at", String, nullable=False),
)

settings = Table("settings", metadata, Column("name", String, primary_key=True), Column("value", JSON, nullable=False))

# Blind comparisons of two models. Their comparisons are listed in `matches` and excluded from labels.
arenas = Table(
    "arenas",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("one", String, nullable=False),
    Column("other", String, nullable=False),
    Column("threshold", Float, nullable=False),
    Column("state", String, nullable=False),
    Column("verdict", String, nullable=False),
    Column("by", String, nullable=False),
    Column("at", String, nullable=False),
    Column("ended", String, nullable=False),
)

matches = Table(
    "matches",
    metadata,
    Column("comparison", String, ForeignKey("comparisons.id"), primary_key=True),
    Column("arena", Integer, ForeignKey("arenas.number"), nullable=False, index=True),
    Column("place", Integer, nullable=False),
    Column("ours", String, nullable=False),
    Column("same", Integer, nullable=False),
)

replies = Table(
    "replies",
    metadata,
    Column("digest", String, primary_key=True),
    Column("reply", JSON, nullable=False),
    Column("at", String, nullable=False),
)

# One row per judge call: its cost, or the maximum cost while it runs.
spending = Table(
    "spending",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("rater", String, nullable=False, index=True),
    Column("dollars", Float, nullable=False),
    Column("at", String, nullable=False),
)
