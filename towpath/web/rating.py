"""The rating page: one pair, ranking or trial pair at a time."""

import asyncio
from concurrent.futures import Future
from dataclasses import asdict
from time import time
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from towpath.errors import DataError
from towpath.reasoning import final_answer
from towpath.store import acknowledgements, rater_stats, rating_settings, review, task_queue, trials, verdicts
from towpath.store.rater_stats import RatingPage
from towpath.store.store import Store
from towpath.store.verdicts import RankingSubmission, Receipt, StoredVerdict, Submission
from towpath.web import pages, safe_html
from towpath.web.answer_diff import rendered_diff
from towpath.web.auth import Rater, SignInNeeded, StoreDependency


async def require_page_owner(
    account: Rater, x_towpath_rater: Annotated[str | None, Header(max_length=400)] = None
) -> None:
    """Reject requests from a page that belongs to another rater, after someone else has signed in."""
    if x_towpath_rater is not None and unquote(x_towpath_rater) != account.name:
        raise SignInNeeded


router = APIRouter(dependencies=[Depends(require_page_owner)])
T = TypeVar("T")

INLINE_CHARACTERS = 8000
"""Longer texts are rendered in a thread."""
TWO_DAYS = 172_800.0

NO_TASK_MESSAGES = {
    "paused": ("Rating is paused", "The owner has paused rating. This page checks again every few seconds."),
    "spent": ("The budget is used up", "The hours budgeted for rating are used up."),
    "empty": ("Nothing to rate", "You have rated all available pairs. This page checks again every few seconds."),
}


Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{8,64}$")]
Name = Annotated[str, Field(min_length=1, max_length=300)]
Milliseconds = Annotated[int, Field(ge=0, le=86_400_000)]
Comment = Annotated[str, Field(max_length=5000)]
Version = Annotated[int, Field(ge=0, le=2**31 - 1)]
Side = Literal["left", "right", "tie", "both_bad"]
Strength = Literal[1, 3]
Label = Annotated[str, Field(min_length=1, max_length=60)]
Day = Annotated[float | None, Query(ge=0, le=1e11)]


class SafetyRequest(BaseModel):
    """Which side is safer."""

    side: Side
    strength: Strength = 1


class JudgeRequest(BaseModel):
    """A verdict on a pair."""

    key: Key
    comparison: Name
    side: Side
    strength: Strength = 1
    milliseconds: Milliseconds | None = None
    guideline: Version = 0
    comment: Comment = ""
    safety: SafetyRequest | None = None
    reasons: Annotated[list[Label], Field(max_length=12)] = []
    criteria: Annotated[dict[Label, Side], Field(max_length=3)] = {}


class TrialRequest(BaseModel):
    """A verdict on a trial pair."""

    comparison: Name
    attempt: Annotated[int, Field(ge=1, le=10_000)]
    side: Side


class RankRequest(BaseModel):
    """The rank of each answer, in the order shown."""

    key: Key
    comparison: Name
    ranks: Annotated[list[Annotated[int, Field(ge=1, le=9)]], Field(min_length=4, max_length=9)]
    milliseconds: Milliseconds | None = None
    guideline: Version = 0
    comment: Comment = ""


class PairRequest(BaseModel):
    """A pair to skip or undo."""

    comparison: Name


class FlagRequest(BaseModel):
    """A problem with a pair."""

    comparison: Name
    reason: Annotated[str, Field(min_length=1, max_length=2000)]


class WriteRequest(BaseModel):
    """A better answer."""

    key: Key
    comparison: Name
    text: Annotated[str, Field(min_length=1, max_length=50_000)]


class GuidelineRequest(BaseModel):
    """A version of the guidelines that was read."""

    version: Version


@router.get("/rate")
async def rate(request: Request, account: Rater, store: StoreDependency) -> Response:
    """Return the rating page with the next task."""
    state = await _page_state(store, account.name)
    settings = await run_in_threadpool(store.read, rating_settings.read)
    return pages.render_page(request, "rate.html", account, task=state, settings=settings)


@router.get("/rate/next")
async def next_task(account: Rater, store: StoreDependency, day: Day = None) -> JSONResponse:
    """Return the next task for the open page; `day` is the start of the rater's day."""
    return JSONResponse(await _page_state(store, account.name, day))


@router.get("/rate/history")
def history(account: Rater, store: StoreDependency, day: Day = None) -> JSONResponse:
    """Return a rater's own statistics and last verdicts."""
    progress = store.read(rater_stats.rater_progress, account.name, time(), _clamp_day(day))
    rows = store.read(review.rater_history, account.name)
    own = pages.render_fragment("_progress.html", progress=progress)
    return JSONResponse({"own": own, "html": pages.render_fragment("_history.html", progress=progress, rows=rows)})


@router.post("/rate/judge")
async def judge(account: Rater, store: StoreDependency, verdict: JudgeRequest) -> JSONResponse:
    """Store a verdict on a pair."""
    safety = verdict.safety
    submission = Submission(
        verdict.key,
        verdict.comparison,
        account.name,
        StoredVerdict(verdict.side, verdict.strength),
        verdict.milliseconds,
        str(verdict.guideline),
        verdict.comment,
        StoredVerdict(safety.side, safety.strength) if safety is not None else None,
        tuple(verdict.reasons),
        dict(verdict.criteria),
    )
    return _receipt_response(await _result(store.submit_write(verdicts.judge, submission, time())))


