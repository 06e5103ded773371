"""The owner's pages: statistics, queues, settings, guidelines, gold, flags, export. Viewers see the statistics."""

import json
from collections.abc import Iterator
from time import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from towpath.records import Choice
from towpath.store import audit, people, rater_stats, rating_settings, takeouts, task_queue, verdicts
from towpath.store.store import Store
from towpath.store.task_queue import Gold
from towpath.web import pages, safe_html
from towpath.web.auth import Owner, StatsViewer, StoreDependency
from towpath.web.settings_form import SettingsForm

router = APIRouter(prefix="/owner")

Field = Annotated[str, Form(max_length=300)]
CHOICES: tuple[Choice, ...] = ("a", "b", "tie", "both_bad")


@router.get("")
def overview(request: Request, account: StatsViewer, store: StoreDependency) -> HTMLResponse:
    """Show rating statistics."""
    return pages.render_page(
        request, "owner.html", account, **_stats_context(request, store), removed=store.read(takeouts.list_retractions)
    )


@router.get("/stats")
def stats_fragment(request: Request, account: StatsViewer, store: StoreDependency) -> HTMLResponse:
    """Return the current statistics for the open page."""
    return HTMLResponse(pages.render_fragment("_stats.html", account=account, **_stats_context(request, store)))


def _stats_context(request: Request, store: Store) -> dict[str, Any]:
    stats = store.read(rater_stats.rating_stats, time())
    report = request.app.state.rater_reports.get(store)
    human_judgements = sum(rater.judgements for rater in stats.raters if rater.kind == "person")
    return {"stats": stats, "report": report, "human_judgements": human_judgements, "recent": rater_stats.RECENT_LEASES}


@router.get("/settings")
def settings_page(request: Request, account: Owner, store: StoreDependency, saved: bool = False) -> HTMLResponse:
    """Show settings and queues."""
    stats = store.read(rater_stats.rating_stats, time())
    golds = len(store.read(rater_stats.list_gold))
    return pages.render_page(
        request,
        "settings.html",
        account,
        settings=store.read(rating_settings.read),
        stats=stats,
        golds=golds,
        saved=saved,
    )


@router.post("/settings")
def save_settings(account: Owner, store: StoreDependency, form: Annotated[SettingsForm, Form()]) -> Response:
    """Save the settings."""
    store.submit_write(rating_settings.save, form.settings(), account.name).result()
    return _redirect("/owner/settings?saved=true")


@router.post("/queue")
def queue(account: Owner, store: StoreDependency, domain: Field, paused: Annotated[bool, Form()]) -> Response:
    """Pause or resume a domain."""
    action = "pause domain" if paused else "resume domain"
    store.submit_write(
        audit.run_audited,
        account.name,
        action,
        domain,
        {},
        lambda connection: task_queue.pause_domain(connection, domain, paused),
    ).result()
    return _redirect("/owner/settings")


@router.post("/rankings")
def rankings(account: Owner, store: StoreDependency, most: Annotated[int, Form(ge=1, le=10_000)]) -> Response:
    """Queue prompts with four to nine answers for ranking."""

    def work(connection: Any) -> int:
        return task_queue.add_groups(connection, task_queue.propose_groups(connection, most))

    store.submit_write(audit.run_audited, account.name, "queue rankings", "", {"at most": most}, work).result()
    return _redirect("/owner/settings")


@router.get("/guidelines")
def guidelines_page(request: Request, account: Owner, store: StoreDependency) -> HTMLResponse:
    """Show the guidelines and their versions."""
    versions = store.read(people.list_guidelines)
    html = safe_html.markdown(versions[0].text) if versions else ""
    return pages.render_page(request, "guidelines.html", account, versions=versions, shown=html)


@router.post("/guidelines")
def save_guidelines(
    account: Owner, store: StoreDependency, guidelines: Annotated[str, Form(max_length=100_000)]
) -> Response:
    """Add a version of the guidelines."""
    store.submit_write(people.add_guideline, guidelines.replace("\r\n", "\n").strip(), account.name).result()
    return _redirect("/owner/guidelines")


@router.get("/gold")
def gold_page(request: Request, account: Owner, store: StoreDependency) -> HTMLResponse:
    """Show gold pairs, and the owner's newest judgements as candidates."""
    return pages.render_page(
        request,
        "gold.html",
        account,
        golds=store.read(rater_stats.list_gold),
        mine=store.read(rater_stats.own_judgements, account.name),
        choices=CHOICES,
    )


@router.post("/gold")
def set_gold(
    account: Owner, store: StoreDependency, comparison: Field, choice: Annotated[Choice, Form()], note: Field = ""
) -> Response:
    """Make a pair gold, or change its answer."""
    gold = Gold(comparison, choice, note)
    after = {"choice": choice, "note": note}
    store.submit_write(
        audit.run_audited,
        account.name,
        "gold",
        comparison,
        after,
        lambda connection: task_queue.set_gold(connection, [gold]),
    ).result()
    return _redirect("/owner/gold")


@router.post("/gold/drop")
def remove_gold(account: Owner, store: StoreDependency, comparison: Field) -> Response:
    """Remove a gold pair."""
    store.submit_write(
        audit.run_audited,
        account.name,
        "remove gold",
        comparison,
        {},
        lambda connection: task_queue.remove_gold(connection, comparison),
    ).result()
    return _redirect("/owner/gold")


@router.get("/flags")
def flags_page(request: Request, account: Owner, store: StoreDependency) -> HTMLResponse:
    """Show flagged pairs."""
    return pages.render_page(request, "flags.html", account, flags=store.read(rater_stats.flagged_pairs))


@router.post("/flags")
def settle_flag(
    account: Owner,
    store: StoreDependency,
    comparison: Field,
    how: Annotated[Literal["rate", "returned", "dropped"], Form()],
) -> Response:
    """Judge a flagged pair, return it to the raters, or drop it."""
    if how == "rate":
        store.submit_write(verdicts.adjudicate, comparison, account.name, time()).result()
        return _redirect("/rate")
    store.submit_write(
        audit.run_audited,
        account.name,
        "flag",
        comparison,
        {"settled": how},
        lambda connection: verdicts.settle_flags(connection, comparison, how),
    ).result()
    return _redirect("/owner/flags")


@router.get("/export.jsonl")
def export(account: Owner, store: StoreDependency) -> StreamingResponse:
    """Export all judgements that are not retracted, with their texts, as JSON lines."""
    store.submit_write(audit.record, account.name, "export", "judgements.jsonl").result()
    headers = {"content-disposition": 'attachment; filename="judgements.jsonl"'}
    return StreamingResponse(_lines(store), media_type="application/x-ndjson", headers=headers)


def _lines(store: Store) -> Iterator[str]:
    after = 0
    while rows := store.read(rater_stats.judgement_rows, after):
        after = rows[-1]["number"]
        yield "".join(
            json.dumps({name: value for name, value in row.items() if name != "number"}, ensure_ascii=False) + "\n"
            for row in rows
        )


def _redirect(to: str) -> Response:
    return RedirectResponse(to, 303)
