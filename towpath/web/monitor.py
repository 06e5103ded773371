"""The live monitor: curves of a run while it goes on, samples of its answers, and runs side by side."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from secrets import token_hex
from threading import Thread
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from towpath.errors import DataError
from towpath.run.live_record import LiveRun, LiveStage
from towpath.run.metric_columns import PHASES, Columns
from towpath.run.record import TRAINING_STAGES
from towpath.run.samples import PromptSamples, Sort
from towpath.view.live import compare as comparing
from towpath.view.live import curves
from towpath.view.live.headline import stage_headline
from towpath.view.live.layout import Line
from towpath.view.live.marks import stage_marks
from towpath.view.report.frontier import best_of_n_curve
from towpath.web import pages, safe_html
from towpath.web.auth import StatsViewer
from towpath.web.error_responses import RateLimited
from towpath.web.limits import MAX_STREAMS, OpenStreams

router = APIRouter(prefix="/monitor")

TICK = 0.4
"""Seconds between two looks at the run's files while someone watches."""
PULSE = 5
"""Ticks after which the page hears that it is still connected."""
AT_ONCE = 400
"""New rows that are sent as they are; more are drawn anew."""
SQUEEZED = 20_000
END = 2**40
"""A step that no run comes to."""
_SERVER = token_hex(4)


def begin(app: FastAPI, run: Path | None, assignments: Sequence[str] = ()) -> None:
    """Which run these pages show. It is read at once, so that the first visitor need not wait for a long one."""
    app.state.run = run
    app.state.beside = {}
    app.state.watched = LiveRun(run, assignments) if run else None
    if app.state.watched:
        Thread(target=app.state.watched.refresh, daemon=True).start()


def known(request: Request) -> LiveRun:
    """The run of this server, as it was last read where it is being read just now. Everyone who watches shares it."""
    run = request.app.state.watched
    if run is None:
        raise DataError("no run", "these pages show a run's folder", "`towpath serve RUN`")
    run.refresh(wait=False)
    return run


def watched(request: Request) -> LiveRun:
    """The run of this server, read as it is now."""
    run = known(request)
    run.refresh()
    return run


TheRun = Annotated[LiveRun, Depends(watched)]
Name = Annotated[str, Query(max_length=200)]
Buckets = Annotated[int, Query(ge=16, le=2000)]
Step = Annotated[int, Query(ge=0, le=END)]


def _stage(run: LiveRun, name: str) -> LiveStage:
    if name not in run.stages:
        raise DataError(
            f"{name!r}: no such stage", "a stage of this run that trains", "choose one of " + ", ".join(run.stages)
        )
    return run.stages[name]


def _json(request: Request, content: Any) -> Response:
    """JSON; large answers are squeezed where the browser can read that."""
    body = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    if len(body) < SQUEEZED or "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(body, media_type="application/json")
    return Response(gzip.compress(body, 1), media_type="application/json", headers={"content-encoding": "gzip"})


# ---- the page of one run


@router.get("")
def monitor(
    request: Request, account: StatsViewer, run: Annotated[LiveRun, Depends(known)], stage: Name = ""
) -> HTMLResponse:
    """The curves of one stage; the page comes before a long file is read, and asks for them."""
    name = stage if stage in run.stages else run.current_stage()
    stages = [{"name": one, "state": run.state(one)} for one in run.stages]
    return pages.render_page(request, "monitor.html", account, stage=name, stages=stages, run=run)


@router.get("/curves")
def drawn(
    request: Request,
    account: StatsViewer,
    run: TheRun,
    stage: Name,
    low: Step = 0,
    high: Step = END,
    buckets: Buckets = 240,
    smooth: bool = False,
) -> Response:
    """Every chart of a stage between two steps, and all else the page shows."""
    with run.lock:
        training = _stage(run, stage)
        metrics = training.metrics
        groups = curves.stage_charts(metrics, training.facts(run.settings), low, high, buckets, smooth)
        told = {"stage": stage, "groups": groups, "cursor": _cursor(training)} | _ends(
            [metrics.train, metrics.validation]
        )
        return _json(request, told | {"state": _state(run, stage), "marks": _marks(run, training)})


