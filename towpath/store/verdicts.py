"""What a rater does with a pair: judge, rank, skip, flag, undo, write a better answer. Each is work on a connection,
safe to be sent twice.

Errors of this file are shown to raters, so they name no ids of the ledger.

"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, Row, and_, func, select

from towpath.errors import DataError
from towpath.records import Choice, Demonstration, Judgement
from towpath.store import rating_settings, schema, sides, statements, tallies, task_queue
from towpath.store.sides import Side

ONE_VERDICT_RULE = "a rater judges a pair once, and takes that back to judge it again"
UNDO_FIX = "undo first"
RELOAD_FIX = "load the page again"
ReviewState = Literal["approved", "declined"]


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """A side and how strongly, as it was seen."""

    side: Side
    strength: int = 1


@dataclass(frozen=True, slots=True)
class Submission:
    """A verdict as it comes from the page: of sides, not of answers, for the page does not know which answer is
    which."""

    key: str
    comparison: str
    rater: str
    said: StoredVerdict
    milliseconds: int | None = None
    guideline: str = ""
    comment: str = ""
    safety: StoredVerdict | None = None
    reasons: tuple[str, ...] = ()
    criteria: dict[str, Side] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RankingSubmission:
    """An order of a group's answers: the place of each, in the order they were shown; equal places are ties."""

    key: str
    comparison: str
    rater: str
    places: tuple[int, ...]
    milliseconds: int | None = None
    guideline: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is in the ledger now; `again` where it was there before."""

    comparison: str
    judgements: int
    again: bool = False


def judge(connection: Connection, given: Submission, at: float) -> Receipt:
    """Keep a verdict; the same key told again is answered as before."""
    before = connection.execute(statements.JUDGED_BY_KEY, {"key": given.key}).one_or_none()
    if before is not None:
        _require_same_rater(before, given.comparison, given.rater)
        return Receipt(given.comparison, 1, True)
    seat = _require_unflagged(_require_lease(connection, given.comparison, given.rater))
    choice = sides.choice_of(given.said.side, seat.shown)
    if seat.state == "judged":
        said = _current_verdicts(connection, [given.comparison], given.rater)
        if [(row.choice, row.strength) for row in said] != [(choice, given.said.strength)]:
            raise DataError("You have judged this pair otherwise", ONE_VERDICT_RULE, UNDO_FIX)
        return Receipt(given.comparison, 1, True)
    made = Judgement(
        given.key,
        given.comparison,
        given.rater,
        "person",
        choice,
        "ba" if seat.shown == "ba" else "ab",
        given.said.strength,
        _time_worked(given.milliseconds, seat, at),
        _next_round(connection, given.comparison, given.rater),
        given.guideline,
        "",
        given.comment,
        0.0,
        _details(given, seat.shown),
    )
    tallies.insert_judgements(connection, [made])
    _mark_judged(connection, seat, at)
    return Receipt(given.comparison, 1)


def _details(given: Submission, shown: str) -> dict[str, Any]:
    """What goes with a verdict beside the choice, its sides turned into answers."""
    details: dict[str, Any] = {}
    if given.safety is not None:
        details["safety"] = {"choice": sides.choice_of(given.safety.side, shown), "strength": given.safety.strength}
    if given.reasons:
        details["reasons"] = list(given.reasons)
    if given.criteria:
        details["criteria"] = {name: sides.choice_of(side, shown) for name, side in given.criteria.items()}
    return details


def _time_worked(milliseconds: int | None, seat: Row[Any], at: float) -> int | None:
    """The time that a page reports, at most as long as the rater has had the pair."""
    return None if milliseconds is None else min(milliseconds, max(0, int((at - seat.at) * 1000)))


def rank(connection: Connection, ranked: RankingSubmission, at: float) -> Receipt:
    """Keep an order as the judgements of all its pairs, together."""
    seat = _require_unflagged(_require_lease(connection, ranked.comparison, ranked.rater))
    group = _group(connection, ranked.comparison)
    if group is None or len(ranked.places) != len(group.members):
        value = f"{len(ranked.places)} places for {len(group.members) if group else 'no'} answers"
        raise DataError(value, "a ranking gives a place to each answer of its group", RELOAD_FIX)
    pairs = task_queue.group_comparisons(group)
    place = dict(zip(map(int, seat.shown.split(".")), ranked.places, strict=True))
    keys = [f"{ranked.key}/{pair.id.rpartition('.')[2]}" for pair in pairs]
    before = connection.execute(statements.JUDGED_BY_KEY, {"key": keys[0]}).one_or_none()
    if before is not None:
        _require_same_rater(before, ranked.comparison, ranked.rater)
        return Receipt(ranked.comparison, len(pairs), True)
    if seat.state == "judged":
        raise DataError("You have ranked these answers", ONE_VERDICT_RULE, UNDO_FIX)
    number = _next_round(connection, ranked.comparison, ranked.rater)
    worked = _time_worked(ranked.milliseconds, seat, at)
    time = None if worked is None else worked // len(pairs)
    made = []
    for key, pair in zip(keys, pairs, strict=True):
        i, j = map(int, pair.id.rpartition(".")[2].split("-"))
        choice: Choice = "tie" if place[i] == place[j] else "a" if place[i] < place[j] else "b"
        first = seat.shown.split(".").index(str(i)) < seat.shown.split(".").index(str(j))
        made.append(
            Judgement(
                key,
                pair.id,
                ranked.rater,
                "person",
                choice,
                "ab" if first else "ba",
                1,
                time,
                number,
                ranked.guideline,
                "",
                ranked.comment,
                0.0,
                {"group": group.id, "places": [place[i], place[j]], "of": len(group.members)},
            )
        )
    tallies.insert_judgements(connection, made)
    _mark_judged(connection, seat, at)
    return Receipt(ranked.comparison, len(pairs))


def skip(connection: Connection, comparison: str, rater: str, at: float) -> Receipt:
    """Leave a pair to others."""
    if _require_lease(connection, comparison, rater).state != "leased":
        return Receipt(comparison, 0, True)
    task_queue.release(connection, comparison, rater, "skipped", at)
    return Receipt(comparison, 0)


def flag(connection: Connection, comparison: str, rater: str, reason: str, at: float) -> Receipt:
    """Say that something is wrong with a pair: it goes to the owner, and to raters again only if the owner says so."""
    seat = _require_lease(connection, comparison, rater)
    if seat.state == "flagged":
        return Receipt(comparison, 0, True)
    if seat.state == "judged":
        raise DataError("You have judged this pair", "a flag stands in place of a judgement", UNDO_FIX)
    task_queue.release(connection, comparison, rater, "flagged", at, seat.state == "leased")
    connection.execute(
        schema.flags.insert(),
        {"comparison": comparison, "rater": rater, "reason": reason, "at": tallies.timestamp(), "settled": ""},
    )
    task = _task(connection, comparison)
    if task is not None:
        task_queue.update_task(connection, task, state="flagged")
    return Receipt(comparison, 0)


def undo(connection: Connection, comparison: str, rater: str, at: float) -> Receipt:
    """Take back what a rater did last with a pair, and seat them at it again. What was judged stays in the ledger,
    marked as taken back."""
    seat = _require_lease(connection, comparison, rater)
    if seat.state == "leased":
        return Receipt(comparison, 0, True)
    taken = 0
    if seat.state == "judged":
        group = _group(connection, comparison)
        names = [c.id for c in task_queue.group_comparisons(group)] if group is not None else [comparison]
        taken = tallies.retract(connection, [row.key for row in _current_verdicts(connection, names, rater)])
        task = _task(connection, comparison)
        if task is not None:
            task_queue.update_task(connection, task, judged=-1)
    elif seat.state == "flagged":
        settle_flags(connection, comparison, "taken back", rater)
    task_queue.lease_task(connection, rater, comparison, at, rating_settings.read(connection))
    return Receipt(comparison, taken)


def settle_flags(connection: Connection, comparison: str, how: str, rater: str = "") -> None:
    """Close the flags of a pair (of one rater); with none left the pair waits again."""
    flags = schema.flags
    open_ = and_(flags.c.comparison == comparison, flags.c.settled == "")
    connection.execute(
        flags.update().where(open_, flags.c.rater == rater if rater else flags.c.rater != "").values(settled=how)
    )
    task = _task(connection, comparison)
    if task is not None and not connection.scalar(select(func.count()).select_from(flags).where(open_)):
        task_queue.update_task(connection, task, state="closed" if how == "dropped" else "open")


def adjudicate(connection: Connection, comparison: str, rater: str, at: float) -> None:
    """Seat the owner at a flagged pair: it is back among the tasks, and this seat is theirs."""
    if _task(connection, comparison) is None:
        raise DataError("This pair is not in the queue", "a pair that is judged is a task", RELOAD_FIX)
    settle_flags(connection, comparison, "judged by the owner")
    seat = connection.execute(statements.LEASE, {"comparison": comparison, "rater": rater}).one_or_none()
    if seat is not None and seat.state == "judged":
        raise DataError("You have judged this pair", ONE_VERDICT_RULE, "return it to the raters, or drop it")
    task_queue.lease_task(connection, rater, comparison, at, rating_settings.read(connection))


def save_written_answer(connection: Connection, key: str, comparison: str, rater: str, text: str) -> bool:
    """Keep a better answer as a draft, in place of the one this rater wrote to the pair before; whether it was new."""
    _require_lease(connection, comparison, rater)
    if connection.scalar(statements.IS_MATCH, {"comparison": comparison}):
        raise DataError(
            "this pair measures two models",
            "what is measured with is not learned from",
            "judge the pair; nothing better can be written",
        )
    table = schema.written
    if connection.scalar(select(table.c.key).where(table.c.key == key)) is not None:
        return False
    earlier = table.update().where(table.c.comparison == comparison, table.c.rater == rater)
    connection.execute(earlier.values(state="replaced"))
    prompt = connection.scalar(select(schema.comparisons.c.prompt_id).where(schema.comparisons.c.id == comparison))
    row = {
        "key": key,
        "prompt_id": prompt,
        "comparison": comparison,
        "rater": rater,
        "text": text,
        "at": tallies.timestamp(),
        "state": "waiting",
    }
    connection.execute(table.insert(), row)
    return True


def review_written_answer(connection: Connection, key: str, state: ReviewState) -> None:
    """Approve a better answer for training, or decline it; either may be changed later."""
    table = schema.written
    changed = connection.execute(
        table.update().where(table.c.key == key, table.c.state != "replaced").values(state=state)
    )
    if not changed.rowcount:
        raise DataError(
            "This answer was replaced by a newer one", "the newest answer of a rater to a pair is reviewed", RELOAD_FIX
        )


def approved_demonstrations(connection: Connection) -> list[Demonstration]:
    """The better answers that the owner approved."""
    table = schema.written
    prompts = schema.prompts
    query = select(table, prompts.c.prompt, prompts.c.domain).join(prompts, prompts.c.id == table.c.prompt_id)
    rows = connection.execute(query.where(table.c.state == "approved").order_by(table.c.at, table.c.key)).all()
    return [
        Demonstration(f"written/{row.key}", row.prompt, row.text, row.prompt_id, "written", row.domain) for row in rows
    ]


def count_unreviewed(connection: Connection) -> int:
    """How many better answers wait for the owner's approval."""
    return (
        connection.scalar(select(func.count()).select_from(schema.written).where(schema.written.c.state == "waiting"))
        or 0
    )