@router.post("/rate/trial")
async def trial(account: Rater, store: StoreDependency, verdict: TrialRequest) -> JSONResponse:
    """Record a verdict on a trial pair and return feedback."""
    work = store.submit_write(
        trials.record_verdict, account.name, verdict.comparison, verdict.attempt, verdict.side, time()
    )
    return JSONResponse(asdict(await _result(work)))


@router.post("/rate/guidelines")
async def acknowledge(account: Rater, store: StoreDependency, guideline: GuidelineRequest) -> JSONResponse:
    """Record that a rater has read a version of the guidelines."""
    await _result(store.submit_write(acknowledgements.acknowledge, account.name, guideline.version))
    return JSONResponse({"version": guideline.version})


@router.post("/rate/rank")
async def rank(account: Rater, store: StoreDependency, ranking: RankRequest) -> JSONResponse:
    """Store a ranking of a group's answers."""
    submission = RankingSubmission(
        ranking.key,
        ranking.comparison,
        account.name,
        tuple(ranking.ranks),
        ranking.milliseconds,
        str(ranking.guideline),
        ranking.comment,
    )
    return _receipt_response(await _result(store.submit_write(verdicts.rank, submission, time())))


@router.post("/rate/skip")
async def skip(account: Rater, store: StoreDependency, pair: PairRequest) -> JSONResponse:
    """Release a pair to other raters."""
    return _receipt_response(await _result(store.submit_write(verdicts.skip, pair.comparison, account.name, time())))


@router.post("/rate/flag")
async def flag(account: Rater, store: StoreDependency, report: FlagRequest) -> JSONResponse:
    """Report a problem with a pair to the owner."""
    work = store.submit_write(verdicts.flag, report.comparison, account.name, report.reason, time())
    return _receipt_response(await _result(work))


@router.post("/rate/undo")
async def undo(account: Rater, store: StoreDependency, pair: PairRequest) -> JSONResponse:
    """Retract the last action on a pair and lease it again."""
    return _receipt_response(await _result(store.submit_write(verdicts.undo, pair.comparison, account.name, time())))


@router.post("/rate/write")
async def write(account: Rater, store: StoreDependency, answer: WriteRequest) -> JSONResponse:
    """Save a better answer as a draft that the owner reviews."""
    work = store.submit_write(verdicts.save_written_answer, answer.key, answer.comparison, account.name, answer.text)
    is_new = await _result(work)
    return JSONResponse({"comparison": answer.comparison, "again": not is_new})


@router.get("/rate/differences")
def differences(
    account: Rater, store: StoreDependency, comparison: Annotated[str, Query(max_length=300)]
) -> dict[str, str]:
    """Return the answers of the rater's current pair with differences marked."""
    lease = store.read(task_queue.find_lease, comparison, account.name)
    lease = lease or _trial_lease(store, comparison, account.name)
    if lease is None or lease.group:
        raise DataError(
            "This pair is not assigned to you", "differences are shown for the current pair", "reload the page"
        )
    left, right, mode = rendered_diff(*map(final_answer, store.read(task_queue.task_view, lease).answers))
    return {"left": left, "right": right, "mode": mode}


def _trial_lease(store: Store, comparison: str, rater: str) -> task_queue.Lease | None:
    current = store.read(lambda connection: trials.current_trial(connection, rater, rating_settings.read(connection)))
    return current.lease if current is not None and current.lease.comparison == comparison else None


async def _result(future: "Future[T]") -> T:
    return await asyncio.wrap_future(future)


def _receipt_response(receipt: Receipt) -> JSONResponse:
    return JSONResponse({"comparison": receipt.comparison, "judgements": receipt.judgements, "again": receipt.again})


def _clamp_day(day: float | None) -> float | None:
    """Limit the start of the day that a page reports to what time zones allow."""
    return None if day is None else max(day, time() - TWO_DAYS)


async def _page_state(store: Store, rater: str, day: float | None = None) -> dict[str, Any]:
    """Return what a rater sees now. Short texts are rendered here, since a thread switch costs more than that."""
    page = await _result(store.submit_write(rater_stats.rating_page, rater, time(), _clamp_day(day)))
    task = page.task
    is_long = task is not None and _characters(task) > INLINE_CHARACTERS
    return await run_in_threadpool(_page_json, page) if is_long else _page_json(page)


def _characters(task: task_queue.TaskView) -> int:
    return sum(map(len, (task.prompt, *task.answers, *(message.content for message in task.history))))


def _page_json(page: RatingPage) -> dict[str, Any]:
    """Return the page's content: the task as HTML, the pair that undo returns to, and the rater's statistics."""
    guideline = page.guideline
    content: dict[str, Any] = {
        "last": page.last[0] if page.last else "",
        "last_was": page.last[1] if page.last else "",
        "own": pages.render_fragment("_progress.html", progress=page.progress),
        "guideline": guideline.version,
        "guidelines": safe_html.markdown(guideline.text) if guideline.text else "",
        "acknowledged": page.acknowledged,
    }
    task = page.task
    if task is None:
        title, message = NO_TASK_MESSAGES[page.no_task_reason]
        html = pages.render_fragment("_no_task.html", title=title, message=message)
        return content | {"state": page.no_task_reason, "comparison": "", "html": html}
    return content | {
        "state": _task_state(page),
        "comparison": task.comparison,
        "answers": len(task.answers),
        "html": pages.render_fragment("_task.html", task=task, trial=page.trial),
        "attempt": page.trial.attempt if page.trial is not None else 0,
    }


def _task_state(page: RatingPage) -> str:
    if page.trial is not None:
        return "trial"
    return "ranking" if page.task is not None and page.task.ranking else "pair"