def _ends(several: Iterable[Columns]) -> dict[str, int]:
    """The first and the last step of all; both 0 before anything was told."""
    told = [columns for columns in several if columns.count]
    return {
        "first": min((int(columns.steps[0]) for columns in told), default=0),
        "last": max((columns.last for columns in told), default=0),
    }


@router.get("/step")
def at_step(request: Request, account: StatsViewer, run: TheRun, stage: Name, step: Step) -> Response:
    """Everything that was told at the step of training nearest to this one, and at the last look before its end."""
    with run.lock:
        metrics = _stage(run, stage).metrics
        found: dict[str, Any] = {}
        positions = {"train": _nearest(metrics.train, step), "validation": _before(metrics.validation, step)}
        for phase in PHASES:
            nearest = positions[phase]
            if nearest is not None:
                row = {
                    name: value if np.isfinite(value) else str(value)
                    for name, value in metrics.of_phase(phase).row(nearest).items()
                }
                found[phase] = {"step": int(metrics.of_phase(phase).steps[nearest]), "numbers": row}
        return _json(request, found)


def _nearest(columns: Columns, step: int) -> int | None:
    return int(np.abs(columns.steps - step).argmin()) if columns.count else None


def _before(columns: Columns, step: int) -> int | None:
    place = int(np.searchsorted(columns.steps, step, side="right"))
    return place - 1 if place else None


