"""`towpath people`: accounts on the command line."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from towpath.cli.options import Json, Run, Set, open_store
from towpath.terminal import print_output, print_status

if TYPE_CHECKING:
    from towpath.store.store import Store

people_app = typer.Typer(no_args_is_help=True, help="The accounts of a team server.")

BY = "towpath people"
"""The actor in the audit log: anyone with access to the run's folder or database."""


@people_app.command("list", epilog="Example: towpath people list my-run")
def people_list(run: Run, set_: Set = None, as_json: Json = False) -> None:
    """List accounts with role, open sessions and last use."""
    from datetime import UTC, datetime
    from time import time

    from towpath.store import people, sessions

    _, opened = open_store(run, set_)
    with opened as store:
        accounts = store.read(people.list_accounts)
        open_sessions = store.read(sessions.open_sessions, time())
    rows = []
    for account in accounts:
        count, last_used = open_sessions.get(account.name, (0, 0.0))
        last = datetime.fromtimestamp(last_used, UTC).isoformat(timespec="minutes") if count else ""
        rows.append(
            {
                "name": account.name,
                "role": account.role,
                "active": account.active,
                "sessions": count,
                "last_used": last,
                "made": account.at,
            }
        )
    if as_json:
        print_output(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for row in rows:
        used = f"{row['sessions']} sessions, last used {row['last_used']}" if row["sessions"] else "not signed in"
        print_output(f"{row['name']}: {row['role']}{'' if row['active'] else ', closed'}; {used}")
    if not rows:
        print_output("no accounts; `towpath serve RUN --team` prints a link that creates the owner's account")


@people_app.command("reset", epilog="Example: towpath people reset my-run olga --url https://rate.example.org")
def people_reset(
    run: Run,
    name: Annotated[str, typer.Argument(help="the account", show_default=False)],
    set_: Set = None,
    url: Annotated[str, typer.Option(help="the server's URL, for the link")] = "http://127.0.0.1:8000",
    ask: Annotated[bool, typer.Option("--ask", help="prompt for the new password instead of printing a link")] = False,
) -> None:
    """Reset a password: print a one-time link valid for a day, or prompt for the new password."""
    from time import time

    from towpath.store import people

    _, opened = open_store(run, set_)
    with opened as store:
        if not ask:
            token = store.submit_write(people.create_reset, name, BY, time()).result()
            print_output(f"{url.rstrip('/')}/reset/{token}")
            return
        _require_account(store, name)
        store.submit_write(people.set_password, name, _prompt_password(name), BY, "reset password").result()
    print_status(f"{name}: password changed, all sessions ended")


def _require_account(store: "Store", name: str) -> None:
    from towpath.errors import DataError
    from towpath.store import people

    if store.read(people.get_account, name) is None:
        raise DataError(
            f"{name}: no such account", "only existing accounts can be changed", "see `towpath people list RUN`"
        )


def _prompt_password(name: str) -> str:
    """Prompt twice on a terminal, or read from a pipe, and return the password's hash."""
    from getpass import getpass

    from towpath.errors import DataError
    from towpath.web.passwords import Hasher

    if not sys.stdin.isatty():
        return Hasher().hash(sys.stdin.readline().rstrip("\n"), name)
    password = getpass("new password: ")
    if getpass("again: ") != password:
        raise DataError("the two passwords", "they must be the same", "try again")
    return Hasher().hash(password, name)


@people_app.command("audit", epilog="Example: towpath people audit my-run --account olga")
def people_audit(
    run: Run,
    set_: Set = None,
    account: Annotated[str, typer.Option(help="only actions of this account")] = "",
    action: Annotated[str, typer.Option(help="only this action, such as `sign in failed`")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="maximum number of rows")] = 100,
    as_json: Json = False,
) -> None:
    """Show the audit log, newest last."""
    from dataclasses import asdict

    from towpath.store import audit

    _, opened = open_store(run, set_)
    with opened as store:
        rows = store.read(audit.list_entries, account, action, 0, limit)
    for row in reversed(rows):
        if as_json:
            print_output(json.dumps(asdict(row), ensure_ascii=False))
            continue
        print_output(
            f"{row.at}  {row.account}  "
            f"{row.action}{f' {row.object}' if row.object else ''}{_format_change(row.before, row.after)}"
        )


def _format_change(before: dict[str, object], after: dict[str, object]) -> str:
    parts = [
        f"{name} {before[name]!r} → {after.get(name)!r}" if name in before else f"{name} {after[name]!r}"
        for name in {**before, **after}
    ]
    return f"  ({', '.join(parts)})" if parts else ""
