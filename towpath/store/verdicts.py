"""Actions of a rater on a pair: judge, rank, skip, flag, undo, write a better answer. All are idempotent.

Errors in this file are shown to raters, so they contain no ids of the ledger.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, Row, and_, func, select

from towpath.errors import DataError
from towpath.records import Choice, Demonstration, Judgement, messages_of
from towpath.store import rating_settings, schema, sides, statements, tallies, task_queue
from towpath.store.sides import Side

ONE_VERDICT_RULE = "a rater judges a pair once; undo allows another verdict"
UNDO_FIX = "undo first"
RELOAD_FIX = "reload the page"
ReviewState = Literal["approved", "declined"]


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """A side and its strength."""

    side: Side
    strength: int = 1


@dataclass(frozen=True, slots=True)
class Submission:
    """A verdict from the rating page, by sides, since the page does not know which answer is which."""

    key: str
    comparison: str
    rater: str
    verdict: StoredVerdict
    milliseconds: int | None = None
    guideline: str = ""
    comment: str = ""
    safety: StoredVerdict | None = None
    reasons: tuple[str, ...] = ()
    criteria: dict[str, Side] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RankingSubmission:
    """A ranking of a group's answers: each answer's rank in the order shown; equal ranks are ties."""

    key: str
    comparison: str
    rater: str
    ranks: tuple[int, ...]
    milliseconds: int | None = None
    guideline: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The number of judgements stored; `again` if the request was a repetition."""

    comparison: str
    judgements: int
    again: bool = False


def judge(connection: Connection, submission: Submission, at: float) -> Receipt:
    """Store a verdict; a repeated key gets the same receipt."""
    previous = connection.execute(statements.JUDGED_BY_KEY, {"key": submission.key}).one_or_none()
    if previous is not None:
        _require_same_rater(previous, submission.comparison, submission.rater)
        return Receipt(submission.comparison, 1, True)
    lease = _require_unflagged(_require_lease(connection, submission.comparison, submission.rater))
    choice = sides.choice_of(submission.verdict.side, lease.shown)
    if lease.state == "judged":
        current = _current_verdicts(connection, [submission.comparison], submission.rater)
        if [(row.choice, row.strength) for row in current] != [(choice, submission.verdict.strength)]:
            raise DataError("You have judged this pair differently", ONE_VERDICT_RULE, UNDO_FIX)
        return Receipt(submission.comparison, 1, True)
    judgement = Judgement(
        submission.key,
        submission.comparison,
        submission.rater,
        "person",
        choice,
        "ba" if lease.shown == "ba" else "ab",
        submission.verdict.strength,
        _time_worked(submission.milliseconds, lease, at),
        _next_round(connection, submission.comparison, submission.rater),
        submission.guideline,
        "",
        submission.comment,
        0.0,
        _details(submission, lease.shown),
    )
    tallies.insert_judgements(connection, [judgement])
    _mark_judged(connection, lease, at)
    return Receipt(submission.comparison, 1)


def _details(submission: Submission, order: str) -> dict[str, Any]:
    """Return the optional parts of a verdict, converted from sides to answers."""
    details: dict[str, Any] = {}
    if submission.safety is not None:
        details["safety"] = {
            "choice": sides.choice_of(submission.safety.side, order),
            "strength": submission.safety.strength,
        }
    if submission.reasons:
        details["reasons"] = list(submission.reasons)
    if submission.criteria:
        details["criteria"] = {name: sides.choice_of(side, order) for name, side in submission.criteria.items()}
    return details


def _time_worked(milliseconds: int | None, lease: Row[Any], at: float) -> int | None:
    """Return the time that a page reports, limited to how long the rater has had the pair."""
    return None if milliseconds is None else min(milliseconds, max(0, int((at - lease.at) * 1000)))


