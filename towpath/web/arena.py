"""The owner's pages of arenas: one begun, how it stands while people judge, and pairs on which the reward model
contradicts people."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from towpath.arena import matches
from towpath.errors import DataError
from towpath.store import arenas, audit
from towpath.store.store import Store
from towpath.web import pages
from towpath.web.auth import Owner, TheStore

router = APIRouter(prefix="/arena")

Name = Annotated[str, Form(max_length=300)]
Percent = Annotated[float, Form(ge=0, le=100)]
PAUSE = 1.0
"""Seconds between two looks at whether an arena is decided, however fast people judge."""
SHOWN = 200
REASON = "disagreement"


@dataclass
class Looks:
    """When arenas were last looked at."""

    at: float = 0.0
    lock: Lock = field(default_factory=Lock)

    def due(self) -> bool:
        """Whether it is time again; then it counts as done."""
        with self.lock:
            late = monotonic() - self.at >= PAUSE
            self.at = monotonic() if late else self.at
            return late


async def watched(request: Request, store: TheStore) -> AsyncIterator[None]:
    """After a verdict the open arenas are looked at, so that one which is decided asks nobody any more."""
    yield
    if request.url.path in ("/rate/judge", "/rate/next") and request.app.state.looks.due():
        await run_in_threadpool(matches.settle, store)


def folder(request: Request, store: Store) -> Path | None:
    """The run's folder; None where the ledger is a server's and nobody said which run it belongs to."""
    return getattr(request.app.state, "run", None) or store.folder


@router.get("")
def overview(request: Request, account: Owner, store: TheStore) -> HTMLResponse:
    """The arenas so far, and a new one."""
    run = folder(request, store)
    known = list(matches.sources(run)) if run else []
    return pages.page(request, "arena.html", account, arenas=store.read(arenas.arenas), sources=known)


@router.post("")
def begin(
    request: Request,
    account: Owner,
    store: TheStore,
    one: Name,
    other: Name,
    prompts: Annotated[int, Form(ge=0, le=100_000)] = 0,
    threshold: Percent = 70,
    overlap: Percent = 20,
) -> Response:
    """Put the answers of two models to the same prompts in the raters' queue."""
    run = folder(request, store)
    if run is None:
        raise DataError(
            "the run's folder is not known here", "answers lie in it", "`towpath arena start RUN` begins an arena"
        )
    made = matches.begin(store, run, matches.Terms(one, other, prompts, threshold / 100, overlap / 100), account.name)
    store.submit_write(
        audit.record, account.name, "begin arena", str(made.number), after={"one": one, "other": other}
    ).result()
    return _to(made.number)


@router.get("/disagreements")
def disagreements(request: Request, account: Owner, store: TheStore, returned: int | None = None) -> HTMLResponse:
    """Labelled pairs on which the reward model prefers the other answer, the surest first."""
    run = folder(request, store)
    rows = matches.disagreements(run)[:SHOWN] if run else []
    return pages.page(request, "arena_disagreements.html", account, rows=rows, returned=returned)


@router.post("/disagreements")
def ask_again(
    request: Request, account: Owner, store: TheStore, comparison: Annotated[list[str] | None, Form()] = None
) -> Response:
    """Ask one more rater about these pairs."""
    run = folder(request, store)
    known = {row["comparison"]: row["domain"] for row in (matches.disagreements(run) if run else [])}
    wanted = [(name, known[name]) for name in comparison or [] if name in known]
    count = store.submit_write(arenas.ask_again, wanted, REASON).result()
    return RedirectResponse(f"/arena/disagreements?returned={count}", 303)


@router.get("/{number}")
def one(request: Request, account: Owner, store: TheStore, number: int) -> HTMLResponse:
    """How an arena stands."""
    return pages.page(request, "arena_one.html", account, **_told(store, number))


@router.get("/{number}/live")
def live(account: Owner, store: TheStore, number: int) -> HTMLResponse:
    """The same as it is now, for the page that is open."""
    return HTMLResponse(pages.fragment("_arena.html", account=account, **_told(store, number)))


@router.post("/{number}/stop")
def stop(account: Owner, store: TheStore, number: int) -> Response:
    """End an arena before it is decided."""
    matches.stop(store, number)
    store.submit_write(audit.record, account.name, "stop arena", str(number)).result()
    return _to(number)


def _told(store: Store, number: int) -> dict[str, Any]:
    matches.settle(store)
    found = matches.standing(store, number)
    records = [("People", found.people), *found.judges.items()]
    sentence = _capital(matches.sentence(found.people))
    told = {
        "found": found,
        "arena": found.arena,
        "records": records,
        "sentence": sentence,
        "hint": matches.hint(found.people),
    }
    return told | {"pairs": matches.revealed(store, number)}


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _to(number: int) -> Response:
    return RedirectResponse(f"/arena/{number}", 303)
