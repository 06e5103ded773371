"""Trial pairs: gold comparisons that a rater judges with feedback before their work counts. They never become
judgements.

The functions take a connection; pass them to `Store.submit_write` or `Store.read`.
"""

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, select

from towpath.errors import DataError
from towpath.hashing import hash_uniform
from towpath.store import rating_settings, schema, sides, tallies
from towpath.store.sides import Side
from towpath.store.task_queue import Lease

TRIAL_STATE = "trial"
"""State of the lease of a trial pair: the rater knows the answer, so it is neither work nor gold for them."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A rater's trial pair, with the attempt's pairs done, in total, and needed to pass."""

    lease: Lease
    attempt: int
    done: int
    total: int
    needed: int


@dataclass(frozen=True, slots=True)
class TrialFeedback:
    """Feedback on a trial verdict; `side` is the correct side, `finished` ends the attempt."""

    correct: bool
    side: Side
    note: str
    done: int
    total: int
    right: int
    needed: int
    finished: bool
    passed: bool


def current_trial(connection: Connection, rater: str, settings: rating_settings.RatingSettings) -> Trial | None:
    """Return the rater's next trial pair; None if there is no trial, it is passed, or no gold is left."""
    if settings.trial_pairs < 1 or _is_owner(connection, rater):
        return None
    table = schema.trials
    rows = connection.execute(select(table).where(table.c.rater == rater)).all()
    if any(row.passed for row in rows):
        return None
    usable = _usable_gold(connection, rater)
    total = min(settings.trial_pairs, len(usable))
    if not total:
        return None
    attempt = max((row.attempt for row in rows), default=1)
    done = {row.comparison for row in rows if row.attempt == attempt}
    if len(done) >= total:
        attempt = attempt + 1
        done = set()
    tried = {row.comparison for row in rows}
    left = sorted(
        (name in tried, hash_uniform(f"trial/{rater}/{attempt}", name), name) for name in usable if name not in done
    )
    name = left[0][2]
    return Trial(
        Lease(name, rater, presentation_order(rater, attempt, name), 0.0),
        attempt,
        len(done),
        total,
        _pass_mark(total, settings.trial_threshold),
    )


def presentation_order(rater: str, attempt: int, comparison: str) -> Literal["ab", "ba"]:
    """Return the answer order of a trial pair, drawn again for each attempt."""
    return "ab" if hash_uniform(f"trial order/{rater}/{attempt}", comparison) < 0.5 else "ba"


def record_verdict(
    connection: Connection, rater: str, comparison: str, attempt: int, side: Side, at: float
) -> TrialFeedback:
    """Record a trial verdict and return feedback; a repeated request gets the same feedback."""
    settings = rating_settings.read(connection)
    gold = connection.execute(select(schema.gold).where(schema.gold.c.comparison == comparison)).one_or_none()
    table = schema.trials
    mine = select(table).where(table.c.rater == rater, table.c.attempt == attempt)
    rows = connection.execute(mine).all()
    previous = next((row for row in rows if row.comparison == comparison), None)
    trial = current_trial(connection, rater, settings)
    if gold is None or (
        previous is None and (trial is None or (trial.lease.comparison, trial.attempt) != (comparison, attempt))
    ):
        raise DataError("This trial pair is no longer current", "trial pairs come one at a time", "reload the page")
    order = presentation_order(rater, attempt, comparison)
    if previous is None and trial is not None:
        choice = sides.choice_of(side, order)
        correct = choice == gold.choice
        right = sum(row.correct for row in rows) + correct
        passed = len(rows) + 1 >= trial.total and right >= trial.needed
        row = {
            "rater": rater,
            "attempt": attempt,
            "comparison": comparison,
            "choice": choice,
            "correct": int(correct),
            "passed": int(passed),
            "at": tallies.timestamp(),
        }
        connection.execute(table.insert(), row)
        _record_lease(connection, rater, comparison, order, at)
        rows = connection.execute(mine).all()
    return _feedback(
        rows,
        comparison,
        gold,
        order,
        min(settings.trial_pairs, len(_usable_gold(connection, rater))),
        settings.trial_threshold,
    )


def _feedback(rows: Any, comparison: str, gold: Row[Any], order: str, total: int, threshold: float) -> TrialFeedback:
    row = next(row for row in rows if row.comparison == comparison)
    right = sum(one.correct for one in rows)
    needed = _pass_mark(total, threshold)
    passed = any(one.passed for one in rows)
    return TrialFeedback(
        bool(row.correct),
        sides.side_of(gold.choice, order),
        gold.note,
        len(rows),
        total,
        right,
        needed,
        passed or len(rows) >= total,
        passed,
    )


def _is_owner(connection: Connection, rater: str) -> bool:
    """Return whether the rater is an owner, who knows the gold answers."""
    return connection.scalar(select(schema.accounts.c.role).where(schema.accounts.c.name == rater)) == "owner"


def _usable_gold(connection: Connection, rater: str) -> list[str]:
    """Return gold that the rater has not judged."""
    seats = schema.seats
    gold = schema.gold
    met = select(seats.c.comparison).where(seats.c.rater == rater, seats.c.state != TRIAL_STATE)
    return list(
        connection.scalars(select(gold.c.comparison).where(gold.c.comparison.not_in(met)).order_by(gold.c.comparison))
    )


def _record_lease(connection: Connection, rater: str, comparison: str, order: str, at: float) -> None:
    seats = schema.seats
    known = connection.scalar(select(seats.c.state).where(seats.c.comparison == comparison, seats.c.rater == rater))
    if known is None:
        row = {
            "comparison": comparison,
            "rater": rater,
            "state": TRIAL_STATE,
            "until": 0.0,
            "shown": order,
            "at": at,
            "gold": 1,
        }
        connection.execute(seats.insert(), row)


def _pass_mark(total: int, threshold: float) -> int:
    """Return how many pairs must be right: the share, rounded up with tolerance for rounding errors."""
    return min(total, max(0, -int(-(total * threshold - 1e-9) // 1)))
