"""The owner's look through what was judged: pairs with their texts, better answers to approve, raters taken out or
renamed, pairs exported."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.background import BackgroundTask

from towpath.data import formats
from towpath.store import audit, pseudonyms, review, takeouts, verdicts
from towpath.store.people import Account
from towpath.store.review import Filter
from towpath.store.store import Store
from towpath.web import pages
from towpath.web.auth import Owner, TheDoor, TheStore

router = APIRouter(prefix="/owner")

Field = Annotated[str, Form(max_length=300)]
Word = Annotated[str, Query(max_length=200)]
Number = Annotated[int, Query(ge=1, le=100_000)]
LAYOUTS = {"jsonl": "application/x-ndjson", "csv": "text/csv"}


@router.get("/pairs")
def judged_pairs(
    request: Request,
    account: Owner,
    store: TheStore,
    text: Word = "",
    rater: Word = "",
    kind: Literal["", "person", "judge", "rule"] = "",
    choice: Literal["", "a", "b", "tie", "both_bad"] = "",
    domain: Word = "",
    having: Literal["", "comment", "written", "flag"] = "",
    page: Number = 1,
) -> HTMLResponse:
    """Judged pairs that match a search, with everything said of them."""
    wanted = Filter(*(word.strip() for word in (text, rater, kind, choice, domain, having)))
    found = store.read(review.judged_pairs, wanted, page)
    asked = {name: value for name, value in request.query_params.items() if name != "page" and value}
    links = {
        name: f"/owner/pairs?{urlencode(asked | {'page': number})}"
        for name, number in (("before", page - 1), ("after", page + 1))
    }
    names = store.read(review.raters)
    return pages.page(
        request,
        "pairs.html",
        account,
        found=found,
        wanted=wanted,
        links=links,
        raters=names,
        domains=store.read(review.domains),
        removed=store.read(takeouts.takeouts),
    )


@router.get("/answers")
def answers(
    request: Request,
    account: Owner,
    store: TheStore,
    state: Literal["waiting", "approved", "declined"] = "waiting",
    page: Number = 1,
) -> HTMLResponse:
    """Better answers that raters wrote: a model learns from those that the owner approves."""
    rows, more = store.read(review.answers, state, page)
    return pages.page(request, "answers.html", account, rows=rows, state=state, number=page, more=more)


@router.post("/answers")
def review_answer(
    account: Owner, store: TheStore, key: Field, state: Annotated[Literal["approved", "declined"], Form()]
) -> Response:
    """Approve a better answer, or decline it."""
    _audited(
        store,
        account,
        "better answer",
        key,
        {"state": state},
        lambda connection: verdicts.review(connection, key, state),
    )
    return _back("/owner/answers")


@router.post("/takeout")
def take_out(request: Request, account: Owner, store: TheStore, rater: Field) -> Response:
    """Retract everything that a rater judged."""
    _audited(
        store, account, "take out", rater, {}, lambda connection: takeouts.take_out(connection, rater, account.name)
    )
    request.app.state.concerns.forget()
    return _back("/owner#takeouts")


@router.post("/restore")
def restore(
    request: Request, account: Owner, store: TheStore, number: Annotated[int, Form(ge=1, le=2**31 - 1)]
) -> Response:
    """Reverse a take-out."""
    _audited(
        store, account, "restore take-out", str(number), {}, lambda connection: takeouts.restore(connection, number)
    )
    request.app.state.concerns.forget()
    return _back("/owner#takeouts")


@router.post("/rename")
def rename(
    account: Owner, store: TheStore, door: TheDoor, name: Field, new: Annotated[str, Form(min_length=1, max_length=40)]
) -> Response:
    """Give a person another name, in the ledger too."""
    _audited(store, account, "rename", name, {"name": new}, lambda connection: pseudonyms.rename(connection, name, new))
    door.forget()
    return _back("/owner/people")


@router.post("/remove")
def remove(account: Owner, store: TheStore, door: TheDoor, name: Field) -> Response:
    """Remove a person: the account goes, and a pseudonym stands in the place of the name."""
    _audited(store, account, "remove person", name, {}, lambda connection: pseudonyms.remove(connection, name))
    door.forget()
    return _back("/owner/people")


@router.get("/export/pairs.{kind}")
def export_pairs(account: Owner, store: TheStore, kind: Literal["jsonl", "csv"]) -> FileResponse:
    """Decided pairs as rows of prompt, chosen and rejected, as a run reads preferences."""
    handle, name = tempfile.mkstemp(suffix=f".{kind}")
    os.close(handle)
    path = Path(name)
    try:
        formats.write_preferences(store, path, "pairs")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    store.submit_write(audit.record, account.name, "export", f"pairs.{kind}").result()
    return FileResponse(
        path,
        media_type=LAYOUTS[kind],
        filename=f"pairs.{kind}",
        background=BackgroundTask(path.unlink, missing_ok=True),
    )


def _audited(
    store: Store, account: Account, action: str, object: str, after: dict[str, Any], work: Callable[[Any], Any]
) -> None:
    """Do what changes something, with its row of the audit log in the same transaction."""
    store.submit_write(audit.recorded, account.name, action, object, after, work).result()


def _back(to: str) -> Response:
    return RedirectResponse(to, 303)
