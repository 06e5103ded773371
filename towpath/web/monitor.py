"""The live monitor: curves, findings and interventions of a running stage, updated by server-sent events."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from secrets import token_hex
from threading import Thread
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from towpath.errors import DataError
from towpath.run.live_record import LiveRun, LiveStage
from towpath.run.metric_columns import PHASES, Columns
from towpath.run.plan_record import progress_line
from towpath.view.live import curves
from towpath.view.live.headline import stage_headline
from towpath.view.live.marks import stage_marks
from towpath.view.live.workers import workers_panel
from towpath.web import pages
from towpath.web.auth import StatsViewer
from towpath.web.error_responses import RateLimited
from towpath.web.limits import MAX_STREAMS, OpenStreams

router = APIRouter(prefix="/monitor")

TICK = 0.4
"""Seconds between two reads of the run's files while a page is open."""
PULSE = 5
"""Ticks between two keep-alive events."""
MAX_EVENT_ROWS = 400
"""New rows that are sent one by one; with more the page reloads its curves."""
MIN_GZIP_BYTES = 20_000
LAST_STEP = 2**40
_SERVER = token_hex(4)
"""Identifies this server process in cursors."""


def open_run(app: FastAPI, run: Path | None, overrides: Sequence[str] = ()) -> None:
    """Set the run that the pages show, and start reading it, so that the first visitor does not wait."""
    app.state.run = run
    app.state.sibling_runs = {}
    app.state.live_run = LiveRun(run, overrides) if run else None
    if app.state.live_run:
        Thread(target=app.state.live_run.refresh, daemon=True).start()


def live_run(request: Request) -> LiveRun:
    """Return the run, shared by all visitors, as last read if it is being read now."""
    run = request.app.state.live_run
    if run is None:
        raise DataError("no run", "these pages show a run's folder", "`towpath serve RUN`")
    run.refresh(wait=False)
    return run


def current_run(request: Request) -> LiveRun:
    """Return the run, read completely."""
    run = live_run(request)
    run.refresh()
    return run


CurrentRun = Annotated[LiveRun, Depends(current_run)]
Name = Annotated[str, Query(max_length=200)]
Buckets = Annotated[int, Query(ge=16, le=2000)]
Step = Annotated[int, Query(ge=0, le=LAST_STEP)]


def require_stage(run: LiveRun, name: str) -> LiveStage:
    """Return a training stage of the run, or raise."""
    if name not in run.stages:
        raise DataError(
            f"{name!r}: no such stage", "a training stage of this run", "choose one of " + ", ".join(run.stages)
        )
    return run.stages[name]


def json_response(request: Request, content: Any) -> Response:
    """Return JSON, compressed if it is large and the browser accepts gzip."""
    body = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    if len(body) < MIN_GZIP_BYTES or "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(body, media_type="application/json")
    return Response(gzip.compress(body, 1), media_type="application/json", headers={"content-encoding": "gzip"})


@router.get("")
def monitor_page(
    request: Request, account: StatsViewer, run: Annotated[LiveRun, Depends(live_run)], stage: Name = ""
) -> HTMLResponse:
    """Show a stage; the page itself requests the curves, so that it does not wait for a long file."""
    name = stage if stage in run.stages else run.current_stage()
    stages = [{"name": one, "state": run.state(one)} for one in run.stages]
    return pages.render_page(request, "monitor.html", account, stage=name, stages=stages, run=run)


@router.get("/curves")
def stage_curves(
    request: Request,
    account: StatsViewer,
    run: CurrentRun,
    stage: Name,
    low: Step = 0,
    high: Step = LAST_STEP,
    buckets: Buckets = 240,
    smooth: bool = False,
) -> Response:
    """Return all charts of a stage between two steps, and the rest of the page's content."""
    with run.lock:
        training = require_stage(run, stage)
        metrics = training.metrics
        content = {
            "stage": stage,
            "groups": curves.stage_charts(metrics, training.facts(run.settings), low, high, buckets, smooth),
            "cursor": _cursor(training),
            "state": _state(run, stage),
            "marks": _marks(run, training),
        }
        return json_response(request, content | step_range([metrics.train, metrics.validation]))


def step_range(tables: Iterable[Columns]) -> dict[str, int]:
    """Return the first and last step of several tables; 0 without rows."""
    filled = [columns for columns in tables if columns.count]
    return {
        "first": min((int(columns.steps[0]) for columns in filled), default=0),
        "last": max((columns.last for columns in filled), default=0),
    }


@router.get("/step")
def metrics_at_step(request: Request, account: StatsViewer, run: CurrentRun, stage: Name, step: Step) -> Response:
    """Return all metrics at the nearest training step and at the last validation before it."""
    with run.lock:
        metrics = require_stage(run, stage).metrics
        positions = {"train": _nearest(metrics.train, step), "validation": _before(metrics.validation, step)}
        rows: dict[str, Any] = {}
        for phase in PHASES:
            position = positions[phase]
            if position is None:
                continue
            columns = metrics.of_phase(phase)
            numbers = {
                name: value if np.isfinite(value) else str(value) for name, value in columns.row(position).items()
            }
            rows[phase] = {"step": int(columns.steps[position]), "numbers": numbers}
        return json_response(request, rows)


