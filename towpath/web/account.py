"""A user's own account, the owner's page of people, and the audit log."""

from time import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from towpath.errors import DataError
from towpath.store import audit, people, sessions
from towpath.store.people import Account, Role
from towpath.store.store import Store
from towpath.web import pages
from towpath.web.auth import Auth, Owner, SignedIn, StoreDependency, format_error, require_signed_in, require_team
from towpath.web.passwords import MIN_LENGTH

router = APIRouter(dependencies=[Depends(require_signed_in), Depends(require_team)])

Field = Annotated[str, Form(max_length=300)]
Password = Annotated[str, Form(max_length=1000)]
Filter = Annotated[str, Query(max_length=300)]


@router.get("/account")
def account_page(request: Request, account: SignedIn, store: StoreDependency, done: Filter = "") -> HTMLResponse:
    """Show the signed-in account, its sessions and the password form."""
    return _render_account(request, account, store, done=done)


def _render_account(request: Request, account: Account, store: Store, status: int = 200, **more: Any) -> HTMLResponse:
    count, _ = store.read(sessions.open_sessions, time()).get(account.name, (1, 0.0))
    return pages.render_page(request, "account.html", account, status, others=count - 1, shortest=MIN_LENGTH, **more)


@router.post("/account/password")
def change_password(
    request: Request, account: SignedIn, store: StoreDependency, auth: Auth, present: Password, password: Password
) -> Response:
    """Change the password and end all other sessions; the current password is required."""
    device = auth.session_of(request)
    auth.throttle.count_attempt(account.name, "", device)
    if not auth.hasher.verify(account.password, present, known=True):
        return _render_account(request, account, store, 409, error="The current password is wrong.")
    auth.throttle.record_success(account.name, "", device)
    try:
        hashed = auth.hash_password(password, account.name)
    except DataError as error:
        return _render_account(request, account, store, 409, error=format_error(error))
    changed = store.submit_write(_set_password, account.name, hashed).result()
    response = RedirectResponse("/account?done=password", 303)
    auth.start_session(request, response, changed)
    return response


def _set_password(connection: Any, name: str, password: str) -> Account:
    people.set_password(connection, name, password, name)
    account = people.get_account(connection, name)
    assert account is not None
    return account


@router.post("/account/sign-out")
def sign_out_elsewhere(request: Request, account: SignedIn, store: StoreDependency, auth: Auth) -> Response:
    """End all other sessions of the account."""
    store.submit_write(sessions.sign_out, account.name, account.name, auth.session_of(request)).result()
    auth.invalidate_cache()
    return RedirectResponse("/account?done=sessions", 303)


@router.get("/owner/people")
def people_page(request: Request, account: Owner, store: StoreDependency) -> HTMLResponse:
    """List accounts and invitations."""
    return _render_people(request, account, store)


def _render_people(request: Request, account: Account, store: Store, **more: Any) -> HTMLResponse:
    known = [known for known in store.read(people.list_accounts) if known.password]
    now = time()
    return pages.render_page(
        request,
        "people.html",
        account,
        accounts=known,
        sessions=store.read(sessions.open_sessions, now),
        invitations=store.read(people.list_invitations, now),
        **more,
    )


def _link(request: Request, kind: str, token: str) -> str:
    return f"{request.url.scheme}://{request.url.netloc}/{kind}/{token}"


@router.post("/owner/invite")
def invite(request: Request, account: Owner, store: StoreDependency, role: Annotated[Role, Form()]) -> HTMLResponse:
    """Create an invitation link, shown once."""
    token = store.submit_write(people.create_invitation, role, account.name, time()).result()
    return _render_people(request, account, store, link=_link(request, "join", token), role=role)


@router.post("/owner/withdraw")
def withdraw(account: Owner, store: StoreDependency, digest: Field) -> Response:
    """Revoke an invitation."""
    store.submit_write(people.revoke_invitation, digest, account.name).result()
    return RedirectResponse("/owner/people", 303)


@router.post("/owner/account")
def change_account(
    account: Owner,
    store: StoreDependency,
    auth: Auth,
    name: Field,
    role: Annotated[Role, Form()],
    active: Annotated[bool, Form()] = False,
) -> Response:
    """Change the role of an account, close it, or reopen it."""
    store.submit_write(people.change_account, name, role, active, None, account.name).result()
    auth.invalidate_cache()
    return RedirectResponse("/owner/people", 303)


@router.post("/owner/reset")
def offer_reset(request: Request, account: Owner, store: StoreDependency, name: Field) -> HTMLResponse:
    """Create a password reset link, shown once; nothing changes until it is used."""
    token = store.submit_write(people.create_reset, name, account.name, time()).result()
    return _render_people(request, account, store, link=_link(request, "reset", token), reset=name)


@router.post("/owner/sign-out")
def sign_out(account: Owner, store: StoreDependency, auth: Auth, name: Field) -> Response:
    """End all sessions of an account."""
    store.submit_write(sessions.sign_out, name, account.name).result()
    auth.invalidate_cache()
    return RedirectResponse("/owner/people", 303)


@router.get("/owner/audit")
def audit_page(
    request: Request,
    account: Owner,
    store: StoreDependency,
    who: Filter = "",
    action: Filter = "",
    before: Annotated[int, Query(ge=0, le=2**53)] = 0,
) -> HTMLResponse:
    """List audit log entries, newest first."""
    rows = store.read(audit.list_entries, who, action, before)
    accounts, actions = store.read(audit.accounts_and_actions)
    older = rows[-1].number if len(rows) == audit.PAGE_SIZE else 0
    return pages.render_page(
        request,
        "audit.html",
        account,
        rows=rows,
        accounts=accounts,
        actions=actions,
        who=who,
        action=action,
        older=older,
    )