def rank(connection: Connection, ranked: RankingSubmission, at: float) -> Receipt:
    """Store a ranking as judgements of all its pairs in one transaction."""
    lease = _require_unflagged(_require_lease(connection, ranked.comparison, ranked.rater))
    group = _group(connection, ranked.comparison)
    if group is None or len(ranked.ranks) != len(group.members):
        value = f"{len(ranked.ranks)} ranks for {len(group.members) if group else 'no'} answers"
        raise DataError(value, "a ranking gives each answer of its group a rank", RELOAD_FIX)
    pairs = task_queue.group_comparisons(group)
    keys = [f"{ranked.key}/{pair.id.rpartition('.')[2]}" for pair in pairs]
    previous = connection.execute(statements.JUDGED_BY_KEY, {"key": keys[0]}).one_or_none()
    if previous is not None:
        _require_same_rater(previous, ranked.comparison, ranked.rater)
        return Receipt(ranked.comparison, len(pairs), True)
    if lease.state == "judged":
        raise DataError("You have ranked these answers", ONE_VERDICT_RULE, UNDO_FIX)
    number = _next_round(connection, ranked.comparison, ranked.rater)
    worked = _time_worked(ranked.milliseconds, lease, at)
    milliseconds = None if worked is None else worked // len(pairs)
    order = [int(index) for index in lease.shown.split(".")]
    rank_of = dict(zip(order, ranked.ranks, strict=True))
    judgements = []
    for key, pair in zip(keys, pairs, strict=True):
        i, j = map(int, pair.id.rpartition(".")[2].split("-"))
        judgements.append(
            Judgement(
                key,
                pair.id,
                ranked.rater,
                "person",
                _preferred(rank_of[i], rank_of[j]),
                "ab" if order.index(i) < order.index(j) else "ba",
                1,
                milliseconds,
                number,
                ranked.guideline,
                "",
                ranked.comment,
                0.0,
                {"group": group.id, "places": [rank_of[i], rank_of[j]], "of": len(group.members)},
            )
        )
    tallies.insert_judgements(connection, judgements)
    _mark_judged(connection, lease, at)
    return Receipt(ranked.comparison, len(pairs))


def _preferred(rank_a: int, rank_b: int) -> Choice:
    if rank_a == rank_b:
        return "tie"
    return "a" if rank_a < rank_b else "b"


def skip(connection: Connection, comparison: str, rater: str, at: float) -> Receipt:
    """Release a pair to other raters."""
    if _require_lease(connection, comparison, rater).state != "leased":
        return Receipt(comparison, 0, True)
    task_queue.release(connection, comparison, rater, "skipped", at)
    return Receipt(comparison, 0)


def flag(connection: Connection, comparison: str, rater: str, reason: str, at: float) -> Receipt:
    """Report a problem with a pair to the owner, who decides whether raters see it again."""
    lease = _require_lease(connection, comparison, rater)
    if lease.state == "flagged":
        return Receipt(comparison, 0, True)
    if lease.state == "judged":
        raise DataError("You have judged this pair", "a flagged pair is not judged", UNDO_FIX)
    task_queue.release(connection, comparison, rater, "flagged", at, lease.state == "leased")
    connection.execute(
        schema.flags.insert(),
        {"comparison": comparison, "rater": rater, "reason": reason, "at": tallies.timestamp(), "settled": ""},
    )
    task = _task(connection, comparison)
    if task is not None:
        task_queue.update_task(connection, task, state="flagged")
    return Receipt(comparison, 0)


def undo(connection: Connection, comparison: str, rater: str, at: float) -> Receipt:
    """Retract a rater's last action on a pair and lease it again; judgements stay in the ledger as retracted."""
    lease = _require_lease(connection, comparison, rater)
    if lease.state == "leased":
        return Receipt(comparison, 0, True)
    retracted = 0
    if lease.state == "judged":
        group = _group(connection, comparison)
        names = [c.id for c in task_queue.group_comparisons(group)] if group is not None else [comparison]
        retracted = tallies.retract(connection, [row.key for row in _current_verdicts(connection, names, rater)])
        task = _task(connection, comparison)
        if task is not None:
            task_queue.update_task(connection, task, judgements=-1)
    elif lease.state == "flagged":
        settle_flags(connection, comparison, "taken back", rater)
    task_queue.lease_task(connection, rater, comparison, at, rating_settings.read(connection))
    return Receipt(comparison, retracted)


def settle_flags(connection: Connection, comparison: str, how: str, rater: str = "") -> None:
    """Close the flags of a pair (of one rater); without open flags the pair waits again."""
    flags = schema.flags
    open_ = and_(flags.c.comparison == comparison, flags.c.settled == "")
    connection.execute(
        flags.update().where(open_, flags.c.rater == rater if rater else flags.c.rater != "").values(settled=how)
    )
    task = _task(connection, comparison)
    if task is not None and not connection.scalar(select(func.count()).select_from(flags).where(open_)):
        task_queue.update_task(connection, task, state="closed" if how == "dropped" else "open")


def adjudicate(connection: Connection, comparison: str, rater: str, at: float) -> None:
    """Lease a flagged pair to the owner."""
    if _task(connection, comparison) is None:
        raise DataError("This pair is not in the queue", "only queued pairs can be judged", RELOAD_FIX)
    settle_flags(connection, comparison, "judged by the owner")
    lease = connection.execute(statements.LEASE, {"comparison": comparison, "rater": rater}).one_or_none()
    if lease is not None and lease.state == "judged":
        raise DataError("You have judged this pair", ONE_VERDICT_RULE, "return it to the raters, or drop it")
    task_queue.lease_task(connection, rater, comparison, at, rating_settings.read(connection))


