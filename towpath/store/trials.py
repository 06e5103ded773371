"""Trial pairs: gold comparisons that a rater judges with feedback before their work counts. They never become
judgements.

Every function here is work on a connection; hand it to `Store.later` or `Store.read`.

"""

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, select

from towpath.errors import DataError
from towpath.store import rating_settings, schema, sides, tallies, task_queue
from towpath.store.sides import Side
from towpath.store.task_queue import Lease

TRIAL_STATE = "trial"
"""State of the seat that a trial pair leaves behind: the rater was told the answer, so the pair is neither their
work nor gold for them."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The trial pair that lies before a rater: how many of the attempt are done, of how many, and how many must be
    right."""

    seat: Lease
    attempt: int
    done: int
    total: int
    needed: int


@dataclass(frozen=True, slots=True)
class TrialFeedback:
    """What a rater learns of a trial verdict. `side` is the right one as they saw it; `finished` ends the attempt."""

    correct: bool
    side: Side
    note: str
    done: int
    total: int
    right: int
    needed: int
    finished: bool
    passed: bool


def current_trial(connection: Connection, rater: str, house: rating_settings.RatingSettings) -> Trial | None:
    """The rater's next trial pair; None where there is no trial, it is passed, or no gold is left to try."""
    if house.trial_pairs < 1 or _is_owner(connection, rater):
        return None
    table = schema.trials
    rows = connection.execute(select(table).where(table.c.rater == rater)).all()
    if any(row.passed for row in rows):
        return None
    usable = _usable_gold(connection, rater)
    total = min(house.trial_pairs, len(usable))
    if not total:
        return None
    attempt = max((row.attempt for row in rows), default=1)
    done = {row.comparison for row in rows if row.attempt == attempt}
    if len(done) >= total:
        attempt = attempt + 1
        done = set()
    tried = {row.comparison for row in rows}
    left = sorted(
        (name in tried, task_queue.hash_uniform(f"trial/{rater}/{attempt}", name), name)
        for name in usable
        if name not in done
    )
    name = left[0][2]
    return Trial(
        Lease(name, rater, presentation_order(rater, attempt, name), 0.0),
        attempt,
        len(done),
        total,
        _pass_mark(total, house.trial_threshold),
    )


def presentation_order(rater: str, attempt: int, comparison: str) -> Literal["ab", "ba"]:
    """The sides of a trial pair: drawn again for each attempt."""
    return "ab" if task_queue.hash_uniform(f"trial order/{rater}/{attempt}", comparison) < 0.5 else "ba"


def record_verdict(
    connection: Connection, rater: str, comparison: str, attempt: int, side: Side, at: float
) -> TrialFeedback:
    """Record a trial verdict and tell whether it is right; sent twice it is answered as before."""
    house = rating_settings.read(connection)
    gold = connection.execute(select(schema.gold).where(schema.gold.c.comparison == comparison)).one_or_none()
    table = schema.trials
    mine = select(table).where(table.c.rater == rater, table.c.attempt == attempt)
    rows = connection.execute(mine).all()
    before = next((row for row in rows if row.comparison == comparison), None)
    asked = current_trial(connection, rater, house)
    if gold is None or (
        before is None and (asked is None or (asked.seat.comparison, asked.attempt) != (comparison, attempt))
    ):
        raise DataError(
            "This trial pair is not asked any more", "trial pairs come one at a time", "load the page again"
        )
    shown = presentation_order(rater, attempt, comparison)
    if before is None and asked is not None:
        choice = sides.choice_of(side, shown)
        correct = choice == gold.choice
        right = sum(row.correct for row in rows) + correct
        passed = len(rows) + 1 >= asked.total and right >= asked.needed
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
        _record_lease(connection, rater, comparison, shown, at)
        rows = connection.execute(mine).all()
    return _feedback(
        rows,
        comparison,
        gold,
        shown,
        min(house.trial_pairs, len(_usable_gold(connection, rater))),
        house.trial_threshold,
    )


def _feedback(rows: "Any", comparison: str, gold: Row[Any], shown: str, total: int, threshold: float) -> TrialFeedback:
    row = next(row for row in rows if row.comparison == comparison)
    right = sum(one.correct for one in rows)
    needed = _pass_mark(total, threshold)
    passed = any(one.passed for one in rows)
    return TrialFeedback(
        bool(row.correct),
        sides.side_of(gold.choice, shown),
        gold.note,
        len(rows),
        total,
        right,
        needed,
        passed or len(rows) >= total,
        passed,
    )


def _is_owner(connection: Connection, rater: str) -> bool:
    """Owners make the gold, so it cannot test them."""
    return connection.scalar(select(schema.accounts.c.role).where(schema.accounts.c.name == rater)) == "owner"


def _usable_gold(connection: Connection, rater: str) -> list[str]:
    """Gold whose answer the rater has not met at work."""
    seats = schema.seats
    gold = schema.gold
    met = select(seats.c.comparison).where(seats.c.rater == rater, seats.c.state != TRIAL_STATE)
    return list(
        connection.scalars(select(gold.c.comparison).where(gold.c.comparison.not_in(met)).order_by(gold.c.comparison))
    )


def _record_lease(connection: Connection, rater: str, comparison: str, shown: str, at: float) -> None:
    seats = schema.seats
    known = connection.scalar(select(seats.c.state).where(seats.c.comparison == comparison, seats.c.rater == rater))
    if known is None:
        row = {
            "comparison": comparison,
            "rater": rater,
            "state": TRIAL_STATE,
            "until": 0.0,
            "shown": shown,
            "at": at,
            "gold": 1,
        }
        connection.execute(seats.insert(), row)


def _pass_mark(total: int, threshold: float) -> int:
    """How many of a trial must be right: the share, rounded up (a hair below a whole number is that number)."""
    return min(total, max(0, -int(-(total * threshold - 1e-9) // 1)))