def _nearest(columns: Columns, step: int) -> int | None:
    return int(np.abs(columns.steps - step).argmin()) if columns.count else None


def _before(columns: Columns, step: int) -> int | None:
    position = int(np.searchsorted(columns.steps, step, side="right"))
    return position - 1 if position else None


@router.get("/events")
async def events(request: Request, account: StatsViewer, stage: Name, after: Name = "") -> StreamingResponse:
    """Stream new rows and state; the browser reconnects by itself with its last event id."""
    run = await run_in_threadpool(current_run, request)
    require_stage(run, stage)
    cursor = request.headers.get("last-event-id") or after
    streams: OpenStreams = request.app.state.streams
    if streams.is_full(account.name):
        raise RateLimited(f"{MAX_STREAMS} pages of this account already follow a run live; close one.", 60)

    async def counted() -> AsyncIterator[str]:
        with streams.open(account.name):
            async for event in _stream(request, run, stage, cursor):
                yield event

    return StreamingResponse(counted(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


async def _stream(request: Request, run: LiveRun, stage: str, cursor: str) -> AsyncIterator[str]:
    sent: dict[str, str] = {}
    stopping = getattr(request.app.state, "stopping", lambda: False)
    tick = 0
    yield "retry: 1000\n\n"
    while not stopping():
        if tick % PULSE == 0:
            # The stream of a closed account ends.
            if await request.app.state.auth.session_account(request) is None:
                return
            yield "event: pulse\ndata: \n\n"
        new_events, cursor = await run_in_threadpool(_new_events, run, stage, cursor, sent)
        for name, data in new_events:
            yield f"id: {cursor}\nevent: {name}\ndata: {data}\n\n"
        tick += 1
        await asyncio.sleep(TICK)


def _new_events(run: LiveRun, stage: str, cursor: str, sent: dict[str, str]) -> tuple[list[tuple[str, str]], str]:
    """Return the events since a cursor, and the new cursor; `sent` holds the last data of each event."""
    run.refresh()
    with run.lock:
        training = run.stages.get(stage)
        if training is None:
            is_news = sent.get("again") != "gone"
            sent["again"] = "gone"
            return [("again", "{}")] if is_news else [], cursor
        now = _cursor(training)
        new_events = []
        if now != cursor:
            rows = list(_rows_between(training, cursor, now))
            new_events.append(("rows", json.dumps(rows, allow_nan=False)) if rows else ("again", "{}"))
        for name, content in (("state", _state(run, stage)), ("marks", _marks(run, training))):
            data = json.dumps(content, allow_nan=False)
            if sent.get(name) != data:
                sent[name] = data
                new_events.append((name, data))
        return new_events, now


def _cursor(training: LiveStage) -> str:
    """Return a cursor: server, folder and generation, and the number of rows of each phase."""
    metrics = training.metrics
    return f"{_SERVER}.{training.folder.name}.{metrics.generation}/{metrics.train.count}/{metrics.validation.count}"


def _rows_between(training: LiveStage, cursor: str, now: str) -> Iterator[dict[str, Any]]:
    """Yield the rows between two cursors; none if the page must reload."""
    (generation, *before), (current, *after) = cursor.split("/"), now.split("/")
    if generation != current or len(before) != 2 or not all(word.isdecimal() for word in before):
        return
    ranges = [range(int(begin), int(end)) for begin, end in zip(before, after, strict=True)]
    if sum(map(len, ranges)) > MAX_EVENT_ROWS:
        return
    for phase, positions in zip(PHASES, ranges, strict=True):
        columns = training.metrics.of_phase(phase)
        for position in positions:
            row = columns.row(position)
            numbers = {name: float(f"{value:.6g}") for name, value in row.items() if np.isfinite(value)}
            yield {"step": int(columns.steps[position]), "phase": phase, "numbers": numbers}


def _state(run: LiveRun, stage: str) -> dict[str, Any]:
    return {
        "headline": [asdict(number) for number in stage_headline(run, stage)],
        "stages": {name: run.state(name) for name in run.stages},
        "waiting_for": run.waiting_for,
        "time": progress_line(run.progress) if run.progress else "",
        "workers": _workers(run, stage),
    }


def _workers(run: LiveRun, stage: str) -> dict[str, Any] | None:
    panel = workers_panel(run.stages[stage], run.state(stage))
    return asdict(panel) if panel else None


def _marks(run: LiveRun, training: LiveStage) -> dict[str, Any]:
    own = {(row.get("code"), row.get("evidence")) for row in training.findings}
    other = [row for row in run.findings if (row.get("code"), row.get("evidence")) not in own]
    return {
        "marks": stage_marks(training),
        "findings": training.findings,
        "other": other,
        "interventions": training.interventions,
    }
