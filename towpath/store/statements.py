"""What is asked for every pair that is rated, built once: putting such a statement together costs more than carrying
it out."""

from typing import Any

from sqlalchemy import ColumnElement, bindparam, func, select

from towpath.store import schema

SCAN_LIMIT = 64  # begun tasks looked through before a fresh one is given
BLOCK = 500
SETTLED_STATES = ("judged", "skipped", "flagged")

_rater = bindparam("rater")
_comparison = bindparam("comparison")
_at = bindparam("at")
_seats = schema.seats
_tasks = schema.tasks
_queues = schema.queues
_gold = schema.gold
_judgements = schema.judgements
_comparisons = schema.comparisons
_prompts = schema.prompts
_completions = schema.completions


def _had_lease(comparison: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether the rater has sat there, other than to let the lease run out."""
    mine = select(_seats.c.rater).where(_seats.c.comparison == comparison, _seats.c.rater == _rater)
    return mine.where(_seats.c.state != "lapsed").exists()


LEASE = select(_seats).where(_seats.c.comparison == _comparison, _seats.c.rater == _rater)
UPDATE_LEASE = _seats.update().where(
    _seats.c.comparison == bindparam("of_comparison"), _seats.c.rater == bindparam("of_rater")
)
TASK = select(_tasks).where(_tasks.c.comparison == _comparison)
UPDATE_TASK = _tasks.update().where(_tasks.c.number == bindparam("of_number"))

# The seats that a rater holds, the one they were given last first.
ACTIVE_LEASES = (
    select(_seats, _tasks.c.group_id, _tasks.c.state.label("standing"))
    .outerjoin(_tasks, _tasks.c.comparison == _seats.c.comparison)
    .where(_seats.c.rater == _rater, _seats.c.state == "leased", _seats.c.until > _at)
    .order_by(_seats.c.until.desc())
    .limit(BLOCK)
)
EXPIRED_LEASES = (
    select(_seats.c.comparison, _seats.c.rater).where(_seats.c.state == "leased", _seats.c.until < _at).limit(BLOCK)
)
LAST_SETTLED = (
    select(_seats.c.comparison, _seats.c.state)
    .where(_seats.c.rater == _rater, _seats.c.state.in_(SETTLED_STATES))
    .order_by(_seats.c.at.desc())
    .limit(1)
)

# The first tasks that have a seat left and one taken, and of them the first that is not the rater's own.
_part = (
    select(_tasks.c.rank, _tasks.c.number, _tasks.c.comparison, _tasks.c.domain)
    .where(_tasks.c.lane == 2)
    .order_by(_tasks.c.rank, _tasks.c.number)
    .limit(SCAN_LIMIT)
    .subquery()
)
FIRST_PARTLY_RATED = (
    select(_part.c.rank, _part.c.number, _part.c.comparison)
    .join(_queues, _queues.c.domain == _part.c.domain)
    .where(_queues.c.paused == 0, ~_had_lease(_part.c.comparison))
    .order_by(_part.c.rank, _part.c.number)
    .limit(1)
)

# The first of a lane in every domain that goes on, one look into the index each; and the most urgent of those.
_first = (
    select(_tasks.c.number)
    .where(_tasks.c.domain == _queues.c.domain, _tasks.c.lane == bindparam("lane"), ~_had_lease(_tasks.c.comparison))
    .order_by(_tasks.c.rank, _tasks.c.number)
    .limit(1)
    .correlate(_queues)
    .scalar_subquery()
)
FIRST_PER_DOMAIN = select(_first).select_from(_queues).where(_queues.c.paused == 0, _queues.c.waiting > 0)
MOST_URGENT = (
    select(_tasks.c.rank, _tasks.c.number, _tasks.c.comparison)
    .where(_tasks.c.number.in_(bindparam("numbers", expanding=True)))
    .order_by(_tasks.c.rank, _tasks.c.number)
    .limit(1)
)

# Comparisons of arenas: what makes labels, exports or demonstrations leaves them out.
IN_ARENAS = select(schema.matches.c.comparison)
IS_MATCH = select(func.count()).select_from(schema.matches).where(schema.matches.c.comparison == _comparison)

IS_GOLD = select(func.count()).select_from(_gold).where(_gold.c.comparison == _comparison)
_met = select(_seats.c.comparison).where(_seats.c.comparison == _gold.c.comparison, _seats.c.rater == _rater).exists()
NEXT_GOLD = select(_gold.c.comparison).where(~_met).order_by(_gold.c.comparison).limit(1)

RATER_TALLY = select(schema.tallies).where(schema.tallies.c.rater == _rater, schema.tallies.c.kind == "person")
WAITING = select(func.sum(_queues.c.waiting)).where(_queues.c.paused == 0)

JUDGED_BY_KEY = select(_judgements).where(_judgements.c.key == bindparam("key"))
LAST_ROUND = select(func.max(_judgements.c.round)).where(
    _judgements.c.comparison == _comparison, _judgements.c.rater == _rater
)
FIRST_ROUND = select(_comparisons.c.round).where(_comparisons.c.id == _comparison)

PAIR = (
    select(_comparisons.c.a, _comparisons.c.b, _prompts.c.prompt, _prompts.c.domain)
    .join(_prompts, _prompts.c.id == _comparisons.c.prompt_id)
    .where(_comparisons.c.id == _comparison)
)
TEXTS = select(_completions.c.id, _completions.c.text).where(_completions.c.id.in_(bindparam("ids", expanding=True)))
SETTINGS = select(schema.settings)
NEWEST_GUIDELINE = select(schema.guidelines).order_by(schema.guidelines.c.version.desc()).limit(1)
