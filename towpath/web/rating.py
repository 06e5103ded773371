"""The page on which people rate: one pair or one ranking at a time, trial pairs before that."""

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
from towpath.store import acknowledgements, rater_stats, rating_settings, review, task_queue, trials, verdicts
from towpath.store.rater_stats import RatingPage
from towpath.store.store import Store
from towpath.store.verdicts import RankingSubmission, Receipt, StoredVerdict, Submission
from towpath.web import answer_diff as compared
from towpath.web import pages, safe_html
from towpath.web.auth import Rater, SignInNeeded, StoreDependency


async def require_page_owner(
    account: Rater, x_towpath_rater: Annotated[str | None, Header(max_length=400)] = None
) -> None:
    """Refuse what the page of one rater sends after another has signed in: verdicts are their own."""
    if x_towpath_rater is not None and unquote(x_towpath_rater) != account.name:
        raise SignInNeeded


router = APIRouter(dependencies=[Depends(require_page_owner)])
T = TypeVar("T")

INLINE_CHARACTERS = 8000  # characters
TWO_DAYS = 172_800.0  # seconds

NO_TASK_MESSAGES = {
    "paused": ("Rating is paused", "The owner has paused rating for now. This page checks again every few seconds."),
    "spent": ("The budget is used up", "The hours set aside for rating are used up. Thank you for your work."),
    "empty": (
        "Nothing to rate just now",
        "You have seen every pair that waits. This page checks again every few seconds.",
    ),
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
    """A pair as the page says it was judged."""

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
    """A trial pair as the page says it was judged."""

    comparison: Name
    attempt: Annotated[int, Field(ge=1, le=10_000)]
    side: Side


class RankRequest(BaseModel):
    """The place of each answer, in the order they were shown."""

    key: Key
    comparison: Name
    places: Annotated[list[Annotated[int, Field(ge=1, le=9)]], Field(min_length=4, max_length=9)]
    milliseconds: Milliseconds | None = None
    guideline: Version = 0
    comment: Comment = ""


class PairRequest(BaseModel):
    """A pair that is skipped or taken back."""

    comparison: Name


class FlagRequest(BaseModel):
    """A pair with which something is wrong."""

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
    """The whole page with what is to be rated now."""
    shown = await _page_state(store, account.name)
    house = await run_in_threadpool(store.read, rating_settings.read)
    return pages.render_page(request, "rate.html", account, shown=shown, house=house)


@router.get("/rate/next")
async def next_task(account: Rater, store: StoreDependency, day: Day = None) -> JSONResponse:
    """What is to be rated now, for the page that is open; `day` is when the rater's day began."""
    return JSONResponse(await _page_state(store, account.name, day))


@router.get("/rate/mine")
def history(account: Rater, store: StoreDependency, day: Day = None) -> JSONResponse:
    """A rater's own figures and last verdicts."""
    progress = store.read(rater_stats.rater_progress, account.name, time(), _clamp_day(day))
    shown = store.read(review.rater_history, account.name)
    own = pages.render_fragment("_own.html", progress=progress)
    return JSONResponse({"own": own, "html": pages.render_fragment("_mine.html", progress=progress, rows=shown)})


@router.post("/rate/judge")
async def judge(account: Rater, store: StoreDependency, said: JudgeRequest) -> JSONResponse:
    """Keep a verdict of a pair."""
    safety = StoredVerdict(said.safety.side, said.safety.strength) if said.safety is not None else None
    given = Submission(
        said.key,
        said.comparison,
        account.name,
        StoredVerdict(said.side, said.strength),
        said.milliseconds,
        str(said.guideline),
        said.comment,
        safety,
        tuple(said.reasons),
        dict(said.criteria),
    )
    return _receipt_response(await _result(store.submit_write(verdicts.judge, given, time())))


@router.post("/rate/trial")
async def trial(account: Rater, store: StoreDependency, said: TrialRequest) -> JSONResponse:
    """Record the verdict of a trial pair and tell whether it is right."""
    feedback = await _result(
        store.submit_write(trials.record_verdict, account.name, said.comparison, said.attempt, said.side, time())
    )
    return JSONResponse(asdict(feedback))


@router.post("/rate/guidelines")
async def confirm(account: Rater, store: StoreDependency, confirmed: GuidelineRequest) -> JSONResponse:
    """Record that a rater has read a version of the guidelines."""
    await _result(store.submit_write(acknowledgements.acknowledge, account.name, confirmed.version))
    return JSONResponse({"version": confirmed.version})


@router.post("/rate/rank")
async def rank(account: Rater, store: StoreDependency, said: RankRequest) -> JSONResponse:
    """Keep an order of a group."""
    ranked = RankingSubmission(
        said.key,
        said.comparison,
        account.name,
        tuple(said.places),
        said.milliseconds,
        str(said.guideline),
        said.comment,
    )
    return _receipt_response(await _result(store.submit_write(verdicts.rank, ranked, time())))


@router.post("/rate/skip")
async def skip(account: Rater, store: StoreDependency, left: PairRequest) -> JSONResponse:
    """Leave a pair to others."""
    return _receipt_response(await _result(store.submit_write(verdicts.skip, left.comparison, account.name, time())))


@router.post("/rate/flag")
async def flag(account: Rater, store: StoreDependency, flagged: FlagRequest) -> JSONResponse:
    """Send a pair to the owner."""
    return _receipt_response(
        await _result(store.submit_write(verdicts.flag, flagged.comparison, account.name, flagged.reason, time()))
    )


@router.post("/rate/undo")
async def undo(account: Rater, store: StoreDependency, left: PairRequest) -> JSONResponse:
    """Take back what was done with a pair, and see it again."""
    return _receipt_response(await _result(store.submit_write(verdicts.undo, left.comparison, account.name, time())))


@router.post("/rate/write")
async def write(account: Rater, store: StoreDependency, written: WriteRequest) -> JSONResponse:
    """Keep a better answer as a draft for the owner to approve."""
    fresh = await _result(
        store.submit_write(verdicts.save_written_answer, written.key, written.comparison, account.name, written.text)
    )
    return JSONResponse({"comparison": written.comparison, "again": not fresh})


@router.get("/rate/differences")
def differences(
    account: Rater, store: StoreDependency, comparison: Annotated[str, Query(max_length=300)]
) -> dict[str, str]:
    """The pair that lies before a rater, with what differs marked."""
    seat = store.read(task_queue.find_lease, comparison, account.name) or _trial_lease(store, comparison, account.name)
    if seat is None or seat.group:
        raise DataError(
            "This pair was not given to you", "differences are shown of the pair at hand", "load the page again"
        )
    left, right, manner = compared.rendered_diff(*store.read(task_queue.task_view, seat).answers)
    return {"left": left, "right": right, "manner": manner}


def _trial_lease(store: Store, comparison: str, rater: str) -> task_queue.Lease | None:
    found = store.read(lambda connection: trials.current_trial(connection, rater, rating_settings.read(connection)))
    return found.seat if found is not None and found.seat.comparison == comparison else None


async def _result(future: "Future[T]") -> T:
    return await asyncio.wrap_future(future)


def _receipt_response(receipt: Receipt) -> JSONResponse:
    return JSONResponse({"comparison": receipt.comparison, "judgements": receipt.judgements, "again": receipt.again})


def _clamp_day(day: float | None) -> float | None:
    """The start of a day as a page tells it; not longer ago than any time zone allows."""
    return None if day is None else max(day, time() - TWO_DAYS)


async def _page_state(store: Store, rater: str, day: float | None = None) -> dict[str, Any]:
    """What a rater sees now. Short texts are rendered on the spot, for a change of threads costs more than that;
    long ones aside."""
    view = await _result(store.submit_write(rater_stats.rating_page, rater, time(), _clamp_day(day)))
    long = view.sheet is not None and sum(map(len, (view.sheet.prompt, *view.sheet.answers))) > INLINE_CHARACTERS
    return await run_in_threadpool(_page_json, view) if long else _page_json(view)


def _page_json(view: RatingPage) -> dict[str, Any]:
    """What the page needs: the sheet as HTML, what undo would take back, and the rater's own figures."""
    told: dict[str, Any] = {"last": view.last[0] if view.last else "", "last_was": view.last[1] if view.last else ""}
    told["own"] = pages.render_fragment("_own.html", progress=view.progress)
    guideline = view.guideline
    told |= {
        "guideline": guideline.version,
        "guidelines": safe_html.markdown(guideline.text) if guideline.text else "",
        "acknowledged": view.acknowledged,
    }
    sheet = view.sheet
    if sheet is None:
        title, message = NO_TASK_MESSAGES[view.why]
        return told | {
            "state": view.why,
            "comparison": "",
            "html": pages.render_fragment("_nothing.html", title=title, message=message),
        }
    html = pages.render_fragment(
        "_sheet.html", sheet=sheet, turns=safe_html.conversation_turns(sheet.prompt), trial=view.trial
    )
    state = "trial" if view.trial is not None else "ranking" if sheet.ranking else "pair"
    told |= {"state": state, "comparison": sheet.comparison, "answers": len(sheet.answers), "html": html}
    return told | {"attempt": view.trial.attempt if view.trial is not None else 0}