def last_settled(connection: Connection, rater: str) -> tuple[str, str] | None:
    """The pair that a rater dealt with last and how, for undo."""
    row = connection.execute(statements.LAST_SETTLED, {"rater": rater}).one_or_none()
    return (row.comparison, row.state) if row is not None else None


def _require_lease(connection: Connection, comparison: str, rater: str) -> Row[Any]:
    row = connection.execute(statements.LEASE, {"comparison": comparison, "rater": rater}).one_or_none()
    if row is None:
        raise DataError("This pair was not given to you", "a rater judges what the queue gave them", RELOAD_FIX)
    if row.state == "trial":
        raise DataError("This pair was a trial pair", "its answer was shown to you, so it does not count", RELOAD_FIX)
    return row


def _require_unflagged(seat: Row[Any]) -> Row[Any]:
    if seat.state == "flagged":
        raise DataError("You have flagged this pair", "a flag stands in place of a judgement", UNDO_FIX)
    return seat


def _task(connection: Connection, comparison: str) -> Row[Any] | None:
    return connection.execute(statements.TASK, {"comparison": comparison}).one_or_none()


def _group(connection: Connection, comparison: str) -> task_queue.RankingGroup | None:
    tasks = schema.tasks
    groups = schema.groups
    query = select(groups).join(tasks, tasks.c.group_id == groups.c.id).where(tasks.c.comparison == comparison)
    row = connection.execute(query).one_or_none()
    return task_queue.RankingGroup(row.id, row.prompt_id, tuple(row.members)) if row is not None else None


