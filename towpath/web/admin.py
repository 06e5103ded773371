"""The owner's pages: figures, queues, guidelines, gold, flags, export. Viewers see the figures."""

import json
from collections.abc import Iterator
from time import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from towpath.records import Choice
from towpath.store import audit, people, rater_stats, rating, settings, takeouts, verdicts
from towpath.store.rating import Gold
from towpath.store.store import Store
from towpath.web import pages, text
from towpath.web.auth import Onlooker, Owner, TheStore
from towpath.web.settings_form import SettingsForm

router = APIRouter(prefix="/owner")

Field = Annotated[str, Form(max_length=300)]
CHOICES: tuple[Choice, ...] = ("a", "b", "tie", "both_bad")


@router.get("")
def overview(request: Request, account: Onlooker, store: TheStore) -> HTMLResponse:
    """How the rating goes."""
    return pages.page(request, "owner.html", account, **_figures(request, store), removed=store.read(takeouts.takeouts))


@router.get("/figures")
def live(request: Request, account: Onlooker, store: TheStore) -> HTMLResponse:
    """The same figures as they are now, for the page that is open."""
    return HTMLResponse(pages.fragment("_figures.html", account=account, **_figures(request, store)))


def _figures(request: Request, store: Store) -> dict[str, Any]:
    found = store.read(rater_stats.figures, time())
    report = request.app.state.concerns.of(store)
    people_said = sum(rater.judged for rater in found.raters if rater.kind == "person")
    return {"figures": found, "report": report, "people_said": people_said, "recent": rater_stats.RECENT}


@router.get("/settings")
def settings_page(request: Request, account: Owner, store: TheStore, saved: bool = False) -> HTMLResponse:
    """Pause, overlap, gold, budget, what raters are asked, and the queues."""
    found = store.read(rater_stats.figures, time())
    golds = len(store.read(rater_stats.golds))
    return pages.page(
        request, "settings.html", account, settings=store.read(settings.read), figures=found, golds=golds, saved=saved
    )


@router.post("/settings")
def put_settings(account: Owner, store: TheStore, form: Annotated[SettingsForm, Form()]) -> Response:
    """Set them."""
    store.submit_write(settings.put, form.settings(), account.name).result()
    return _back("/owner/settings?saved=true")


@router.post("/queue")
def queue(account: Owner, store: TheStore, domain: Field, paused: Annotated[bool, Form()]) -> Response:
    """Hold a domain back, or let it go on."""
    action = "pause domain" if paused else "resume domain"
    store.submit_write(
        audit.recorded, account.name, action, domain, {}, lambda connection: rating.pause(connection, domain, paused)
    ).result()
    return _back("/owner/settings")


@router.post("/rankings")
def rankings(account: Owner, store: TheStore, most: Annotated[int, Form(ge=1, le=10_000)]) -> Response:
    """Put prompts with four to nine answers in the queue, to be ranked."""

    def work(connection: Any) -> int:
        return rating.add_groups(connection, rating.proposed_groups(connection, most))

    store.submit_write(audit.recorded, account.name, "queue rankings", "", {"at most": most}, work).result()
    return _back("/owner/settings")


@router.get("/guidelines")
def guidelines_page(request: Request, account: Owner, store: TheStore) -> HTMLResponse:
    """The guidelines and their versions."""
    versions = store.read(people.guidelines)
    shown = text.markdown(versions[0].text) if versions else ""
    return pages.page(request, "guidelines.html", account, versions=versions, shown=shown)


@router.post("/guidelines")
def put_guidelines(account: Owner, store: TheStore, guidelines: Annotated[str, Form(max_length=100_000)]) -> Response:
    """A new version."""
    store.submit_write(people.put_guideline, guidelines.replace("\r\n", "\n").strip(), account.name).result()
    return _back("/owner/guidelines")


@router.get("/gold")
def gold_page(request: Request, account: Owner, store: TheStore) -> HTMLResponse:
    """Pairs whose answer is known, and the owner's newest judgements, which could be."""
    return pages.page(
        request,
        "gold.html",
        account,
        golds=store.read(rater_stats.golds),
        mine=store.read(rater_stats.newest_of, account.name),
        choices=CHOICES,
    )


@router.post("/gold")
def put_gold(
    account: Owner, store: TheStore, comparison: Field, choice: Annotated[Choice, Form()], note: Field = ""
) -> Response:
    """Make a pair gold, or change what is right."""
    gold = Gold(comparison, choice, note)
    after = {"choice": choice, "note": note}
    store.submit_write(
        audit.recorded, account.name, "gold", comparison, after, lambda connection: rating.put_gold(connection, [gold])
    ).result()
    return _back("/owner/gold")


@router.post("/gold/drop")
def drop_gold(account: Owner, store: TheStore, comparison: Field) -> Response:
    """A pair is gold no longer."""
    store.submit_write(
        audit.recorded,
        account.name,
        "remove gold",
        comparison,
        {},
        lambda connection: rating.drop_gold(connection, comparison),
    ).result()
    return _back("/owner/gold")


@router.get("/flags")
def flags_page(request: Request, account: Owner, store: TheStore) -> HTMLResponse:
    """Pairs with which something is wrong."""
    return pages.page(request, "flags.html", account, flags=store.read(rater_stats.flagged))


@router.post("/flags")
def settle(
    account: Owner, store: TheStore, comparison: Field, how: Annotated[Literal["rate", "returned", "dropped"], Form()]
) -> Response:
    """Judge a flagged pair oneself, return it to the raters, or drop it."""
    if how == "rate":
        store.submit_write(verdicts.adjudicate, comparison, account.name, time()).result()
        return _back("/rate")
    store.submit_write(
        audit.recorded,
        account.name,
        "flag",
        comparison,
        {"settled": how},
        lambda connection: verdicts.settle_flags(connection, comparison, how),
    ).result()
    return _back("/owner/flags")


@router.get("/export.jsonl")
def export(account: Owner, store: TheStore) -> StreamingResponse:
    """Every judgement that stands, with the texts it is about, as JSON lines."""
    store.submit_write(audit.record, account.name, "export", "judgements.jsonl").result()
    headers = {"content-disposition": 'attachment; filename="judgements.jsonl"'}
    return StreamingResponse(_lines(store), media_type="application/x-ndjson", headers=headers)


def _lines(store: Store) -> Iterator[str]:
    after = 0
    while rows := store.read(rater_stats.judged_rows, after):
        after = rows[-1]["number"]
        yield "".join(
            json.dumps({name: value for name, value in row.items() if name != "number"}, ensure_ascii=False) + "\n"
            for row in rows
        )


def _back(to: str) -> Response:
    return RedirectResponse(to, 303)
