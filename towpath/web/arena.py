"""The owner's arena pages: create an arena, watch its win rate, and return pairs on which the reward model contradicts
people."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from towpath.arena.leaderboard_row import format_record, leaderboard_row, prompts_to_decide
from towpath.arena.matches import ArenaSpec, close_decided, reveal_comparisons, stop_arena
from towpath.errors import DataError
from towpath.run.answer_sources import answer_sources, reward_model_disagreements, start_arena
from towpath.store import arenas, audit
from towpath.store.store import Store
from towpath.web import pages
from towpath.web.auth import Owner, StoreDependency

router = APIRouter(prefix="/arena")

Name = Annotated[str, Form(max_length=300)]
Percent = Annotated[float, Form(ge=0, le=100)]
CHECK_INTERVAL = 1.0
"""Seconds between two checks whether an arena is decided."""
MAX_LISTED = 200
REASON = "disagreement"


@dataclass
class DecisionCheck:
    """Limits how often open arenas are checked."""

    last_check: float = 0.0
    lock: Lock = field(default_factory=Lock)

    def is_due(self) -> bool:
        """Return whether a check is due, and count it as done."""
        with self.lock:
            late = monotonic() - self.last_check >= CHECK_INTERVAL
            self.last_check = monotonic() if late else self.last_check
            return late


async def close_decided_arenas(request: Request, store: StoreDependency) -> AsyncIterator[None]:
    """After a verdict, close decided arenas, so that raters get no more of their pairs."""
    yield
    if request.url.path in ("/rate/judge", "/rate/next") and request.app.state.decision_check.is_due():
        await run_in_threadpool(close_decided, store)


def run_folder(request: Request, store: Store) -> Path | None:
    """Return the run's folder; None if only a database server is known."""
    return getattr(request.app.state, "run", None) or store.folder


@router.get("")
def overview(request: Request, account: Owner, store: StoreDependency) -> HTMLResponse:
    """List arenas, with the form for a new one."""
    run = run_folder(request, store)
    known = list(answer_sources(run)) if run else []
    return pages.render_page(request, "arena.html", account, arenas=store.read(arenas.list_arenas), sources=known)


@router.post("")
def create(
    request: Request,
    account: Owner,
    store: StoreDependency,
    one: Name,
    other: Name,
    prompts: Annotated[int, Form(ge=0, le=100_000)] = 0,
    threshold: Percent = 70,
    overlap: Percent = 20,
) -> Response:
    """Create an arena of two models' answers to the same prompts."""
    run = run_folder(request, store)
    if run is None:
        raise DataError(
            "the run's folder is unknown",
            "an arena reads answers from the run's folder",
            "use `towpath arena start RUN`",
        )
    spec = ArenaSpec(one, other, prompts, threshold / 100, overlap / 100)
    made = start_arena(store, run, spec, account.name)
    store.submit_write(
        audit.record, account.name, "start arena", str(made.number), after={"one": one, "other": other}
    ).result()
    return _redirect(made.number)


@router.get("/disagreements")
def disagreements(
    request: Request, account: Owner, store: StoreDependency, returned: int | None = None
) -> HTMLResponse:
    """List labelled pairs that the reward model contradicts, most confident first."""
    run = run_folder(request, store)
    rows = reward_model_disagreements(run)[:MAX_LISTED] if run else []
    return pages.render_page(request, "arena_disagreements.html", account, rows=rows, returned=returned)


@router.post("/disagreements")
def ask_again(
    request: Request, account: Owner, store: StoreDependency, comparison: Annotated[list[str] | None, Form()] = None
) -> Response:
    """Request one more judgement for these pairs."""
    run = run_folder(request, store)
    known = {row["comparison"]: row["domain"] for row in (reward_model_disagreements(run) if run else [])}
    wanted = [(name, known[name]) for name in comparison or [] if name in known]
    count = store.submit_write(arenas.request_more_judgements, wanted, REASON).result()
    return RedirectResponse(f"/arena/disagreements?returned={count}", 303)


@router.get("/{number}")
def arena_page(request: Request, account: Owner, store: StoreDependency, number: int) -> HTMLResponse:
    """Show an arena."""
    return pages.render_page(request, "arena_one.html", account, **_arena_context(store, number))


@router.get("/{number}/live")
def arena_fragment(account: Owner, store: StoreDependency, number: int) -> HTMLResponse:
    """Return the current state of an arena for the open page."""
    return HTMLResponse(pages.render_fragment("_arena.html", account=account, **_arena_context(store, number)))


@router.post("/{number}/stop")
def stop(account: Owner, store: StoreDependency, number: int) -> Response:
    """Close an arena before it is decided."""
    stop_arena(store, number)
    store.submit_write(audit.record, account.name, "stop arena", str(number)).result()
    return _redirect(number)


def _arena_context(store: Store, number: int) -> dict[str, Any]:
    close_decided(store)
    row = leaderboard_row(store, number)
    return {
        "row": row,
        "arena": row.arena,
        "records": [("People", row.people), *row.judges.items()],
        "sentence": _capitalize(format_record(row.people)),
        "hint": prompts_to_decide(row.people),
        "pairs": reveal_comparisons(store, number),
    }


def _capitalize(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _redirect(number: int) -> Response:
    return RedirectResponse(f"/arena/{number}", 303)