def save_written_answer(connection: Connection, key: str, comparison: str, rater: str, text: str) -> bool:
    """Save a better answer as a draft in place of the rater's earlier one, and return whether it is new."""
    _require_lease(connection, comparison, rater)
    if connection.scalar(statements.IS_MATCH, {"comparison": comparison}):
        raise DataError(
            "This pair belongs to an arena",
            "arena pairs are not used for training",
            "judge the pair without writing an answer",
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
    """Approve or decline a written answer for training; the decision may change later."""
    table = schema.written
    changed = connection.execute(
        table.update().where(table.c.key == key, table.c.state != "replaced").values(state=state)
    )
    if not changed.rowcount:
        raise DataError(
            "This answer was replaced by a newer one", "the newest answer of a rater to a pair is reviewed", RELOAD_FIX
        )


def approved_demonstrations(connection: Connection) -> list[Demonstration]:
    """Return the approved answers as demonstrations."""
    table = schema.written
    prompts = schema.prompts
    query = select(table, prompts.c.prompt, prompts.c.history, prompts.c.domain)
    query = query.join(prompts, prompts.c.id == table.c.prompt_id).where(table.c.state == "approved")
    rows = connection.execute(query.order_by(table.c.at, table.c.key)).all()
    return [
        Demonstration(
            f"written/{row.key}", row.prompt, row.text, row.prompt_id, "written", row.domain, messages_of(row.history)
        )
        for row in rows
    ]


def count_unreviewed(connection: Connection) -> int:
    """Count the written answers that await review."""
    return (
        connection.scalar(select(func.count()).select_from(schema.written).where(schema.written.c.state == "waiting"))
        or 0
    )


def last_settled(connection: Connection, rater: str) -> tuple[str, str] | None:
    """Return the pair of a rater's last action and the action, for undo."""
    row = connection.execute(statements.LAST_SETTLED, {"rater": rater}).one_or_none()
    return (row.comparison, row.state) if row is not None else None


def _require_lease(connection: Connection, comparison: str, rater: str) -> Row[Any]:
    row = connection.execute(statements.LEASE, {"comparison": comparison, "rater": rater}).one_or_none()
    if row is None:
        raise DataError("This pair is not assigned to you", "a rater judges assigned pairs", RELOAD_FIX)
    if row.state == "trial":
        raise DataError("This pair was a trial pair", "its answer was shown, so it does not count", RELOAD_FIX)
    return row


def _require_unflagged(lease: Row[Any]) -> Row[Any]:
    if lease.state == "flagged":
        raise DataError("You have flagged this pair", "a flagged pair is not judged", UNDO_FIX)
    return lease


def _task(connection: Connection, comparison: str) -> Row[Any] | None:
    return connection.execute(statements.TASK, {"comparison": comparison}).one_or_none()


def _group(connection: Connection, comparison: str) -> task_queue.RankingGroup | None:
    tasks = schema.tasks
    groups = schema.groups
    query = select(groups).join(tasks, tasks.c.group_id == groups.c.id).where(tasks.c.comparison == comparison)
    row = connection.execute(query).one_or_none()
    return task_queue.RankingGroup(row.id, row.prompt_id, tuple(row.members)) if row is not None else None


def _current_verdicts(connection: Connection, comparisons: Sequence[str], rater: str) -> Sequence[Row[Any]]:
    """Return a rater's judgements of comparisons that are not retracted."""
    table = schema.judgements
    query = select(table).where(table.c.comparison.in_(comparisons), table.c.rater == rater, statements.NOT_RETRACTED)
    return connection.execute(query.order_by(table.c.number)).all()


def _next_round(connection: Connection, comparison: str, rater: str) -> int:
    """Return the rater's next round for a comparison; the first is the comparison's own."""
    last = connection.scalar(statements.LAST_ROUND, {"comparison": comparison, "rater": rater})
    return last + 1 if last is not None else connection.scalar(statements.FIRST_ROUND, {"comparison": comparison}) or 1


def _mark_judged(connection: Connection, lease: Row[Any], at: float) -> None:
    """Mark a lease as judged; an expired or released one takes its seat again."""
    task_queue.update_lease(connection, lease.comparison, lease.rater, state="judged", at=at)
    task = _task(connection, lease.comparison)
    if task is not None:
        task_queue.update_task(connection, task, taken=0 if lease.state == "leased" else 1, judgements=1)


def _require_same_rater(previous: Row[Any], comparison: str, rater: str) -> None:
    if (previous.comparison, previous.rater) != (comparison, rater):
        raise DataError("This request has the key of another", "each request has its own key", "create a new key")