@router.get("/events")
async def events(request: Request, account: StatsViewer, stage: Name, after: Name = "") -> StreamingResponse:
    """What is new, as it comes: a stream that the browser takes up again by itself."""
    run = await run_in_threadpool(watched, request)
    _stage(run, stage)
    seen = request.headers.get("last-event-id") or after
    streams: OpenStreams = request.app.state.streams
    if streams.is_full(account.name):
        raise RateLimited(f"{MAX_STREAMS} pages of this account already follow a run live; close one.", 60)

    async def counted() -> AsyncIterator[str]:
        with streams.open(account.name):
            async for event in _stream(request, run, stage, seen):
                yield event

    return StreamingResponse(counted(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


async def _stream(request: Request, run: LiveRun, stage: str, seen: str) -> AsyncIterator[str]:
    said: dict[str, str] = {}
    stopping = getattr(request.app.state, "stopping", lambda: False)
    tick = 0
    yield "retry: 1000\n\n"
    while not stopping():
        if tick % PULSE == 0:
            # An account that was closed sees no more; a server without accounts asks nobody again.
            if await request.app.state.auth.session_account(request) is None:
                return
            yield "event: pulse\ndata: \n\n"
        news, seen = await run_in_threadpool(_news, run, stage, seen, said)
        for name, data in news:
            yield f"id: {seen}\nevent: {name}\ndata: {data}\n\n"
        tick += 1
        await asyncio.sleep(TICK)


def _news(run: LiveRun, stage: str, seen: str, said: dict[str, str]) -> tuple[list[tuple[str, str]], str]:
    """Events since a cursor, and the cursor after them; `said` is what this page was told last."""
    run.refresh()
    with run.lock:
        training = run.stages.get(stage)
        if training is None:
            return [("again", "{}")] if said.get("again") != "gone" and not said.update(again="gone") else [], seen
        now = _cursor(training)
        found = []
        if now != seen:
            rows = list(_rows_after(training, seen, now))
            found.append(("rows", json.dumps(rows, allow_nan=False)) if rows else ("again", "{}"))
        for name, content in (("state", _state(run, stage)), ("marks", _marks(run, training))):
            data = json.dumps(content, allow_nan=False)
            if said.get(name) != data:
                said[name] = data
                found.append((name, data))
        return found, now


def _cursor(training: LiveStage) -> str:
    """How much was told: of which server, folder and generation, and how many rows of each phase."""
    metrics = training.metrics
    return f"{_SERVER}.{training.folder.name}.{metrics.generation}/{metrics.train.count}/{metrics.validation.count}"


def _rows_after(training: LiveStage, seen: str, now: str) -> Iterator[dict[str, Any]]:
    """The rows between two cursors; none where they cannot be told one by one."""
    (mark, *before), (ours, *after) = seen.split("/"), now.split("/")
    if mark != ours or len(before) != 2 or not all(word.isdecimal() for word in before):
        return
    ranges = [range(int(begin), int(end)) for begin, end in zip(before, after, strict=True)]
    if sum(map(len, ranges)) > AT_ONCE:
        return
    for phase, places in zip(PHASES, ranges, strict=True):
        columns = training.metrics.of_phase(phase)
        for place in places:
            numbers = {name: float(f"{value:.6g}") for name, value in columns.row(place).items() if np.isfinite(value)}
            yield {"step": int(columns.steps[place]), "phase": phase, "numbers": numbers}


def _state(run: LiveRun, stage: str) -> dict[str, Any]:
    return {
        "headline": [asdict(number) for number in stage_headline(run, stage)],
        "stages": {name: run.state(name) for name in run.stages},
        "waiting_for": run.waiting_for,
    }


def _marks(run: LiveRun, training: LiveStage) -> dict[str, Any]:
    own = {(row.get("code"), row.get("evidence")) for row in training.findings}
    other = [row for row in run.findings if (row.get("code"), row.get("evidence")) not in own]
    return {
        "marks": stage_marks(training),
        "findings": training.findings,
        "other": other,
        "interventions": training.interventions,
    }


# ---- samples


@router.get("/samples")
def samples_page(request: Request, account: StatsViewer, run: TheRun, stage: Name = "") -> HTMLResponse:
    """The same prompts, answered by one model after another."""
    with run.lock:
        name = _policy(run, stage)
        samples = run.stages[name].samples if name else None
        rounds = [one for one in run.stages if one.startswith("policy")]
        return pages.render_page(
            request,
            "samples.html",
            account,
            stage=name,
            stages=rounds,
            domains=samples.domains if samples else [],
            count=len(samples.prompts) if samples else 0,
        )


def _policy(run: LiveRun, stage: str) -> str:
    names = [name for name in run.stages if name.startswith("policy")]
    begun = [name for name in names if run.stages[name].samples.prompts]
    return stage if stage in names else (begun or names or [""])[-1]


@router.get("/samples/list")
def listed(
    request: Request, account: StatsViewer, run: TheRun, stage: Name, domain: Name = "", sort: Sort = "order"
) -> Response:
    """Prompts with what their reward came from and went to."""
    with run.lock:
        return _json(request, [_short(asked) for asked in _stage(run, stage).samples.sorted_prompts(domain, sort)])


def _short(asked: PromptSamples) -> dict[str, Any]:
    told = " ".join(asked.prompt.split())[:160]
    return {
        "id": asked.id,
        "prompt": told,
        "domain": asked.domain,
        "change": asked.change,
        "answers": len(asked.answers),
    }


@router.get("/samples/prompt")
def one_prompt(
    request: Request, account: StatsViewer, run: TheRun, stage: Name, id: Annotated[str, Query(max_length=2000)]
) -> Response:
    """One prompt and every answer to it."""
    with run.lock:
        asked = _asked(run, stage, id)
        versions = [
            {"key": v.key, "label": v.label, "text": v.text, "scores": v.scores, "reward": v.reward}
            for v in asked.answers
        ]
        return _json(
            request,
            {
                "id": asked.id,
                "prompt": asked.prompt,
                "domain": asked.domain,
                "change": asked.change,
                "versions": versions,
            },
        )


@router.get("/samples/differences")
def differing(
    request: Request,
    account: StatsViewer,
    run: TheRun,
    stage: Name,
    id: Annotated[str, Query(max_length=2000)],
    left: Name,
    right: Name,
) -> Response:
    """Two answers with the words marked that the other has not."""
    with run.lock:
        told = {version.key: version.text for version in _asked(run, stage, id).answers}
    if left not in told or right not in told:
        raise DataError(f"{left}, {right}: no such answers", "answers to this prompt", "choose two of the list")
    one, two = safe_html.text_diff(told[left], told[right])
    return _json(request, {"left": one, "right": two})


def _asked(run: LiveRun, stage: str, name: str) -> PromptSamples:
    asked = _stage(run, stage).samples.prompts.get(name)
    if asked is None:
        raise DataError(f"{name!r}: no such prompt", "a prompt that was answered", "choose one of the list")
    return asked


# ---- runs side by side


def _beside(request: Request, run: LiveRun, asked: list[str]) -> dict[str, LiveRun]:
    """The runs that are asked for, each read once for all who look. Only names that lie beside the run are known."""
    state = request.app.state
    found = {}
    own = run.run.resolve()
    for name in comparing.selected_runs(comparing.sibling_runs(run.run), asked):
        if name == own.name:
            found[name] = run
            continue
        found[name] = state.beside.setdefault(name, LiveRun(own.parent / name))
        found[name].refresh()
    return found


Runs = Annotated[list[str] | None, Query(max_length=200)]


@router.get("/compare")
def compare(
    request: Request,
    account: StatsViewer,
    run: TheRun,
    runs: Runs = None,
    stage: Literal["sft", "reward", "policy"] = "policy",
    names: Runs = None,
) -> HTMLResponse:
    """Curves of several runs in one picture, what their recipes say differently, how they ended, and the frontier."""
    chosen = _beside(request, run, runs or [])
    known = comparing.metric_names(chosen.values(), stage)
    shown = (
        [name for name in names or [] if name in known]
        or [name for name in ("reward", "kl", "loss", "accuracy") if name in known]
        or known[:2]
    )
    endings = {name: comparing.final_numbers(one) for name, one in chosen.items()}
    rows = list(dict.fromkeys(label for told in endings.values() for label, _ in told))
    return pages.render_page(
        request,
        "compare.html",
        account,
        listed=comparing.sibling_runs(run.run),
        chosen=list(chosen),
        stage=stage,
        stages=TRAINING_STAGES,
        known=known,
        shown=shown,
        differing=comparing.by_section(
            comparing.differences({name: comparing.settings(one) for name, one in chosen.items()})
        ),
        endings=[(label, [dict(endings[name]).get(label, "–") for name in chosen]) for label in rows],
        most=comparing.MAX_RUNS,
    )


@router.get("/compare/curves")
def overlaid(
    request: Request,
    account: StatsViewer,
    run: TheRun,
    stage: Literal["sft", "reward", "policy"],
    names: Runs = None,
    runs: Runs = None,
    low: Step = 0,
    high: Step = END,
    buckets: Buckets = 240,
    smooth: bool = False,
) -> Response:
    """One chart for each name, one line for each run."""
    chosen = _beside(request, run, runs or [])
    stages = {name: found for name, one in chosen.items() if (found := _latest(one, stage))}
    charts = []
    shown = []
    for name in names or []:
        lines = []
        for run_name, training in stages.items():
            tone = list(chosen).index(run_name)
            for phase in PHASES:
                columns = training.metrics.of_phase(phase)
                if name in columns.names:
                    shown.append(columns)
                    label = run_name if phase == "train" else f"{run_name}, held out"
                    with chosen[run_name].lock:
                        lines.append(curves.curve(Line(name, label, phase, tone), columns, low, high, buckets, smooth))
        if lines:
            charts.append({"key": name, "title": name, "form": "number", "log": True, "guides": [], "lines": lines})
    return _json(request, _ends(shown) | {"groups": [{"title": "", "charts": charts}]})


def _latest(run: LiveRun, kind: str) -> LiveStage | None:
    found = [training for training in run.stages.values() if training.kind == kind and training.metrics.train.count]
    return found[-1] if found else None


@router.get("/compare/frontier")
def frontier(
    request: Request, account: StatsViewer, run: TheRun, runs: Runs = None, by: Literal["win", "reward"] = "win"
) -> Response:
    """Distance and gain of every look at held-out prompts, beside the best of n."""
    chosen = _beside(request, run, runs or [])
    points = [
        asdict(point) | {"tone": tone}
        for tone, (name, one) in enumerate(chosen.items())
        for point in comparing.frontier(name, one, by)
    ]
    end = max([1.6, *(1.15 * point["kl"] for point in points)])
    return _json(
        request,
        {"by": by, "runs": list(chosen), "points": points, "reference": best_of_n_curve(end) if by == "win" else []},
    )