def _current_verdicts(connection: Connection, comparisons: Sequence[str], rater: str) -> Sequence[Row[Any]]:
    """What a rater has said of these and not taken back."""
    table = schema.judgements
    back = select(schema.retractions.c.key).where(schema.retractions.c.key == table.c.key).exists()
    query = (
        select(table).where(table.c.comparison.in_(comparisons), table.c.rater == rater, ~back).order_by(table.c.number)
    )
    return connection.execute(query).all()


def _next_round(connection: Connection, comparison: str, rater: str) -> int:
    """The next round of a rater at a comparison; the first is the comparison's own."""
    last = connection.scalar(statements.LAST_ROUND, {"comparison": comparison, "rater": rater})
    return last + 1 if last is not None else connection.scalar(statements.FIRST_ROUND, {"comparison": comparison}) or 1


def _mark_judged(connection: Connection, seat: Row[Any], at: float) -> None:
    """The seat is filled for good; one whose lease ran out, or was given up, is taken again for it."""
    task_queue.update_lease(connection, seat.comparison, seat.rater, state="judged", at=at)
    task = _task(connection, seat.comparison)
    if task is not None:
        task_queue.update_task(connection, task, taken=0 if seat.state == "leased" else 1, judged=1)


def _require_same_rater(before: Row[Any], comparison: str, rater: str) -> None:
    if (before.comparison, before.rater) != (comparison, rater):
        raise DataError("This submit has the key of another", "each submit has a key of its own", "make a new one")
