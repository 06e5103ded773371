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
from towpath.store import acknowledgements, rater_stats, rating, review, settings, trials, verdicts
from towpath.store.rater_stats import View
from towpath.store.store import Store
from towpath.store.verdicts import Given, Ranked, Receipt, Said
from towpath.web import differences as compared
from towpath.web import pages, text
from towpath.web.auth import Rater, SignInNeeded, TheStore


async def own_page(account: Rater, x_towpath_rater: Annotated[str | None, Header(max_length=400)] = None) -> None:
    """Refuse what the page of one rater sends after another has signed in: verdicts are their own."""
    if x_towpath_rater is not None and unquote(x_towpath_rater) != account.name:
        raise SignInNeeded


router = APIRouter(dependencies=[Depends(own_page)])
T = TypeVar("T")

SHORT = 8000  # characters
TWO_DAYS = 172_800.0  # seconds

NOTHING = {
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


class SafetySaid(BaseModel):
    """Which side is safer."""

    side: Side
    strength: Strength = 1


class Verdict(BaseModel):
    """A pair as the page says it was judged."""

    key: Key
    comparison: Name
    side: Side
    strength: Strength = 1
    milliseconds: Milliseconds | None = None
    guideline: Version = 0
    comment: Comment = ""
    safety: SafetySaid | None = None
    reasons: Annotated[list[Label], Field(max_length=12)] = []
    criteria: Annotated[dict[Label, Side], Field(max_length=3)] = {}


class TrialVerdict(BaseModel):
    """A trial pair as the page says it was judged."""

    comparison: Name
    attempt: Annotated[int, Field(ge=1, le=10_000)]
    side: Side


class Ranking(BaseModel):
    """The place of each answer, in the order they were shown."""

    key: Key
    comparison: Name
    places: Annotated[list[Annotated[int, Field(ge=1, le=9)]], Field(min_length=4, max_length=9)]
    milliseconds: Milliseconds | None = None
    guideline: Version = 0
    comment: Comment = ""


class Left(BaseModel):
    """A pair that is skipped or taken back."""

    comparison: Name


class Flagged(BaseModel):
    """A pair with which something is wrong."""

    comparison: Name
    reason: Annotated[str, Field(min_length=1, max_length=2000)]


class Written(BaseModel):
    """A better answer."""

    key: Key
    comparison: Name
    text: Annotated[str, Field(min_length=1, max_length=50_000)]


class Confirmed(BaseModel):
    """A version of the guidelines that was read."""

    version: Version


@router.get("/rate")
async def rate(request: Request, account: Rater, store: TheStore) -> Response:
    """The whole page with what is to be rated now."""
    shown = await _look(store, account.name)
    house = await run_in_threadpool(store.read, settings.read)
    return pages.page(request, "rate.html", account, shown=shown, house=house)


@router.get("/rate/next")
async def following(account: Rater, store: TheStore, day: Day = None) -> JSONResponse:
    """What is to be rated now, for the page that is open; `day` is when the rater's day began."""
    return JSONResponse(await _look(store, account.name, day))


@router.get("/rate/mine")
def mine(account: Rater, store: TheStore, day: Day = None) -> JSONResponse:
    """A rater's own figures and last verdicts."""
    progress = store.read(rater_stats.progress, account.name, time(), _recent(day))
    shown = store.read(review.mine, account.name)
    own = pages.fragment("_own.html", progress=progress)
    return JSONResponse({"own": own, "html": pages.fragment("_mine.html", progress=progress, rows=shown)})


@router.post("/rate/judge")
async def judge(account: Rater, store: TheStore, said: Verdict) -> JSONResponse:
    """Keep a verdict of a pair."""
    safety = Said(said.safety.side, said.safety.strength) if said.safety is not None else None
    given = Given(
        said.key,
        said.comparison,
        account.name,
        Said(said.side, said.strength),
        said.milliseconds,
        str(said.guideline),
        said.comment,
        safety,
        tuple(said.reasons),
        dict(said.criteria),
    )
    return _receipt(await _done(store.submit_write(verdicts.judge, given, time())))


@router.post("/rate/trial")
async def trial(account: Rater, store: TheStore, said: TrialVerdict) -> JSONResponse:
    """Record the verdict of a trial pair and tell whether it is right."""
    feedback = await _done(
        store.submit_write(trials.judge, account.name, said.comparison, said.attempt, said.side, time())
    )
    return JSONResponse(asdict(feedback))


@router.post("/rate/guidelines")
async def confirm(account: Rater, store: TheStore, confirmed: Confirmed) -> JSONResponse:
    """Record that a rater has read a version of the guidelines."""
    await _done(store.submit_write(acknowledgements.acknowledge, account.name, confirmed.version))
    return JSONResponse({"version": confirmed.version})


@router.post("/rate/rank")
async def rank(account: Rater, store: TheStore, said: Ranking) -> JSONResponse:
    """Keep an order of a group."""
    ranked = Ranked(
        said.key,
        said.comparison,
        account.name,
        tuple(said.places),
        said.milliseconds,
        str(said.guideline),
        said.comment,
    )
    return _receipt(await _done(store.submit_write(verdicts.rank, ranked, time())))


@router.post("/rate/skip")
async def skip(account: Rater, store: TheStore, left: Left) -> JSONResponse:
    """Leave a pair to others."""
    return _receipt(await _done(store.submit_write(verdicts.skip, left.comparison, account.name, time())))


@router.post("/rate/flag")
async def flag(account: Rater, store: TheStore, flagged: Flagged) -> JSONResponse:
    """Send a pair to the owner."""
    return _receipt(
        await _done(store.submit_write(verdicts.flag, flagged.comparison, account.name, flagged.reason, time()))
    )


@router.post("/rate/undo")
async def undo(account: Rater, store: TheStore, left: Left) -> JSONResponse:
    """Take back what was done with a pair, and see it again."""
    return _receipt(await _done(store.submit_write(verdicts.undo, left.comparison, account.name, time())))


@router.post("/rate/write")
async def write(account: Rater, store: TheStore, written: Written) -> JSONResponse:
    """Keep a better answer as a draft for the owner to approve."""
    fresh = await _done(store.submit_write(verdicts.write, written.key, written.comparison, account.name, written.text))
    return JSONResponse({"comparison": written.comparison, "again": not fresh})


@router.get("/rate/differences")
def differences(account: Rater, store: TheStore, comparison: Annotated[str, Query(max_length=300)]) -> dict[str, str]:
    """The pair that lies before a rater, with what differs marked."""
    seat = store.read(rating.held, comparison, account.name) or _trial_seat(store, comparison, account.name)
    if seat is None or seat.group:
        raise DataError(
            "This pair was not given to you", "differences are shown of the pair at hand", "load the page again"
        )
    left, right, manner = compared.differences(*store.read(rating.sheet, seat).answers)
    return {"left": left, "right": right, "manner": manner}


def _trial_seat(store: Store, comparison: str, rater: str) -> rating.Seat | None:
    found = store.read(lambda connection: trials.current(connection, rater, settings.read(connection)))
    return found.seat if found is not None and found.seat.comparison == comparison else None


async def _done(future: "Future[T]") -> T:
    return await asyncio.wrap_future(future)


def _receipt(receipt: Receipt) -> JSONResponse:
    return JSONResponse({"comparison": receipt.comparison, "judgements": receipt.judgements, "again": receipt.again})


def _recent(day: float | None) -> float | None:
    """The start of a day as a page tells it; not longer ago than any time zone allows."""
    return None if day is None else max(day, time() - TWO_DAYS)


async def _look(store: Store, rater: str, day: float | None = None) -> dict[str, Any]:
    """What a rater sees now. Short texts are rendered on the spot, for a change of threads costs more than that;
    long ones aside."""
    view = await _done(store.submit_write(rater_stats.view, rater, time(), _recent(day)))
    long = view.sheet is not None and sum(map(len, (view.sheet.prompt, *view.sheet.answers))) > SHORT
    return await run_in_threadpool(_shown, view) if long else _shown(view)


def _shown(view: View) -> dict[str, Any]:
    """What the page needs: the sheet as HTML, what undo would take back, and the rater's own figures."""
    told: dict[str, Any] = {"last": view.last[0] if view.last else "", "last_was": view.last[1] if view.last else ""}
    told["own"] = pages.fragment("_own.html", progress=view.progress)
    guideline = view.guideline
    told |= {
        "guideline": guideline.version,
        "guidelines": text.markdown(guideline.text) if guideline.text else "",
        "acknowledged": view.acknowledged,
    }
    sheet = view.sheet
    if sheet is None:
        title, message = NOTHING[view.why]
        return told | {
            "state": view.why,
            "comparison": "",
            "html": pages.fragment("_nothing.html", title=title, message=message),
        }
    html = pages.fragment("_sheet.html", sheet=sheet, turns=text.turns(sheet.prompt), trial=view.trial)
    state = "trial" if view.trial is not None else "ranking" if sheet.ranking else "pair"
    told |= {"state": state, "comparison": sheet.comparison, "answers": len(sheet.answers), "html": html}
    return told | {"attempt": view.trial.attempt if view.trial is not None else 0}
