"""The owner's review: judged pairs, written answers, bulk retraction, renaming and removal of people, export."""

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
from towpath.store.review import PairFilter
from towpath.store.store import Store
from towpath.web import pages
from towpath.web.auth import Auth, Owner, StoreDependency

router = APIRouter(prefix="/owner")

Field = Annotated[str, Form(max_length=300)]
Word = Annotated[str, Query(max_length=200)]
Number = Annotated[int, Query(ge=1, le=100_000)]
MEDIA_TYPES = {"jsonl": "application/x-ndjson", "csv": "text/csv"}


@router.get("/pairs")
def judged_pairs(
    request: Request,
    account: Owner,
    store: StoreDependency,
    text: Word = "",
    rater: Word = "",
    kind: Literal["", "person", "judge", "rule"] = "",
    choice: Literal["", "a", "b", "tie", "both_bad"] = "",
    domain: Word = "",
    having: Literal["", "comment", "written", "flag"] = "",
    page: Number = 1,
) -> HTMLResponse:
    """List judged pairs that match a search."""
    wanted = PairFilter(*(word.strip() for word in (text, rater, kind, choice, domain, having)))
    matches = store.read(review.list_judged_pairs, wanted, page)
    query = {name: value for name, value in request.query_params.items() if name != "page" and value}
    links = {
        name: f"/owner/pairs?{urlencode(query | {'page': number})}"
        for name, number in (("before", page - 1), ("after", page + 1))
    }
    names = store.read(review.list_raters)
    return pages.render_page(
        request,
        "pairs.html",
        account,
        matches=matches,
        wanted=wanted,
        links=links,
        raters=names,
        domains=store.read(review.list_domains),
        removed=store.read(takeouts.list_retractions),
    )


@router.get("/answers")
def answers(
    request: Request,
    account: Owner,
    store: StoreDependency,
    state: Literal["waiting", "approved", "declined"] = "waiting",
    page: Number = 1,
) -> HTMLResponse:
    """List answers that raters wrote, to approve or decline for training."""
    rows, more = store.read(review.list_written_answers, state, page)
    return pages.render_page(request, "answers.html", account, rows=rows, state=state, number=page, more=more)


@router.post("/answers")
def review_answer(
    account: Owner, store: StoreDependency, key: Field, state: Annotated[Literal["approved", "declined"], Form()]
) -> Response:
    """Approve or decline a written answer."""
    _run_audited(
        store,
        account,
        "better answer",
        key,
        {"state": state},
        lambda connection: verdicts.review_written_answer(connection, key, state),
    )
    return _redirect("/owner/answers")


@router.post("/takeout")
def retract_all(request: Request, account: Owner, store: StoreDependency, rater: Field) -> Response:
    """Retract all judgements of a rater."""
    _run_audited(
        store,
        account,
        "retract judgements",
        rater,
        {},
        lambda connection: takeouts.retract_all(connection, rater, account.name),
    )
    request.app.state.rater_reports.invalidate()
    return _redirect("/owner#takeouts")


@router.post("/restore")
def restore(
    request: Request, account: Owner, store: StoreDependency, number: Annotated[int, Form(ge=1, le=2**31 - 1)]
) -> Response:
    """Restore a bulk retraction."""
    _run_audited(
        store, account, "restore judgements", str(number), {}, lambda connection: takeouts.restore(connection, number)
    )
    request.app.state.rater_reports.invalidate()
    return _redirect("/owner#takeouts")


@router.post("/rename")
def rename(
    account: Owner,
    store: StoreDependency,
    auth: Auth,
    name: Field,
    new: Annotated[str, Form(min_length=1, max_length=40)],
) -> Response:
    """Rename a person everywhere in the ledger."""
    _run_audited(
        store, account, "rename", name, {"name": new}, lambda connection: pseudonyms.rename(connection, name, new)
    )
    auth.invalidate_cache()
    return _redirect("/owner/people")


@router.post("/remove")
def remove(account: Owner, store: StoreDependency, auth: Auth, name: Field) -> Response:
    """Delete an account and replace the person's name by a pseudonym."""
    _run_audited(store, account, "remove person", name, {}, lambda connection: pseudonyms.remove(connection, name))
    auth.invalidate_cache()
    return _redirect("/owner/people")


@router.get("/export/pairs.{kind}")
def export_pairs(account: Owner, store: StoreDependency, kind: Literal["jsonl", "csv"]) -> FileResponse:
    """Export decided pairs as rows of prompt, chosen and rejected."""
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
        media_type=MEDIA_TYPES[kind],
        filename=f"pairs.{kind}",
        background=BackgroundTask(path.unlink, missing_ok=True),
    )


def _run_audited(
    store: Store, account: Account, action: str, object: str, after: dict[str, Any], work: Callable[[Any], Any]
) -> None:
    """Run a change with its audit log row in one transaction."""
    store.submit_write(audit.run_audited, account.name, action, object, after, work).result()


def _redirect(to: str) -> Response:
    return RedirectResponse(to, 303)
