"""`towpath people …`: accounts from the shell. Parse and call."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from towpath.terminal import print_output, print_status

if TYPE_CHECKING:
    from towpath.store.store import Store

people_app = typer.Typer(no_args_is_help=True, help="The accounts of a team's pages.")

Run = Annotated[Path, typer.Argument(help="the run's folder", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="lay a value over the recipe; may be repeated")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON for scripts")]
BY = "towpath people"
"""Who acts, in the audit log: whoever has the run's folder or its database."""


def _opened(run: Path, set_: list[str] | None) -> "Store":
    from towpath import recipe
    from towpath.store import location
    from towpath.store.store import Store

    return Store.open(location.ledger_location(run, recipe.load(run, set_).store.url))


@people_app.command("list", epilog="Example: towpath people list my-run")
def people_list(run: Run, set_: Set = None, as_json: Json = False) -> None:
    """Accounts with their roles, open sessions, and when they were last used."""
    from datetime import UTC, datetime
    from time import time

    from towpath.store import people, sessions

    with _opened(run, set_) as store:
        known = store.read(people.accounts)
        open_ = store.read(sessions.counts, time())
    rows = []
    for one in known:
        count, seen = open_.get(one.name, (0, 0.0))
        last = datetime.fromtimestamp(seen, UTC).isoformat(timespec="minutes") if count else ""
        rows.append(
            {
                "name": one.name,
                "role": one.role,
                "active": one.active,
                "sessions": count,
                "last_used": last,
                "made": one.at,
            }
        )
    if as_json:
        print_output(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for row in rows:
        used = f"{row['sessions']} sessions, last used {row['last_used']}" if row["sessions"] else "not signed in"
        print_output(f"{row['name']}: {row['role']}{'' if row['active'] else ', closed'}; {used}")
    if not rows:
        print_output("no accounts; `towpath serve RUN --team` prints a link that makes the owner's")


@people_app.command("reset", epilog="Example: towpath people reset my-run olga --url https://rate.example.org")
def people_reset(
    run: Run,
    name: Annotated[str, typer.Argument(help="the account", show_default=False)],
    set_: Set = None,
    url: Annotated[str, typer.Option(help="where the pages are reached, for the link")] = "http://127.0.0.1:8000",
    ask: Annotated[
        bool, typer.Option("--ask", help="ask for the new password here instead of printing a link")
    ] = False,
) -> None:
    """Let someone set their password anew: print a link that is good once, for a day; or ask for the password here."""
    from time import time

    from towpath.store import people

    with _opened(run, set_) as store:
        if not ask:
            token = store.submit_write(people.offer_reset, name, BY, time()).result()
            print_output(f"{url.rstrip('/')}/reset/{token}")
            return
        _require_known(store, name)
        store.submit_write(people.set_password, name, _asked(name), BY, "reset password").result()
    print_status(f"{name}: the password is changed, and every browser signed out")


def _require_known(store: "Store", name: str) -> None:
    from towpath.errors import DataError
    from towpath.store import people

    if store.read(people.account, name) is None:
        raise DataError(
            f"{name}: no such account", "an account that is changed exists", "see `towpath people list RUN`"
        )


def _asked(name: str) -> str:
    """The hash of a password that is typed twice on a terminal, or read from a pipe."""
    from getpass import getpass

    from towpath.errors import DataError
    from towpath.web.passwords import Hasher

    if not sys.stdin.isatty():
        return Hasher().hashed(sys.stdin.readline().rstrip("\n"), name)
    password = getpass("new password: ")
    if getpass("again: ") != password:
        raise DataError("the two passwords", "they must be the same", "try again")
    return Hasher().hashed(password, name)


@people_app.command("audit", epilog="Example: towpath people audit my-run --account olga")
def people_audit(
    run: Run,
    set_: Set = None,
    account: Annotated[str, typer.Option(help="only what this account did")] = "",
    action: Annotated[str, typer.Option(help="only this action, such as `sign in failed`")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="how many rows at most, the newest")] = 100,
    as_json: Json = False,
) -> None:
    """Who changed what on the pages, the newest last."""
    from dataclasses import asdict

    from towpath.store import audit

    with _opened(run, set_) as store:
        rows = store.read(audit.entries, account, action, 0, limit)
    for row in reversed(rows):
        if as_json:
            print_output(json.dumps(asdict(row), ensure_ascii=False))
            continue
        print_output(
            f"{row.at}  {row.account}  "
            f"{row.action}{f' {row.object}' if row.object else ''}{_change(row.before, row.after)}"
        )


def _change(before: dict[str, object], after: dict[str, object]) -> str:
    parts = [
        f"{name} {before[name]!r} → {after.get(name)!r}" if name in before else f"{name} {after[name]!r}"
        for name in {**before, **after}
    ]
    return f"  ({', '.join(parts)})" if parts else ""
